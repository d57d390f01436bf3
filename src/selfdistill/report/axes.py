"""Axes of charts: their ranges, their ticks and the labels of the ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfdistill.report import numbers

Scale = Literal["linear", "log", "tails", "signed"]
"""The scale of an axis. ``tails`` is for percentiles and widens both ends, like probability paper; ``signed`` is
logarithmic in both directions from zero."""


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its range and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    scale: Scale = "linear"
    near_zero: float = 1.0
    """On a signed scale, the size below which it is linear."""

    def place(self, value: float, start: float, end: float) -> float:
        """Return the coordinate of a value; ``start`` and ``end`` are the coordinates of the low and the high end."""
        low, scaled, high = (self._stretched(point) for point in (self.low, value, self.high))
        share = (scaled - low) / (high - low)
        return start + share * (end - start)

    def holds(self, value: float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= value <= self.high

    def _stretched(self, value: float) -> float:
        match self.scale:
            case "log":
                return math.log(value)
            case "tails":
                return math.log(value / (100 - value))
            case "signed":
                return math.copysign(math.log1p(abs(value) / self.near_zero), value)
        return value


def nice_step(span: float, *, parts: int) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 × 10ⁿ that divides the span into at most ``parts``."""
    rough = span / parts
    power = 10.0 ** math.floor(math.log10(rough))
    # The tolerance of 1e-9 makes 0.3 / 3 count as 0.1 despite rounding.
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def linear_axis(
    low: float, high: float, *, parts: int = 4, floor: float = -math.inf, ceiling: float = math.inf
) -> Axis:
    """Return an axis with round ends around ``[low, high]``, within floor and ceiling. A constant series is padded."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        padding = abs(low) / 10 or 0.5
        low, high = low - padding, high + padding
    low, high = max(low, floor), min(high, ceiling)
    step = nice_step(high - low, parts=parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * i, 12) for i in range(first, last + 1))
    ticks = tuple(tick for tick in ticks if floor - 1e-9 <= tick <= ceiling + 1e-9)
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """Return a logarithmic axis around positive values, with powers of ten as ticks."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = max(1, math.ceil((last - first) / 5))
    return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), scale="log")


def tail_axis() -> Axis:
    """Return an axis of percentiles from 0.1 to 99.9 that widens both ends."""
    return Axis(0.1, 99.9, (0.1, 1.0, 10.0, 50.0, 90.0, 99.0, 99.9), scale="tails")


def signed_axis(low: float, high: float) -> Axis:
    """Return an axis that is logarithmic in both directions from zero, and linear below a hundredth of its range."""
    largest = max(abs(low), abs(high))
    if largest == 0:
        return linear_axis(low, high)
    power = 10.0 ** math.floor(math.log10(largest))
    sizes = [power / 10, power, *([5 * power] if largest >= 5 * power else [])]
    ticks = [round(sign * size, 12) for sign in (-1, 1) for size in sizes] + [0.0]
    low, high = min(low, 0.0), max(high, 0.0)
    inside = tuple(sorted(tick for tick in ticks if low * (1 + 1e-9) <= tick <= high * (1 + 1e-9)))
    return Axis(low, high, inside, scale="signed", near_zero=power / 100)


def step_axis(steps: Sequence[float], *, planned: float | None = None) -> Axis:
    """Return an axis from the first to the last step, or to the ``planned`` one if that is later, with integer ticks.

    Raises:
        ValueError: there are no steps.
    """
    if not steps:
        raise ValueError("a chart needs at least one number")
    low, high = min(steps), max([*steps, *([] if planned is None else [planned])])
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    every = max(1.0, nice_step(high - low, parts=6))
    every = math.ceil(every)
    ticks = tuple(float(tick) for tick in range(math.ceil(low / every) * every, math.floor(high) + 1, every))
    return Axis(low, high, ticks)


def tick_words(ticks: Sequence[float], *, share: bool = False, scale: Scale = "linear") -> list[str]:
    """Return tick labels that differ, with equal numbers of decimals: 0, 0.25 and 0.5 become ``0.00 0.25 0.50``."""
    if scale != "linear":
        return [f"{tick:z,g}".replace("-", numbers.MINUS) for tick in ticks]
    values = [100 * tick for tick in ticks] if share else list(ticks)
    if not share and any(0 < abs(value) < 0.001 for value in values):
        words = [[f"{value:.{digits}e}" if value else "0" for value in values] for digits in range(8)]
        exact = next((row for row in words if len(set(row)) == len(row)), words[-1])
        return [word.replace("-", numbers.MINUS) for word in exact]
    decimals = next(d for d in range(8) if all(abs(v - round(v, d)) < 1e-9 for v in values) or d == 7)
    return [f"{value:z,.{decimals}f}{'%' if share else ''}".replace("-", numbers.MINUS) for value in values]


def count_words(ticks: Sequence[float]) -> list[str]:
    """Return the labels of ticks on an axis of steps or tokens: short (``40k``) where the short forms differ."""
    short = [numbers.compact(tick) for tick in ticks]
    return short if len(set(short)) == len(short) else [numbers.whole(tick) for tick in ticks]
