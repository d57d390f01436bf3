"""Axes of charts: their ranges, their ticks, and the words of the ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.report import numbers


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its range and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Return the coordinate of a value; ``start`` and ``end`` are the coordinates of the low and the high end."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return start + share * (end - start)


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
    return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), log=True)


def step_axis(steps: Sequence[float]) -> Axis:
    """Return an axis from the first to the last step, with integer ticks.

    Raises:
        ValueError: there are no steps.
    """
    if not steps:
        raise ValueError("a chart needs at least one number")
    low, high = min(steps), max(steps)
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    every = max(1.0, nice_step(high - low, parts=6))
    every = math.ceil(every)
    ticks = tuple(float(tick) for tick in range(math.ceil(low / every) * every, math.floor(high) + 1, every))
    return Axis(low, high, ticks)


def tick_words(ticks: Sequence[float], *, share: bool = False, log: bool = False) -> list[str]:
    """Return tick labels with equal numbers of decimals: 0, 0.25 and 0.5 become ``0.00 0.25 0.50``."""
    if log:
        return [f"{tick:,g}".replace("-", numbers.MINUS) for tick in ticks]
    values = [100 * tick for tick in ticks] if share else list(ticks)
    if not share and any(0 < abs(value) < 0.001 for value in values):
        return [f"{value:.0e}".replace("-", numbers.MINUS) if value else "0" for value in values]
    decimals = next(d for d in range(8) if all(abs(v - round(v, d)) < 1e-9 for v in values) or d == 7)
    return [f"{value:,.{decimals}f}{'%' if share else ''}".replace("-", numbers.MINUS) for value in values]
