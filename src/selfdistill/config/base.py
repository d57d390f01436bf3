"""Load user objects by import path, ``package.module:name``. The working directory is searched too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from selfdistill.errors import ConfigError


def load_named(spec: str, purpose: str, kind: str) -> Any:
    """The object at ``"package.module:name"``. Error messages name its ``purpose`` and its ``kind``.

    Raises:
        ConfigError: the path is malformed, the module cannot be imported, or it has no such name.
    """
    module, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ConfigError(f"{purpose} {spec!r} must be written 'package.module:{kind}'")
    try:
        with working_folder_on_path():
            loaded: Any = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{purpose} {spec!r}: module {module!r} cannot be imported ({error})") from error
    # Importing runs the user's code, which may raise anything.
    except (Exception, SystemExit) as error:
        raised = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(f"{purpose} {spec!r}: module {module!r} cannot be imported, it raised {raised}") from error
    try:
        return attrgetter(name)(loaded)
    except AttributeError as error:
        raise ConfigError(f"{purpose} {spec!r}: module {module!r} has no {kind} {name!r}") from error


@contextmanager
def working_folder_on_path() -> Iterator[None]:
    """Let modules of the working folder be imported, after all others."""
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
