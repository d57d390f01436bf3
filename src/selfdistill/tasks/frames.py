"""What code of the user raised, as one sentence with the user's own frames."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

from selfdistill.errors import UserError, first_line

_OURS = Path(__file__).resolve().parents[1]
_FRAMES = 6


def raised_in(label: str, error: BaseException, *, place: str = "") -> UserError:
    """The sentence: what ``label`` raised, and the frames that are not ours, else the ``place`` of its definition."""
    aside = (_OURS, Path(asyncio.__file__).parent)
    frames = [
        f"{shown_path(frame.filename)}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).resolve().is_relative_to(folder) for folder in aside)
    ]
    text = first_line(error) if isinstance(error, Exception) else ""
    what = type(error).__name__ if text in ("", type(error).__name__) else f"{type(error).__name__}: {text}"
    where = ", ".join(frames[-_FRAMES:]) or place
    return UserError(f"{label} raised {what}" + (f" ({where})" if where else ""))


def shown_path(file: str) -> str:
    """A file's path as a message shows it: relative where it is below the working folder."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file
