"""Things of the user's own by import path: ``package.module:name``, found in the working folder as well."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdistill.errors import ConfigError


def load_named(spec: str, what: str, kind: str) -> Any:
    """What ``"package.module:name"`` names; messages say ``what`` it is for, and what ``kind`` of thing it should be.

    Raises:
        ConfigError: the text is no such path, or module or name are missing.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"{what} {spec!r} must be written 'package.module:{kind}'")
    try:
        with _working_folder_on_path():
            module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{what} {spec!r}: module {module_name!r} cannot be imported ({error})") from error
    if attribute not in vars(module):
        raise ConfigError(f"{what} {spec!r}: module {module_name!r} has no {kind} {attribute!r}")
    return vars(module)[attribute]


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    folder = str(Path.cwd())
    if folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
