"""The page of ``inspect``, ``index.html``. Its tokens are packed numbers until the reader picks a completion.

Every completion is one block of base64, little-endian, column by column: first the numbers of all columns as float16
(three digits, as the page shows), then the ids of pieces and alternatives as uint16 (uint32 if there are more than
65,536), then the log-probabilities of the alternatives as float16, then classes as uint8. The script decodes only the
picked block and creates elements for its tokens.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfdistill.files.text import plural
from selfdistill.inspection.page_tables import page_tables, unit_of
from selfdistill.inspection.tables import deciles
from selfdistill.report import numbers
from selfdistill.report.charts import Chart, Series, curve_chart
from selfdistill.report.outcome import flat, quantised
from selfdistill.report.page import render
from selfdistill.report.tokens import Piece, scale_limit

STUDENT = "student"
HALF_LARGEST = 65504.0
"""The largest float16. Larger credits are clipped to it."""

OUTCOMES = ("correct", "wrong", "not judged")
TONES = {"correct": "right", "wrong": "wrong", "not judged": "quiet"}
"""Tones of outcomes. On this page blue and orange only show the sign of a signal."""
PERCENTILES = (0.1, 0.2, 0.5, 1, 2, 5, *range(10, 91, 5), 95, 98, 99, 99.5, 99.8, 99.9)

DIGITS = 9
"""Decimals of numbers in charts. Without rounding, an axis over numerical noise around zero would have no width."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion as text: its problem, its verdict and its tokens."""

    example: str
    index: int
    prompt: str
    feedback: str
    reward: float | None
    finished: bool
    pieces: Sequence[Piece]
    said: Mapping[int, str] = field(default_factory=dict)
    """What the environment said, by the index of the token that follows it; empty for a single answer."""


@dataclass(frozen=True, slots=True)
class PageData:
    """The content of the page. Arrays concatenate the tokens of all samples; NaN is missing.

    Tokens can be coloured by ``signals``. ``alternatives`` has ids and log-probabilities [N, K] under ``"student"`` and
    ``"teacher"``; ``words`` has the text of each of these ids.
    """

    summary: Mapping[str, Any]
    samples: Sequence[Sample]
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


def render_microscope(page_data: PageData) -> str:
    """Return the page as HTML text."""
    summary = page_data.summary
    columns = _columns(page_data)
    data, blocks = _pack(page_data, columns)
    return render(
        "microscope.html",
        room="inspection",
        scripts=("page.js", "microscope.js"),
        model=numbers.printable(str(summary.get("model", numbers.MISSING))) + quantised(summary.get("quantised")),
        facts=_facts(summary),
        data=data,
        blocks=blocks,
        options=[_option(page_data, c, sample) for c, sample in enumerate(page_data.samples)],
        teacher=page_data.teacher,
        shades=data["shades"],
        outcomes=[name for name in OUTCOMES if name in page_data.outcome_C],
        quantiles=_quantile_charts(page_data),
        positions=_position_charts(page_data),
        totals=_total_charts(page_data),
        page_tables=page_tables(summary),
        warnings=list(summary["templates"]["warnings"]),
        variants=_variants(summary),
        left_out=[(name, reason) for name, reason in summary["left_out"].items()],
        skipped=[(reason, numbers.whole(count)) for reason, count in summary["skipped"].items()],
        leak=summary["answer_leak"],
        drift=bool(summary["drift"]),
    )


def _columns(page_data: PageData) -> dict[str, NDArray[Any]]:
    """Return all numbers of the tokens by their names on the page."""
    columns: dict[str, NDArray[Any]] = {f"logprob {STUDENT}": page_data.logprobs[STUDENT]}
    columns.update(page_data.signals)
    columns.update({f"entropy {name}": values for name, values in page_data.entropies.items()})
    return columns


def _pack(page_data: PageData, columns: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], list[str]]:
    """Return the data that all completions share, and a block of base64 for every completion."""
    pieces: dict[tuple[str, str, bool], int] = {}
    lengths = [len(sample.pieces) for sample in page_data.samples]
    piece_N = np.array(
        [
            pieces.setdefault((piece.before, numbers.printable(piece.body), piece.unseen), len(pieces))
            for sample in page_data.samples
            for piece in sample.pieces
        ],
        dtype=np.int64,
    )
    index = {token: n for n, token in enumerate(page_data.words)}
    index_of_id = np.zeros(max(page_data.words, default=-1) + 1, dtype=np.int64)
    index_of_id[list(index)] = list(index.values())
    sides = list(page_data.alternatives)
    ids = [piece_N[:, None], *(index_of_id[page_data.alternatives[side][0]] for side in sides)]
    wide = max(len(pieces), len(index)) > 1 << 16
    numbers_CN = np.stack([_half(values) for values in columns.values()])
    chances = [_half(page_data.alternatives[side][1]) for side in sides]
    blocks: list[str] = []
    begin = 0
    for n in lengths:
        rows = slice(begin, begin + n)
        parts = [numbers_CN[:, rows].tobytes()]
        parts += [values[rows].astype("<u4" if wide else "<u2").tobytes() for values in ids]
        parts += [values[rows].tobytes() for values in chances]
        parts.append(page_data.class_N[rows].tobytes())
        blocks.append(base64.b64encode(b"".join(parts)).decode("ascii"))
        begin += n
    data = {
        "lengths": lengths,
        "columns": list(columns),
        "wide": wide,
        "pieces": [[before, body, unseen] for before, body, unseen in pieces],
        "words": [numbers.printable(word) for word in page_data.words.values()],
        "sides": [side if side == STUDENT else str(page_data.teacher) for side in sides],
        "alternatives": page_data.alternatives[sides[0]][0].shape[1] if sides else 0,
        "classes": list(page_data.class_names),
        "contexts": list(page_data.contexts),
        "methods": list(page_data.methods),
        "shades": _shades(columns, lengths),
        "outcomes": list(page_data.outcome_C),
        "rewards": [sample.reward for sample in page_data.samples],
        "names": [f"{numbers.printable(sample.example)} · {sample.index}" for sample in page_data.samples],
        "texts": [
            {"prompt": numbers.printable(sample.prompt).strip(), "feedback": numbers.printable(sample.feedback).strip()}
            | ({"said": sample.said} if sample.said else {})
            for sample in page_data.samples
        ],
    }
    return data, blocks


def _shades(columns: Mapping[str, NDArray[Any]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Return each column's name, its colour limits and its sum over each completion, None if a number is missing.

    ``limit`` is shared by the columns of a unit, such as u under every context, so that their colours are comparable.
    ``own`` is the limit of the column alone.
    """
    pools: dict[str, list[NDArray[Any]]] = {}
    for name, values in columns.items():
        pools.setdefault(unit_of(name), []).append(_without_nan(values))
    shared = {unit: scale_limit(np.concatenate(parts).tolist()) for unit, parts in pools.items()}
    ends = np.cumsum(lengths)[:-1]
    return [
        {
            "name": name,
            "limit": shared[unit_of(name)],
            "own": scale_limit(_without_nan(values).tolist()),
            "sums": [
                None if np.isnan(total := float(part.sum(dtype=np.float64))) else float(f"{total:.4g}")
                for part in np.split(values, ends)
            ],
        }
        for name, values in columns.items()
    ]


def _half(values: NDArray[Any]) -> NDArray[np.float16]:
    return np.asarray(np.clip(values, -HALF_LARGEST, HALF_LARGEST), dtype="<f2")


def _without_nan(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values[~np.isnan(values)])


def _option(page_data: PageData, index: int, sample: Sample) -> str:
    reward = "" if sample.reward is None else f", reward {sample.reward:z.3g}".replace("-", numbers.MINUS)
    cut = "" if sample.finished else ", cut"
    partly = page_data.outcome_C[index] == "wrong" and (sample.reward or 0.0) > 0
    # The statistics of the page know right and wrong only: wrong is every completion below the reward of success.
    judged = "partly right" if partly else page_data.outcome_C[index]
    return (
        f"{index + 1}. {judged}{reward}, "
        f"{len(sample.pieces):,} {plural(len(sample.pieces), 'token')}{cut}: "
        f"{numbers.printable(sample.example)} · {sample.index}"
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    outcomes = summary["outcomes"]
    judged = ", ".join(f"{count:,} {name}" for name, count in outcomes.items() if count)
    return [
        ("Task", numbers.printable(str(summary.get("task", numbers.MISSING)))),
        (
            "Completions",
            f"{summary['completions']:,} of {summary['problems']:,} "
            f"{plural(summary['problems'], 'problem')} ({judged})",
        ),
        ("Tokens", f"{summary['tokens']:,}"),
        ("Contexts", ", ".join(name for name in summary["contexts"] if name != STUDENT) or "none"),
        ("Methods", ", ".join(summary["methods"]) or "none"),
    ]


def _variants(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return each label with its method and changed hyperparameters; no rows if every label is a default method."""
    rows = [
        (
            label,
            variant["method"],
            ", ".join(f"{key} = {word}" for key, word in flat(variant["hyperparameters"])) or "defaults",
        )
        for label, variant in summary["hyperparameters"].items()
    ]
    if not any(
        variant["hyperparameters"] or label != variant["method"]
        for label, variant in summary["hyperparameters"].items()
    ):
        return []
    return [(numbers.printable(label), numbers.printable(name), word) for label, name, word in rows]


def _quantile_charts(page_data: PageData) -> list[Chart]:
    """Draw the quantile function of each signal, separately for correct and wrong completions."""
    outcome_N = np.repeat(np.array(page_data.outcome_C), [len(sample.pieces) for sample in page_data.samples])
    return [
        chart
        for name, values in page_data.signals.items()
        if (chart := _by_outcome(name, values, outcome_N, PERCENTILES, "quantiles over tokens", tails=True))
    ]


def _total_charts(page_data: PageData) -> list[Chart]:
    lengths = [len(sample.pieces) for sample in page_data.samples]
    charts = []
    for name, values in page_data.signals.items():
        if not name.startswith("u "):
            continue
        total_C = np.array([part.sum() for part in np.split(values, np.cumsum(lengths)[:-1])])
        chart = _by_outcome(f"Σ{name}", total_C, np.array(page_data.outcome_C), range(0, 101, 5), "over completions")
        charts += [chart] if chart else []
    return charts


def _by_outcome(
    title: str,
    values: NDArray[Any],
    outcome: NDArray[Any],
    percentiles: Sequence[float],
    unit: str,
    *,
    tails: bool = False,
) -> Chart | None:
    series = []
    for name, tone in TONES.items():
        known = _without_nan(values[outcome == name])
        if len(known):
            y = [round(value, DIGITS) for value in np.quantile(known, np.array(percentiles) / 100).tolist()]
            series.append(Series(name, [float(p) for p in percentiles], y, tone=tone))
    return curve_chart(title, series, unit=unit, x_name="percentile", rivals=True, tails=tails) if series else None


def _position_charts(page_data: PageData) -> list[Chart]:
    """Draw the mean of each signal by the tenth of the completion, in a band from the 5th to the 95th percentile."""
    decile_N = deciles([len(sample.pieces) for sample in page_data.samples])
    charts = []
    for name, tables in page_data.summary["signals"].items():
        means = [None if row["mean"] is None else round(row["mean"], DIGITS) for row in tables["by_position"]]
        if not any(mean is not None for mean in means):
            continue
        values = page_data.signals[name]
        known = [_without_nan(values[decile_N == d]) for d in range(len(means))]
        low, high = (
            [round(float(np.quantile(part, end)), DIGITS) if len(part) else None for part in known]
            for end in (0.05, 0.95)
        )
        x = [10.0 * (d + 1) for d in range(len(means))]
        series = [Series(name, x, means, low=low, high=high, tone="right", look="points")]
        unit = "mean of a token; band: 5% to 95% of tokens"
        charts.append(curve_chart(name, series, unit=unit, x_name="% read", rivals=True, labels=False))
    return charts
