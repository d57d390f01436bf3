"""The tables of the page: rows of formatted cells, tinted by sign and size in comparable columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.report import numbers
from selfdistill.report.tokens import tint

STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Cell:
    """A formatted number. In a tinted column its colour shows its sign and size."""

    text: str
    side: str = ""
    strength: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


def unit_of(name: str) -> str:
    """Return the unit of a column: ``u`` of every context is one unit, ``credit`` of every method another."""
    return name.partition(" ")[0]


def page_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return every table of the page, in order."""
    signals = summary["signals"]
    tables = []
    if signals:
        for key, caption, note in (
            (
                "by_class",
                "Mean by token class",
                "Classes come from word lists; a token belongs to the first that fits.",
            ),
            ("by_entropy", "Mean by the student's entropy, in nats", ""),
            ("by_outcome", "Mean by outcome of the completion", ""),
        ):
            tables.append(_means(signals, key, caption, note))
        if all("by_turn" in signal for signal in signals.values()):
            tables.append(_means(signals, "by_turn", "Mean by turn of the episode", ""))
        tables += [_shares(signals), _balance(signals)]
    if summary["separation"]:
        tables.append(_separation(summary["separation"]))
    if summary["drift"]:
        tables.append(_drift(summary["drift"]))
    if summary["agreement"]:
        tables.append(_agreement(summary))
    if summary["answer_leak"]["rows"]:
        tables.append(_leak(summary["answer_leak"]))
    tables += [_metrics(name, values) for name, values in summary["metrics"].items()]
    tables.append(_templates(summary["templates"]))
    return tables


def _means(signals: Mapping[str, Any], key: str, caption: str, note: str) -> Table:
    """Return a table with one row per group of tokens and one column per signal, tinted on one scale a unit."""
    names = list(signals)
    groups = [row["name"] for row in signals[names[0]][key]]
    tokens = [max(signals[name][key][n]["tokens"] for name in names) for n in range(len(groups))]
    means = {name: [row["mean"] for row in signals[name][key]] for name in names}
    largest = {name: max((abs(m) for m in column if m is not None), default=0.0) for name, column in means.items()}
    limits = {name: max(largest[other] for other in names if unit_of(other) == unit_of(name)) for name in names}
    rows = [
        (group, [_count(tokens[n]), *(_tinted(means[name][n], limits[name], largest[name]) for name in names)])
        for n, group in enumerate(groups)
        if tokens[n]
    ]
    return Table(caption, ["", "Tokens", *names], rows, note)


def _shares(signals: Mapping[str, Any]) -> Table:
    names = list(signals)
    groups = [row["name"] for row in signals[names[0]]["by_class"]]
    rows = [
        (group, [Cell(numbers.percent(signals[name]["by_class"][n]["share"])) for name in names])
        for n, group in enumerate(groups)
        if any(signals[name]["by_class"][n]["tokens"] for name in names)
    ]
    return Table("Share of the absolute signal by token class", ["", *names], rows)


def _balance(signals: Mapping[str, Any]) -> Table:
    head = ["", "Positive", "Negative", "Zero", "Σ positive", "Σ negative", "Median |x|", "90% |x|", "99% |x|",
            "Largest", "In the top 1%"]  # fmt: skip
    rows = []
    for name, signal in signals.items():
        balance = signal["balance"]
        if balance["tokens"]:
            sizes = balance["absolute_quantiles"]
            cells = [numbers.percent(balance[key]) for key in ("positive", "negative", "zero")]
            cells += [numbers.signed(balance["positive_sum"]), numbers.signed(balance["negative_sum"])]
            cells += [numbers.plain(value) for value in (sizes["0.5"], sizes["0.9"], sizes["0.99"], balance["largest"])]
            rows.append((name, [Cell(text) for text in (*cells, numbers.percent(balance["top_share"]))]))
    return Table(
        "Signs and tails", head, rows, "The last column is the share of Σ|x| that the largest 1 % of tokens hold."
    )


def _separation(separation: Mapping[str, Any]) -> Table:
    def cell(auc: Mapping[str, Any] | None) -> Cell:
        if auc is None:
            return Cell(numbers.MISSING)
        ends = numbers.interval(auc["low"], auc["high"], "{:.3f}".format)
        return Cell(f"{auc['value']:.3f}" + (f" ({ends})" if ends else ""))

    rows = [
        (name, [cell(row["auc"]), cell(row["within"]), _count(row["correct"]), _count(row["wrong"])])
        for name, row in separation.items()
    ]
    note = (
        "The chance that a correct completion has the larger Σu than a wrong one; 0.5 is none the wiser. "
        "A context that states the verdict knows it."
    )
    return Table(
        "Σu against reward: AUC", ["Context", "All pairs", "Pairs of one problem", "Correct", "Wrong"], rows, note
    )


def _drift(drift: Mapping[str, Any]) -> Table:
    def within(part: Mapping[str, Any]) -> Cell:
        return Cell(numbers.MISSING if part["within"] is None else f"{part['within']['value']:.3f}")

    parts = ("u", "pmi", "weight_drift")
    rows = [
        (name, [*(_plain(row[part]["mean"]) for part in parts), *(within(row[part]) for part in parts)])
        for name, row in drift.items()
    ]
    note = (
        "Under the weights that the run's teacher has. The pMI is that of completion and context; the drift is how "
        "much likelier the completion is under the teacher's weights without the context. AUC is within a problem."
    )
    head = ["Context (weights)", "Σu", "Σ pMI", "Σ drift", "AUC Σu", "AUC Σ pMI", "AUC Σ drift"]
    return Table("Σu of a completion is pMI and drift of the weights, means in nats", head, rows, note)


def _agreement(summary: Mapping[str, Any]) -> Table:
    names = [name for name in summary["contexts"] if name != STUDENT]
    r = {(row["left"], row["right"]): row["r"] for row in summary["agreement"]}
    r |= {(right, left): value for (left, right), value in r.items()}
    rows = [
        (left, [Cell("1") if left == right else _tinted(r[left, right], 1.0, 1.0) for right in names]) for left in names
    ]
    return Table("Agreement of contexts: Pearson's r of u over tokens", ["", *names], rows)


def _leak(leak: Mapping[str, Any]) -> Table:
    rows = [(row["context"], [_plain(row["r2"]), _count(row["tokens"])]) for row in leak["rows"]]
    same = " and ".join(leak["same"])
    note = f"The answer-only prompt is that of {same}: a solution is but its answer here." if same else ""
    return Table("Answer leak: R² of u on the u of an answer-only context", ["Context", "R²", "Tokens"], rows, note)


def _metrics(method: str, metrics: Mapping[str, Any]) -> Table:
    names = list(metrics)
    groups = [row["name"] for row in metrics[names[0]]["by_class"]]
    rows = [("all tokens", [_plain(metrics[name]["mean"]) for name in names])]
    rows += [
        (group, [_plain(metrics[name]["by_class"][n]["mean"]) for name in names])
        for n, group in enumerate(groups)
        if any(metrics[name]["by_class"][n]["tokens"] for name in names)
    ]
    return Table(f"What {method} measures of itself: means of its own metrics", ["", *names], rows)


def _templates(checks: Mapping[str, Any]) -> Table:
    rows = [
        (
            row["context"],
            [
                _count(row["completions"]),
                _plain(row["first_token"]),
                _plain(row["other_tokens"]),
                _plain(row["end"]),
                _count(row["shared_ending"]),
            ],
        )
        for row in checks["contexts"]
    ]
    thinking = checks["thinking"]
    note = (
        f"{numbers.percent(checks['finished'])} of the completions are finished; of {thinking['opened']} that think, "
        f"{thinking['closed']} close their thinking."
    )
    head = [
        "Context",
        "Shown",
        "Mean |u|, first token",
        "Elsewhere",
        "Log-prob of the end",
        "Last prompt tokens shared",
    ]
    return Table("Templates", head, rows, note)


def _tinted(value: float | None, limit: float, largest: float) -> Cell:
    """Return a cell with full colour at ``limit``, and decimals for a column whose largest size is ``largest``."""
    if value is None:
        return Cell(numbers.MISSING)
    # Show at least two digits of the largest value: the credits of two methods may differ by a factor of 1000.
    decimals = min(6, max(2, 1 - math.floor(math.log10(largest)))) if largest else 2
    return Cell(numbers.signed(value, decimals=decimals), *tint(value, limit or 1.0))


def _plain(value: float | None) -> Cell:
    return Cell(numbers.plain(value))


def _count(value: float | None) -> Cell:
    return Cell(numbers.whole(value))
