"""The examples of each step: shuffled epochs, or a curriculum by their estimated success."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfdistill.config.signal import SignalConfig
from selfdistill.sampling.resampling import resampling_cost, share_right
from selfdistill.seeds import batches, derive
from selfdistill.training.problem import epoch_examples
from selfdistill.types import Example, RolloutGroup

UNKNOWN = 0.5
"""Estimated success of a prompt that was never drawn."""
AHEAD = 2
"""A step is drawn before the step ahead of it is sampled, so it knows the outcomes up to two steps before."""


@dataclass(slots=True)
class Order:
    """The examples of every step, with the estimates of a curriculum.

    The examples of step k depend only on the seed and the outcomes of steps up to k − 2, whenever they are drawn. So
    the newest outcomes stay separate from the estimates until every step that must not know them has been drawn.
    """

    examples: Sequence[Example]
    per_step: int
    seed: int
    config: SignalConfig
    success: dict[str, float] = field(default_factory=dict)
    """Estimate by the example's id, without the outcomes in ``newest``."""
    newest: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """Steps with their outcomes, at most the last two."""

    def steps(self, first: int) -> Iterator[list[Example]]:
        """The examples of each step from ``first`` (counted from 1) on."""
        order = batches(len(self.examples), self.per_step, seed=self.seed, first_step=first)
        for step, indices in enumerate(order, start=first):
            chosen = self._draw(step) if self.config.curriculum else indices
            yield epoch_examples(self.examples, chosen, first=(step - 1) * self.per_step)

    def record(self, step: int, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Add the outcomes of a step to the estimates; returns the metrics of resampling and of the curriculum."""
        cost = resampling_cost(groups, self.per_step) if self.config.equal == "resample" else {}
        if not self.config.curriculum:
            return cost
        outcomes: dict[str, float] = {}
        for group in groups:
            share = share_right(group)
            if share is not None:
                outcomes[group.example.id] = share
        self.newest.append((step, outcomes))
        while len(self.newest) > AHEAD:
            self._take(self.success, self.newest.pop(0)[1])
        estimates = self._estimates(step + AHEAD)
        known = [estimates[example.id] for example in self.examples if example.id in estimates]
        return {
            **cost,
            "curriculum_known": len(known) / len(self.examples),
            "curriculum_success": sum(known) / len(known) if known else UNKNOWN,
        }

    def _estimates(self, step: int) -> dict[str, float]:
        """The estimates that the draw of a step may use."""
        estimates = dict(self.success)
        for earlier_step, outcomes in self.newest:
            if earlier_step <= step - AHEAD:
                self._take(estimates, outcomes)
        return estimates

    def _take(self, estimates: dict[str, float], outcomes: dict[str, float]) -> None:
        rate = self.config.curriculum_rate
        for name, share in outcomes.items():
            estimates[name] = (1 - rate) * estimates.get(name, UNKNOWN) + rate * share

    def _draw(self, step: int) -> list[int]:
        """Draw examples without replacement in proportion to s(1−s) + floor; repeat them if the step needs more."""
        estimates = self._estimates(step)
        rng = random.Random(derive(self.seed, "curriculum", step))
        keys = []
        for index, example in enumerate(self.examples):
            s = estimates.get(example.id, UNKNOWN)
            weight = s * (1 - s) + self.config.curriculum_floor
            # The k smallest of such exponential times are k draws without replacement, each in proportion to weight.
            keys.append((rng.expovariate(weight), index))
        drawn = [index for _, index in sorted(keys)]
        return [drawn[n % len(drawn)] for n in range(self.per_step)]

    def state_dict(self) -> dict[str, Any]:
        """The estimates, for a checkpoint."""
        return {"success": self.success, "newest": self.newest}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Load the estimates of a checkpoint. A checkpoint of an earlier version has none."""
        if state is None:
            return
        self.success = dict(state["success"])
        self.newest = [(int(step), dict(outcomes)) for step, outcomes in state["newest"]]
