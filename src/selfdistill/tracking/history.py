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
    accuracy: float
    high: float
    reward: float | None


class History:
    """The metrics of a run by name, oldest first. A metric that the newest line lacks raises no alarm at that line."""

    def __init__(self, right: str) -> None:
        self.step, self.right = 0, right
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
        if score is not None:
            self._newest.add("evaluation")
            rewards = self._columns.get("reward", [])[-window:]
            reward = fmean(rewards) if rewards else None
            self.evaluations.append(Scored(self.step, score["value"], score["high"], reward))

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
