"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Counters:
    """Progress of a run: steps, tokens, seconds and evaluations. Part of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    latest: dict[str, Any] | None = None
    latest_step: int = 0
    best: dict[str, Any] | None = None
    best_step: int = 0

    def evaluation_seconds_left(self, steps: int, every: int) -> float:
        """Seconds that the remaining evaluations take if each takes as long as the mean of those so far."""
        # The last step is evaluated even if ``every`` does not divide it. The first evaluation came before training.
        left = -(-steps // every) - self.step // every if self.step < steps else 0
        return left * self.seconds.get("evaluation", 0.0) / (1 + self.step // every)
