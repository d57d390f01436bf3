"""Load user objects by import path, ``package.module:name``. The working directory is searched too."""

from __future__ import annotations

import pkgutil
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
    module, colon, name = spec.partition(":")
    malformed = ConfigError(f"{what} {spec!r} must be written 'package.module:{kind}'")
    if not (module and colon and name):
        raise malformed
    try:
        with _working_folder_on_path():
            return pkgutil.resolve_name(spec)
    except ValueError as error:
        raise malformed from error
    except AttributeError as error:
        raise ConfigError(f"{what} {spec!r}: module {module!r} has no {kind} {name!r}") from error
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"{what} {spec!r}: module {module!r} cannot be imported ({error})") from error


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
