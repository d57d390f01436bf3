"""The measure that a run is told by: the metric by which its best checkpoint is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers


@dataclass(frozen=True, slots=True)
class Measure:
    """An estimate of an evaluation, under ``key``, and the words and the formats in which it is shown."""

    key: str
    name: str
    """Its name in a table; that of an accuracy takes its k."""
    title: str
    """The title of its curve."""
    asked: str
    """What the headline measures."""
    share: bool = False
    """Whether it is shown in percent."""
    falls: bool = False
    """Whether a smaller value is better."""

    def level(self, value: float | None) -> str:
        """Return a level as text."""
        return numbers.percent(value) if self.share else numbers.plain(value)

    def span(self, low: float | None, high: float | None) -> str:
        """Return the interval of a level as text; empty if an end is missing."""
        return numbers.percent_range(low, high) if self.share else numbers.plain_range(low, high)

    def change(self, difference: float) -> str:
        """Return a difference with its sign: ``+21.1 points`` of a share, ``+0.181`` of anything else."""
        return f"{self.signed(difference)} points" if self.share else self.signed(difference)

    def signed(self, difference: float) -> str:
        """Return a difference without its unit."""
        return numbers.signed(100 * difference if self.share else difference, decimals=1 if self.share else 3)

    def name_of(self, scores: Sequence[Row]) -> str:
        """Return the name in a table: ``avg@8`` for an accuracy."""
        if self.key not in ACCURACIES:
            return self.name
        k = next((k for score in scores if (k := numbers.number(score.get("k"))) is not None), None)
        return f"{self.name}@{'k' if k is None else numbers.whole(k)}"


ACCURACIES = ("avg", "pass", "maj")
"""Keys of the accuracies of an evaluation."""
MEASURES: Mapping[str, Measure] = {
    "success": Measure("avg", "avg", "Held-out accuracy", "Solved on held-out problems", share=True),
    "reward": Measure("reward", "Mean reward", "Held-out mean reward", "Mean reward on held-out problems"),
    "loglikelihood": Measure(
        "loglikelihood",
        "Log-likelihood of references, nats a token",
        "Held-out log-likelihood of references",
        "Log-likelihood of held-out references, nats a token",
    ),
    "teacher_gap": Measure(
        "teacher_gap",
        "Teacher's log-likelihood above it",
        "Teacher's log-likelihood above the student's",
        "Teacher's gap on held-out references, nats a token",
    ),
    "teacher_shift": Measure(
        "teacher_shift",
        "Teacher's shift on own completions, nats a token",
        "Teacher's shift on own completions",
        "Teacher's shift on own completions, nats a token",
        falls=True,
    ),
}
"""By the value of ``evaluation.best``."""


def measure_of(config: Mapping[str, Any], summary: Row, evaluations: Sequence[Row]) -> Measure:
    """Return the measure of a run: that of its summary, else the one that its config names or implies.

    Where every mean reward equals the share of right completions, as with rewards of 0 and 1, it is shown as accuracy.
    """
    by = str(summary.get("best_by") or table(config, "evaluation").get("best"))
    reward = table(config, "reward")
    if by not in MEASURES:
        by = "reward" if reward.get("function") or reward.get("judge") else "success"
    return MEASURES["reward" if graded(evaluations) else "success"] if by == "reward" else MEASURES[by]


def graded(evaluations: Sequence[Row]) -> bool:
    """Whether a mean reward differs from the share of right completions in one of these evaluations."""
    pairs = [(_value(row, "reward"), _value(row, "avg")) for row in evaluations]
    return any(reward is not None and reward != accuracy for reward, accuracy in pairs)


def table(config: Mapping[str, Any], key: str) -> Row:
    """Return a table of a config; empty if it is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _value(evaluation: Row, key: str) -> float | None:
    return numbers.number(table(evaluation, key).get("value"))
