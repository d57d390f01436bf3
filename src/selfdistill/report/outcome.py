"""The results of a run as texts and tables: headline, facts, comparison, evaluations, phases, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.files import RunFiles
from selfdistill.report.measure import ACCURACIES, MEASURES, Measure, graded

SPEED = "tokens sampled a second of training, evaluations not counted"
"""What a speed is, in the terminal and on the page."""


def unjudged(side: Row) -> bool:
    """Whether neither a verifier nor a reward function judged the completions of an evaluation."""
    return side.get("judged") == 0


def headline(before: Row, after: Row, measure: Measure = MEASURES["success"]) -> dict[str, str]:
    """Return the measure before and after as texts, with the verdict that the two intervals support."""
    sides = [score_of(side, measure.key) for side in (before, after)]
    old, new = ({key: numbers.number(side.get(key)) for key in ("value", "low", "high", "n")} for side in sides)
    unknown = old["value"] is None or new["value"] is None
    words = {
        "name": measure.name_of(sides),
        "asked": f"{measure.asked}, {measure.name_of(sides)}" if measure.key == "avg" else measure.asked,
        "before": measure.level(old["value"]),
        "before_range": measure.span(old["low"], old["high"]),
        "after": measure.level(new["value"]),
        "after_range": measure.span(new["low"], new["high"]),
        "points": "" if unknown else measure.change((new["value"] or 0.0) - (old["value"] or 0.0)),
    }
    if unknown and (unjudged(before) or unjudged(after)):
        return words | {
            "kind": "open",
            "verdict": "No accuracy",
            "reason": "neither a verifier nor a reward function judged a held-out completion",
        }
    known = [numbers.number(side.get(end)) for side in sides for end in ("value", "low", "high")]
    ends = [end for end in known if end is not None]
    if len(ends) < len(known):
        return words | {
            "kind": "open",
            "verdict": "No comparison yet",
            "reason": "it takes two evaluations with intervals",
        }
    span = 1.0 if measure.share else max(ends) - min(ends)
    (old_low, old_high), (new_low, new_high) = _widened(old, span), _widened(new, span)
    if old_high < new_low or new_high < old_low:
        better = (old_high < new_low) != measure.falls
        return words | {
            "kind": "better" if better else "worse",
            "verdict": "Better" if better else "Worse",
            "reason": "the intervals before and after do not overlap",
        }
    if measure.key == "avg" and old["value"] == new["value"] == 0:
        reason = "no completion was right, before or after"
    elif ends[2] < ends[4] or ends[5] < ends[1]:
        reason = "too few problems, of which all came out alike"
    else:
        reason = "the intervals before and after overlap"
    return words | {"kind": "open", "verdict": "No clear change", "reason": reason}


def _widened(score: Mapping[str, float | None], span: float) -> tuple[float, float]:
    """Return the ends of an interval. One without width is widened by what its number of problems leaves open.

    Where all ``n`` problems came out alike, up to 1 − 0.05^(1/n) of other problems may differ (at 95 %), by ``span``.
    """
    low, high = score["low"] or 0.0, score["high"] or 0.0
    if not numbers.without_width(low, high):
        return low, high
    reach = (1 - 0.05 ** (1 / max(1.0, score["n"] or 1.0))) * span
    return low - reach, high + reach


def comparison_rows(
    before: Row, after: Row, best: Row, measure: Measure = MEASURES["success"]
) -> list[dict[str, object]]:
    """Return the rows of the table before / after / best: a name, and for each column a value with its interval.

    The measure that the run is told by comes first. A mean reward that equals the share of right completions is left
    out, and so is what was not measured.
    """
    rows: list[dict[str, object]] = []
    sides = (before, after, best)
    accuracies = [replace(MEASURES["success"], key=key, name=key) for key in ACCURACIES]
    estimates = [*accuracies, *(MEASURES[key] for key in ("reward", "loglikelihood", "teacher_gap", "teacher_shift"))]
    for entry in sorted(estimates, key=lambda entry: entry.key != measure.key):
        scores = [score_of(side, entry.key) for side in sides]
        values = [numbers.number(score.get("value")) for score in scores]
        if all(value is None for value in values) or (entry.key == "reward" and not graded(sides)):
            continue
        spans = [entry.span(numbers.number(score.get("low")), numbers.number(score.get("high"))) for score in scores]
        gap = None if values[0] is None or values[1] is None else values[1] - values[0]
        rows.append(
            {
                "name": entry.name_of(scores),
                "cells": list(zip(map(entry.level, values), spans, strict=True)),
                "change": "" if gap is None else entry.change(gap),
            }
        )
    for key, name, share in (
        ("length", "Completion length, tokens", False),
        ("truncated", "Truncated completions", True),
        ("deliberation", "Deliberation words per completion", False),
    ):
        values = [numbers.number(side.get(key)) for side in sides]
        if all(value is None for value in values):
            continue
        form = numbers.percent if share else numbers.plain
        gap = None if values[0] is None or values[1] is None else values[1] - values[0]
        change = (
            "" if gap is None else points(gap) if share else numbers.signed(gap, decimals=1 if abs(gap) >= 10 else 2)
        )
        rows.append({"name": name, "cells": [(form(value), "") for value in values], "change": change})
    return rows


def evaluation_table(
    evaluations: Sequence[tuple[float, Row]], measure: Measure = MEASURES["success"]
) -> tuple[list[str], list[list[str]]]:
    """Return a head and one row per evaluation: step, measures with intervals, length, truncation, deliberation.

    A measure that no evaluation has, such as maj@k where no completion has an answer to vote with, has no column.
    """
    known = [replace(MEASURES["success"], key=key, name=key) for key in ACCURACIES]
    if measure.key != "avg":
        known.insert(0, measure)
    # Without any measure the column of the accuracy says that nothing was judged.
    columns = [entry for entry in known if any(score_of(row, entry.key) for _, row in evaluations)] or known[:1]
    rows: list[list[str]] = []
    for step, evaluation in evaluations:
        cells = [numbers.whole(step)]
        for entry in columns:
            score = {end: numbers.number(score_of(evaluation, entry.key).get(end)) for end in ("value", "low", "high")}
            span = entry.span(score["low"], score["high"])
            missing = score["value"] is None and unjudged(evaluation)
            cells.append("not judged" if missing else entry.level(score["value"]) + (f" ({span})" if span else ""))
        cells.append(numbers.plain(numbers.number(evaluation.get("length"))))
        cells.append(numbers.percent(numbers.number(evaluation.get("truncated"))))
        cells.append(numbers.plain(numbers.number(evaluation.get("deliberation"))))
        rows.append(cells)
    names = [f"{entry.name}@k" if entry.key in ACCURACIES else entry.name for entry in columns]
    return ["Step", *names, "Length", "Truncated", "Deliberation"], rows


def facts(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return the facts under the title: name, short text, and the longer text that a hover shows."""
    summary, config = run.summary, run.config
    model = str(_at(config, "model.path") or _at(config, "model.name") or numbers.MISSING)
    done = numbers.number(summary.get("steps"))
    if done is None:
        done = max((row["step"] for row in stepped(run.metrics)), default=None)
    planned = numbers.number(config.get("steps"))
    steps = numbers.whole(done) + (f" of {numbers.whole(planned)}" if planned is not None and planned != done else "")
    seconds = sum(phases(run).values()) or sum(numbers.number(row.get("seconds")) or 0.0 for row in run.metrics)
    speed = numbers.number(summary.get("tokens_per_second"))
    rows = [
        ("Method", _word(_at(config, "method.name")), ""),
        ("Task", _word(_at(config, "task.kind")), ""),
        (
            "Model",
            numbers.printable(model.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]) + quantised(run.quantised),
            numbers.printable(model),
        ),
        ("Steps", steps, ""),
        ("Time", numbers.duration(seconds or None), ""),
        ("Speed", "" if speed is None else f"{numbers.whole(speed)} tokens/s", SPEED),
        ("Seed", _word(config.get("seed")), ""),
        ("Episodes", ", ".join(f"{count} × {reason}" for reason, count in skipped(run.metrics, "ended")), ""),
    ]
    return [row for row in rows if row[1]]


def quantised(kind: str | None) -> str:
    """Return what follows the name of a model that was quantised; empty for one that was not."""
    return f" (quantised, {numbers.printable(kind)})" if kind else ""


def phase_rows(seconds: Mapping[str, float]) -> list[dict[str, str]]:
    """Return the time of each phase, longest first: its share of the total, and its bar's width in percent."""
    total, longest = sum(seconds.values()), max(seconds.values(), default=0.0)
    return [
        {
            "name": numbers.printable(name),
            "time": numbers.duration(spent),
            "share": numbers.percent(spent / total),
            "width": f"{100 * spent / longest:.1f}",
        }
        for name, spent in sorted(seconds.items(), key=lambda entry: -entry[1])
        if spent > 0
    ]


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested table by their dotted keys, as ``--set`` accepts them."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat(config: Row) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of a nested config and their values as text."""
    for key, value in flatten(config):
        yield numbers.printable(key), "none" if value is None else _word(value)


def points(difference: float) -> str:
    """Format a difference of shares in percentage points: ``+21.1 points``."""
    return f"{numbers.signed(100 * difference, decimals=1)} points"


def ends(summary: Row, evaluations: Sequence[tuple[float, Row]]) -> tuple[Row, Row]:
    """Return the evaluations before and after training: from the summary, else the first and last of the metrics."""
    before, after = summary.get("before"), summary.get("after")
    first: Row = evaluations[0][1] if evaluations else {}
    last: Row = evaluations[-1][1] if len(evaluations) > 1 else {}
    return (before if isinstance(before, dict) else first), (after if isinstance(after, dict) else last)


def phases(run: RunFiles) -> dict[str, float]:
    """Return the seconds of each phase: from the summary, or without one the sum over steps."""
    summarised = run.summary.get("seconds")
    spent: Counter[str] = Counter()
    for row in [summarised] if isinstance(summarised, dict) else [row.get("phase_seconds") for row in run.metrics]:
        if isinstance(row, dict):
            spent.update({name: numbers.number(value) or 0.0 for name, value in row.items()})
    return {name: float(seconds) for name, seconds in spent.items() if name != "total"}


def skipped(metrics: Sequence[Row], key: str = "skipped") -> list[tuple[str, str]]:
    """Return the reasons for skipping, with their counts over all steps, most frequent first.

    ``key`` is that of other counts by reason: ``ended`` counts why episodes ended.
    """
    counts: Counter[str] = Counter()
    for row in metrics:
        reasons = row.get(key)
        for reason, count in reasons.items() if isinstance(reasons, dict) else ():
            counts[numbers.printable(str(reason))] += int(numbers.number(count) or 0)
    return [(reason, numbers.whole(count)) for reason, count in counts.most_common() if count]


def alarm_rows(run: RunFiles) -> list[dict[str, object]]:
    """Return one row per alarm, oldest first: its step, evidence, suggestion, and the step at which it cleared."""
    rows: list[dict[str, object]] = []
    for alarm in run.alarms:
        cleared = cleared_at(alarm, run.metrics)
        rows.append(
            {
                "name": alarm_label(alarm.get("name")),
                "step": numbers.whole(numbers.number(alarm.get("step"))),
                "cleared": "" if cleared is None else numbers.whole(cleared),
                "evidence": _word(alarm.get("evidence")),
                "suggestion": _word(alarm.get("suggestion")),
            }
        )
    return rows


def cleared_at(alarm: Row, metrics: Sequence[Row]) -> float | None:
    """Return the first step at which an alarm is no longer active; None if it stays active to the end."""
    step = numbers.number(alarm.get("step"))
    for row in stepped(metrics):
        active = row.get("alarms")
        if step is not None and row["step"] > step and isinstance(active, list) and alarm.get("name") not in active:
            return float(row["step"])
    return None


def alarm_label(name: object) -> str:
    """Return the name of an alarm with spaces for underscores."""
    return _word(name).replace("_", " ")


def ended_by(summary: Row) -> str:
    """Return the names of the alarms that stopped the run; empty if none did."""
    names = summary.get("stopped_by")
    return ", ".join(map(alarm_label, names)) if isinstance(names, list) else ""


def stepped(metrics: Sequence[Row]) -> list[Row]:
    """Return the lines that have a step."""
    return [row for row in metrics if numbers.number(row.get("step")) is not None]


def score_of(side: Row, key: str) -> Row:
    """Return a table of an evaluation, such as an accuracy ``{"k", "value", "low", "high"}``; empty if it is none."""
    score = side.get(key)
    return score if isinstance(score, dict) else {}


def _at(config: Row, dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _word(value: object) -> str:
    return "" if value is None else numbers.printable(str(value))
