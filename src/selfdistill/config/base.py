"""Load user objects by import path, ``package.module:name``. The working directory is searched too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdistill.errors import ConfigError


def load_named(spec: str, what: str, kind: str) -> Any:
    """The object at ``"package.module:name"``. Error messages name its purpose ``what`` and its ``kind``.

    Raises:
        ConfigError: the path is malformed, or the module or name does not exist.
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
