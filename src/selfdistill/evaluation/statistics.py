"""Accuracy over several samples a problem, with intervals: avg@k, unbiased pass@k, maj@k and paired differences.

Every measure is first one number per problem, then its mean. Intervals are percentile bootstraps over problems: they
say how far the number would move with other problems of the same kind, not with other samples of the same problems.

Axis letters: ``P`` problems, ``K`` samples of a problem, ``R`` resamples, ``S`` runs (one a seed).
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
    """A mean over problems with its interval: ``k`` samples of each of ``n`` problems."""

    value: float
    low: float
    high: float
    k: int
    n: int

    def as_dict(self) -> dict[str, float | int]:
        """The estimate as plain JSON."""
        return asdict(self)


def average(
    rewards: Sequence[Sequence[float]], *, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """avg@k: the mean reward, where every problem weighs the same and has ``k`` samples.

    Raises:
        ValueError: no problems, or numbers of samples that differ.
    """
    k = _samples(rewards)
    return bootstrap(average_per_problem(rewards), k=k, seed=seed, confidence=confidence, resamples=resamples)


def pass_at(
    correct: Sequence[Sequence[bool]], k: int, *, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """pass@k: the chance that at least one of ``k`` samples is correct, unbiased from n ≥ k samples a problem.

    Raises:
        ValueError: no problems, or a problem with fewer than ``k`` samples.
    """
    return bootstrap(pass_per_problem(correct, k), k=k, seed=seed, confidence=confidence, resamples=resamples)


def majority(
    answers: Sequence[Sequence[str | None]],
    correct: Sequence[Sequence[bool]],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Estimate:
    """maj@k: the chance that the answer with most votes among the ``k`` samples is correct.

    Raises:
        ValueError: no problems, or numbers of samples that differ.
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
    """The mean of after − before over the same problems, problem by problem.

    An interval that leaves 0 out is a difference; that two separate intervals overlap says nothing of the kind.

    Raises:
        ValueError: the two do not hold the same number of problems.
    """
    before_P, after_P = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before_P.shape != after_P.shape:
        raise ValueError(
            f"a paired difference needs the same problems, got {before_P.size} before and {after_P.size} after"
        )
    return bootstrap(after_P - before_P, k=k, seed=seed, confidence=confidence, resamples=resamples)


def average_per_problem(rewards: Sequence[Sequence[float]]) -> Vector:
    """The mean reward of each problem."""
    _samples(rewards)
    values_P: Vector = np.asarray(rewards, dtype=np.float64).mean(axis=1)
    return values_P


def pass_per_problem(correct: Sequence[Sequence[bool]], k: int) -> Vector:
    """1 − C(n−c, k) / C(n, k) for each problem with c correct of n samples; problems may differ in n.

    Raises:
        ValueError: ``k`` is not in 1..n for some problem.
    """
    fewest = min((len(samples) for samples in correct), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(f"pass@{k} needs 1 ≤ k ≤ the number of samples, which is {fewest} for some problem")
    drawn_P = np.array([len(samples) for samples in correct], dtype=np.float64)
    wrong_P = drawn_P - np.array([sum(map(bool, samples)) for samples in correct], dtype=np.float64)
    # C(n−c, k) / C(n, k) as a product of k ratios ≤ 1: the binomials themselves overflow near n = 1000.
    all_wrong_P = np.ones_like(drawn_P)
    for i in range(k):
        all_wrong_P *= np.maximum(wrong_P - i, 0.0) / (drawn_P - i)
    return 1.0 - all_wrong_P


def majority_per_problem(answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool]]) -> Vector:
    """Whether the answer with most votes is correct, for each problem.

    A sample without an answer (None) has no vote; a problem without votes counts 0. Answers that tie for the most votes
    share the problem equally: the value is the chance of being right when one of them is drawn, exact and independent
    of the order of the samples. Should samples of one answer be judged differently, the answer counts their mean.
    """
    values = [_majority(votes, judged) for votes, judged in zip(answers, correct, strict=True)]
    return np.array(values, dtype=np.float64)


def bootstrap(values: Sequence[float] | Vector, *, k: int, seed: int, confidence: float, resamples: int) -> Estimate:
    """The mean with a percentile interval over problems drawn with replacement.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    values_P = np.asarray(values, dtype=np.float64)
    if values_P.ndim != 1 or values_P.size == 0:
        raise ValueError(f"a bootstrap needs one value for each of at least one problem, got shape {values_P.shape}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    generator = np.random.default_rng(seed)
    # A million indices at a time: 10,000 resamples of a large test set at once would take gigabytes.
    rows = max(1, 1_000_000 // values_P.size)
    chunks = [(min(rows, resamples - start), values_P.size) for start in range(0, resamples, rows)]
    means_R = np.concatenate([values_P[generator.integers(values_P.size, size=chunk)].mean(axis=1) for chunk in chunks])
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value=math.fsum(values_P) / values_P.size, low=float(low), high=float(high), k=k, n=values_P.size)


def nested_bootstrap(
    values: Sequence[Sequence[float] | Vector], *, k: int, seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> Estimate:
    """The mean over runs of each run's mean over problems, with a percentile interval over both.

    ``values`` holds one row a run, one number a problem. A resample draws runs with replacement, then problems within
    every run drawn, so the interval says how far the number would move with other seeds and other problems. Of a single
    run there is nothing to draw from: its interval is over problems only. With two or three runs the part that is due
    to seeds is estimated from two or three numbers, and comes out too small more often than too large.

    Raises:
        ValueError: no runs, a run without problems, or a confidence outside (0, 1).
    """
    rows = [np.asarray(row, dtype=np.float64) for row in values]
    if not rows or any(row.ndim != 1 or row.size == 0 for row in rows):
        raise ValueError(f"a nested bootstrap needs runs of at least one problem, got {[row.shape for row in rows]}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    size_S = np.array([row.size for row in rows])
    values_SP = np.zeros((len(rows), size_S.max()))
    for row, target_P in zip(rows, values_SP, strict=True):
        target_P[: row.size] = row
    generator = np.random.default_rng(seed)
    # Half a million numbers at a time, as in bootstrap(): each costs an index, a value and a weight here.
    chunk = max(1, 500_000 // values_SP.size)
    means_R = np.concatenate(
        [
            _resampled_means(values_SP, size_S, min(chunk, resamples - start), generator)
            for start in range(0, resamples, chunk)
        ]
    )
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = math.fsum(math.fsum(row) / row.size for row in rows) / len(rows)
    return Estimate(value=value, low=float(low), high=float(high), k=k, n=int(size_S.sum()))


def _resampled_means(
    values_SP: Vector, size_S: NDArray[np.int64], resamples: int, generator: np.random.Generator
) -> Vector:
    runs, most = values_SP.shape
    run_RS1 = generator.integers(runs, size=(resamples, runs, 1))
    size_RS1 = size_S[run_RS1]
    # Runs may differ in their number of problems: places beyond it are drawn with the rest and weigh nothing.
    place_RSP = (generator.random((resamples, runs, most)) * size_RS1).astype(np.int64)
    kept_RSP = np.arange(most) < size_RS1
    means_R: Vector = ((values_SP[run_RS1, place_RSP] * kept_RSP).sum(-1) / size_RS1[..., 0]).mean(-1)
    return means_R


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
