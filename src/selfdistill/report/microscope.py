"""The page of ``inspect``: ``index.html``, whose tokens are packed numbers until a completion is picked.

Every completion is one block of base64, little-endian, column by column: first the numbers of all columns as float16
(three digits, which is what a page shows), then piece and alternative ids as uint16 (uint32 where there are more than
65,536 of them), then the log-probabilities of the alternatives as float16, then classes as uint8. The script decodes
one block when it is picked; only its tokens become elements.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfdistill.report import numbers
from selfdistill.report.charts import Chart, Series, curve_chart
from selfdistill.report.page import render
from selfdistill.report.tokens import Piece, scale_limit, tint

STUDENT = "student"
HALF_LARGEST = 65504.0
"""The largest float16; a larger credit is shown as this one."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A completion in words: its problem, its judgement and its tokens as the text shows them."""

    example: str
    index: int
    prompt: str
    feedback: str
    reward: float | None
    finished: bool
    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class Lens:
    """All that the page shows. Arrays hold the tokens of all specimens, one after the other; NaN is missing.

    ``signals`` are what tokens can be coloured by; ``alternatives`` ids and log-probabilities [N, K] under
    ``"student"`` and ``"teacher"``; ``words`` the text of each of those ids.
    """

    summary: Mapping[str, Any]
    specimens: Sequence[Specimen]
    contexts: Sequence[str]
    teacher: str | None
    methods: Sequence[str]
    signals: Mapping[str, NDArray[np.float64]]
    logprobs: Mapping[str, NDArray[np.float32]]
    entropies: Mapping[str, NDArray[np.float32]]
    class_names: Sequence[str]
    class_N: NDArray[np.uint8]
    alternatives: Mapping[str, tuple[NDArray[np.int32], NDArray[np.float32]]]
    words: Mapping[int, str]
    outcome_C: Sequence[str]


def render_microscope(lens: Lens) -> str:
    """The page as text."""
    summary = lens.summary
    columns = _columns(lens)
    data, blocks = _pack(lens, columns)
    return render(
        "microscope.html",
        scripts=("page.js", "microscope.js"),
        model=numbers.printable(str(summary.get("model", numbers.MISSING))),
        facts=_facts(summary),
        data=data,
        blocks=blocks,
        options=[_option(lens, c, one) for c, one in enumerate(lens.specimens)],
        teacher=lens.teacher,
        shades=data["shades"],
        quantiles=_quantile_charts(lens),
        positions=_position_charts(lens),
        totals=_total_charts(lens),
        sheets=_sheets(summary),
        remarks=list(summary["templates"]["remarks"]),
        left_out=[(name, reason) for name, reason in summary["left_out"].items()],
        skipped=[(reason, numbers.whole(count)) for reason, count in summary["skipped"].items()],
        leak=summary["answer_leak"],
    )


def _columns(lens: Lens) -> dict[str, NDArray[Any]]:
    """Every number of a token, by the name that the page uses."""
    columns: dict[str, NDArray[Any]] = {f"logprob {STUDENT}": lens.logprobs[STUDENT]}
    columns.update(lens.signals)
    columns.update({f"entropy {name}": values for name, values in lens.entropies.items()})
    return columns


def _pack(lens: Lens, columns: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], list[str]]:
    """What the script needs once, and a block of base64 for every completion."""
    pieces: dict[tuple[str, str, bool], int] = {}
    lengths = [len(one.pieces) for one in lens.specimens]
    piece_N = np.array(
        [
            pieces.setdefault((piece.before, numbers.printable(piece.body), piece.unseen), len(pieces))
            for one in lens.specimens
            for piece in one.pieces
        ],
        dtype=np.int64,
    )
    place = {token: n for n, token in enumerate(lens.words)}
    known = np.zeros(max(lens.words, default=-1) + 1, dtype=np.int64)
    known[list(place)] = list(place.values())
    sides = list(lens.alternatives)
    ids = [piece_N[:, None], *(known[lens.alternatives[side][0]] for side in sides)]
    wide = max(len(pieces), len(place)) > 1 << 16
    numbers_CN = np.stack([_half(values) for values in columns.values()])
    chances = [_half(lens.alternatives[side][1]) for side in sides]
    blocks: list[str] = []
    begin = 0
    for n in lengths:
        rows = slice(begin, begin + n)
        parts = [numbers_CN[:, rows].tobytes()]
        parts += [one[rows].astype("<u4" if wide else "<u2").tobytes() for one in ids]
        parts += [one[rows].tobytes() for one in chances]
        parts.append(lens.class_N[rows].tobytes())
        blocks.append(base64.b64encode(b"".join(parts)).decode("ascii"))
        begin += n
    data = {
        "lengths": lengths,
        "columns": list(columns),
        "wide": wide,
        "pieces": [[before, body, unseen] for before, body, unseen in pieces],
        "words": [numbers.printable(word) for word in lens.words.values()],
        "sides": [side if side == STUDENT else str(lens.teacher) for side in sides],
        "alternatives": lens.alternatives[sides[0]][0].shape[1] if sides else 0,
        "classes": list(lens.class_names),
        "contexts": list(lens.contexts),
        "methods": list(lens.methods),
        "shades": [{"name": name, "limit": scale_limit(_known(values).tolist())} for name, values in columns.items()],
        "texts": [
            {"prompt": numbers.printable(one.prompt).strip(), "feedback": numbers.printable(one.feedback).strip()}
            for one in lens.specimens
        ],
    }
    return data, blocks


def _half(values: NDArray[Any]) -> NDArray[np.float16]:
    return np.asarray(np.clip(values, -HALF_LARGEST, HALF_LARGEST), dtype="<f2")


def _known(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values[~np.isnan(values)])


def _option(lens: Lens, place: int, one: Specimen) -> str:
    reward = "" if one.reward is None else f", reward {one.reward:.3g}".replace("-", numbers.MINUS)
    cut = "" if one.finished else ", cut"
    return (
        f"{place + 1}. {lens.outcome_C[place]}{reward}, {len(one.pieces):,} tokens{cut}: "
        f"{numbers.printable(one.example)} · {one.index}"
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    outcomes = summary["outcomes"]
    judged = ", ".join(f"{count:,} {name}" for name, count in outcomes.items() if count)
    return [
        ("Task", numbers.printable(str(summary.get("task", numbers.MISSING)))),
        ("Completions", f"{summary['completions']:,} of {summary['problems']:,} problems ({judged})"),
        ("Tokens", f"{summary['tokens']:,}"),
        ("Contexts", ", ".join(name for name in summary["contexts"] if name != STUDENT) or "none"),
        ("Methods", ", ".join(summary["methods"]) or "none"),
    ]


def _quantile_charts(lens: Lens) -> list[Chart]:
    """Each signal's quantile function, correct and wrong completions apart: tails, signs and shifts in one line."""
    outcome_N = np.repeat(np.array(lens.outcome_C), [len(one.pieces) for one in lens.specimens])
    percentiles = list(range(1, 100))
    return [
        chart
        for name, values in lens.signals.items()
        if (chart := _by_outcome(name, values, outcome_N, percentiles, "quantiles over tokens"))
    ]


def _total_charts(lens: Lens) -> list[Chart]:
    lengths = [len(one.pieces) for one in lens.specimens]
    charts = []
    for name, values in lens.signals.items():
        if not name.startswith("u "):
            continue
        total_C = np.array([part.sum() for part in np.split(values, np.cumsum(lengths)[:-1])])
        chart = _by_outcome(f"Σ{name}", total_C, np.array(lens.outcome_C), list(range(0, 101, 5)), "over completions")
        charts += [chart] if chart else []
    return charts


def _by_outcome(
    title: str, values: NDArray[Any], outcome: NDArray[Any], percentiles: list[int], unit: str
) -> Chart | None:
    series = []
    for name, tone in (("correct", "student"), ("wrong", "teacher"), ("not judged", "quiet")):
        known = _known(values[outcome == name])
        if len(known):
            y = np.quantile(known, np.array(percentiles) / 100).tolist()
            series.append(Series(name, [float(p) for p in percentiles], y, tone=tone))
    return curve_chart(title, series, unit=unit, x_name="percentile", rivals=True) if series else None


def _position_charts(lens: Lens) -> list[Chart]:
    """Each signal's mean by the tenth of the completion."""
    charts = []
    for name, found in lens.summary["signals"].items():
        means = [row["mean"] for row in found["by_position"]]
        if any(mean is not None for mean in means):
            x = [10.0 * (d + 1) for d in range(len(means))]
            series = [Series(name, x, means, tone="teacher" if name.startswith("u ") else "student", look="points")]
            charts.append(curve_chart(name, series, unit="mean of a token", x_name="% read", rivals=True, labels=False))
    return charts


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as words, tinted by its sign and size where its column is."""

    text: str
    side: str = ""
    strength: int = 0


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of the page."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""


def _sheets(summary: Mapping[str, Any]) -> list[Sheet]:
    signals = summary["signals"]
    sheets = []
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
            sheets.append(_means(signals, key, caption, note))
        sheets += [_shares(signals), _balance(signals)]
    if summary["separation"]:
        sheets.append(_separation(summary["separation"]))
    if summary["agreement"]:
        sheets.append(_agreement(summary))
    if summary["answer_leak"]["rows"]:
        rows = [(row["context"], [_plain(row["r2"]), _count(row["tokens"])]) for row in summary["answer_leak"]["rows"]]
        sheets.append(
            Sheet("Answer leak: R² of u on the u of an answer-only context", ["Context", "R²", "Tokens"], rows)
        )
    sheets += [_metrics(name, found) for name, found in summary["metrics"].items()]
    sheets.append(_templates(summary["templates"]))
    return sheets


def _means(signals: Mapping[str, Any], key: str, caption: str, note: str) -> Sheet:
    """A row a group of tokens, a column a signal; colours are full at the largest mean of a column."""
    names = list(signals)
    groups = [row["name"] for row in signals[names[0]][key]]
    tokens = [max(signals[name][key][n]["tokens"] for name in names) for n in range(len(groups))]
    means = {name: [row["mean"] for row in signals[name][key]] for name in names}
    limits = {name: max((abs(m) for m in column if m is not None), default=0.0) for name, column in means.items()}
    rows = [
        (group, [_count(tokens[n]), *(_tinted(means[name][n], limits[name]) for name in names)])
        for n, group in enumerate(groups)
        if tokens[n]
    ]
    return Sheet(caption, ["", "Tokens", *names], rows, note)


def _shares(signals: Mapping[str, Any]) -> Sheet:
    names = list(signals)
    groups = [row["name"] for row in signals[names[0]]["by_class"]]
    rows = [
        (group, [Cell(numbers.percent(signals[name]["by_class"][n]["share"])) for name in names])
        for n, group in enumerate(groups)
        if any(signals[name]["by_class"][n]["tokens"] for name in names)
    ]
    return Sheet("Share of the absolute signal by token class", ["", *names], rows)


def _balance(signals: Mapping[str, Any]) -> Sheet:
    head = ["", "Positive", "Negative", "Zero", "Σ positive", "Σ negative", "Median |x|", "90% |x|", "99% |x|",
            "Largest", "In the top 1%"]  # fmt: skip
    rows = []
    for name, found in signals.items():
        one = found["balance"]
        if one["tokens"]:
            sizes = one["absolute_quantiles"]
            cells = [numbers.percent(one[key]) for key in ("positive", "negative", "zero")]
            cells += [numbers.signed(one["positive_sum"]), numbers.signed(one["negative_sum"])]
            cells += [numbers.plain(value) for value in (sizes["0.5"], sizes["0.9"], sizes["0.99"], one["largest"])]
            rows.append((name, [Cell(text) for text in (*cells, numbers.percent(one["top_share"]))]))
    return Sheet(
        "Signs and tails", head, rows, "The last column is the share of Σ|x| that the largest 1 % of tokens hold."
    )


def _separation(found: Mapping[str, Any]) -> Sheet:
    def shown(one: Mapping[str, Any] | None) -> Cell:
        if one is None:
            return Cell(numbers.MISSING)
        ends = f" ({one['low']:.3f}–{one['high']:.3f})" if one["low"] is not None else ""
        return Cell(f"{one['value']:.3f}{ends}")

    rows = [
        (name, [shown(one["auc"]), shown(one["within"]), _count(one["correct"]), _count(one["wrong"])])
        for name, one in found.items()
    ]
    note = (
        "The chance that a correct completion has the larger Σu than a wrong one; 0.5 is none the wiser. "
        "A context that states the verdict knows it."
    )
    return Sheet(
        "Σu against reward: AUC", ["Context", "All pairs", "Pairs of one problem", "Correct", "Wrong"], rows, note
    )


def _agreement(summary: Mapping[str, Any]) -> Sheet:
    names = [name for name in summary["contexts"] if name != STUDENT]
    r = {(row["left"], row["right"]): row["r"] for row in summary["agreement"]}
    r |= {(right, left): value for (left, right), value in r.items()}
    rows = [(left, [Cell("1") if left == right else _tinted(r[left, right], 1.0) for right in names]) for left in names]
    return Sheet("Agreement of contexts: Pearson's r of u over tokens", ["", *names], rows)


def _metrics(method: str, found: Mapping[str, Any]) -> Sheet:
    names = list(found)
    groups = [row["name"] for row in found[names[0]]["by_class"]]
    rows = [("all tokens", [_plain(found[name]["mean"]) for name in names])]
    rows += [
        (group, [_plain(found[name]["by_class"][n]["mean"]) for name in names])
        for n, group in enumerate(groups)
        if any(found[name]["by_class"][n]["tokens"] for name in names)
    ]
    return Sheet(f"What {method} measures of itself: means of its own metrics", ["", *names], rows)


def _templates(found: Mapping[str, Any]) -> Sheet:
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
        for row in found["contexts"]
    ]
    thinking = found["thinking"]
    note = (
        f"{numbers.percent(found['finished'])} of the completions are finished; of {thinking['opened']} that think, "
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
    return Sheet("Templates", head, rows, note)


def _tinted(value: float | None, limit: float) -> Cell:
    if value is None:
        return Cell(numbers.MISSING)
    # Two digits of the largest at least: one method's credits are thousandths of another's.
    decimals = min(6, max(2, 1 - math.floor(math.log10(limit)))) if limit else 2
    return Cell(numbers.signed(value, decimals=decimals), *tint(value, limit or 1.0))


def _plain(value: float | None) -> Cell:
    return Cell(numbers.plain(value))


def _count(value: float | None) -> Cell:
    return Cell(numbers.whole(value))
