"""`pytest --list-deprecations`: warnings that libraries emit are listed at the end by library and fail nothing.

For `make test-latest`. Our own code's warnings stay errors. A library's warning is told from ours by the module that
calls ``warnings.warn``, since its ``stacklevel`` often points at the caller.
"""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DEPRECATIONS = ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
WRAPPERS = ("typing_extensions", "warnings", "_py_warnings")
"""Modules whose ``deprecated`` decorator warns in the name of another library."""

Key = tuple[str, str, str]
"""Library, category and first line of a message."""


class Listing:
    """Counts the warnings that libraries emit, in this process and in xdist's workers, and lists them at the end."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()
        self._warn = warnings.warn

    def install(self) -> None:
        """Replace ``warnings.warn`` by a function that counts what libraries emit and passes on what we emit."""

        def warn(message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **options: Any) -> None:
            frame = sys._getframe(1)
            kind = type(message) if isinstance(message, Warning) else category or UserWarning
            # A function under @deprecated is called through a wrapper, which holds it under this name.
            deprecated = frame.f_locals.get("arg") if Path(frame.f_code.co_filename).stem in WRAPPERS else None
            library = deprecated.__module__.partition(".")[0] if deprecated else library_of(frame.f_code.co_filename)
            if library is not None:
                self.counts[library, kind.__name__, str(message).strip().splitlines()[0]] += 1
            elif kind.__name__ in DEPRECATIONS:
                # The filters let deprecations pass, for C code's sake; ours are errors as all our warnings are.
                raise kind(message)
            else:
                self._warn(message, category, stacklevel + 1, source, **options)

        warnings.warn = warn

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Count a deprecation that C code emitted: it never calls ``warnings.warn``."""
        library = library_of(warning_message.filename) or "C code called by a test"
        message = str(warning_message.message).strip().splitlines()[0]
        self.counts[library, warning_message.category.__name__, message] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand a worker's counts to the process that reports."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["deprecations"] = [[*key, count] for key, count in self.counts.items()]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add a worker's counts."""
        for library, kind, message, count in getattr(node, "workeroutput", {}).get("deprecations", ()):
            self.counts[library, kind, message] += count

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List what was counted, a library at a time."""
        terminalreporter.section("warnings of libraries (they fail nothing)")
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> list[str]:
        """The list: a library's name with its warnings below it, deprecations first, each with how often it came."""
        if not self.counts:
            return ["none"]
        lines = []
        for library in sorted({key[0] for key in self.counts}):
            lines.append(f"{library}:")
            found = [key for key in self.counts if key[0] == library]
            for key in sorted(found, key=lambda key: (key[1] not in DEPRECATIONS, key)):
                lines.append(f"  {key[1]}, {self.counts[key]} times: {key[2]}")
        return lines


def library_of(filename: str) -> str | None:
    """The library that a source file belongs to, None for a file of this project.

    A file below ``site-packages`` names its package; the standard library is called ``python``.
    """
    path = Path(filename)
    for place in ("site-packages", "dist-packages"):
        if place in path.parts:
            return path.parts[path.parts.index(place) + 1].removesuffix(".py")
    return "python" if path.is_relative_to(sysconfig.get_path("stdlib")) else None
