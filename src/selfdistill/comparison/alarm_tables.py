"""Tables of the alarms in a comparison: the runs that raised each alarm, its evidence, and the runs that it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import alarm_label

Cell = tuple[str, str]
"""A value as text, and its interval in small print (may be empty)."""

HEAD = ("Arm", "Alarm", "Runs that heard it", "First at step", "Times", "Standing at the end", "Runs that it ended")
LIST_HEAD = ("Arm", "Seed", "Step", "Alarm", "Cleared at", "Evidence", "What to try")


def alarm_rows(arms: Sequence[Row]) -> list[tuple[str, tuple[Cell, ...]]]:
    """Return one row per alarm of each arm, and one row for an arm without alarms.

    Returns no rows if no arm raised an alarm.
    """
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for arm in arms:
        name, runs = numbers.printable(arm["name"]), arm["runs"]
        recorded = [run for run in runs if run["alarms"] is not None]
        alarm_names = dict.fromkeys(alarm["name"] for run in recorded for alarm in run["alarms"])
        for alarm_name in alarm_names:
            by_run = [[alarm for alarm in run["alarms"] if alarm["name"] == alarm_name] for run in recorded]
            first = ", ".join(numbers.whole(alarms[0]["step"]) if alarms else numbers.MISSING for alarms in by_run)
            words = [
                alarm_label(alarm_name),
                _of(sum(map(bool, by_run)), recorded),
                first,
                str(sum(map(len, by_run))),
                _of(sum(bool(alarms) and alarms[-1]["cleared"] is None for alarms in by_run), recorded),
                _of(sum(alarm_name in run["ended_by"] for run in recorded), recorded),
            ]
            rows.append((name, tuple((word, "") for word in words)))
        if not alarm_names:
            words = ["none" if recorded else "not recorded", *[numbers.MISSING] * (len(HEAD) - 2)]
            rows.append((name, tuple((word, "") for word in words)))
    return rows if any(run["alarms"] for arm in arms for run in arm["runs"]) else []


def alarm_list(arms: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return one row per alarm of every run, with its evidence and suggestion; :data:`LIST_HEAD` names the columns."""
    return [
        (
            numbers.printable(arm["name"]),
            str(run["seed"]),
            numbers.whole(alarm["step"]),
            alarm_label(alarm["name"]),
            numbers.whole(alarm["cleared"]),
            numbers.printable(alarm["evidence"]),
            numbers.printable(alarm["suggestion"]),
        )
        for arm in arms
        for run in arm["runs"]
        for alarm in run["alarms"] or ()
    ]


def alarm_notes(arms: Sequence[Row]) -> Iterator[str]:
    """Yield notes on alarms: that none was raised, that some runs did not record them, and that some stopped a run."""
    everyone = [run["alarms"] for arm in arms for run in arm["runs"]]
    if not any(everyone) and None not in everyone:
        yield "No alarm was raised in any run."
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
    """Return the runs of an arm that an alarm stopped: ``seed 0 after step 33 by entropy collapse``; may be empty."""
    return "; ".join(
        f"seed {run['seed']} after step {run['steps']} by {', '.join(map(alarm_label, run['ended_by']))}"
        for run in arm["runs"]
        if run["ended_by"]
    )


def alarm_words(arm: Row) -> str:
    """Return the alarms of an arm on one line: ``entropy collapse (2 of 3 runs)``; empty without alarms."""
    return ", ".join(
        f"{cells[0][0]} ({cells[1][0]} {'run' if len(arm['runs']) == 1 else 'runs'})" for _, cells in alarm_rows([arm])
    )


def _of(count: int, runs: Sequence[Row]) -> str:
    return f"{count} of {len(runs)}"
