"""Figures for papers as matplotlib axes, which the caller styles and saves. They need the extra ``plot``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.errors import ConfigError

POSITIVE, NEGATIVE = "#2a6f97", "#b5542c"


def axes(ax: Any) -> Any:
    """Return the caller's axes, or those of a new figure.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'selfdistill[plot]'") from error
    return pyplot.subplots()[1]


def curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], *, ax: Any) -> Any:
    """Plot metrics of a run over steps, one line each, with a gap where a step lacks the metric.

    Raises:
        ConfigError: no step has the metric.
    """
    metrics = sorted({key for line in lines for key, value in line.items() if isinstance(value, int | float)})
    for name in names:
        if name not in metrics:
            raise ConfigError(f"the metrics have no number {name!r}; there are: {', '.join(metrics)}")
    ax = axes(ax)
    steps = [line["step"] for line in lines]
    for name in names:
        values = [math.nan if line.get(name) is None else float(line[name]) for line in lines]
        ax.plot(steps, values, label=name)
    ax.set_xlabel("step")
    if len(names) == 1:
        ax.set_ylabel(names[0])
    else:
        ax.legend()
    return ax


def token_bars(words: Sequence[str], values: Sequence[float], name: str, *, ax: Any) -> Any:
    """Plot one bar per token, with the tokens as labels; missing numbers have no bar."""
    ax = axes(ax)
    positions = range(len(words))
    heights = [0.0 if math.isnan(value) else value for value in values]
    ax.bar(positions, heights, color=[POSITIVE if value >= 0 else NEGATIVE for value in heights])
    # Matplotlib would read a dollar sign as the start of a formula.
    ax.set_xticks(list(positions), [repr(word)[1:-1].replace("$", r"\$") for word in words], rotation=90)
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set_ylabel(name.replace("$", r"\$"))
    return ax


def intervals(names: Sequence[str], estimates: Sequence[Mapping[str, float]], measure: str, *, ax: Any) -> Any:
    """Plot estimates with their intervals, one below the other."""
    ax = axes(ax)
    for row, estimate in enumerate(estimates):
        value, low, high = (estimate[key] for key in ("value", "low", "high"))
        ax.errorbar([value], [row], xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], fmt="o", color=POSITIVE)
    ax.set_yticks(list(range(len(names))), list(names))
    ax.invert_yaxis()
    ax.set_xlabel(measure)
    return ax
