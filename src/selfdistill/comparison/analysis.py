"""Analysis of a comparison: reads the files of its runs and returns the numbers of ``compare.json``.

It needs no model and no config, so a folder of runs can be analysed again on any machine.

Every accuracy, length and count of deliberation words is first one number per problem. Every difference is paired: the
arms of one seed have the same held-out problems, so the difference is taken per problem and then averaged. Its interval
is a bootstrap over seeds, and over the problems of each seed.

A run that an alarm has stopped is shorter than the others. Its final numbers are those of its own last evaluation. Its
difference from the baseline is taken at the last step that both runs of the seed have evaluated, so both have trained
equally long. The curves of its arm end at its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from selfdistill.comparison.curves import cost_of, evaluation_curves, training_curves
from selfdistill.comparison.runs import (
    PER_PROBLEM,
    ArmRuns,
    Run,
    check_pair,
    evaluated_steps,
    mean,
    numbers_of,
    read_run,
)
from selfdistill.evaluation.statistics import nested_bootstrap
from selfdistill.report.outcome import cleared_at

ValuesByRun = list[list[float]]
"""One row per run, one number per problem."""

CONFIDENCE = 0.95
RESAMPLES = 10_000


def analyse(arms: Sequence[ArmRuns], *, baseline: str) -> dict[str, Any]:
    """Return all numbers of a comparison, ready for JSON. All arms have the same seeds; ``baseline`` names an arm.

    Raises:
        DataError: a run lacks a file or a key, or two runs of a seed have different problems or evaluations.
    """
    runs = {arm.name: [read_run(folder, arm.generates) for folder in arm.folders.values()] for arm in arms}
    base = runs[baseline]
    for arm in arms:
        for folder, run, base_run in zip(arm.folders.values(), runs[arm.name], base, strict=True):
            check_pair(folder, run, base_run)
    seeds = list(arms[0].folders)
    result: dict[str, Any] = _rounded(
        {
            "baseline": baseline,
            "seeds": seeds,
            "samples": base[0].evaluations[0]["samples"],
            "problems": [len(run.evaluations[0]["hits"]) for run in base],
            "interval": {
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "over": "problems" if len(seeds) == 1 else "seeds and problems",
            },
            "same_start": _same_start(list(runs.values())),
            "arms": [_arm(arm, runs[arm.name], None if arm.name == baseline else base, base) for arm in arms],
        }
    )
    return result


def _same_start(runs: Sequence[Sequence[Run]]) -> bool:
    """Whether all arms have the same evaluation before training, seed by seed: same weights, problems and seeds."""
    initial = [[[run.evaluations[0][key] for key in PER_PROBLEM.values()] for run in arm] for arm in runs]
    return all(arm == initial[0] for arm in initial)


def _arm(arm: ArmRuns, runs: Sequence[Run], rivals: Sequence[Run] | None, base: Sequence[Run]) -> dict[str, Any]:
    ends: dict[str, Callable[[Run], int]] = {
        "before": lambda run: 0,
        "final": lambda run: len(run.evaluations) - 1,
        "best": Run.best,
        "worst_after_best": Run.worst_after_best,
    }
    k = runs[0].evaluations[0]["samples"]
    shared = [min(len(run.evaluations), len(rival.evaluations)) - 1 for run, rival in zip(runs, base, strict=True)]

    def table(runs: Sequence[Run], measure: str, end: str) -> ValuesByRun:
        return [run.row(ends[end](run), PER_PROBLEM[measure]) for run in runs]

    def change(measure: str, before: str, after: str) -> dict[str, float]:
        return _difference(table(runs, measure, before), table(runs, measure, after), k)

    def lead(measure: str) -> dict[str, float] | None:
        """Return the difference from the baseline at the last evaluation that both runs of each seed have."""
        if rivals is None:
            return None
        base_values, values = (
            [run.row(index, PER_PROBLEM[measure]) for run, index in zip(side, shared, strict=True)]
            for side in (rivals, runs)
        )
        return _difference(base_values, values, k)

    measured: dict[str, Any] = {
        measure: {
            **{end: _estimate(table(runs, measure, end), k) for end in ("before", "final")},
            "change": change(measure, "before", "final"),
            "against_baseline": lead(measure),
        }
        for measure in PER_PROBLEM
    }
    for end in ("best", "worst_after_best"):
        measured["accuracy"][end] = _estimate(table(runs, "accuracy", end), k)
    measured["accuracy"]["best_steps"] = [evaluated_steps(run)[run.best()] for run in runs]
    measured["accuracy"]["best_against_baseline"] = (
        None if rivals is None else _difference(table(rivals, "accuracy", "best"), table(runs, "accuracy", "best"), k)
    )
    measured["accuracy"]["compared_at"] = [evaluated_steps(run)[index] for run, index in zip(runs, shared, strict=True)]
    measured["accuracy"]["fall"] = change("accuracy", "best", "worst_after_best")
    return {
        "name": arm.name,
        "method": dict(arm.method),
        "optimiser": dict(arm.optimiser),
        "generates": arm.generates,
        "runs": [_run_summary(seed, run) for seed, run in zip(arm.folders, runs, strict=True)],
        **measured,
        "truncated": {
            end: fmean(run.evaluations[ends[end](run)]["truncated"] for run in runs) for end in ("before", "final")
        },
        "reach": _reach(runs, base),
        "entropy": {role: _first_and_last(runs, f"{role}_entropy") for role in ("student", "teacher")},
        "gate": mean(mean(numbers_of(run, "gate")) for run in runs),
        "cost": cost_of(runs, base),
        "curves": {"evaluations": evaluation_curves(runs), "training": training_curves(runs)},
    }


def _run_summary(seed: int, run: Run) -> dict[str, Any]:
    """Return the last step of a run, its last evaluated step and its alarms."""
    return {
        "seed": seed,
        "steps": run.metrics[-1]["step"],
        "evaluated": evaluated_steps(run)[-1],
        "ended_by": run.ended_by,
        "alarms": None
        if run.alarms is None
        else [{**alarm, "cleared": cleared_at(alarm, run.metrics)} for alarm in run.alarms],
    }


def _estimate(table: ValuesByRun, k: int) -> dict[str, float]:
    return nested_bootstrap(table, k=k, seed=0, confidence=CONFIDENCE, resamples=RESAMPLES).as_dict()


def _difference(before: ValuesByRun, after: ValuesByRun, k: int) -> dict[str, float]:
    """Estimate the mean of after − before, paired per problem."""
    pairs = [list(zip(*rows, strict=True)) for rows in zip(before, after, strict=True)]
    return _estimate([[new - old for old, new in row] for row in pairs], k)


def _reach(runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any]:
    """Return the first evaluation of each run at or above the final accuracy of the baseline's run of its seed.

    There is no interpolation between evaluations, because accuracy is measured only there.
    """
    steps: list[int | None] = []
    for run, rival in zip(runs, base, strict=True):
        target = rival.accuracies()[-1]
        reached = (
            step for step, accuracy in zip(evaluated_steps(run), run.accuracies(), strict=True) if accuracy >= target
        )
        steps.append(next(reached, None))
    reaching = [(run, step) for run, step in zip(runs, steps, strict=True) if step is not None]
    return {
        "targets": [rival.accuracies()[-1] for rival in base],
        "steps": steps,
        "reached": len(reaching),
        "of": len(runs),
        "mean": {
            "step": mean(step for _, step in reaching),
            "tokens": mean(run.tokens[step] for run, step in reaching),
            "seconds": mean(run.seconds[step] for run, step in reaching),
        },
    }


def _first_and_last(runs: Sequence[Run], key: str) -> dict[str, float | None] | None:
    """Return the means over the first and the last tenth of the steps; None if no run has recorded the key."""
    numbers = [(numbers_of(run, key), max(1, len(run.metrics) // 10)) for run in runs]
    if not any(row for row, _ in numbers):
        return None
    return {
        "first": mean(mean(row[:count]) for row, count in numbers),
        "last": mean(mean(row[-count:]) for row, count in numbers),
    }


def _rounded(value: Any) -> Any:
    """Round every float to six significant digits; more digits are noise and make the file larger."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
