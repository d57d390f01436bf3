"""Accuracy over several samples per problem, with intervals: avg@k, unbiased pass@k, maj@k and paired differences.

Every measure is first one number per problem, then its mean. Intervals are percentile bootstraps over problems: they
estimate the variation over other problems of the same kind, not over other samples of the same problems.

Axis letters: ``P`` problems, ``K`` samples of a problem, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``n`` problems with ``k`` samples each, and its confidence interval."""

    value: float
    low: float
    high: float
    k: int
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """Return the estimate as plain JSON."""
        return asdict(self)


def average(
    rewards: Sequence[Sequence[float]], *, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Estimate avg@k: the mean reward over problems of equal weight, with ``k`` samples each.

    Raises:
        ValueError: there are no problems, or the problems have different numbers of samples.
    """
    k = _samples(rewards)
    return bootstrap(average_per_problem(rewards), k=k, seed=seed, confidence=confidence, resamples=resamples)


def pass_at(
    correct: Sequence[Sequence[bool]], k: int, *, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Estimate pass@k: the probability that at least one of ``k`` samples is correct, unbiased from n ≥ k samples.

    Raises:
        ValueError: there are no problems, or a problem has fewer than ``k`` samples.
    """
    return bootstrap(pass_per_problem(correct, k), k=k, seed=seed, confidence=confidence, resamples=resamples)


def pass_curve(
    correct: Sequence[Sequence[bool]], *, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> list[Estimate]:
    """Estimate pass@k for k = 1, 2, 4 … and for all samples of a problem, of which each k has the same.

    Raises:
        ValueError: there are no problems, or the problems have different numbers of samples.
    """
    sizes = curve_sizes(_samples(correct))
    return [pass_at(correct, k, seed=seed, confidence=confidence, resamples=resamples) for k in sizes]


def curve_sizes(samples: int) -> list[int]:
    """Return the k of a curve of pass@k: 1, 2, 4 … and all samples."""
    return sorted({samples, *(2**power for power in range(samples.bit_length()))})


def majority(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[Sequence[bool]],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Estimate maj@k: the probability that the majority answer among ``k`` samples is correct.

    Raises:
        ValueError: there are no problems, or the problems have different numbers of samples.
    """
    k = _samples(answers)
    values_P = majority_per_problem(answers, correct)
    return bootstrap(values_P, k=k, seed=seed, confidence=confidence, resamples=resamples)


def paired_difference(
    before: Sequence[float] | Vector,
    after: Sequence[float] | Vector,
    *,
    k: int,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """Estimate the mean of after − before, paired per problem.

    An interval that excludes 0 is evidence of a difference. Two separate intervals may overlap even so.

    Raises:
        ValueError: the two have different numbers of problems.
    """
    before_P, after_P = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_P.shape != after_P.shape:
        raise ValueError(
            f"a paired difference needs the same problems, got {before_P.size} before and {after_P.size} after"
        )
    return bootstrap(after_P - before_P, k=k, seed=seed, confidence=confidence, resamples=resamples)


def average_per_problem(rewards: Sequence[Sequence[float]]) -> Vector:
    """Return the mean reward of each problem."""
    _samples(rewards)
    values_P: Vector = np.asarray(rewards, dtype=np.float64).mean(axis=1)
    return values_P


def pass_per_problem(correct: Sequence[Sequence[bool]], k: int) -> Vector:
    """Return 1 − C(n−c, k) / C(n, k) for each problem with c correct of n samples. Problems may differ in n.

    Raises:
        ValueError: ``k`` is not in 1..n for some problem.
    """
    fewest = min((len(samples) for samples in correct), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(f"pass@{k} needs 1 ≤ k ≤ the number of samples, which is {fewest} for some problem")
    drawn_P = np.array([len(samples) for samples in correct], dtype=np.float64)
    wrong_P = drawn_P - np.array([sum(map(bool, samples)) for samples in correct], dtype=np.float64)
    # C(n−c, k) / C(n, k) as a product of k ratios ≤ 1, because the binomials themselves overflow near n = 1000.
    all_wrong_P = np.ones_like(drawn_P)
    for i in range(k):
        all_wrong_P *= np.maximum(wrong_P - i, 0.0) / (drawn_P - i)
    return 1.0 - all_wrong_P


def majority_per_problem(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool]]) -> Vector:
    """Return for each problem the probability that the majority answer is correct.

    A sample without an answer (None) has no vote; a problem without votes counts 0. Ties are broken uniformly: the
    value is the expectation over the tied answers, so it does not depend on the order of the samples. If samples with
    the same answer have different verdicts, the answer counts their mean.
    """
    values = [_majority(votes, judged) for votes, judged in zip(answers, correct, strict=True)]
    return np.array(values, dtype=np.float64)


def bootstrap(
    values: Sequence[float] | Vector, *, k: int, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """Return the mean with its percentile bootstrap interval over problems.

    Raises:
        ValueError: there are no values, or the confidence is outside (0, 1).
    """
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim != 1 or values_P.size == 0:
        raise ValueError(f"a bootstrap needs one value for each of at least one problem, got shape {values_P.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    generator = np.random.default_rng(seed)
    # Draw a million indices at a time; all 10,000 resamples of a large test set at once would take gigabytes.
    rows = max(1, 1_000_000 // values_P.size)
    chunks = [(min(rows, resamples - start), values_P.size) for start in range(0, resamples, rows)]
    means_R = np.concatenate([values_P[generator.integers(values_P.size, size=chunk)].mean(axis=1) for chunk in chunks])
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=math.fsum(values_P) / values_P.size, low=float(low), high=float(high), k=k, n=values_P.size)


def _majority(votes: Sequence[str | None], judged: Sequence[bool]) -> float:
    samples: dict[str, list[bool]] = {}
    for answer, right in zip(votes, judged, strict=True):
        if answer is not None:
            samples.setdefault(answer, []).append(right)
    return _share_of_leaders(samples) if samples else 0.0


def _share_of_leaders(samples: Mapping[str, Sequence[bool]]) -> float:
    most = max(map(len, samples.values()))
    leaders = [sum(judged) / most for judged in samples.values() if len(judged) == most]
    return sum(leaders) / len(leaders)


def _samples(table: Sequence[Sequence[object]]) -> int:
    sizes = {len(row) for row in table}
    if not sizes:
        raise ValueError("no problems to average over")
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"every problem needs the same number of samples, at least one; got {sorted(sizes)}")
    return sizes.pop()
