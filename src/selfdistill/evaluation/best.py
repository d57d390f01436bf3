"""The metric by which a run chooses its best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config.sections import BestBy
from selfdistill.errors import ConfigError
from selfdistill.tasks.reward import RewardedTask
from selfdistill.types import Task

KEYS: Mapping[str, str] = {"success": "avg"}
"""Metrics whose key in an evaluation is not their name."""


def best_by(named: BestBy | None, task: Task) -> BestBy:
    """The metric that ``evaluation.best`` names, or the task's default.

    The default is the mean reward where reward functions judge, success where a verifier does, and the newest
    evaluation where nothing is judged.

    Raises:
        ConfigError: the metric needs rewards, and nothing is judged in this task.
    """
    if named is None:
        functions = isinstance(task, RewardedTask) and task.names
        return "reward" if functions else "success" if task.has_verifier else "last"
    if named in ("success", "reward") and not task.has_verifier:
        raise ConfigError(
            f"evaluation.best = {named!r}, but nothing is judged in this task: name 'loglikelihood', 'teacher_gap', "
            "'teacher_shift' or 'last'"
        )
    return named


def score_by(metric: BestBy, evaluation: Mapping[str, Any] | None) -> float | None:
    """The score of an evaluation, larger for a better one; None where it lacks the metric, and for ``"last"``."""
    estimate = None if evaluation is None else evaluation.get(KEYS.get(metric, metric))
    if estimate is None:
        return None
    return float(-estimate["value"] if metric == "teacher_shift" else estimate["value"])
