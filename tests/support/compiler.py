"""Tests that compile for real."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

import pytest

COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
"""What torch would call."""
FOUND = shutil.which(COMPILER) is not None
OWN_WARNING = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
"""Torch's compiler uses what torch deprecates."""


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Skip where there is no compiler."""
    marked: Callable[..., None] = OWN_WARNING(test)
    needed: Callable[..., None] = pytest.mark.skipif(not FOUND, reason=f"the C++ compiler {COMPILER} is not installed")(
        marked
    )
    return needed
