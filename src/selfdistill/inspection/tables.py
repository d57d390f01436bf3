"""Tables of the microscope: what a signal does to classes of tokens, places, entropies, right and wrong completions.

Only arrays come in: no model, no text. NaN means that a token has no such number, and it is left out of numerator and
denominator alike. Axis letters: ``N`` tokens, ``C`` completions, ``P`` problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]
Statistics: TypeAlias = dict[str, Any]

DECILES = 10
ENTROPY_PARTS = 5
TAIL = (0.5, 0.9, 0.99, 0.999)
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


def describe(values_N: Vector) -> Statistics:
    """Number, mean and sum of the known values, and what share of them is positive."""
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
    """:func:`describe` for every label, with the label's share of the absolute sum."""
    total = math.fsum(np.abs(values_N[~np.isnan(values_N)]))
    rows = []
    for label in labels:
        chosen = values_N[label_N == label]
        absolute = math.fsum(np.abs(chosen[~np.isnan(chosen)]))
        rows.append({"name": str(label), **describe(chosen), "share": absolute / total if total else None})
    return rows


def deciles(lengths: Sequence[int]) -> Places:
    """The tenth of its completion, 0 to 9, in which each token stands."""
    return np.concatenate([np.arange(n) * DECILES // n for n in lengths if n] or [np.zeros(0, dtype=np.int64)])


def entropy_parts(entropy_N: Vector, parts: int = ENTROPY_PARTS) -> tuple[Places, list[str]]:
    """Which part of the tokens each belongs to by its entropy, and the range of each part in nats.

    Tokens of one entropy stay together, so where many are equally certain there are fewer parts than asked for.
    """
    edges = np.unique(np.quantile(entropy_N, np.arange(1, parts) / parts)) if len(entropy_N) else np.zeros(0)
    part_N = np.searchsorted(edges, entropy_N, side="left").astype(np.int64)
    bounds = [0.0, *edges.tolist(), float(entropy_N.max()) if len(entropy_N) else 0.0]
    names = [f"{low:.2g}–{high:.2g}" for low, high in pairwise(bounds)]
    return part_N, names


def balance(values_N: Vector) -> Statistics:
    """Signs and tails: shares of positive, negative and zero; quantiles; the share of the largest one per cent.

    ``top_share`` is the part of Σ|x| that the largest 1 % of the tokens (one at least) hold.
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
    """Pearson's r over the tokens that have both numbers; None where one of them is constant."""
    both = ~(np.isnan(left_N) | np.isnan(right_N))
    left, right = left_N[both], right_N[both]
    if len(left) < 2:
        return {"tokens": len(left), "r": None}
    left, right = left - left.mean(), right - right.mean()
    size = math.sqrt(float(left @ left) * float(right @ right))
    return {"tokens": len(left), "r": float(left @ right) / size if size else None}


def agreement(u: Mapping[str, Vector]) -> list[Statistics]:
    """Pearson's r of u between every two contexts."""
    names = list(u)
    return [
        {"left": left, "right": right, **correlation(u[left], u[right])}
        for index, left in enumerate(names)
        for right in names[index + 1 :]
    ]


def answer_leak(u: Mapping[str, Vector], answer: str) -> list[Statistics]:
    """How much of each context's u the answer alone explains: R² of u on the u of the context ``answer``."""
    rows = []
    for name, values_N in u.items():
        if name != answer:
            fit = correlation(values_N, u[answer])
            r = fit["r"]
            rows.append({"context": name, "tokens": fit["tokens"], "r2": None if r is None else r * r})
    return rows


def totals(values_N: Vector, lengths: Sequence[int]) -> Vector:
    """Σ over the tokens of each completion, NaN where one of them has no number."""
    return np.array([math.fsum(part) for part in split(values_N, lengths)], dtype=np.float64)


def split(values_N: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """The values of each completion."""
    return np.split(values_N, np.cumsum(lengths)[:-1]) if len(lengths) else []


def separation(
    total_C: Vector, correct_C: NDArray[np.bool_], problem_C: Places, *, seed: int = 0, resamples: int = 2000
) -> Statistics:
    """Whether a completion's sum tells right from wrong: the AUC, over all pairs and over pairs of one problem.

    The AUC is the chance that a right completion has the larger sum than a wrong one, ties counting half. Intervals
    (95 %) draw problems with replacement; completions of one problem are no independent witnesses. A draw without a
    pair to compare is left out.
    """
    known = ~np.isnan(total_C)
    total_C, correct_C = total_C[known], correct_C[known]
    problems, place_C = np.unique(problem_C[known], return_inverse=True)
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
    # Won points between the right completions of problem p and the wrong ones of problem q, and how many pairs.
    points_PP, pairs_PP = np.zeros((2, len(problems), len(problems)))
    for i in right:
        score = (total_C[i] > total_C[wrong]) + 0.5 * (total_C[i] == total_C[wrong])
        np.add.at(points_PP[place_C[i]], place_C[wrong], score)
        np.add.at(pairs_PP[place_C[i]], place_C[wrong], 1.0)
    draws = np.random.default_rng(seed).integers(len(problems), size=(resamples, len(problems)))
    count_RP = np.stack([np.bincount(draw, minlength=len(problems)) for draw in draws]).astype(np.float64)
    apart = ~np.eye(len(problems), dtype=np.bool_)
    for name, left_out in (("auc", np.zeros_like(apart)), ("within", apart)):
        points, pairs = points_PP * ~left_out, pairs_PP * ~left_out
        if pairs.sum():
            result[name] = _auc(points, pairs, count_RP, within=name == "within")
    return result


def _auc(points_PP: Vector, pairs_PP: Vector, count_RP: Vector, *, within: bool) -> Statistics:
    """Points by pairs, with the interval over draws of problems; no interval where there is but one problem."""

    def drawn(values_PP: Vector) -> Vector:
        # Pairs of one problem come along once with each draw of it, pairs of two with every combination of draws.
        if within:
            return np.asarray(count_RP @ values_PP.diagonal())
        return np.asarray(((count_RP @ values_PP) * count_RP).sum(1))

    value = float(points_PP.sum() / pairs_PP.sum())
    pairs_R = drawn(pairs_PP)
    result: Statistics = {"value": value, "low": None, "high": None, "pairs": int(pairs_PP.sum())}
    if len(points_PP) > 1:
        kept = pairs_R > 0
        low, high = np.quantile(drawn(points_PP)[kept] / pairs_R[kept], [0.025, 0.975])
        result |= {"low": float(low), "high": float(high)}
    return result
