"""Selects the evaluations at which the arms of a comparison are read, so that each has had the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.comparison.runs import Run
from selfdistill.errors import DataError
from selfdistill.files.jsonl import Row


@dataclass(frozen=True, slots=True)
class Reading:
    """The evaluations at which one run is read. ``own`` is compared with ``rival``, an evaluation of the baseline.

    ``own`` is ``final`` unless an alarm has ended one of the two runs. Then ``own`` and ``rival`` are the last
    evaluations within the budget that the shorter run had spent.
    """

    before: Row
    final: Row
    own: Row
    rival: Row
    end: int
    """Index of the last evaluation of the curve within the budget."""
    read: bool = True
    """Whether the run has an evaluation within the budget, apart from the one before training."""
    rival_read: bool = True
    """Whether the baseline's run has one."""


def read_arms(runs: Mapping[str, Sequence[Run]], *, baseline: str, match: str, split: str) -> dict[str, list[Reading]]:
    """Return a reading for each run of each arm.

    ``match`` is a unit of :data:`~selfdistill.comparison.runs.UNITS`. Arms matched in steps or completions have spent
    their budget at the end, and are read there. Arms matched in tokens or seconds are read at the last evaluation
    within the budget, the total of the most frugal arm of the seed; runs that an alarm ended and arms that sample
    nothing do not set it. ``split`` is ``"test"`` for figures from the final evaluations, otherwise ``"validation"``.

    Raises:
        DataError: a run has no final evaluations.
    """
    ends = {name: [len(run.evaluations) - 1 for run in arm] for name, arm in runs.items()}
    if match in ("tokens", "seconds"):
        for index in range(len(runs[baseline])):
            complete = [arm[index] for arm in runs.values() if not arm[index].ended_by]
            totals = [run.spent[match][run.evaluations[-1]["step"]] for run in complete]
            if budgets := [total for total in totals if total]:
                for name, arm in runs.items():
                    ends[name][index] = arm[index].within(min(budgets), match)
    return {
        name: [
            _reading(run, rival, (end, rival_end), match, split)
            for run, rival, end, rival_end in zip(arm, runs[baseline], ends[name], ends[baseline], strict=True)
        ]
        for name, arm in runs.items()
    }


def unread(arm: Row, every: int) -> str:
    """Return why an arm of a ``compare.json`` has no final figures; empty if it has them.

    ``every`` is the number of steps between two evaluations.
    """
    if arm["accuracy"]["final"] is not None:
        return ""
    seeds = [run["seed"] for run, step in zip(arm["runs"], arm["accuracy"]["read_at"], strict=True) if not step]
    where = f" of seed {', '.join(map(str, seeds))}" if len(arm["runs"]) > 1 else ""
    return f"no evaluation within the budget{where}; evaluation.every is {every}"


def _reading(run: Run, rival: Run, ends: tuple[int, int], match: str, split: str) -> Reading:
    end, rival_end = ends
    if split == "test":
        for tested in (run, rival):
            if len(tested.test) < 2:
                raise DataError("a run has no evaluation on its final split before and after training: make it again")
        return Reading(run.test[0], run.test[-1], run.test[-1], rival.test[-1], end)
    shared = ends
    if run.ended_by or rival.ended_by:
        steps = run.evaluations[end]["step"], rival.evaluations[rival_end]["step"]
        unit = match if run.spent[match][steps[0]] and rival.spent[match][steps[1]] else "steps"
        budget = min(run.spent[unit][steps[0]], rival.spent[unit][steps[1]])
        shared = run.within(budget, unit), rival.within(budget, unit)
    # A run whose only evaluation is the one before training was ended by an alarm, not cut by the budget.
    within = [index > 0 or len(each.evaluations) == 1 for each, index in zip((run, rival), ends, strict=True)]
    owns = run.evaluations[shared[0]], rival.evaluations[shared[1]]
    return Reading(run.evaluations[0], run.evaluations[end], *owns, end, *within)
