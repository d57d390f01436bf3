"""The score by which the best checkpoint is chosen."""

from __future__ import annotations

from selfdistill.evaluation.best import score_by


def test_a_larger_score_is_better_and_a_smaller_shift_is() -> None:
    result = {"avg": {"value": 0.25}, "reward": None, "teacher_shift": {"value": 0.5}, "teacher_gap": {"value": 0.125}}
    assert score_by("success", result) == 0.25
    assert score_by("teacher_gap", result) == 0.125
    assert score_by("teacher_shift", result) == -0.5
    assert (score_by("reward", result), score_by("last", result), score_by("success", None)) == (None, None, None)
