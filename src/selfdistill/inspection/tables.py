"""Statistics of a signal by token class, position, entropy and outcome, and its separation of right from wrong.

The functions take arrays only, no model and no text. NaN is a missing number and is left out of numerator and
denominator. Axis letters: ``N`` tokens, ``C`` completions, ``P`` problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
Statistics: TypeAlias = dict[str, Any]

DECILES = 10
ENTROPY_PARTS = 5
TAIL = (0.5, 0.9, 0.99, 0.999)
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def describe(values_N: Vector) -> Statistics:
    """Return number, mean, sum and positive share of the values that are not NaN."""
    known = values_N[~np.isnan(values_N)]
    if not len(known):
        return {"tokens": 0, "mean": None, "sum": 0.0, "positive": None}
    return {
        "tokens": len(known),
        "mean": math.fsum(known) / len(known),
        "sum": math.fsum(known),
        "positive": float((known > 0).mean()),
    }


def by_label(values_N: Vector, label_N: NDArray[Any], labels: Sequence[Any]) -> list[Statistics]:
    """Return :func:`describe` for every label, with the label's share of the absolute sum."""
    total = math.fsum(np.abs(values_N[~np.isnan(values_N)]))
    rows = []
    for label in labels:
        chosen = values_N[label_N == label]
        absolute = math.fsum(np.abs(chosen[~np.isnan(chosen)]))
        rows.append({"name": str(label), **describe(chosen), "share": absolute / total if total else None})
    return rows


def by_turn(values_N: Vector, turn_N: Indices) -> list[Statistics]:
    """Return :func:`by_label` for every turn, from the first to the last that any episode has."""
    rows = by_label(values_N, turn_N, range(1, int(turn_N.max(initial=0)) + 1))
    return [{**row, "name": f"turn {row['name']}"} for row in rows]


def deciles(lengths: Sequence[int]) -> Indices:
    """Return for each token the tenth of its completion that contains it, 0 to 9."""
    return np.concatenate([np.arange(n) * DECILES // n for n in lengths if n] or [np.zeros(0, dtype=np.int64)])


def entropy_parts(entropy_N: Vector, parts: int = ENTROPY_PARTS) -> tuple[Indices, list[str]]:
    """Divide the tokens into quantile bins of entropy. Returns the bin of each token and the ranges in nats.

    Tokens of equal entropy share a bin, so many equal entropies give fewer bins than ``parts``.
    """
    edges = np.unique(np.quantile(entropy_N, np.arange(1, parts) / parts)) if len(entropy_N) else np.zeros(0)
    part_N = np.searchsorted(edges, entropy_N, side="left").astype(np.int64)
    bounds = [0.0, *edges.tolist(), float(entropy_N.max()) if len(entropy_N) else 0.0]
    names = [f"{low:.2g}–{high:.2g}" for low, high in pairwise(bounds)]
    return part_N, names


def balance(values_N: Vector) -> Statistics:
    """Return the signs and tails of a signal: shares of positive, negative and zero values, and quantiles.

    ``top_share`` is the share of Σ|x| of the largest 1 % of the tokens (at least one token).
    """
    known = values_N[~np.isnan(values_N)]
    if not len(known):
        return {"tokens": 0}
    sizes = np.sort(np.abs(known))
    total = math.fsum(sizes)
    top = sizes[-max(1, len(sizes) // 100) :]
    return {
        "tokens": len(known),
        "positive": float((known > 0).mean()),
        "negative": float((known < 0).mean()),
        "zero": float((known == 0).mean()),
        "positive_sum": math.fsum(known[known > 0]),
        "negative_sum": math.fsum(known[known < 0]),
        "quantiles": {str(q): float(np.quantile(known, q)) for q in QUANTILES},
        "absolute_quantiles": {str(q): float(np.quantile(sizes, q)) for q in TAIL},
        "largest": float(sizes[-1]),
        "top_share": math.fsum(top) / total if total else None,
    }


def correlation(left_N: Vector, right_N: Vector) -> Statistics:
    """Return Pearson's r over the tokens that have both numbers; None if one of them is constant."""
    both = ~(np.isnan(left_N) | np.isnan(right_N))
    left, right = left_N[both], right_N[both]
    if len(left) < 2:
        return {"tokens": len(left), "r": None}
    left, right = left - left.mean(), right - right.mean()
    size = math.sqrt(float(left @ left) * float(right @ right))
    return {"tokens": len(left), "r": float(left @ right) / size if size else None}


def agreement(u: Mapping[str, Vector]) -> list[Statistics]:
    """Return Pearson's r of u for every pair of contexts."""
    names = list(u)
    return [
        {"left": left, "right": right, **correlation(u[left], u[right])}
        for index, left in enumerate(names)
        for right in names[index + 1 :]
    ]


def answer_leak(u: Mapping[str, Vector], answer: str) -> list[Statistics]:
    """Return the R² of each context's u on the u of the context ``answer``: the share that the answer explains."""
    rows = []
    for name, values_N in u.items():
        if name != answer:
            fit = correlation(values_N, u[answer])
            r = fit["r"]
            rows.append({"context": name, "tokens": fit["tokens"], "r2": None if r is None else r * r})
    return rows


def totals(values_N: Vector, lengths: Sequence[int]) -> Vector:
    """Return the sum over the tokens of each completion; NaN if one of them has no number."""
    return np.array([math.fsum(part) for part in split(values_N, lengths)], dtype=np.float64)


def split(values_N: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """Split the values of all tokens by completion."""
    return np.split(values_N, np.cumsum(lengths)[:-1]) if len(lengths) else []


def separation(
    total_C: Vector, correct_C: NDArray[np.bool_], problem_C: Indices, *, seed: int = 0, resamples: int = 2000
) -> Statistics:
    """Return the AUC of a completion's sum against its outcome, over all pairs and over pairs within a problem.

    The AUC is the probability that a correct completion has a larger sum than a wrong one; ties count half. The 95 %
    intervals are a bootstrap over problems, because completions of one problem are not independent. Resamples without
    a pair are left out.
    """
    known = ~np.isnan(total_C)
    total_C, correct_C = total_C[known], correct_C[known]
    problems, index_C = np.unique(problem_C[known], return_inverse=True)
    right, wrong = np.flatnonzero(correct_C), np.flatnonzero(~correct_C)
    result: Statistics = {
        "correct": len(right),
        "wrong": len(wrong),
        "problems": len(problems),
        "auc": None,
        "within": None,
    }
    if not len(right) or not len(wrong):
        return result
    # Wins of the correct completions of problem p over the wrong ones of problem q, and the number of pairs.
    points_PP, pairs_PP = np.zeros((2, len(problems), len(problems)))
    for i in right:
        score = (total_C[i] > total_C[wrong]) + 0.5 * (total_C[i] == total_C[wrong])
        np.add.at(points_PP[index_C[i]], index_C[wrong], score)
        np.add.at(pairs_PP[index_C[i]], index_C[wrong], 1.0)
    draws = np.random.default_rng(seed).integers(len(problems), size=(resamples, len(problems)))
    count_RP = np.stack([np.bincount(draw, minlength=len(problems)) for draw in draws]).astype(np.float64)
    across = ~np.eye(len(problems), dtype=np.bool_)
    for name, left_out in (("auc", np.zeros_like(across)), ("within", across)):
        points, pairs = points_PP * ~left_out, pairs_PP * ~left_out
        if pairs.sum():
            result[name] = _auc(points, pairs, count_RP, within=name == "within")
    return result


def _auc(points_PP: Vector, pairs_PP: Vector, count_RP: Vector, *, within: bool) -> Statistics:
    """Return wins divided by pairs with the bootstrap interval over problems; no interval for a single problem."""

    def resampled(values_PP: Vector) -> Vector:
        # A pair within a problem counts once per draw of it, a pair of two problems once per combination of draws.
        if within:
            return np.asarray(count_RP @ values_PP.diagonal())
        return np.asarray(((count_RP @ values_PP) * count_RP).sum(1))

    value = float(points_PP.sum() / pairs_PP.sum())
    pairs_R = resampled(pairs_PP)
    result: Statistics = {"value": value, "low": None, "high": None, "pairs": int(pairs_PP.sum())}
    if len(points_PP) > 1:
        kept = pairs_R > 0
        low, high = np.quantile(resampled(points_PP)[kept] / pairs_R[kept], [0.025, 0.975])
        result |= {"low": float(low), "high": float(high)}
    return result
