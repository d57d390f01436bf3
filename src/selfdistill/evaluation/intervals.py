"""Intervals over seeds: the mean of several runs with a t interval, corrections for many intervals, and equality.

A percentile bootstrap over three seeds covers the truth in 82 to 89 of 100 cases where it says 95. A t interval on the
means of the seeds covers it as often as it says, and is as wide as three numbers allow.

Axis letters: ``S`` runs (one a seed), ``P`` problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from selfdistill.evaluation.statistics import Vector


@dataclass(frozen=True, slots=True)
class SeedEstimate:
    """A mean over runs, and its confidence interval."""

    value: float
    low: float
    high: float
    sd: float | None
    """Standard deviation of the runs' means; None for a single run."""
    error: float
    """Standard error of ``value``."""
    freedom: float
    """Degrees of freedom of the standard error."""
    family: int
    """Number of intervals that hold together at the confidence; 1 is an interval on its own."""
    k: int
    """Samples of a problem."""
    n: int
    """Problems of all runs."""

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the estimate as plain JSON."""
        return asdict(self)

    def equal_within(self, margin: float, *, confidence: float = 0.95) -> bool:
        """Whether the true mean is within ±``margin``, by two one-sided t tests (TOST) at level 1 − confidence.

        The level is divided by the family, as for the interval. False means that equality is not shown, and not that
        there is a difference. Values without any spread show nothing: no error can be estimated from them.
        """
        if not self.error:
            return False
        reach = self.error * t_quantile(1 - (1 - confidence) / self.family, self.freedom)
        return abs(self.value) + reach < margin


def over_seeds(
    values: Sequence[Sequence[float] | Vector],
    *,
    k: int,
    shared: bool = False,
    family: int = 1,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> SeedEstimate:
    """Return the mean over runs of the mean over problems, with a t interval.

    ``values`` has one row per run and one number per problem. The interval covers other seeds, and other problems if
    every run has drawn its own. It is never narrower than that of all problems by themselves, because few seeds may
    agree by chance. If the runs ``shared`` their problems, the variance between problems is added, from the two-way
    table of runs and problems. With a single run the interval is over its problems, and covers no other seed.

    ``family`` intervals hold together at the confidence, by Bonferroni: each is one of 1 − (1 − confidence) / family.
    ``bounds`` are the lowest and the highest possible mean; the interval ends there.

    Raises:
        ValueError: there are no runs, a run has no problems, there is one number in all, or the confidence is outside
            (0, 1).
    """
    rows = [np.asarray(row, dtype=np.float64) for row in values]
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows) or sum(row.size for row in rows) < 2:
        raise ValueError(
            f"an interval needs two numbers at least, in runs of one or more; got {[r.size for r in rows]}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    sizes = {row.size for row in rows}
    means_S = np.array([math.fsum(row) / row.size for row in rows])
    value = math.fsum(means_S) / means_S.size
    probability = 1 - (1 - confidence) / (2 * family)
    # Every candidate is a standard error with its degrees of freedom; the widest interval is taken.
    if len(rows) == 1:
        candidates = [_within(rows)]
    elif shared and len(sizes) == 1 and sizes != {1}:
        candidates = [_two_way(np.stack(rows))]
    else:
        candidates = [(math.sqrt(float(means_S.var(ddof=1)) / means_S.size), means_S.size - 1.0), _within(rows)]
    error, freedom = max(candidates, key=lambda pair: pair[0] * t_quantile(probability, pair[1]))
    reach = error * t_quantile(probability, freedom)
    return SeedEstimate(
        value=value,
        low=max(value - reach, bounds[0]),
        high=min(value + reach, bounds[1]),
        sd=float(means_S.std(ddof=1)) if len(rows) > 1 else None,
        error=error,
        freedom=freedom,
        family=family,
        k=k,
        n=sum(row.size for row in rows),
    )


def _within(rows: Sequence[Vector]) -> tuple[float, float]:
    """Return the standard error of the mean over runs by their problems alone, and its degrees of freedom."""
    several = [row for row in rows if row.size > 1]
    variance = math.fsum(float(row.var(ddof=1)) / row.size for row in several) / len(rows) ** 2
    return math.sqrt(variance), max(1.0, float(sum(row.size - 1 for row in several)))


def _two_way(values_SP: Vector) -> tuple[float, float]:
    """Return the standard error of the mean over other runs and other problems, and its degrees of freedom.

    The mean squares of runs and of problems both hold the residual's, so it is taken off once. The degrees of freedom
    of the sum are Satterthwaite's. Never less than the variance between runs alone.
    """
    runs, problems = values_SP.shape
    mean = values_SP.mean()
    runs_S1, problems_P = values_SP.mean(1, keepdims=True), values_SP.mean(0)
    residual_SP = values_SP - runs_S1 - problems_P + mean
    freedoms = (runs - 1, problems - 1, (runs - 1) * (problems - 1))
    squares = (
        problems * float(((runs_S1 - mean) ** 2).sum()) / freedoms[0],
        runs * float(((problems_P - mean) ** 2).sum()) / freedoms[1],
        float((residual_SP**2).sum()) / freedoms[2],
    )
    total = squares[0] + squares[1] - squares[2]
    if total <= squares[0]:
        return math.sqrt(squares[0] / values_SP.size), float(freedoms[0])
    spread = sum(square**2 / freedom for square, freedom in zip(squares, freedoms, strict=True))
    return math.sqrt(total / values_SP.size), max(total**2 / spread, float(freedoms[0]))


@lru_cache(maxsize=4096)
def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t with ``freedom`` degrees of freedom, for a probability of at least 1/2.

    With t = √freedom · tan θ the density becomes cos θ to the power freedom − 1, which is summed on a fine grid.
    """
    if freedom > 1e5:
        return NormalDist().inv_cdf(probability)
    angle = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    summed = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    quantile_angle = np.interp(2 * probability - 1, summed / summed[-1], angle)
    return math.sqrt(freedom) * math.tan(float(quantile_angle))
