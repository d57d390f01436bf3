"""The alarms of a comparison in words: which sounded in which runs, on what evidence, and which runs they ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import spoken

Cell = tuple[str, str]
"""A value as text, and what stands small beside it: its interval, or nothing."""

HEAD = ("Arm", "Alarm", "Runs that heard it", "First at step", "Times", "Standing at the end", "Runs that it ended")
LIST_HEAD = ("Arm", "Seed", "Step", "Alarm", "Cleared at", "Evidence", "What to try")


def alarm_rows(arms: Sequence[Row]) -> list[tuple[str, tuple[Cell, ...]]]:
    """A row for every alarm that an arm heard, one for an arm that heard none; no rows where no arm heard any."""
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for arm in arms:
        name, runs = numbers.printable(arm["name"]), arm["runs"]
        known = [run for run in runs if run["alarms"] is not None]
        heard = dict.fromkeys(one["name"] for run in known for one in run["alarms"])
        for alarm in heard:
            found = [[one for one in run["alarms"] if one["name"] == alarm] for run in known]
            first = ", ".join(numbers.whole(ones[0]["step"]) if ones else numbers.MISSING for ones in found)
            words = [
                spoken(alarm),
                _of(sum(map(bool, found)), known),
                first,
                str(sum(map(len, found))),
                _of(sum(bool(ones) and ones[-1]["cleared"] is None for ones in found), known),
                _of(sum(alarm in run["ended_by"] for run in known), known),
            ]
            rows.append((name, tuple((word, "") for word in words)))
        if not heard:
            words = ["none" if known else "not recorded", *[numbers.MISSING] * (len(HEAD) - 2)]
            rows.append((name, tuple((word, "") for word in words)))
    return rows if any(run["alarms"] for arm in arms for run in arm["runs"]) else []


def alarm_list(arms: Sequence[Row]) -> list[tuple[str, ...]]:
    """Every alarm of every run with its evidence and suggestion, a row each under :data:`LIST_HEAD`."""
    return [
        (
            numbers.printable(arm["name"]),
            str(run["seed"]),
            numbers.whole(one["step"]),
            spoken(one["name"]),
            numbers.whole(one["cleared"]),
            numbers.printable(one["evidence"]),
            numbers.printable(one["suggestion"]),
        )
        for arm in arms
        for run in arm["runs"]
        for one in run["alarms"] or ()
    ]


def alarm_notes(arms: Sequence[Row]) -> Iterator[str]:
    """What has to be known of alarms: that none sounded, were not listened for, or have ended a run."""
    everyone = [run["alarms"] for arm in arms for run in arm["runs"]]
    if not any(everyone) and None not in everyone:
        yield "No alarm sounded in any run."
    elif None in everyone:
        yield "Some runs are older than the alarms, and nothing was listened for in them."
    ended = [f"{numbers.printable(arm['name'])} ({words})" for arm in arms if (words := ending(arm))]
    if ended:
        yield (
            f"Alarms ended runs before their last step: {', '.join(ended)}. Their final numbers are those of their "
            "last evaluation; their differences are taken at the last step that both runs of a seed have evaluated; "
            "the curves of an arm end with its shortest run; and a shorter run had less time for its best and its fall."
        )


def ending(arm: Row) -> str:
    """Which runs of an arm were ended: ``seed 0 after step 33 by entropy collapse``; empty where none was."""
    return "; ".join(
        f"seed {run['seed']} after step {run['steps']} by {', '.join(map(spoken, run['ended_by']))}"
        for run in arm["runs"]
        if run["ended_by"]
    )


def alarm_words(arm: Row) -> str:
    """The alarms of an arm in a line: ``entropy collapse (2 of 3 runs)``; empty where none sounded."""
    return ", ".join(
        f"{cells[0][0]} ({cells[1][0]} {'run' if len(arm['runs']) == 1 else 'runs'})" for _, cells in alarm_rows([arm])
    )


def _of(count: int, runs: Sequence[Row]) -> str:
    return f"{count} of {len(runs)}"
