"""Runs on equal terms, read into one table of numbers: what ``compare.json`` holds.

Only the runs' files are read, no model and no config, so that a comparison can be read again wherever they lie.
Every difference is paired: arms of one seed met the same held-out problems, so it is taken problem by problem before
anything is averaged, and its interval is drawn over seeds and over problems within each seed.

Every accuracy, length and count of deliberation words is first one number per problem; a run is a row of them.

A run that an alarm has ended is shorter than the others. Its final numbers are those of its own last evaluation; from
the baseline it is told apart at the last step that both runs of its seed have evaluated, so that both have trained
equally long; and the curves of its arm end with it.
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

Table = list[list[float]]
"""One row a run, one number a problem."""

CONFIDENCE = 0.95
RESAMPLES = 10_000
MOST_POINTS = 120
"""Points of a curve over steps; longer runs are averaged in blocks, so that a comparison stays a small file."""

PER_PROBLEM = {"accuracy": "hits", "deliberation": "words", "length": "tokens"}
"""What an evaluation is compared by, and the sums over a problem's samples that it is made of."""
TRACES = ("reward", "length", "student_entropy", "teacher_entropy", "gate")
"""Numbers of a training step that are drawn over steps."""


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
    """The files of one run; ``tokens`` and ``seconds`` are spent by the end of a step, 0 for the start.

    ``alarms`` is None where a run was made before there were any; ``ended_by`` names those that ended it.
    """

    evaluations: list[Row]
    metrics: list[Row]
    tokens: dict[int, int]
    seconds: dict[int, float]
    alarms: list[Row] | None
    ended_by: list[str]

    def row(self, place: int, key: str) -> list[float]:
        """Mean over the samples of each problem, at one evaluation."""
        evaluation = self.evaluations[place]
        return [total / evaluation["samples"] for total in evaluation[key]]

    def accuracies(self) -> list[float]:
        """Of every evaluation."""
        return [fmean(self.row(place, "hits")) for place in range(len(self.evaluations))]

    def best(self) -> int:
        """The first evaluation that no other surpasses; it may be the one before training."""
        accuracies = self.accuracies()
        return accuracies.index(max(accuracies))

    def worst_after_best(self) -> int:
        """The lowest evaluation from the best one on; the best itself where nothing came after it."""
        accuracies, best = self.accuracies(), self.best()
        return accuracies.index(min(accuracies[best:]), best)


def analyse(arms: Sequence[ArmRuns], *, baseline: str) -> dict[str, Any]:
    """All numbers of a comparison, ready for JSON. Arms hold the same seeds; ``baseline`` names one of them.

    Raises:
        DataError: a run lacks what a comparison needs, or arms of one seed did not meet the same problems.
    """
    runs = {arm.name: [_read(folder, arm.generates) for folder in arm.folders.values()] for arm in arms}
    base = runs[baseline]
    for arm in arms:
        for folder, one, other in zip(arm.folders.values(), runs[arm.name], base, strict=True):
            _check_pair(folder, one, other)
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
    whole = {
        "metrics": steps == [*range(summary.get("steps", len(metrics)) + 1)],
        "evaluations": evaluated == [step for step in steps if step in evaluated],
    }
    for name, is_whole in whole.items():
        if not is_whole:
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


def _check_pair(folder: Path, one: _Run, other: _Run) -> None:
    # Where an alarm has ended one of the two, the steps that both came to must agree.
    shorter = min(one, other, key=lambda run: len(run.evaluations))
    both = len(shorter.evaluations) if shorter.ended_by else None
    for what, mine, theirs in (
        ("evaluations at steps", _steps(one)[:both], _steps(other)[:both]),
        ("held-out problems", len(one.evaluations[0]["hits"]), len(other.evaluations[0]["hits"])),
    ):
        if mine != theirs:
            raise DataError(f"{folder} cannot be paired: it has {what} {mine}, the baseline's run has {theirs}")


def _same_start(runs: Sequence[Sequence[_Run]]) -> bool:
    """Whether, seed by seed, all arms gave the same answers before training: the same weights, problems and seeds."""
    begun = [[[run.evaluations[0][key] for key in PER_PROBLEM.values()] for run in arm] for arm in runs]
    return all(arm == begun[0] for arm in begun)


def _arm(arm: ArmRuns, runs: Sequence[_Run], rivals: Sequence[_Run] | None, base: Sequence[_Run]) -> dict[str, Any]:
    ends: dict[str, Callable[[_Run], int]] = {
        "before": lambda run: 0,
        "final": lambda run: len(run.evaluations) - 1,
        "best": _Run.best,
        "worst_after_best": _Run.worst_after_best,
    }
    k = runs[0].evaluations[0]["samples"]
    shared = [min(len(run.evaluations), len(rival.evaluations)) - 1 for run, rival in zip(runs, base, strict=True)]

    def table(runs: Sequence[_Run], measure: str, end: str) -> Table:
        return [run.row(ends[end](run), PER_PROBLEM[measure]) for run in runs]

    def change(measure: str, before: str, after: str) -> dict[str, float]:
        return _difference(table(runs, measure, before), table(runs, measure, after), k)

    def lead(measure: str) -> dict[str, float] | None:
        """Of the last evaluations that both runs of a seed have."""
        if rivals is None:
            return None
        theirs, ours = (
            [run.row(place, PER_PROBLEM[measure]) for run, place in zip(side, shared, strict=True)]
            for side in (rivals, runs)
        )
        return _difference(theirs, ours, k)

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
    measured["accuracy"]["compared_at"] = [_steps(run)[place] for run, place in zip(runs, shared, strict=True)]
    measured["accuracy"]["fall"] = change("accuracy", "best", "worst_after_best")
    return {
        "name": arm.name,
        "method": dict(arm.method),
        "optimiser": dict(arm.optimiser),
        "generates": arm.generates,
        "runs": [_ending(seed, run) for seed, run in zip(arm.folders, runs, strict=True)],
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


def _ending(seed: int, run: _Run) -> dict[str, Any]:
    """How far a run came, and the alarms that it heard."""
    return {
        "seed": seed,
        "steps": run.metrics[-1]["step"],
        "evaluated": _steps(run)[-1],
        "ended_by": run.ended_by,
        "alarms": None
        if run.alarms is None
        else [{**alarm, "cleared": cleared_at(alarm, run.metrics)} for alarm in run.alarms],
    }


def _estimate(table: Table, k: int) -> dict[str, float]:
    return nested_bootstrap(table, k=k, seed=0, confidence=CONFIDENCE, resamples=RESAMPLES).as_dict()


def _difference(before: Table, after: Table, k: int) -> dict[str, float]:
    """after − before, problem by problem."""
    pairs = [list(zip(*rows, strict=True)) for rows in zip(before, after, strict=True)]
    return _estimate([[new - old for old, new in row] for row in pairs], k)


def _reach(runs: Sequence[_Run], base: Sequence[_Run]) -> dict[str, Any]:
    """When each run first stood at or above the final accuracy of the baseline's run of its seed.

    Only evaluations count: between two of them nothing is known, and a straight line would claim otherwise.
    """
    steps: list[int | None] = []
    for run, rival in zip(runs, base, strict=True):
        target = rival.accuracies()[-1]
        reached = (step for step, accuracy in zip(_steps(run), run.accuracies(), strict=True) if accuracy >= target)
        steps.append(next(reached, None))
    known = [(run, step) for run, step in zip(runs, steps, strict=True) if step is not None]
    return {
        "targets": [rival.accuracies()[-1] for rival in base],
        "steps": steps,
        "reached": len(known),
        "of": len(runs),
        "mean": {
            "step": _mean(step for _, step in known),
            "tokens": _mean(run.tokens[step] for run, step in known),
            "seconds": _mean(run.seconds[step] for run, step in known),
        },
    }


def _cost(runs: Sequence[_Run], base: Sequence[_Run]) -> dict[str, Any]:
    """Median seconds of a step's parts, and how they compare with the baseline's step.

    ``scoring`` is the time in which teachers are asked; ``learning`` the whole step but sampling and evaluation.
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
    """Of all steps of all runs; a median, because the first step warms up and another process may disturb any."""
    rows = [row for run in runs for row in run.metrics]
    return {
        "generation": median(row["phase_seconds"].get("generation", 0.0) for row in rows),
        "scoring": median(row["phase_seconds"].get("teacher", 0.0) for row in rows),
        "learning": median(_seconds(row, without="evaluation") - _seconds(row, only="generation") for row in rows),
        "step": median(_seconds(row, without="evaluation") for row in rows),
    }


def _evaluation_curves(runs: Sequence[_Run]) -> dict[str, Any]:
    """Every evaluation that all runs have: where it stood in steps, tokens and seconds (means over runs), its numbers.

    Past the end of a run the mean of the others would be one of survivors.
    """
    steps = min(map(_steps, runs), key=len)
    return {
        "step": steps,
        "tokens": [fmean(run.tokens[step] for run in runs) for step in steps],
        "seconds": [fmean(run.seconds[step] for run in runs) for step in steps],
        **{
            measure: _over_runs([[fmean(run.row(place, key)) for place in range(len(steps))] for run in runs])
            for measure, key in PER_PROBLEM.items()
        },
    }


def _training_curves(runs: Sequence[_Run]) -> dict[str, Any]:
    """Numbers of the steps that all runs have made; blocks of steps are averaged, and stand at their last step."""
    steps = min(([row["step"] for row in run.metrics] for run in runs), key=len)
    width = -(-len(steps) // MOST_POINTS)
    blocks = [range(start, min(start + width, len(steps))) for start in range(0, len(steps), width)]
    curves: dict[str, Any] = {"step": [steps[block[-1]] for block in blocks], "block": width}
    for key in TRACES:
        lines = [[_mean(_known([run.metrics[place].get(key) for place in block])) for block in blocks] for run in runs]
        if any(value is not None for line in lines for value in line):
            curves[key] = _over_runs(lines)
    return curves


def _over_runs(lines: Sequence[Sequence[float | None]]) -> dict[str, list[float | None]]:
    """Mean, lowest and highest run at each place; None where no run has a number."""
    columns = [_known(column) for column in zip(*lines, strict=True)]
    return {
        "mean": [_mean(column) for column in columns],
        "low": [min(column, default=None) for column in columns],
        "high": [max(column, default=None) for column in columns],
    }


def _first_and_last(runs: Sequence[_Run], key: str) -> dict[str, float | None] | None:
    """Mean over the first and over the last tenth of a run's steps: one step is noise. None if never recorded."""
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
    return _known([row.get(key) for row in run.metrics])


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Any) -> float | None:
    """None of nothing, and of a mean that is not known for some run nothing is known."""
    values = list(values)
    return fmean(values) if values and None not in values else None


def _seconds(row: Row, *, without: str = "", only: str = "") -> float:
    phases = row["phase_seconds"]
    return float(phases.get(only, 0.0) if only else sum(phases.values()) - phases.get(without, 0.0))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _rounded(value: Any) -> Any:
    """Six digits: more would be noise, and these files are kept."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
