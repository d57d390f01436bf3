"""A switch with hysteresis that protects the teacher's entropy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any


class EntropyGate:
    """Opens after a warm-up, closes when the teacher's entropy falls, opens again once it is back (arXiv 2605.11609).

    The first ``warmup`` updates record the entropy H with the gate closed; H_warm is their median (our choice, the
    paper leaves it open). From the next update on the gate is open; it closes when H < ``ratio`` · H_warm and opens
    again when H ≥ H_warm. The first update after the warm-up already obeys the closing rule.

    The gate is training state: save ``state_dict()``, which is plain JSON, with every checkpoint.

    Example: ``EntropyGate(warmup=1, ratio=0.5)`` fed 1.0, 0.8, 0.4, 0.8, 1.0 answers False, True, False, False, True.
    """

    def __init__(self, warmup: int = 5, ratio: float = 0.93) -> None:
        """Raise ValueError unless warmup is at least 1 and 0 < ratio <= 1."""
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1 update, got {warmup}")
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
        self._warmup = warmup
        self._ratio = ratio
        self._recorded: list[float] = []
        self._warm_up_just_ended = False
        self._open = False

    @property
    def open(self) -> bool:
        """The result of the last update; False before the first."""
        return self._open

    @property
    def warm_entropy(self) -> float | None:
        """H_warm in nats, the median of the recorded entropies; None during the warm-up."""
        return statistics.median(self._recorded) if len(self._recorded) == self._warmup else None

    def update(self, entropy: float) -> bool:
        """Take one step's entropy (nats: the median over its response tokens); return whether the gate is open.

        Raises ValueError for an entropy that is not a finite number: a step without response tokens has none, and must
        not be passed.
        """
        if not math.isfinite(entropy):
            raise ValueError(f"entropy must be a finite number, got {entropy}")
        warm_entropy = self.warm_entropy
        if warm_entropy is None:
            self._recorded.append(float(entropy))
            self._warm_up_just_ended = len(self._recorded) == self._warmup
            return False
        was_open = self._open or self._warm_up_just_ended
        self._warm_up_just_ended = False
        self._open = entropy >= (self._ratio * warm_entropy if was_open else warm_entropy)
        return self._open

    def state_dict(self) -> dict[str, Any]:
        """The state needed to continue, as plain JSON values."""
        return {
            "warmup": self._warmup,
            "ratio": self._ratio,
            "recorded": list(self._recorded),
            "warm_up_just_ended": self._warm_up_just_ended,
            "open": self._open,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from another gate's state; ValueError if its warm-up or ratio differs, or on unknown keys."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"gate state needs the keys {sorted(self.state_dict())}, got {sorted(state)}")
        if (state["warmup"], state["ratio"]) != (self._warmup, self._ratio):
            raise ValueError(
                f"the saved gate has warmup {state['warmup']} and ratio {state['ratio']}, "
                f"this one {self._warmup} and {self._ratio}"
            )
        self._recorded = [float(value) for value in state["recorded"]]
        self._warm_up_just_ended = bool(state["warm_up_just_ended"])
        self._open = bool(state["open"])
