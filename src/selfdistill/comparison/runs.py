"""The runs of a comparison, read from their folders and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from selfdistill.errors import DataError
from selfdistill.files.jsonl import Row, read_lines, read_object
from selfdistill.files.records import completions_drawn, total_budget
from selfdistill.report.measure import graded

PER_PROBLEM = {"accuracy": "hits", "reward": "earned", "deliberation": "words", "length": "tokens"}
"""Measures of an evaluation, and the key of the sums per problem that each is computed from (of ``earned``: means)."""
ALWAYS = ("accuracy", "deliberation", "length")
"""Measures that every comparison has. The mean reward is one of comparisons that are told by it (:func:`told_by`)."""

UNITS = ("completions", "tokens", "steps", "seconds")
"""Units of equal budgets: sampled completions, sampled tokens, steps, seconds of training."""


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """One arm: its runs by seed. ``generates`` is False for a method that learns from given solutions."""

    name: str
    method: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    generates: bool
    folders: Mapping[int, Path]
    signal: Mapping[str, Any] = field(default_factory=dict)
    """What its ``[signal]`` section asks for beside the defaults."""


@dataclass(frozen=True, slots=True)
class Run:
    """The files of one run.

    ``spent`` holds the cumulative amount of each unit (:data:`UNITS`) by step; step 0 has 0. ``test`` holds the
    evaluations on the final split. ``alarms`` is None for a run of a version without alarms. ``ended_by`` names the
    alarms that stopped the run.
    """

    evaluations: list[Row]
    metrics: list[Row]
    test: list[Row]
    spent: Mapping[str, Mapping[int, float]]
    budget: Mapping[str, Any] | None
    alarms: list[Row] | None
    ended_by: list[str]
    best_by: str = "success"
    """The metric that chose its best checkpoint."""

    def row(self, index: int, key: str) -> list[float]:
        """Return the mean over samples for each problem of one evaluation."""
        return per_problem(self.evaluations[index], key)

    def within(self, amount: float, unit: str) -> int:
        """Return the index of the last evaluation by which the run had spent at most this much of a unit."""
        spent = self.spent[unit]
        return max(i for i, row in enumerate(self.evaluations) if spent[row["step"]] <= amount or i == 0)

    def resampled(self) -> bool:
        """Whether its steps may draw further prompts in the place of those whose completions all earn the same."""
        return any("resampled_completions" in row for row in self.metrics)

    def levels(self, measure: str) -> list[float]:
        """Return the accuracy or the mean reward of every evaluation."""
        return [fmean(self.row(index, PER_PROBLEM[measure])) for index in range(len(self.evaluations))]

    def best(self, measure: str) -> int:
        """Return the index of the first evaluation with the highest level. The one before training counts too."""
        levels = self.levels(measure)
        return levels.index(max(levels))


def told_by(runs: Sequence[Run]) -> str:
    """Return the measure that runs are compared by: ``"reward"`` or ``"accuracy"``.

    It is the mean reward where each run chose its best checkpoint by it, unless it equals the accuracy throughout.
    Every evaluation must hold it problem by problem, which those of older versions do not.
    """
    rows = [row for run in runs for row in (*run.evaluations, *run.test)]
    known = all(None not in (row.get("earned") or [None]) for row in rows)
    return "reward" if known and all(run.best_by == "reward" for run in runs) and graded(rows) else "accuracy"


def per_problem(evaluation: Row, key: str) -> list[float]:
    """Return the mean over samples for each problem of an evaluation."""
    if key == "earned":
        return [float(value) for value in evaluation[key]]
    return [total / evaluation["samples"] for total in evaluation[key]]


def read_run(folder: Path, generates: bool) -> Run:
    """Read a finished run.

    Raises:
        DataError: it lacks a file, a line or a key.
    """
    evaluations, metrics = list(read_lines(folder / "evaluations.jsonl")), list(read_lines(folder / "metrics.jsonl"))
    if not evaluations or not metrics:
        raise DataError(f"{folder} holds no finished run: it has no evaluations or no metrics")
    unjudged = [row.get("step") for row in evaluations if row.get("judged") == 0]
    if unjudged:
        raise DataError(
            f"{folder} cannot be compared: nothing is judged in its evaluation of step {unjudged[0]}, and arms are "
            "compared by accuracy; name the answer column (task.answer) or a reward function"
        )
    lacking = [PER_PROBLEM[measure] for measure in ALWAYS if PER_PROBLEM[measure] not in evaluations[0]]
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
    amounts: dict[str, list[float]] = {
        "steps": [1] * len(metrics),
        "completions": [completions_drawn(row) for row in metrics],
        "tokens": [row["generated"] if generates else 0 for row in metrics],
        "seconds": [step_seconds(row, without=["evaluation"]) for row in metrics],
    }
    budget = total_budget(metrics)
    return Run(
        evaluations,
        metrics,
        list(read_lines(folder / "test.jsonl")),
        {unit: dict(zip(steps, accumulate(each, initial=0), strict=True)) for unit, each in amounts.items()},
        None if budget is None else budget.to_json(),
        summary.get("alarms"),
        summary.get("stopped_by", []),
        summary.get("best_by", "success"),
    )


def check_pair(folder: Path, run: Run, base_run: Run, *, match: str = "steps") -> None:
    """Check that a run has the problems of the baseline's run of its seed, and evaluations at the same steps.

    With completions matched, the steps may differ.

    Raises:
        DataError: the problems or the steps differ.
    """
    # If an alarm stopped the shorter run, only the steps that both runs reached must agree.
    shorter = min(run, base_run, key=lambda run: len(run.evaluations))
    common = len(shorter.evaluations) if shorter.ended_by else None
    pairs: list[tuple[str, Any, Any]] = [
        ("held-out problems", len(run.evaluations[0]["hits"]), len(base_run.evaluations[0]["hits"])),
        ("problem sets", _problem_sets(run), _problem_sets(base_run)),
    ]
    if match != "completions":
        # With completions matched, a method that samples more of them per step makes fewer steps.
        pairs.append(("evaluations at steps", evaluated_steps(run)[:common], evaluated_steps(base_run)[:common]))
    for name, value, base_value in pairs:
        if value != base_value:
            raise DataError(f"{folder} cannot be paired: it has {name} {value}, the baseline's run has {base_value}")


def _problem_sets(run: Run) -> list[str | None]:
    return [rows[0].get("problem_set") if rows else None for rows in (run.evaluations, run.test)]


def evaluated_steps(run: Run) -> list[int]:
    """Return the steps of the evaluations."""
    return [row["step"] for row in run.evaluations]


def evaluated_by(run: Run, step: int) -> Row:
    """Return the last evaluation up to a step."""
    return [row for row in run.evaluations if row["step"] <= step][-1]


def numbers_of(run: Run, key: str) -> list[float]:
    """Return the numbers of all steps under a key of the metrics."""
    return present([row.get(key) for row in run.metrics])


def present(values: Sequence[float | None]) -> list[float]:
    """Return the values that are not None."""
    return [value for value in values if value is not None]


def mean(values: Any) -> float | None:
    """Return the mean, or None if there are no values or one of them is None."""
    values = list(values)
    return fmean(values) if values and None not in values else None


SAMPLING = ("generation", "resampling")
"""Phases of a step that draw completions."""


def step_seconds(row: Row, *, without: Sequence[str] = (), only: Sequence[str] = ()) -> float:
    """Return the seconds of a step, without some phases or of some phases only."""
    phases = row["phase_seconds"]
    kept = [phase for phase in phases if phase not in without and (not only or phase in only)]
    return float(sum(phases[phase] for phase in kept))


def quotient(part: float, whole: float) -> float | None:
    """Return part / whole, or None if the whole is 0."""
    return part / whole if whole else None


def how_it_ended(folder: Path) -> str:
    """Return ``done`` after all steps, or the step and the alarms that stopped the run; empty for a run to resume."""
    path = folder / "summary.json"
    if not path.is_file():
        return ""
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary["finished"]:
        return "done"
    names = summary.get("stopped_by")
    return f"ended after step {summary['steps']} by {', '.join(names)}" if names else ""


def last_step(path: Path) -> int:
    """Return the step of the last complete line of a metrics file; 0 if there is none."""
    line = last_line(path)
    return 0 if line is None else int(line["step"])


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the object of the last complete line of a file of lines, read from its end; None if there is none."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    # A line with the evaluation of thousands of problems may be longer than 64 KiB.
    window, lines = 1 << 16, list[bytes]()
    with path.open("rb") as file:
        while not lines:
            start = max(0, size - window)
            file.seek(start)
            # The text before the first line break may be the end of a longer line.
            lines = file.read(size - start).split(b"\n")[1 if start else 0 : -1]
            if not start:
                break
            window *= 4
    return dict(json.loads(lines[-1])) if lines else None
