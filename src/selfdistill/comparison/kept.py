"""The results of every run, problem by problem, as ``compare.json`` stores them. Its intervals follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.comparison.runs import PER_PROBLEM, Run
from selfdistill.evaluation.also import values_of
from selfdistill.report.measure import graded


def keep_results(run: Run) -> dict[str, Any]:
    """Return the sums over samples of each problem, for each evaluation of a run.

    ``also`` holds one number for each problem, text or answer of what was evaluated besides.

    The numbers of an evaluation are one text with spaces between them. Lists would make the file ten times as large.
    """

    def texts(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {"steps": [row["step"] for row in rows]}
        for key in PER_PROBLEM.values():
            # Rewards of 0 and 1 are the hits, and earlier versions did not hold them problem by problem.
            if key != "earned" or (graded(rows) and all(row.get(key) is not None for row in rows)):
                table[key] = [" ".join(map(_short, row[key])) for row in rows]
        also = [{name: values_of(one) for name, one in row.get("also", {}).items()} for row in rows]
        if also and also[0]:
            table["also"] = {
                name: {key: [" ".join(f"{value:.6g}" for value in row[name][key]) for row in also] for key in measures}
                for name, measures in also[0].items()
            }
        return table

    kept = {"samples": run.evaluations[0]["samples"], **texts(list(run.evaluations))}
    return {**kept, "test": texts(list(run.test))} if run.test else kept


def kept_values(kept: Mapping[str, Any], measure: str, step: int, *, split: str = "validation") -> list[float]:
    """Return a measure of each problem at an evaluated step: ``accuracy``, ``reward``, ``deliberation`` or ``length``.

    ``kept`` is the result of :func:`keep_results`: ``result["arms"][a]["results"][s]`` of a ``compare.json``.

    Raises:
        KeyError: the run has no final evaluations, or no rewards by problem.
        ValueError: it was not evaluated at the step.
    """
    table = kept["test"] if split == "test" else kept
    text = table[PER_PROBLEM[measure]][table["steps"].index(step)]
    if measure == "reward":
        return [float(mean) for mean in text.split()]
    return [float(total) / kept["samples"] for total in text.split()]


def _short(value: Any) -> str:
    return "nan" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
