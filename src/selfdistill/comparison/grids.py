"""Grids of settings: whether the best arm of a method lies at the edge of the tried values."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.files.jsonl import Row
from selfdistill.report import numbers
from selfdistill.report.outcome import flatten

SMALLEST_GRID = 3
"""Minimum number of arms of one method that count as a grid."""


def grid_edges(arms: Sequence[Row]) -> list[str]:
    """Return a message for every setting whose best value is the smallest or the largest that was tried.

    ``arms`` are those of a ``compare.json``. Three or more arms of one method are a grid. The best arm has the highest
    final accuracy; an arm without one does not count. A better value may lie beyond an edge, so the message asks for a
    wider grid.
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
        best = max(range(len(grid)), key=lambda index: grid[index]["accuracy"]["final"]["value"])
        for key, value in settings[best].items():
            tried = sorted({table[key] for table in settings if key in table})
            if len(tried) < 2 or value not in (tried[0], tried[-1]):
                continue
            edge = "smallest" if value == tried[0] else "largest"
            messages.append(
                f"The best {numbers.printable(method)} has the {edge} {key} that was tried, {value:g} of "
                f"{', '.join(f'{number:g}' for number in tried)}: a better one may lie beyond, so widen the grid."
            )
    return messages
