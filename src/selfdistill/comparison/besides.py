"""What the runs of a comparison did to what they were not trained on: ``evaluation.also``, arm by arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from selfdistill.comparison.alarm_tables import Cell
from selfdistill.evaluation.also import values_of
from selfdistill.evaluation.intervals import over_seeds
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.besides import MEASURES, in_words

RANGES = {"accuracy": (0.0, 1.0), "loglikelihood": (-math.inf, 0.0), "kl": (0.0, math.inf)}
"""Lowest and highest value of each measure."""
HEAD = ("Arm", "Before", "Final", "Change")


def describe_besides(
    befores: Sequence[Row],
    finals: Sequence[Row] | None,
    compared: tuple[Sequence[Row], Sequence[Row]] | None,
    *,
    arms: int,
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Return the levels and differences of every result of ``evaluation.also``, by its name and measure.

    The rows are evaluations, one a seed. ``finals`` is None for an arm that could not be read, ``compared`` (those of
    the baseline and of this arm) for one that is not compared. Differences are paired by problem, as those of the
    accuracy, and those of one column hold together over ``arms``. A measure of a single number has no interval and is
    left out.
    """
    described: dict[str, dict[str, Any]] = {}
    for name, first in befores[0].get("also", {}).items():
        sets = [row["also"][name].get("problem_set") for row in befores]
        shared = len(sets) > 1 and len(set(sets)) == 1
        described[name] = {}
        for measure in values_of(first):
            before = _values(befores, name, measure)
            if sum(map(len, before)) < 2:
                continue
            low, high = RANGES[measure]
            estimates = {
                "before": (before, 1, (low, high)),
                "final": (finals and _values(finals, name, measure), 1, (low, high)),
                "change": (finals and _differences(befores, finals, name, measure), arms, (low - high, high - low)),
                "against_baseline": (
                    compared and _differences(*compared, name, measure),
                    max(1, arms - 1),
                    (low - high, high - low),
                ),
            }
            described[name][measure] = {
                key: over_seeds(
                    values, k=1, shared=shared, family=family, bounds=bounds, confidence=confidence
                ).as_dict()
                if values
                else None
                for key, (values, family, bounds) in estimates.items()
            }
    return described


def _values(rows: Sequence[Row], name: str, measure: str) -> list[list[float]]:
    return [values_of(row["also"][name])[measure] for row in rows]


def _differences(old: Sequence[Row], new: Sequence[Row], name: str, measure: str) -> list[list[float]]:
    pairs = zip(_values(old, name, measure), _values(new, name, measure), strict=True)
    return [[after - before for before, after in zip(*pair, strict=True)] for pair in pairs]


def besides_tables(result: Row) -> list[tuple[str, tuple[str, ...], tuple[tuple[str, tuple[Cell, ...]], ...]]]:
    """Return a table for each name and measure, as caption, head and rows; none where nothing else was evaluated."""
    arms, base = result["arms"], result["baseline"]
    kinds = dict.fromkeys(
        (name, measure) for arm in arms for name, one in arm.get("also", {}).items() for measure in one
    )
    return [
        (
            f"Not trained on: {numbers.printable(name)}, {MEASURES[measure]}",
            (*HEAD, f"Final vs {base}"),
            tuple(
                (numbers.printable(arm["name"]), _cells(arm.get("also", {}).get(name, {}).get(measure), measure))
                for arm in arms
            ),
        )
        for name, measure in kinds
    ]


def _cells(estimates: Row | None, measure: str) -> tuple[Cell, ...]:
    keys = {"before": False, "final": False, "change": True, "against_baseline": True}
    return tuple(in_words((estimates or {}).get(key), measure, signed=signed) for key, signed in keys.items())
