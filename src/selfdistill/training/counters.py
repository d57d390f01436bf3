"""How far a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Counters:
    """Progress of a run: steps, tokens, completions, seconds and evaluations. Part of every checkpoint."""

    step: int = 0
    tokens: int = 0
    completions: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    latest: dict[str, Any] | None = None
    latest_step: int = 0
    best: dict[str, Any] | None = None
    best_step: int = 0

    def add(self, tokens: int, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Add a step's tokens and its seconds by phase; returns the seconds as the step's line has them."""
        self.tokens += tokens
        for phase, spent in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
        return {
            "phase_seconds": {phase: round(spent, 4) for phase, spent in seconds.items()},
            "seconds": round(sum(seconds.values()), 4),
        }

    def planned(self, steps: int, most: int | None, *, each: int) -> int:
        """How many steps there will be: at most ``steps``, and no more than ``most`` completions have room for.

        A step draws ``each`` completions or more, so with every step the number may fall.
        """
        return steps if most is None else min(steps, self.step + (most - self.completions) // each)

    def evaluation_seconds_left(self, steps: int, every: int) -> float:
        """Seconds that the remaining evaluations take if each takes as long as the mean of those so far."""
        # The last step is evaluated even if ``every`` does not divide it. The first evaluation came before training.
        left = -(-steps // every) - self.step // every if self.step < steps else 0
        return left * self.seconds.get("evaluation", 0.0) / (1 + self.step // every)

    def summary(self, *, has_best: bool) -> dict[str, Any]:
        """What ``summary.json`` says of them. Without ``has_best`` no evaluation has the metric of the best one."""
        # Evaluations are no training speed. The terminal divides by the same seconds.
        training = sum(spent for phase, spent in self.seconds.items() if phase != "evaluation")
        return {
            "steps": self.step,
            "before": self.before,
            "after": self.latest,
            "after_step": self.latest_step,
            "best": self.best if has_best else None,
            "best_step": self.best_step if has_best else None,
            "seconds": {phase: round(spent, 3) for phase, spent in self.seconds.items()},
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens / training, 2) if training else None,
        }
