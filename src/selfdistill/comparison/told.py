"""The measure that a comparison is told by, its accuracy or its mean reward, and its numbers as text."""

from __future__ import annotations

from selfdistill.comparison.alarm_tables import Cell
from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.measure import MEASURES, Measure


def told(result: Row) -> str:
    """Return the measure that a comparison is told by: ``"accuracy"`` or ``"reward"``."""
    # Comparisons of earlier versions do not hold the key.
    return str(result.get("measure", "accuracy"))


def measure_of(result: Row) -> Measure:
    """Return the formats of the measure that a comparison is told by."""
    return MEASURES["reward" if told(result) == "reward" else "success"]


def title_of(result: Row) -> str:
    """Return the title of that measure: ``Held-out accuracy, avg@8`` or ``Held-out mean reward``."""
    measure = measure_of(result)
    return f"{measure.title}, avg@{result['samples']}" if measure.key == "avg" else measure.title


def estimate(value: Row | None, measure: Measure = MEASURES["success"]) -> Cell:
    """Return a level with its interval, an accuracy in percent, or a dash for an arm that has none."""
    if value is None:
        return numbers.MISSING, ""
    return measure.level(value["value"]), measure.span(value["low"], value["high"])


def difference(value: Row | None, measure: Measure = MEASURES["success"]) -> Cell:
    """Return a difference with its interval, of accuracies in percentage points, or a dash where none is taken."""
    if value is None:
        return numbers.MISSING, ""
    span = numbers.interval(value["low"], value["high"], measure.signed, between=" to ")
    return measure.change(value["value"]), span
