"""What the ``[signal]`` settings of an arm cost in completions, tokens and seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from selfdistill.comparison.alarm_tables import Cell
from selfdistill.comparison.runs import Run, present, step_seconds
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import flat

SIGNAL_HEAD = (
    "Arm",
    "Signal",
    "Further completions",
    "Their tokens",
    "Their seconds",
    "Left out of the loss",
    "Tokens left out",
    "Tokens of a run",
    "Seconds of a run",
)


def signal_of(settings: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Return the ``[signal]`` settings of an arm and what they cost a run, as means over seeds.

    ``completions``, ``tokens`` and ``seconds`` are those of prompts drawn in the place of others, None for an arm that
    draws none. ``left_out`` and ``left_out_tokens`` are the completions that have no part in the loss, for whatever
    reason; None for runs that did not count them.
    """

    def total(key: str) -> float | None:
        counts = [[row.get(key) for row in run.metrics] for run in runs]
        return None if any(None in row for row in counts) else fmean(sum(present(row)) for row in counts)

    resampled = any(run.resampled() for run in runs)
    generated, kept = total("generated"), total("tokens")
    return {
        "settings": dict(settings),
        "completions": total("resampled_completions"),
        "tokens": total("resampled_tokens"),
        "seconds": fmean(sum(step_seconds(row, only=["resampling"]) for row in run.metrics) for run in runs)
        if resampled
        else None,
        "left_out": total("dropped"),
        "left_out_tokens": None if generated is None or kept is None else generated - kept,
    }


def signal_cells(arm: Row) -> tuple[Cell, ...]:
    """Return the cells of an arm under :data:`SIGNAL_HEAD`."""
    signal, cost = arm["signal"], arm["cost"]
    settings = ", ".join(f"{key} = {value}" for key, value in flat(signal["settings"]))

    def cell(value: float | None, whole: float | None = None, form: Callable[[float], str] = numbers.compact) -> Cell:
        if value is None:
            return numbers.MISSING, ""
        return form(value), f"{numbers.percent(value / whole)} of all" if whole else ""

    return (
        (settings or numbers.MISSING, ""),
        cell(signal["completions"]),
        cell(signal["tokens"], cost["tokens"]),
        cell(signal["seconds"], cost["total_seconds"], numbers.duration),
        cell(signal["left_out"]),
        cell(signal["left_out_tokens"], cost["tokens"]),
        cell(cost["tokens"] if arm["generates"] else None),
        cell(cost["total_seconds"], form=numbers.duration),
    )
