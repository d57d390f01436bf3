"""The curves of an arm over its training, and the cost of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from selfdistill.comparison.runs import (
    PER_PROBLEM,
    SAMPLING,
    Run,
    evaluated_steps,
    mean,
    present,
    quotient,
    step_seconds,
)

MOST_POINTS = 120
"""Maximum points of a training curve. Longer runs are averaged in blocks of steps to keep ``compare.json`` small."""

TRACES = ("reward", "length", "student_entropy", "teacher_entropy", "gate")
"""Keys of ``metrics.jsonl`` that have a training curve."""


def cost_of(runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any]:
    """Return the median seconds of each part of a step, and their ratios to the baseline's step.

    ``generation`` is the time of all sampling, of prompts drawn in the place of others too. ``scoring`` is that of the
    teachers' forward passes. ``learning`` is the step without sampling and evaluation.
    """
    own, baseline = _medians(runs), _medians(base)
    return {
        "seconds": own,
        "tokens": mean(run.spent["tokens"][run.metrics[-1]["step"]] for run in runs),
        "total_seconds": mean(run.spent["seconds"][run.metrics[-1]["step"]] for run in runs),
        "against_baseline": {
            "scoring_to_learning": quotient(own["scoring"], baseline["learning"]),
            "scoring_to_step": quotient(own["scoring"], baseline["step"]),
            "learning": quotient(own["learning"], baseline["learning"]),
            "step": quotient(own["step"], baseline["step"]),
        },
    }


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    """Return the median seconds over all steps of all runs. A median ignores the slow first step and disturbances."""
    rows = [row for run in runs for row in run.metrics]
    return {
        "generation": median(step_seconds(row, only=SAMPLING) for row in rows),
        "scoring": median(row["phase_seconds"].get("teacher", 0.0) for row in rows),
        "learning": median(step_seconds(row, without=["evaluation", *SAMPLING]) for row in rows),
        "step": median(step_seconds(row, without=["evaluation"]) for row in rows),
    }


def evaluation_curves(runs: Sequence[Run], measures: Sequence[str]) -> dict[str, Any]:
    """Return the evaluations that all runs have: their steps, mean tokens, mean seconds, and the measures over runs.

    The curves end with the shortest run: a mean over the longer runs alone would suffer from survivorship bias. The
    last evaluation of a run that its completions ended may be at a step that another run did not evaluate.
    """
    known = [{step: index for index, step in enumerate(evaluated_steps(run))} for run in runs]
    steps = [step for step in known[0] if all(step in indices for indices in known)]
    return {
        "step": steps,
        "tokens": [fmean(run.spent["tokens"][step] for run in runs) for step in steps],
        "seconds": [fmean(run.spent["seconds"][step] for run in runs) for step in steps],
        **{
            measure: _over_runs(
                [
                    [fmean(run.row(indices[step], key)) for step in steps]
                    for run, indices in zip(runs, known, strict=True)
                ]
            )
            for measure, key in PER_PROBLEM.items()
            if measure in measures
        },
    }


def training_curves(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the training curves of the steps that all runs have. A block of steps is averaged, at its last step."""
    steps = min(([row["step"] for row in run.metrics] for run in runs), key=len)
    width = -(-len(steps) // MOST_POINTS)
    blocks = [range(start, min(start + width, len(steps))) for start in range(0, len(steps), width)]
    curves: dict[str, Any] = {"step": [steps[block[-1]] for block in blocks], "block": width}
    for key in TRACES:
        lines = [[mean(present([run.metrics[i].get(key) for i in block])) for block in blocks] for run in runs]
        if any(value is not None for line in lines for value in line):
            curves[key] = _over_runs(lines)
    return curves


def _over_runs(lines: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Return the mean, the lowest and the highest run at each point; None if no run has a value there."""
    columns = [present(column) for column in zip(*lines, strict=True)]
    return {
        "mean": [mean(column) for column in columns],
        "low": [min(column, default=None) for column in columns],
        "high": [max(column, default=None) for column in columns],
    }
