"""Marks of tests that run model-written code. Skipped tests name the isolation that does not work here."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from selfdistill.sandbox.isolation import Name, trouble

_KINDS: tuple[Name, ...] = ("bubblewrap", "namespaces")
WORKING = [name for name in _KINDS if trouble(name) is None]
"""The isolations that work here, the strongest first."""

needs_isolation = pytest.mark.skipif(not WORKING, reason="; ".join(f"{name}: {trouble(name)}" for name in _KINDS))
"""The mark of a test that any isolation is enough for."""


def isolated_by(name: Name) -> ParameterSet:
    """The parameter of a test that needs this isolation."""
    why = None if name == "none" else trouble(name)
    return pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=f"{name} does not work here: {why}"))
