"""In the place of kill -9: a process that dies before its n-th change to the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

CHANGES = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree"))


class Killed(BaseException):
    """Nothing may catch it."""


class Disk:
    """Counts what changes the disk for good, and dies before change number ``last``, if one is given."""

    def __init__(self, patch: pytest.MonkeyPatch, *, last: int | None = None) -> None:
        self.changes = 0
        self.last = last
        for module, name in CHANGES:
            patch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.changes += 1
            if self.changes == self.last:
                raise Killed
            return function(*arguments, **options)

        return counted
