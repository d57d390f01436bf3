"""Grids of settings: whether the best arm of a method lies at the edge of what was tried."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import flatten

SMALLEST_GRID = 3
"""Arms of one method from which on they are taken for a grid."""


def grid_edges(arms: Sequence[Row]) -> list[str]:
    """Return a sentence for every setting whose best value is the smallest or the largest that was tried.

    ``arms`` are those of a ``compare.json``. Arms of one method, three at least, are a grid; the best is that of the
    highest final accuracy, and an arm without one does not count. A better value may lie beyond an edge, so a grid is
    widened until its best lies within.
    """
    grids: dict[str, list[Row]] = {}
    for arm in arms:
        if arm["accuracy"]["final"] is not None:
            grids.setdefault(str(arm["method"]["name"]), []).append(arm)
    messages = []
    for method, grid in grids.items():
        if len(grid) < SMALLEST_GRID:
            continue
        tables = [dict(flatten({"method": arm["method"], "optimiser": arm["optimiser"]})) for arm in grid]
        settings = [{key: value for key, value in table.items() if type(value) in (int, float)} for table in tables]
        best = max(range(len(grid)), key=lambda place: grid[place]["accuracy"]["final"]["value"])
        for key, value in settings[best].items():
            tried = sorted({one[key] for one in settings if key in one})
            if len(tried) < 2 or value not in (tried[0], tried[-1]):
                continue
            edge = "smallest" if value == tried[0] else "largest"
            messages.append(
                f"The best {numbers.printable(method)} has the {edge} {key} that was tried, {value:g} of "
                f"{', '.join(f'{each:g}' for each in tried)}: a better one may lie beyond, so widen the grid."
            )
    return messages
