"""Turn an exception in the user's code into one sentence with the user's stack frames."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfdistill.errors import UserError, first_line

_OURS = Path(__file__).resolve().parents[1]
_FRAMES = 6


def raised_in(label: str, error: BaseException, *, definition: str = "") -> UserError:
    """The error: what ``label`` raised, with the user's stack frames, or else ``definition``, where it is defined."""
    aside = (_OURS, Path(asyncio.__file__).parent)
    frames = [
        f"{shown_path(frame.filename)}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).resolve().is_relative_to(folder) for folder in aside)
    ]
    text = first_line(error) if isinstance(error, Exception) else ""
    exception = type(error).__name__ if text in ("", type(error).__name__) else f"{type(error).__name__}: {text}"
    where = ", ".join(frames[-_FRAMES:]) or definition
    return UserError(f"{label} raised {exception}" + (f" ({where})" if where else ""))


@contextmanager
def errors_of(label: str) -> Iterator[None]:
    """Turn what the code of ``label`` raises here into one sentence.

    Raises:
        UserError: names ``label``, or is one that was raised here.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise raised_in(label, error) from error


def shown_path(file: str) -> str:
    """A file's path for messages, relative if the file is below the working folder."""
    path, working_folder = Path(file), Path.cwd()
    return str(path.relative_to(working_folder)) if path.is_relative_to(working_folder) else file
