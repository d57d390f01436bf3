"""pass@k of an arm: the share of problems of which k completions solve at least one, for several k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfdistill.evaluation.intervals import over_seeds
from selfdistill.evaluation.statistics import Vector, curve_sizes, pass_per_problem
from selfdistill.files.jsonl import Row


def pass_curve_of(
    finals: Sequence[Row],
    pairs: Sequence[tuple[Row, Row]] | None,
    *,
    shared: bool,
    family: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """Return pass@k with its interval for k = 1, 2, 4 … and for all samples; empty with one sample a problem.

    ``finals`` has one evaluation per run. ``pairs`` holds the baseline's evaluation and the arm's for each run, for
    ``against_baseline``, the difference paired per problem; None takes none. The differences of ``family`` arms at one
    k hold together. Each problem's number is unbiased: 1 − C(n−c, k) / C(n, k), of n samples with c right.
    """
    samples = finals[0]["samples"]
    if samples == 1:
        return []
    curve = []
    for k in curve_sizes(samples):
        levels = [_passes(row, k) for row in finals]
        level = over_seeds(levels, k=k, shared=shared, bounds=(0.0, 1.0), confidence=confidence)
        lead = None
        if pairs is not None:
            leads = [_passes(own, k) - _passes(rival, k) for rival, own in pairs]
            lead = over_seeds(leads, k=k, shared=shared, family=family, bounds=(-1.0, 1.0), confidence=confidence)
        curve.append({"k": k, "final": level.as_dict(), "against_baseline": lead and lead.as_dict()})
    return curve


def _passes(evaluation: Row, k: int) -> Vector:
    """Return pass@k of each problem of an evaluation."""
    n = evaluation["samples"]
    return pass_per_problem([[True] * hits + [False] * (n - hits) for hits in evaluation["hits"]], k)
