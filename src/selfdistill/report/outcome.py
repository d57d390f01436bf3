"""The results of a run as texts and tables: headline, facts, comparison, evaluations, phases, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.files import RunFiles

ACCURACY = ("avg", "pass", "maj")
ESTIMATES = {
    "reward": "Mean reward",
    "loglikelihood": "Log-likelihood of references, nats a token",
    "teacher_gap": "Teacher's log-likelihood above it",
    "teacher_shift": "Teacher's shift on own completions, nats a token",
}
"""Names of the other estimates of an evaluation. The table has a row for each that was measured."""


def unjudged(side: Row) -> bool:
    """Whether neither a verifier nor a reward function judged the completions of an evaluation."""
    return side.get("judged") == 0


def headline(before: Row, after: Row) -> dict[str, str]:
    """Return accuracy before and after as texts, with the verdict that the two intervals support."""
    old, new = (
        {key: numbers.number(score_of(side, "avg").get(key)) for key in ("value", "low", "high")}
        for side in (before, after)
    )
    words = {
        "name": score_name("avg", [score_of(before, "avg"), score_of(after, "avg")]),
        "before": numbers.percent(old["value"]),
        "before_range": numbers.percent_range(old["low"], old["high"]),
        "after": numbers.percent(new["value"]),
        "after_range": numbers.percent_range(new["low"], new["high"]),
        "points": "" if old["value"] is None or new["value"] is None else points(new["value"] - old["value"]),
    }
    if unjudged(before) or unjudged(after):
        return words | {
            "kind": "open",
            "verdict": "No accuracy",
            "reason": "neither a verifier nor a reward function judged a held-out completion",
        }
    if None in old.values() or None in new.values():
        return words | {
            "kind": "open",
            "verdict": "No comparison yet",
            "reason": "it takes two evaluations with intervals",
        }
    if _less(old["high"], new["low"]):
        return words | {
            "kind": "better",
            "verdict": "Better",
            "reason": "the intervals before and after do not overlap",
        }
    if _less(new["high"], old["low"]):
        return words | {"kind": "worse", "verdict": "Worse", "reason": "the intervals before and after do not overlap"}
    # The bootstrap interval of zeros has no width, even for few problems.
    none_right = old["value"] == new["value"] == 0
    reason = "no completion was right, before or after" if none_right else "the intervals before and after overlap"
    return words | {"kind": "open", "verdict": "No clear change", "reason": reason}


def comparison_rows(before: Row, after: Row, best: Row) -> list[dict[str, object]]:
    """Return the rows of the table before / after / best: a name, and for each column a value with its interval."""
    rows: list[dict[str, object]] = []
    for key in ACCURACY:
        scores = [score_of(side, key) for side in (before, after, best)]
        values = [numbers.number(score.get("value")) for score in scores]
        cells = [
            (
                numbers.percent(value),
                numbers.percent_range(numbers.number(score.get("low")), numbers.number(score.get("high"))),
            )
            for value, score in zip(values, scores, strict=True)
        ]
        change = "" if values[0] is None or values[1] is None else points(values[1] - values[0])
        rows.append(
            {
                "name": score_name(key, scores),
                "cells": cells,
                "change": change,
                "known": any(v is not None for v in values),
            }
        )
    for key, name in ESTIMATES.items():
        scores = [score_of(side, key) for side in (before, after, best)]
        values = [numbers.number(score.get("value")) for score in scores]
        # If the mean reward equals the share of right completions, the first row already shows it.
        if key == "reward" and values == [
            numbers.number(score_of(side, "avg").get("value")) for side in (before, after, best)
        ]:
            continue
        gap = None if values[0] is None or values[1] is None else values[1] - values[0]
        cells = [(numbers.plain(value), "") for value in values]
        change = "" if gap is None else numbers.signed(gap, decimals=3)
        rows.append({"name": name, "cells": cells, "change": change, "known": any(v is not None for v in values)})
    for key, name, share in (
        ("length", "Completion length, tokens", False),
        ("truncated", "Truncated completions", True),
        ("deliberation", "Deliberation words per completion", False),
    ):
        values = [numbers.number(side.get(key)) for side in (before, after, best)]
        form = numbers.percent if share else numbers.plain
        gap = None if values[0] is None or values[1] is None else values[1] - values[0]
        change = (
            "" if gap is None else points(gap) if share else numbers.signed(gap, decimals=1 if abs(gap) >= 10 else 2)
        )
        cells = [(form(value), "") for value in values]
        rows.append({"name": name, "cells": cells, "change": change, "known": any(v is not None for v in values)})
    return [row for row in rows if row["known"]]


def evaluation_rows(evaluations: Sequence[tuple[float, Row]]) -> list[list[str]]:
    """Return one row per evaluation: step, three accuracies with intervals, length, truncated share, deliberation."""
    rows: list[list[str]] = []
    for step, evaluation in evaluations:
        cells = [numbers.whole(step)]
        for key in ACCURACY:
            score = {end: numbers.number(score_of(evaluation, key).get(end)) for end in ("value", "low", "high")}
            span = numbers.percent_range(score["low"], score["high"])
            value = "not judged" if unjudged(evaluation) else numbers.percent(score["value"])
            cells.append(value + (f" ({span})" if span else ""))
        cells.append(numbers.plain(numbers.number(evaluation.get("length"))))
        cells.append(numbers.percent(numbers.number(evaluation.get("truncated"))))
        cells.append(numbers.plain(numbers.number(evaluation.get("deliberation"))))
        rows.append(cells)
    return rows


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
        ("Speed", "" if speed is None else f"{numbers.whole(speed)} tokens/s", ""),
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


def score_name(key: str, scores: Sequence[Row]) -> str:
    """Return the name of an accuracy with its k: ``avg@8``."""
    k = next((numbers.number(score.get("k")) for score in scores if numbers.number(score.get("k")) is not None), None)
    return f"{key}@{'k' if k is None else numbers.whole(k)}"


def _at(config: Row, dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _word(value: object) -> str:
    return "" if value is None else numbers.printable(str(value))


def _less(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low < high
