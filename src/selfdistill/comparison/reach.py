"""The steps until an arm reaches the baseline's final accuracy: a restricted mean over all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from selfdistill.comparison.runs import Run, evaluated_steps
from selfdistill.evaluation.intervals import over_seeds

COSTS = ("tokens", "seconds")
"""Other units in which the means are reported."""


def reach(
    runs: Sequence[Run], base: Sequence[Run], *, unit: str, family: int, confidence: float, measure: str
) -> dict[str, Any]:
    """Return the first evaluation of each run at or above the final level of the baseline's run of its seed.

    The level is that of ``measure``, the accuracy or the mean reward.

    A run that never reaches it counts with the whole length of the baseline's run, so that the means include every
    seed. A mean over the runs that reach it would compare an arm's luckiest seeds with all seeds of the baseline. The
    baseline reaches it at its last evaluation at the latest, so an arm that differs from it by luck alone has the same
    mean on average. ``against_baseline`` is the difference in ``unit``, the unit of the equal budget, paired by seed;
    None with one seed. Runs that have not counted the unit are compared in steps.

    There is no interpolation between evaluations, because accuracy is measured only there.
    """
    if not all(run.spent[unit][evaluated_steps(run)[-1]] for run in (*runs, *base)):
        unit = "steps"
    firsts = [_first(run, rival.levels(measure)[-1], measure) for run, rival in zip(runs, base, strict=True)]
    limits = [evaluated_steps(rival)[-1] for rival in base]
    gaps, ends = [], []
    for run, rival, first, limit in zip(runs, base, firsts, limits, strict=True):
        total = rival.spent[unit][limit]
        own = total if first is None else min(run.spent[unit][first], total)
        baseline = rival.spent[unit][_first(rival, rival.levels(measure)[-1], measure) or 0]
        gaps.append([float(own - baseline)])
        ends.append(limit if first is None else min(first, limit))
    paid = [run.spent for run in runs]
    last = [min(end, evaluated_steps(run)[-1]) for run, end in zip(runs, ends, strict=True)]
    return {
        "targets": [rival.levels(measure)[-1] for rival in base],
        "steps": firsts,
        "limits": limits,
        "reached": sum(step is not None for step in firsts),
        "of": len(runs),
        "mean": {
            "step": fmean(ends),
            **{key: fmean(spent[key][step] for spent, step in zip(paid, last, strict=True)) for key in COSTS},
        },
        "unit": unit,
        "against_baseline": over_seeds(gaps, k=1, family=family, confidence=confidence).as_dict()
        if len(runs) > 1
        else None,
    }


def _first(run: Run, target: float, measure: str) -> int | None:
    evaluations = zip(evaluated_steps(run), run.levels(measure), strict=True)
    return next((step for step, level in evaluations if level >= target), None)
