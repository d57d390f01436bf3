"""Geometry of curve charts: turns series into coordinates, ticks and labels, which a template writes as SVG.

It does not depend on runs, files or HTML, so every page shares it. Coordinates are units of the SVG's view box, with x
to the right and y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfdistill.report import numbers
from selfdistill.report.axes import (
    Axis,
    count_words,
    linear_axis,
    log_axis,
    signed_axis,
    step_axis,
    tail_axis,
    tick_words,
)

Look = Literal["line", "faint", "points", "stairs"]
Value = float | None
LABEL_HEIGHT = 13.0
"""Minimum vertical distance of two direct labels: one line of 11-unit text and its spacing."""
SIGN_WIDTH = 6.4
"""Width of one character of 11-unit system text, rounded up."""
MOST_POINTS = 800
"""Maximum points of a drawn series. A chart is 800 units wide, so longer series are reduced to minima and maxima."""


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity over steps; None is a gap. ``low`` and ``high`` draw a band. ``points`` draws hollow markers."""

    label: str
    x: Sequence[float]
    y: Sequence[Value]
    low: Sequence[Value] = ()
    high: Sequence[Value] = ()
    look: Look = "line"
    tone: str = "student"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A series in coordinates: SVG paths, hollow points, and the height of its direct label."""

    label: str
    look: Look
    tone: str
    path: str
    band: str
    points: tuple[tuple[str, str], ...]
    label_y: float | None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart for a template: its geometry, its texts, and one column of values per x for the hover readout."""

    title: str
    unit: str
    x_name: str
    change: str
    summary: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[tuple[str, str], ...]
    y_ticks: tuple[tuple[str, str], ...]
    drawn: tuple[Drawn, ...]
    marks: tuple[tuple[str, str, str, int, str], ...]
    """Of each mark its x, the height of its word, the word's anchor and distance from the line, and the word."""
    columns: tuple[dict[str, object], ...]


def curve_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    share: bool = False,
    size: tuple[int, int] = (360, 190),
    names: Mapping[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    x_name: str = "step",
    rivals: bool = False,
    labels: bool = True,
    tails: bool = False,
    planned: float | None = None,
) -> Chart:
    """Draw one or several series over steps, or over the quantity that ``x_name`` names.

    ``share`` shows values in [0, 1] as percentages. ``names`` replaces the y ticks (``{0: "off", 1: "on"}``). ``marks``
    are vertical lines with a label at a step. The summary describes the first series; with ``rivals`` it describes all,
    and the y-axis starts at zero. Without ``labels`` the caller must draw a legend. With ``tails`` x are percentiles,
    and both axes are stretched at their ends. ``planned`` is the last x of an unfinished run.

    Raises:
        ValueError: no series has a number.
    """
    form, range_of = (numbers.percent, numbers.percent_range) if share else (numbers.plain, numbers.plain_range)
    thinned = [thin(line, most=MOST_POINTS) for line in series]
    x_axis = tail_axis() if tails else step_axis(_known_x(series), planned=planned)
    x_words = tick_words(x_axis.ticks, scale="tails") if tails else count_words(x_axis.ticks)
    y_axis = _value_axis(thinned, share=share, names=names, zero=rivals and not share, tails=tails)
    y_words = list(names.values()) if names else tick_words(y_axis.ticks, share=share, scale=y_axis.scale)
    width, height = size
    left = 10 + SIGN_WIDTH * max([*map(len, y_words), len(x_name) + 1 if x_name != "step" else 0])
    tail = max(len(line.label) for line in series) if labels and (rivals or len(series) > 1) else 0
    right, top, bottom = width - (12 + SIGN_WIDTH * tail if tail else 10), 10.0, height - 28.0
    place_x, place_y = _placer(x_axis, left, right), _placer(y_axis, bottom, top)
    spots = [_spots(line, place_x, place_y) for line in thinned]
    heights: Sequence[Value] = label_places([place_y(_last(line.y)) for line in thinned], top=top, bottom=bottom)
    heights = heights if tail else [None] * len(thinned)
    format_value = (lambda value: (names or {}).get(value, form(value))) if names else form
    return Chart(
        title=title,
        unit=unit,
        x_name=x_name,
        change="" if rivals else _change(thinned[0], format_value),
        summary=_summary(title, unit, thinned, format_value, x_name, rivals=rivals),
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple((coordinate(place_x(x)), word) for x, word in zip(x_axis.ticks, x_words, strict=True)),
        y_ticks=tuple((coordinate(place_y(y)), word) for y, word in zip(y_axis.ticks, y_words, strict=True)),
        drawn=tuple(_draw(line, place_x, place_y, height) for line, height in zip(thinned, heights, strict=True)),
        marks=tuple(_mark(place_x(x), word, spots, left, (top, bottom)) for x, word in marks if x_axis.holds(x)),
        columns=_columns(thinned, place_x, place_y, format_value, range_of),
    )


def _known_x(series: Sequence[Series]) -> list[float]:
    return [x for line in series for x, y in zip(line.x, line.y, strict=True) if y is not None]


def _summary(
    title: str, unit: str, series: Sequence[Series], format_value: Callable[[float], str], x_name: str, *, rivals: bool
) -> str:
    """Return a chart in words: the first and last values of its first series, with ``rivals`` those of all."""
    parts = [
        (f"{line.label}: " if rivals else "") + _ends(line, format_value, x_name)
        for line in (series if rivals else series[:1])
    ]
    return f"{title}{f' ({unit})' if unit else ''}: {'; '.join(parts)}"


def label_places(ends: Sequence[float], *, top: float, bottom: float) -> list[float]:
    """Return the heights of direct labels: at the ends of their lines, moved apart where they would overlap."""
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    heights = list(ends)
    for before, after in pairwise(order):
        heights[after] = max(heights[after], heights[before] + LABEL_HEIGHT)
    limit = bottom
    for i in reversed(order):
        heights[i] = max(min(heights[i], limit), top)
        limit = heights[i] - LABEL_HEIGHT
    return heights


def running_mean(y: Sequence[Value], window: int) -> list[Value]:
    """Return the mean of the last ``window`` entries at each index, without gaps; None if all of them are gaps."""
    means: list[Value] = []
    for end in range(1, len(y) + 1):
        values = [value for value in y[max(0, end - window) : end] if value is not None]
        means.append(sum(values) / len(values) if values else None)
    return means


def thin(series: Series, *, most: int) -> Series:
    """Reduce a series to at most ``most`` points. Every bucket keeps its minimum and maximum, so no spike is lost."""
    if len(series.y) <= most or series.low:
        return series
    width = math.ceil(2 * len(series.y) / most)
    keep: list[int] = []
    for start in range(0, len(series.y), width):
        bucket = range(start, min(start + width, len(series.y)))
        indices = [i for i in bucket if series.y[i] is not None]
        if not indices:
            keep.append(start)
            continue
        extremes = {
            min(indices, key=lambda i: series.y[i] or 0.0),
            max(indices, key=lambda i: series.y[i] or 0.0),
        }
        keep.extend(sorted(extremes))
    x, y = [series.x[i] for i in keep], [series.y[i] for i in keep]
    return Series(series.label, x, y, look=series.look, tone=series.tone)


def coordinate(value: float) -> str:
    """Format a coordinate with one decimal, and without ``.0``."""
    return f"{value:z.1f}".removesuffix(".0")


def _value_axis(
    series: Sequence[Series], *, share: bool, names: Mapping[float, str] | None, zero: bool = False, tails: bool = False
) -> Axis:
    values = [value for line in series for part in (line.y, line.low, line.high) for value in part if value is not None]
    if names:
        ticks = tuple(names)
        return Axis(min(ticks), max(ticks), ticks)
    low, high = min(values), max(values)
    if tails:
        return signed_axis(low, high)
    if not (share or zero) and low > 0 and high / low > 100:
        return log_axis(low, high)
    if share and high == 0:
        high = 1.0  # A share that is 0 throughout has no range of its own.
    if 0 <= low < high / 2 or (zero and low > 0):
        low = 0.0  # Include zero where the curve changes by a factor of two or more.
    bounds = (0.0, 1.0) if share else (-math.inf, math.inf)
    return linear_axis(low, high, floor=bounds[0], ceiling=bounds[1])


def _spots(
    series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float]
) -> list[tuple[float, Value]]:
    return [(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.y, strict=True)]


def _mark(
    x: float, word: str, lines: Sequence[Sequence[tuple[float, Value]]], left: float, ends: tuple[float, float]
) -> tuple[str, str, str, int, str]:
    """Place the word of a mark at the upper or the lower end of its line, whichever is farther from the curves."""
    top, bottom = ends
    width = SIGN_WIDTH * len(word) + 5
    # The word stands left of its line, unless it would cover the labels of the y-axis there.
    before = x - width >= left
    reach = (x - width, x) if before else (x, x + width)
    heights = [height for spots in lines for run in _runs(spots) for height in _heights(run, *reach)]
    upper, lower = top + 10, bottom - 6
    room = {baseline: min((abs(baseline - 4 - y) for y in heights), default=bottom) for baseline in (lower, upper)}
    place = upper if room[upper] > room[lower] else lower
    return coordinate(x), coordinate(place), "end" if before else "start", -5 if before else 5, word


def _heights(run: Sequence[tuple[float, float]], start: float, end: float) -> list[float]:
    """Return the heights at which a curve passes from ``start`` to ``end``: its points there, and where it enters."""
    heights = [y for x, y in run if start <= x <= end]
    for (x, y), (next_x, next_y) in pairwise(run):
        heights += [y + (next_y - y) * (at - x) / (next_x - x) for at in (start, end) if x < at < next_x]
    return heights


def _draw(
    series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float], label_y: Value
) -> Drawn:
    spots = _spots(series, place_x, place_y)
    hollow = [(coordinate(x), coordinate(y)) for x, y in spots if y is not None] if series.look == "points" else []
    return Drawn(
        label=series.label,
        look=series.look,
        tone=series.tone,
        path=_path(spots, stairs=series.look == "stairs"),
        band=_band(series, place_x, place_y) if series.low else "",
        points=tuple(hollow),
        label_y=label_y,
    )


def _path(spots: Sequence[tuple[float, Value]], *, stairs: bool = False) -> str:
    parts: list[str] = []
    for run in _runs(spots):
        x, y = run[0]
        # A single value between gaps becomes a line of length 0, which round line caps show as a dot.
        parts.append(f"M{coordinate(x)} {coordinate(y)}" + ("h0" if len(run) == 1 else ""))
        for x, y in run[1:]:
            parts.append(f"H{coordinate(x)}V{coordinate(y)}" if stairs else f"L{coordinate(x)} {coordinate(y)}")
    return "".join(parts)


def _band(series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> str:
    low = _runs([(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.low, strict=True)])
    high = _runs([(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.high, strict=True)])
    # A single interval between gaps becomes a vertical bar 6 units wide; without a width it would be invisible.
    low, high = ([_widened(run) for run in runs] for runs in (low, high))
    outlines = [[*upper, *reversed(lower)] for upper, lower in zip(high, low, strict=True)]
    return "".join("M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in line) + "Z" for line in outlines)


def _widened(run: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return run if len(run) > 1 else [(run[0][0] - 3, run[0][1]), (run[0][0] + 3, run[0][1])]


def _runs(spots: Sequence[tuple[float, Value]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in spots:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]


def _columns(
    series: Sequence[Series],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    format_value: Callable[[float], str],
    range_of: Callable[[Value, Value], str],
) -> tuple[dict[str, object], ...]:
    rows: dict[float, list[list[str]]] = {}
    for line in series:
        for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
            if y is None:
                continue
            span = range_of(line.low[i], line.high[i]) if line.low else ""
            rows.setdefault(x, []).append(
                [line.label, format_value(y) + (f" ({span})" if span else ""), coordinate(place_y(y)), line.tone]
            )
    return tuple({"x": coordinate(place_x(x)), "step": _reading(x), "rows": rows[x]} for x in sorted(rows))


def _reading(x: float) -> str:
    return numbers.whole(x) if x == int(x) else f"{x:g}"


def _placer(axis: Axis, start: float, end: float) -> Callable[[float], float]:
    return lambda value: axis.place(value, start, end)


def _change(series: Series, format_value: Callable[[float], str]) -> str:
    first, last = format_value(_first(series.y)), format_value(_last(series.y))
    return first if _first_x(series) == _last_x(series) else f"{first} → {last}"


def _ends(series: Series, format_value: Callable[[float], str], x_name: str) -> str:
    """Return the first and the last value with their x; a single value appears once."""
    ends = dict.fromkeys([(_first_x(series), _first(series.y)), (_last_x(series), _last(series.y))])
    return ", ".join(f"{format_value(value)} at {x_name} {_reading(x)}" for x, value in ends)


def _first(y: Sequence[Value]) -> float:
    return next(value for value in y if value is not None)


def _last(y: Sequence[Value]) -> float:
    return next(value for value in reversed(y) if value is not None)


def _first_x(series: Series) -> float:
    return next(x for x, y in zip(series.x, series.y, strict=True) if y is not None)


def _last_x(series: Series) -> float:
    return next(x for x, y in zip(reversed(series.x), reversed(series.y), strict=True) if y is not None)
