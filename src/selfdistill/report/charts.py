"""Curves as geometry: series and an axis in, coordinates and words out; the template only writes them down.

Nothing here knows of runs, files or HTML, so that the pages of a run, of a comparison and of a live run draw alike.
Coordinates are units of the SVG's own box, x to the right, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfdistill.report import numbers

Look = Literal["line", "faint", "points", "stairs"]
Value = float | None
LABEL_HEIGHT = 13.0
"""Least distance of two direct labels: one line of 11-unit text with air."""
SIGN_WIDTH = 6.4
"""Width of one sign of 11-unit system text, rounded up."""
MOST_POINTS = 800
"""More points than this are not told apart at 800 units of width; bucket minima and maxima stand for them."""


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity over steps; None is a gap. ``low`` and ``high`` draw a band; points are hollow, joined by a line."""

    label: str
    x: Sequence[float]
    y: Sequence[Value]
    low: Sequence[Value] = ()
    high: Sequence[Value] = ()
    look: Look = "line"
    tone: str = "student"


@dataclass(frozen=True, slots=True)
class Axis:
    """A range with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where a value stands between the coordinates ``start`` (the low end) and ``end``."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return start + share * (end - start)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A series in coordinates: SVG path texts, hollow points, and where its direct label stands."""

    label: str
    look: Look
    tone: str
    path: str
    band: str
    points: tuple[tuple[str, str], ...]
    label_y: float | None


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure ready to be written: geometry, words, and the columns that a hover reads out."""

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
    marks: tuple[tuple[str, str], ...]
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
) -> Chart:
    """Draw one or several series over steps, or over what ``x_name`` says.

    ``share`` shows values as percentages within [0, 1]; ``names`` replaces the y ticks (``{0: "off", 1: "on"}``);
    ``marks`` are upright lines with a word, at a step. The first series is the one that the summary speaks of, unless
    the series are ``rivals``: then it speaks of all, and the axis starts at zero. Without ``labels`` a legend elsewhere
    must say which is which.

    Raises:
        ValueError: no series holds a number.
    """
    form = numbers.percent if share else numbers.plain
    shown = [thin(one, most=MOST_POINTS) for one in series]
    x_axis = step_axis([x for one in series for x, y in zip(one.x, one.y, strict=True) if y is not None])
    y_axis = _value_axis(shown, share=share, names=names, zero=rivals and not share)
    y_words = list(names.values()) if names else tick_words(y_axis.ticks, share=share, log=y_axis.log)
    width, height = size
    left = 10 + SIGN_WIDTH * max([*map(len, y_words), len(x_name) if x_name != "step" else 0])
    tail = max(len(one.label) for one in series) if labels and (rivals or len(series) > 1) else 0
    right, top, bottom = width - (12 + SIGN_WIDTH * tail if tail else 10), 10.0, height - 28.0
    place_x = _placer(x_axis, left, right)
    place_y = _placer(y_axis, bottom, top)
    ends = label_places([place_y(_last(one.y)) for one in shown], top=top, bottom=bottom)
    say = (lambda value: (names or {}).get(value, form(value))) if names else form
    return Chart(
        title=title,
        unit=unit,
        x_name=x_name,
        change="" if rivals else _change(shown[0], say),
        summary=f"{title}{f' ({unit})' if unit else ''}: "
        + "; ".join(
            (f"{one.label}: " if rivals else "") + _ends(one, say, x_name) for one in (shown if rivals else shown[:1])
        ),
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple((coordinate(place_x(x)), numbers.compact(x)) for x in x_axis.ticks),
        y_ticks=tuple((coordinate(place_y(y)), word) for y, word in zip(y_axis.ticks, y_words, strict=True)),
        drawn=tuple(_draw(one, place_x, place_y, end if tail else None) for one, end in zip(shown, ends, strict=True)),
        marks=tuple((coordinate(place_x(x)), word) for x, word in marks if x_axis.low <= x <= x_axis.high),
        columns=_columns(shown, place_x, place_y, say, numbers.percent_range if share else numbers.plain_range),
    )


def nice_step(span: float, *, parts: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 × 10ⁿ that cuts the span into at most ``parts``."""
    rough = span / parts
    power = 10.0 ** math.floor(math.log10(rough))
    # 1e-9: 0.3 / 3 must count as 0.1 in binary fractions too.
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def linear_axis(
    low: float, high: float, *, parts: int = 4, floor: float = -math.inf, ceiling: float = math.inf
) -> Axis:
    """An axis with round ends around ``[low, high]``, never beyond floor and ceiling; a flat line gets room."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        room = abs(low) / 10 or 0.5
        low, high = low - room, high + room
    low, high = max(low, floor), min(high, ceiling)
    step = nice_step(high - low, parts=parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * place, 12) for place in range(first, last + 1))
    ticks = tuple(tick for tick in ticks if floor - 1e-9 <= tick <= ceiling + 1e-9)
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """An axis of powers of ten around positive values."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = max(1, math.ceil((last - first) / 5))
    return Axis(10.0**first, 10.0**last, tuple(10.0**power for power in range(first, last + 1, every)), log=True)


def step_axis(steps: Sequence[float]) -> Axis:
    """An axis that ends at the first and the last step, with whole ticks inside.

    Raises:
        ValueError: no step at all.
    """
    if not steps:
        raise ValueError("a chart needs at least one number")
    low, high = min(steps), max(steps)
    if low == high:
        return Axis(low - 1, high + 1, (low,))
    every = max(1.0, nice_step(high - low, parts=6))
    every = math.ceil(every)
    ticks = tuple(float(tick) for tick in range(math.ceil(low / every) * every, math.floor(high) + 1, every))
    return Axis(low, high, ticks)


def tick_words(ticks: Sequence[float], *, share: bool = False, log: bool = False) -> list[str]:
    """Tick labels, all with the decimals that the finest needs: 0, 0.25 and 0.5 become ``0.00 0.25 0.50``."""
    if log:
        return [f"{tick:,g}".replace("-", numbers.MINUS) for tick in ticks]
    values = [100 * tick for tick in ticks] if share else list(ticks)
    if not share and any(0 < abs(value) < 0.001 for value in values):
        return [f"{value:.0e}".replace("-", numbers.MINUS) if value else "0" for value in values]
    decimals = next(d for d in range(8) if all(abs(v - round(v, d)) < 1e-9 for v in values) or d == 7)
    return [f"{value:,.{decimals}f}{'%' if share else ''}".replace("-", numbers.MINUS) for value in values]


def label_places(ends: Sequence[float], *, top: float, bottom: float) -> list[float]:
    """Heights of direct labels: each at the end of its line, pushed apart where they would overlap."""
    order = sorted(range(len(ends)), key=lambda place: ends[place])
    places = list(ends)
    for before, after in pairwise(order):
        places[after] = max(places[after], places[before] + LABEL_HEIGHT)
    limit = bottom
    for place in reversed(order):
        places[place] = max(min(places[place], limit), top)
        limit = places[place] - LABEL_HEIGHT
    return places


def running_mean(y: Sequence[Value], window: int) -> list[Value]:
    """The mean of the last ``window`` entries at each place, gaps left out; None where all of them are gaps."""
    means: list[Value] = []
    for end in range(1, len(y) + 1):
        known = [value for value in y[max(0, end - window) : end] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def thin(series: Series, *, most: int) -> Series:
    """At most ``most`` points: every bucket keeps its lowest and its highest, so that no spike is lost."""
    if len(series.y) <= most or series.low:
        return series
    width = math.ceil(2 * len(series.y) / most)
    keep: list[int] = []
    for start in range(0, len(series.y), width):
        bucket = range(start, min(start + width, len(series.y)))
        known = [place for place in bucket if series.y[place] is not None]
        if not known:
            keep.append(start)
            continue
        extremes = {
            min(known, key=lambda place: series.y[place] or 0.0),
            max(known, key=lambda place: series.y[place] or 0.0),
        }
        keep.extend(sorted(extremes))
    x, y = [series.x[place] for place in keep], [series.y[place] for place in keep]
    return Series(series.label, x, y, look=series.look, tone=series.tone)


def coordinate(value: float) -> str:
    """A coordinate to a tenth of a unit, without needless zeros."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _value_axis(
    series: Sequence[Series], *, share: bool, names: Mapping[float, str] | None, zero: bool = False
) -> Axis:
    values = [value for one in series for part in (one.y, one.low, one.high) for value in part if value is not None]
    if names:
        ticks = tuple(names)
        return Axis(min(ticks), max(ticks), ticks)
    low, high = min(values), max(values)
    if not (share or zero) and low > 0 and high / low > 100:
        return log_axis(low, high)
    if 0 <= low < high / 2 or (zero and low > 0):
        low = 0.0  # a curve that halves or doubles is read against zero
    bounds = (0.0, 1.0) if share else (-math.inf, math.inf)
    return linear_axis(low, high, floor=bounds[0], ceiling=bounds[1])


def _draw(
    series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float], label_y: Value
) -> Drawn:
    spots = [(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.y, strict=True)]
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
        # A lone value between gaps: a line of no length, which round line caps show as a dot.
        parts.append(f"M{coordinate(x)} {coordinate(y)}" + ("h0" if len(run) == 1 else ""))
        for x, y in run[1:]:
            parts.append(f"H{coordinate(x)}V{coordinate(y)}" if stairs else f"L{coordinate(x)} {coordinate(y)}")
    return "".join(parts)


def _band(series: Series, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> str:
    low = _runs([(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.low, strict=True)])
    high = _runs([(place_x(x), None if y is None else place_y(y)) for x, y in zip(series.x, series.high, strict=True)])
    # A lone interval is an upright bar: without a width of its own it could not be seen.
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
    say: Callable[[float], str],
    range_of: Callable[[Value, Value], str],
) -> tuple[dict[str, object], ...]:
    rows: dict[float, list[list[str]]] = {}
    for one in series:
        for place, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
            if y is None:
                continue
            span = range_of(one.low[place], one.high[place]) if one.low else ""
            rows.setdefault(x, []).append(
                [one.label, say(y) + (f" ({span})" if span else ""), coordinate(place_y(y)), one.tone]
            )
    return tuple({"x": coordinate(place_x(x)), "step": numbers.whole(x), "rows": rows[x]} for x in sorted(rows))


def _placer(axis: Axis, start: float, end: float) -> Callable[[float], float]:
    return lambda value: axis.place(value, start, end)


def _change(series: Series, say: Callable[[float], str]) -> str:
    first, last = say(_first(series.y)), say(_last(series.y))
    return first if _first_x(series) == _last_x(series) else f"{first} → {last}"


def _ends(series: Series, say: Callable[[float], str], x_name: str) -> str:
    return ", ".join(
        f"{say(value)} at {x_name} {numbers.whole(x)}"
        for value, x in ((_first(series.y), _first_x(series)), (_last(series.y), _last_x(series)))
    )


def _first(y: Sequence[Value]) -> float:
    return next(value for value in y if value is not None)


def _last(y: Sequence[Value]) -> float:
    return next(value for value in reversed(y) if value is not None)


def _first_x(series: Series) -> float:
    return next(x for x, y in zip(series.x, series.y, strict=True) if y is not None)


def _last_x(series: Series) -> float:
    return next(x for x, y in zip(reversed(series.x), reversed(series.y), strict=True) if y is not None)
