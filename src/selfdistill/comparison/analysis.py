"""Analysis of a comparison: reads the files of its runs and returns the numbers of ``compare.json``.

It needs no model and no config, so a folder of runs can be analysed again on any machine.

Every number of a comparison is computed from one number per problem and run. Every difference is paired: the arms of
one seed have the same held-out problems, so the difference is taken per problem and then averaged over problems, then
over seeds. Intervals are t intervals over the seeds; those of one column of differences hold together
(docs/compare.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from selfdistill.comparison.besides import describe_besides
from selfdistill.comparison.curves import cost_of, evaluation_curves, training_curves
from selfdistill.comparison.kept import keep_results
from selfdistill.comparison.pass_at import pass_curve_of
from selfdistill.comparison.reach import reach
from selfdistill.comparison.reading import Reading, read_arms
from selfdistill.comparison.runs import (
    ALWAYS,
    PER_PROBLEM,
    ArmRuns,
    Run,
    check_pair,
    evaluated_by,
    evaluated_steps,
    mean,
    numbers_of,
    per_problem,
    read_run,
    told_by,
)
from selfdistill.comparison.signal_costs import signal_of
from selfdistill.errors import DataError
from selfdistill.evaluation.intervals import SeedEstimate, over_seeds
from selfdistill.files.jsonl import Row
from selfdistill.report.outcome import cleared_at

CONFIDENCE = 0.95
MARGIN = 0.02
"""Accuracies that differ by less are called equal, if the intervals show it."""

BOUNDS = {"accuracy": (0.0, 1.0), "reward": (-math.inf, math.inf)}
"""Smallest and largest value of each measure; of the others 0 and infinity."""


def analyse(
    arms: Sequence[ArmRuns],
    *,
    baseline: str,
    match: str = "steps",
    split: str = "validation",
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Return all numbers of a comparison, ready for JSON. All arms have the same seeds; ``baseline`` names an arm.

    ``match`` is the unit of the equal budget and ``split`` the split of the final figures (:func:`read_arms`).
    ``margin`` is the difference of accuracies within which two arms are called equal.

    Raises:
        DataError: a run lacks a file or a key, or two runs of a seed have different problems or evaluations.
    """
    runs = {arm.name: [read_run(folder, arm.generates) for folder in arm.folders.values()] for arm in arms}
    base = runs[baseline]
    for arm in arms:
        for folder, run, base_run in zip(arm.folders.values(), runs[arm.name], base, strict=True):
            check_pair(folder, run, base_run, match=match)
    if len(base) == 1 and len(base[0].evaluations[0]["hits"]) < 2:
        raise DataError("one seed with one held-out problem has no interval: evaluate more problems, or more seeds")
    seeds = list(arms[0].folders)
    readings = read_arms(runs, baseline=baseline, match=match, split=split)
    sets = [reading.final.get("problem_set") for reading in readings[baseline]]
    shared = len(seeds) > 1 and None not in sets and len(set(sets)) == 1
    told = told_by([run for arm in runs.values() for run in arm])
    describe = _Describe(len(arms), shared, margin, match, told)
    result: dict[str, Any] = _rounded(
        {
            "baseline": baseline,
            "seeds": seeds,
            "samples": readings[baseline][0].final["samples"],
            "problems": [len(reading.final["hits"]) for reading in readings[baseline]],
            "match": match,
            "measure": told,
            "verdict_split": split,
            "interval": {
                "kind": "t",
                "confidence": CONFIDENCE,
                "over": "problems" if len(seeds) == 1 else "seeds and problems",
                "shared_problems": shared,
                "margin": margin,
            },
            "same_start": _same_start(list(runs.values())),
            "arms": [describe.arm(arm, runs[arm.name], base, readings[arm.name], baseline) for arm in arms],
        }
    )
    return result


def _same_start(runs: Sequence[Sequence[Run]]) -> bool:
    """Whether all arms have the same evaluation before training, seed by seed: same weights, problems and seeds."""
    initial = [[[run.evaluations[0][PER_PROBLEM[key]] for key in ALWAYS] for run in arm] for arm in runs]
    return all(arm == initial[0] for arm in initial)


class _Describe:
    """Turns the runs of an arm into its part of ``compare.json``. ``arms`` is the number of arms of the comparison.

    ``told`` is the measure that the arms are compared by, ``"accuracy"`` or ``"reward"``.
    """

    def __init__(self, arms: int, shared: bool, margin: float, match: str, told: str) -> None:
        self.arms = arms
        self.shared = shared
        self.margin = margin
        self.match = match
        self.told = told
        self.measures = tuple(dict.fromkeys((*ALWAYS, told)))

    def arm(
        self, arm: ArmRuns, runs: Sequence[Run], base: Sequence[Run], readings: Sequence[Reading], baseline: str
    ) -> dict[str, Any]:
        """Return all numbers of one arm. Without an evaluation within the budget its final numbers are None."""
        befores, finals = [reading.before for reading in readings], [reading.final for reading in readings]
        rivals, owns = [reading.rival for reading in readings], [reading.own for reading in readings]
        # The evaluation before training is no result of training, so it gives no final number and no comparison.
        read = all(reading.read for reading in readings)
        compared = read and all(reading.rival_read for reading in readings)
        apart = compared and arm.name != baseline
        measured: dict[str, Any] = {
            measure: {
                "before": self._level(befores, measure),
                "final": self._level(finals, measure) if read else None,
                # The intervals of a column hold together: one for each arm here, and one for each rival below.
                "change": self._difference(befores, finals, measure, family=self.arms).as_dict() if read else None,
                "against_baseline": self._lead(rivals, owns, measure) if apart else None,
            }
            for measure in self.measures
        }
        ends = [(run.evaluations, reading.end) for run, reading in zip(runs, readings, strict=True)]
        earlier = [evaluations[max(0, end - late_lag(end))] for evaluations, end in ends]
        later = [evaluations[end] for evaluations, end in ends]
        for measure in dict.fromkeys(("accuracy", self.told)):
            best = [run.evaluations[run.best(measure)] for run in runs]
            measured[measure] |= {
                "best": self._level(best, measure),
                "best_steps": [row["step"] for row in best],
                "read_at": [row["step"] for row in finals],
                "compared_at": [row["step"] for row in owns],
                "late_change": self._difference(earlier, later, measure, family=self.arms).as_dict() if read else None,
                "late_steps": [[before["step"], after["step"]] for before, after in zip(earlier, later, strict=True)],
            }
        return {
            "name": arm.name,
            "method": dict(arm.method),
            "optimiser": dict(arm.optimiser),
            "generates": arm.generates,
            "runs": [_run_summary(seed, run) for seed, run in zip(arm.folders, runs, strict=True)],
            **measured,
            "pass_curve": self._pass_curve(finals, rivals, owns, apart=apart) if read else [],
            "also": self._besides(runs, later if read else None, base if apart else None, readings),
            "truncated": {
                "before": fmean(row["truncated"] for row in befores),
                "final": fmean(row["truncated"] for row in finals) if read else None,
            },
            "reach": self._reach(runs, base) if compared else None,
            "entropy": {role: _first_and_last(runs, f"{role}_entropy") for role in ("student", "teacher")},
            "gate": mean(mean(numbers_of(run, "gate")) for run in runs),
            "cost": cost_of(runs, base),
            "signal": signal_of(arm.signal, runs),
            "curves": {"evaluations": evaluation_curves(runs, self.measures), "training": training_curves(runs)},
            "results": [keep_results(run) for run in runs],
        }

    def _reach(self, runs: Sequence[Run], base: Sequence[Run]) -> dict[str, Any]:
        family = max(1, self.arms - 1)
        return reach(runs, base, unit=self.match, family=family, confidence=CONFIDENCE, measure=self.told)

    def _besides(
        self, runs: Sequence[Run], later: Sequence[Row] | None, base: Sequence[Run] | None, readings: Sequence[Reading]
    ) -> dict[str, Any]:
        """Describe what was evaluated besides. ``base`` are the baseline's runs if the arm is compared with them."""
        # Final evaluations on a test split measure nothing besides, and an alarm may have ended a run between two
        # evaluations, so the rows are the last ones up to the steps of the reading.
        compared = None
        if base is not None:
            rivals = [evaluated_by(run, reading.rival["step"]) for run, reading in zip(base, readings, strict=True)]
            owns = [evaluated_by(run, reading.own["step"]) for run, reading in zip(runs, readings, strict=True)]
            compared = rivals, owns
        befores = [run.evaluations[0] for run in runs]
        return describe_besides(befores, later, compared, arms=self.arms, confidence=CONFIDENCE)

    def _pass_curve(
        self, finals: Sequence[Row], rivals: Sequence[Row], owns: Sequence[Row], *, apart: bool
    ) -> list[dict[str, Any]]:
        """Estimate pass@k of the final evaluations, and the lead over the baseline's if the arm is told ``apart``."""
        pairs = list(zip(rivals, owns, strict=True)) if apart else None
        family = max(1, self.arms - 1)
        return pass_curve_of(finals, pairs, shared=self.shared, family=family, confidence=CONFIDENCE)

    def _level(self, rows: Sequence[Row], measure: str) -> dict[str, Any]:
        values = [per_problem(row, PER_PROBLEM[measure]) for row in rows]
        bounds = BOUNDS.get(measure, (0.0, math.inf))
        k = rows[0]["samples"]
        return over_seeds(values, k=k, shared=self.shared, bounds=bounds, confidence=CONFIDENCE).as_dict()

    def _difference(self, before: Sequence[Row], after: Sequence[Row], measure: str, *, family: int) -> SeedEstimate:
        """Estimate the mean of after − before, paired per problem."""
        pairs = [
            list(zip(*(per_problem(row, PER_PROBLEM[measure]) for row in rows), strict=True))
            for rows in zip(before, after, strict=True)
        ]
        values = [[new - old for old, new in row] for row in pairs]
        widest, k = 1.0 if measure == "accuracy" else math.inf, after[0]["samples"]
        bounds = (-widest, widest)
        return over_seeds(values, k=k, shared=self.shared, family=family, bounds=bounds, confidence=CONFIDENCE)

    def _lead(self, rivals: Sequence[Row], own: Sequence[Row], measure: str) -> dict[str, Any]:
        """Return the difference from the baseline, and for accuracies whether it is shown to be within the margin."""
        lead = self._difference(rivals, own, measure, family=self.arms - 1)
        if measure != "accuracy":
            return lead.as_dict()
        return {**lead.as_dict(), "equal": lead.equal_within(self.margin, confidence=CONFIDENCE)}


def late_lag(end: int) -> int:
    """Return how many evaluations before evaluation ``end`` the late change begins: a third of them, at least one.

    The lag does not depend on the results, so a flat noisy curve has a late change of 0 on average. A fall from the
    best evaluation has not, because lower numbers follow the best of several noisy ones.
    """
    return max(1, round(end / 3))


def _run_summary(seed: int, run: Run) -> dict[str, Any]:
    """Return the last step of a run, its last evaluated step and its alarms."""
    return {
        "seed": seed,
        "steps": run.metrics[-1]["step"],
        "evaluated": evaluated_steps(run)[-1],
        "ended_by": run.ended_by,
        "budget": run.budget,
        "alarms": None
        if run.alarms is None
        else [{**alarm, "cleared": cleared_at(alarm, run.metrics)} for alarm in run.alarms],
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
