"""The demo's arms exist, are on equal terms within a task, and are the ones that its text names."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import HALVES, SETTINGS, Half
from selfdistill.comparison.compare import plan


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.name)
def test_the_arms_of_a_task_can_be_compared(half: Half, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"optimiser.learning_rate={half.learning_rate}"]
    comparison = plan(half.arms, settings, seeds=[0], baseline=None, folder=tmp_path)
    assert [arm.name for arm in comparison.arms] == list(half.arms)
    assert comparison.baseline == f"{half.name}-grpo"
    # Which arms learn without rewards is said on the page.
    without = {"toolbox-opsd-first", "countdown-opsd-first", "countdown-purified"}
    assert {arm.name for arm in comparison.arms if not arm.rewards} == without & set(half.arms)
