"""The metrics of a run, by name, as its alarms read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True, slots=True)
class Scored:
    """An evaluation with the mean training reward of the window before it (None before the first step)."""

    step: int
    levels: Mapping[str, tuple[float, float]]
    """``"accuracy"`` and ``"mean reward"``, each with the upper end of its interval. A run without rewards by problem
    has the first alone."""
    reward: float | None


class History:
    """The metrics of a run by name, oldest first. A metric that the newest line lacks raises no alarm at that line.

    ``right`` says when a completion is right, and ``by`` is the metric that chooses the best checkpoint.
    """

    def __init__(self, right: str, by: str = "success") -> None:
        self.step, self.right, self.by = 0, right, by
        self.evaluations: list[Scored] = []
        self._columns: dict[str, list[float]] = {}
        self._newest: Collection[str] = ()

    def add(self, line: Mapping[str, Any], *, window: int) -> None:
        """Add a line of metrics. Step 0 is the evaluation before training."""
        self.step = int(line["step"])
        numbers = {key: number for key, value in line.items() if (number := _number(value)) is not None}
        for key, number in numbers.items():
            self._columns.setdefault(key, []).append(number)
        self._newest = {*numbers}
        evaluation = line.get("evaluation")
        # An evaluation that judged nothing has no accuracy, and nothing to be judged by.
        score = evaluation["avg"] if isinstance(evaluation, Mapping) else None
        if isinstance(evaluation, Mapping) and score is not None:
            self._newest.add("evaluation")
            rewards = self._columns.get("reward", [])[-window:]
            reward = fmean(rewards) if rewards else None
            estimates = {"accuracy": score, "mean reward": evaluation.get("reward")}
            levels = {name: (each["value"], each["high"]) for name, each in estimates.items() if each is not None}
            self.evaluations.append(Scored(self.step, levels, reward))

    @property
    def told(self) -> str:
        """What evaluations are told by: ``"mean reward"`` if that chooses the best and is not the accuracy in each."""
        levels = [evaluation.levels for evaluation in self.evaluations]
        if self.by != "reward" or not all("mean reward" in each for each in levels):
            return "accuracy"
        return "mean reward" if any(each["mean reward"][0] != each["accuracy"][0] for each in levels) else "accuracy"

    def new(self, key: str) -> bool:
        """Whether the newest line has this metric."""
        return key in self._newest

    def of(self, key: str, *, least: int = 1) -> list[float]:
        """Return all numbers of a metric; empty if the newest line lacks it or there are fewer than ``least``."""
        numbers = self._columns.get(key, []) if key in self._newest else []
        return numbers if len(numbers) >= least else []


def _number(value: object) -> float | None:
    # The file has null for a number that was not finite; a resumed run must treat both alike.
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
