"""The demo's arms exist, are on equal terms within a task, and are the ones that its text names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import HALVES, SETTINGS, Half, arguments
from selfdistill.cli.app import main
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


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.name)
def test_the_command_line_of_a_task_plans_one_run_an_arm(
    half: Half, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments(half, tmp_path, "7"), "--dry-run", "--json"])
    assert ended.value.code == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["seeds"] == [7]
    assert [arm["name"] for arm in planned["arms"]] == list(half.arms)
    assert list(tmp_path.iterdir()) == []
