"""Which cases of every method `make test` runs; `make test-long` runs the others, which take minutes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

QUICK = ("grpo", "antisd", "sdpo", "credit", "purified", "pbsd", "hdpo", "skill_sd")
"""Methods that differ most in what a step does: no teacher, an advantage, a divergence, several contexts, frozen
weights, a teacher that samples always or on demand, and a snapshot with notes of earlier steps."""


def quick_first(names: Iterable[str], quick: Iterable[str] = QUICK) -> list[Any]:
    """The names as parameters of a test; all but the quick ones are marked as long."""
    chosen = set(quick)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.long) for name in names]
