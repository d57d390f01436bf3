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
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

from selfdistill.errors import DataError
from selfdistill.evaluation.statistics import nested_bootstrap
from selfdistill.files.jsonl import Row, read_lines, read_object
from selfdistill.report.outcome import cleared_at

ValuesByRun = list[list[float]]
"""One row per run, one number per problem."""

CONFIDENCE = 0.95
RESAMPLES = 10_000
MOST_POINTS = 120
"""Most points of a training curve. Longer runs are averaged in blocks of steps, which keeps ``compare.json`` small."""

PER_PROBLEM = {"accuracy": "hits", "deliberation": "words", "length": "tokens"}
"""Measures of an evaluation, and the key of the sums per problem that each is computed from."""
TRACES = ("reward", "length", "student_entropy", "teacher_entropy", "gate")
"""Keys of ``metrics.jsonl`` that have a training curve."""


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """One arm: its runs by seed. ``generates`` is False for a method that learns from given solutions."""

    name: str
    method: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    generates: bool
    folders: Mapping[int, Path]


@dataclass(frozen=True, slots=True)
class _Run:
    """The files of one run. ``tokens`` and ``seconds`` are totals up to the end of each step; step 0 has 0.

    ``alarms`` is None for a run of a version without alarms. ``ended_by`` names the alarms that stopped the run.
    """

    evaluations: list[Row]
    metrics: list[Row]
    tokens: dict[int, int]
    seconds: dict[int, float]
    alarms: list[Row] | None
    ended_by: list[str]

    def row(self, index: int, key: str) -> list[float]:
        """Return the mean over samples for each problem of one evaluation."""
        evaluation = self.evaluations[index]
        return [total / evaluation["samples"] for total in evaluation[key]]

    def accuracies(self) -> list[float]:
        """Return the accuracy of every evaluation."""
        return [fmean(self.row(index, "hits")) for index in range(len(self.evaluations))]

    def best(self) -> int:
        """Return the index of the first evaluation with the highest accuracy. The one before training counts too."""
        accuracies = self.accuracies()
        return accuracies.index(max(accuracies))

    def worst_after_best(self) -> int:
        """Return the index of the lowest evaluation from the best one on; the best is included."""
        accuracies, best = self.accuracies(), self.best()
        return accuracies.index(min(accuracies[best:]), best)


def analyse(arms: Sequence[ArmRuns], *, baseline: str) -> dict[str, Any]:
    """Return all numbers of a comparison, ready for JSON. All arms have the same seeds; ``baseline`` names an arm.

    Raises:
        DataError: a run lacks a file or a key, or two runs of a seed have different problems or evaluations.
    """
    runs = {arm.name: [_read(folder, arm.generates) for folder in arm.folders.values()] for arm in arms}
    base = runs[baseline]
    for arm in arms:
        for folder, run, base_run in zip(arm.folders.values(), runs[arm.name], base, strict=True):
            _check_pair(folder, run, base_run)
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


def _read(folder: Path, generates: bool) -> _Run:
    evaluations, metrics = list(read_lines(folder / "evaluations.jsonl")), list(read_lines(folder / "metrics.jsonl"))
    if not evaluations or not metrics:
        raise DataError(f"{folder} holds no finished run: it has no evaluations or no metrics")
    unjudged = [row.get("step") for row in evaluations if row.get("judged") == 0]
    if unjudged:
        raise DataError(
            f"{folder} cannot be compared: nothing is judged in its evaluation of step {unjudged[0]}, and arms are "
            "compared by accuracy; name the answer column (task.answer) or a reward function"
        )
    lacking = [key for key in PER_PROBLEM.values() if key not in evaluations[0]]
    if lacking:
        raise DataError(
            f"{folder}/evaluations.jsonl has no {lacking[0]!r} per problem (an older version wrote it): "
            "delete the run and let it be made again"
        )
    summary = read_object(folder / "summary.json")
    steps: list[Any] = [0, *(row.get("step") for row in metrics)]
    evaluated = [row.get("step") for row in evaluations]
    complete = {
        "metrics": steps == [*range(summary.get("steps", len(metrics)) + 1)],
        "evaluations": evaluated == [step for step in steps if step in evaluated],
    }
    for name, is_complete in complete.items():
        if not is_complete:
            raise DataError(
                f"{folder}/{name}.jsonl has lost, doubled or changed lines: train with --resume, which mends it"
            )
    tokens = [row["generated"] if generates else 0 for row in metrics]
    seconds = [_seconds(row, without="evaluation") for row in metrics]
    return _Run(
        evaluations,
        metrics,
        dict(zip(steps, accumulate(tokens, initial=0), strict=True)),
        dict(zip(steps, accumulate(seconds, initial=0.0), strict=True)),
        summary.get("alarms"),
        summary.get("stopped_by", []),
    )


def _check_pair(folder: Path, run: _Run, base_run: _Run) -> None:
    # If an alarm stopped the shorter run, only the steps that both runs reached must agree.
    shorter = min(run, base_run, key=lambda run: len(run.evaluations))
    common = len(shorter.evaluations) if shorter.ended_by else None
    for what, value, base_value in (
        ("evaluations at steps", _steps(run)[:common], _steps(base_run)[:common]),
        ("held-out problems", len(run.evaluations[0]["hits"]), len(base_run.evaluations[0]["hits"])),
    ):
        if value != base_value:
            raise DataError(f"{folder} cannot be paired: it has {what} {value}, the baseline's run has {base_value}")


def _same_start(runs: Sequence[Sequence[_Run]]) -> bool:
    """Whether all arms have the same evaluation before training, seed by seed: same weights, problems and seeds."""
    initial = [[[run.evaluations[0][key] for key in PER_PROBLEM.values()] for run in arm] for arm in runs]
    return all(arm == initial[0] for arm in initial)


def _arm(arm: ArmRuns, runs: Sequence[_Run], rivals: Sequence[_Run] | None, base: Sequence[_Run]) -> dict[str, Any]:
    ends: dict[str, Callable[[_Run], int]] = {
        "before": lambda run: 0,
        "final": lambda run: len(run.evaluations) - 1,
        "best": _Run.best,
        "worst_after_best": _Run.worst_after_best,
    }
    k = runs[0].evaluations[0]["samples"]
    shared = [min(len(run.evaluations), len(rival.evaluations)) - 1 for run, rival in zip(runs, base, strict=True)]

    def table(runs: Sequence[_Run], measure: str, end: str) -> ValuesByRun:
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
    measured["accuracy"]["best_steps"] = [_steps(run)[run.best()] for run in runs]
    measured["accuracy"]["best_against_baseline"] = (
        None if rivals is None else _difference(table(rivals, "accuracy", "best"), table(runs, "accuracy", "best"), k)
    )
    measured["accuracy"]["compared_at"] = [_steps(run)[index] for run, index in zip(runs, shared, strict=True)]
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
        "gate": _mean(_mean(_numbers(run, "gate")) for run in runs),
        "cost": _cost(runs, base),
        "curves": {"evaluations": _evaluation_curves(runs), "training": _training_curves(runs)},
    }


def _run_summary(seed: int, run: _Run) -> dict[str, Any]:
    """Return the last step of a run, its last evaluated step and its alarms."""
    return {
        "seed": seed,
        "steps": run.metrics[-1]["step"],
        "evaluated": _steps(run)[-1],
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


def _reach(runs: Sequence[_Run], base: Sequence[_Run]) -> dict[str, Any]:
    """Return the first evaluation of each run at or above the final accuracy of the baseline's run of its seed.

    There is no interpolation between evaluations, because accuracy is measured only there.
    """
    steps: list[int | None] = []
    for run, rival in zip(runs, base, strict=True):
        target = rival.accuracies()[-1]
        reached = (step for step, accuracy in zip(_steps(run), run.accuracies(), strict=True) if accuracy >= target)
        steps.append(next(reached, None))
    reaching = [(run, step) for run, step in zip(runs, steps, strict=True) if step is not None]
    return {
        "targets": [rival.accuracies()[-1] for rival in base],
        "steps": steps,
        "reached": len(reaching),
        "of": len(runs),
        "mean": {
            "step": _mean(step for _, step in reaching),
            "tokens": _mean(run.tokens[step] for run, step in reaching),
            "seconds": _mean(run.seconds[step] for run, step in reaching),
        },
    }


def _cost(runs: Sequence[_Run], base: Sequence[_Run]) -> dict[str, Any]:
    """Return the median seconds of each part of a step, and their ratios to the baseline's step.

    ``scoring`` is the time of the teachers' forward passes. ``learning`` is the step without sampling and evaluation.
    """
    own, rival = _medians(runs), _medians(base)
    return {
        "seconds": own,
        "tokens": _mean(run.tokens[run.metrics[-1]["step"]] for run in runs),
        "total_seconds": _mean(run.seconds[run.metrics[-1]["step"]] for run in runs),
        "against_baseline": {
            "scoring_to_learning": _ratio(own["scoring"], rival["learning"]),
            "scoring_to_step": _ratio(own["scoring"], rival["step"]),
            "learning": _ratio(own["learning"], rival["learning"]),
            "step": _ratio(own["step"], rival["step"]),
        },
    }


def _medians(runs: Sequence[_Run]) -> dict[str, float]:
    """Return the median seconds over all steps of all runs. A median ignores the slow first step and disturbances."""
    rows = [row for run in runs for row in run.metrics]
    return {
        "generation": median(row["phase_seconds"].get("generation", 0.0) for row in rows),
        "scoring": median(row["phase_seconds"].get("teacher", 0.0) for row in rows),
        "learning": median(_seconds(row, without="evaluation") - _seconds(row, only="generation") for row in rows),
        "step": median(_seconds(row, without="evaluation") for row in rows),
    }


def _evaluation_curves(runs: Sequence[_Run]) -> dict[str, Any]:
    """Return the evaluations that all runs have: their steps, mean tokens, mean seconds, and the measures over runs.

    The curves end with the shortest run: a mean over the longer runs alone would suffer from survivorship bias.
    """
    steps = min(map(_steps, runs), key=len)
    return {
        "step": steps,
        "tokens": [fmean(run.tokens[step] for run in runs) for step in steps],
        "seconds": [fmean(run.seconds[step] for run in runs) for step in steps],
        **{
            measure: _over_runs([[fmean(run.row(index, key)) for index in range(len(steps))] for run in runs])
            for measure, key in PER_PROBLEM.items()
        },
    }


def _training_curves(runs: Sequence[_Run]) -> dict[str, Any]:
    """Return the training curves of the steps that all runs have. A block of steps is averaged, at its last step."""
    steps = min(([row["step"] for row in run.metrics] for run in runs), key=len)
    width = -(-len(steps) // MOST_POINTS)
    blocks = [range(start, min(start + width, len(steps))) for start in range(0, len(steps), width)]
    curves: dict[str, Any] = {"step": [steps[block[-1]] for block in blocks], "block": width}
    for key in TRACES:
        lines = [[_mean(_present([run.metrics[i].get(key) for i in block])) for block in blocks] for run in runs]
        if any(value is not None for line in lines for value in line):
            curves[key] = _over_runs(lines)
    return curves


def _over_runs(lines: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Return the mean, the lowest and the highest run at each point; None if no run has a value there."""
    columns = [_present(column) for column in zip(*lines, strict=True)]
    return {
        "mean": [_mean(column) for column in columns],
        "low": [min(column, default=None) for column in columns],
        "high": [max(column, default=None) for column in columns],
    }


def _first_and_last(runs: Sequence[_Run], key: str) -> dict[str, float | None] | None:
    """Return the means over the first and the last tenth of the steps; None if no run has recorded the key."""
    numbers = [(_numbers(run, key), max(1, len(run.metrics) // 10)) for run in runs]
    if not any(row for row, _ in numbers):
        return None
    return {
        "first": _mean(_mean(row[:count]) for row, count in numbers),
        "last": _mean(_mean(row[-count:]) for row, count in numbers),
    }


def _steps(run: _Run) -> list[int]:
    return [row["step"] for row in run.evaluations]


def _numbers(run: _Run, key: str) -> list[float]:
    return _present([row.get(key) for row in run.metrics])


def _present(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Any) -> float | None:
    """Return the mean, or None if there are no values or one of them is None."""
    values = list(values)
    return fmean(values) if values and None not in values else None


def _seconds(row: Row, *, without: str = "", only: str = "") -> float:
    phases = row["phase_seconds"]
    return float(phases.get(only, 0.0) if only else sum(phases.values()) - phases.get(without, 0.0))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _rounded(value: Any) -> Any:
    """Round every float to six significant digits; more digits are noise and make the file larger."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
