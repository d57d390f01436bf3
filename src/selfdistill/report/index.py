"""The index of a folder of runs: one row per run and per comparison, with links to their pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selfdistill.errors import DataError
from selfdistill.files.jsonl import read_lines, read_object
from selfdistill.report import numbers
from selfdistill.report.files import summary_of
from selfdistill.report.measure import MEASURES, measure_of
from selfdistill.report.outcome import alarm_label, ended_by, score_of, stepped
from selfdistill.report.page import Live, render, write_report

DEPTH = 5
"""Levels below the folder that are searched. A run of a comparison lies four below: comparison/runs/arm/seed-0."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A run or a comparison of the index: its folder, and its path below the folder of the index, with slashes."""

    folder: Path
    name: str


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run. A model's folder also has a ``config.json``, but no method in it.

    Raises:
        DataError: its ``config.json`` is malformed.
    """
    return "method" in read_object(folder / "config.json")


def find_runs(top: Path) -> tuple[list[Entry], list[Entry]]:
    """Return the runs and the comparisons below a folder, by name. Folders inside a run are not searched."""
    runs, comparisons = [], []
    for path, folders, files in os.walk(top):
        folder = Path(path)
        depth = len(folder.relative_to(top).parts)
        entry = Entry(folder, folder.relative_to(top).as_posix())
        if depth and "config.json" in files and ("metrics.jsonl" in files or is_run(folder)):
            runs.append(entry)
            folders.clear()
        if "compare.json" in files:
            comparisons.append(entry)
        # Hidden folders hold no runs, and a checkpoint holds a model.
        folders[:] = sorted(name for name in folders if depth < DEPTH and name[0] != "." and name != "checkpoints")
    return sorted(runs, key=lambda entry: entry.name), sorted(comparisons, key=lambda entry: entry.name)


def write_index(top: Path) -> Path:
    """Write ``index.html`` into a folder of runs, and the page of every run that has none or an older one.

    Raises:
        DataError: the folder holds no run.
    """
    runs, comparisons = find_runs(top)
    if not runs and not comparisons:
        raise DataError(f"{top} holds no run: no folder in it has the config.json of a run")
    broken: dict[str, str] = {}
    for entry in runs:
        page, metrics = entry.folder / "report.html", entry.folder / "metrics.jsonl"
        try:
            if not page.exists() or (metrics.exists() and metrics.stat().st_mtime_ns > page.stat().st_mtime_ns):
                write_report(entry.folder)
        except DataError as error:
            broken[entry.name] = str(error)
    target, part = top / "index.html", top / "index.html.part"
    text = render_index(
        top, runs, comparisons, link=lambda entry, page: "" if entry.name in broken else f"{quote(entry.name)}/{page}"
    )
    part.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(part, target)
    return target


def render_index(
    top: Path,
    runs: list[Entry],
    comparisons: list[Entry],
    *,
    link: Callable[[Entry, str], str],
    live: Live | None = None,
) -> str:
    """Return the index as HTML text. ``link`` returns the address of a page of an entry, or an empty text."""
    rows = [{**run_row(entry), "link": link(entry, "report.html")} for entry in runs]
    return render(
        "index.html",
        polls=bool(live and live.seconds),
        scripts=("page.js", "live.js") if live and live.seconds else ("page.js",),
        name=numbers.printable(top.resolve().name),
        live=live,
        runs=rows,
        no_spread_note=numbers.NO_SPREAD_NOTE if any(row.get("range") == numbers.NO_SPREAD for row in rows) else "",
        going=sum(row["state"] == "going" for row in rows),
        comparisons=[{**row, "link": link(entry, "compare.html")} for entry in comparisons for row in _arms(entry)],
    )


def run_row(entry: Entry) -> dict[str, Any]:
    """Return a run's row: its name, method, task, steps, measure before and now, and its state.

    If a file cannot be read, the row holds the error message instead.
    """
    name = numbers.printable(entry.name)
    try:
        return {"name": name, "trouble": "", **_row(entry.folder)}
    except DataError as error:
        return {"name": name, "trouble": numbers.printable(str(error)), "state": "unreadable"}


def _row(folder: Path) -> dict[str, Any]:
    config = read_object(folder / "config.json")
    evaluations = [row for row in read_lines(folder / "evaluations.jsonl") if "step" in row]
    metrics = stepped(list(read_lines(folder / "metrics.jsonl")))
    summary, last = summary_of(folder, metrics), metrics[-1] if metrics else {}
    done, planned = numbers.number(last.get("step")) or 0.0, numbers.number(config.get("steps"))
    measure = measure_of(config, summary, evaluations)
    ends = [score_of(row, measure.key) for row in (evaluations[0], evaluations[-1])] if evaluations else [{}, {}]
    ended = ended_by(summary)
    active = last.get("alarms")
    method, task = config.get("method"), config.get("task")
    return {
        "method": _word(method.get("name") if isinstance(method, dict) else method),
        "task": _word(task.get("kind") if isinstance(task, dict) else task),
        "steps": numbers.whole(done) + (f" of {numbers.whole(planned)}" if planned not in (None, done) else ""),
        "measure": measure.name_of(ends),
        "before": measure.level(numbers.number(ends[0].get("value"))),
        "now": measure.level(numbers.number(ends[1].get("value"))),
        "range": measure.span(numbers.number(ends[1].get("low")), numbers.number(ends[1].get("high"))),
        "state": "finished" if summary.get("finished") else "ended" if ended else "stopped" if summary else "going",
        "ended": ended,
        "alarms": ", ".join(map(alarm_label, active)) if isinstance(active, list) else "",
    }


def _arms(entry: Entry) -> Iterator[dict[str, Any]]:
    """Yield one row for a comparison: its name and its arms with their final figures."""
    try:
        result = read_object(entry.folder / "compare.json")
    except DataError as error:
        yield {"name": numbers.printable(entry.name), "arms": numbers.printable(str(error))}
        return
    arms = result.get("arms")
    key = "reward" if result.get("measure") == "reward" else "accuracy"
    measure = MEASURES["reward" if key == "reward" else "success"]
    words = []
    for arm in arms if isinstance(arms, list) else ():
        # An arm that could not be read within an equal budget has no final figure.
        final = numbers.number((arm.get(key, {}).get("final") or {}).get("value"))
        words.append(f"{numbers.printable(str(arm.get('name')))} {measure.level(final)}")
    yield {
        "name": numbers.printable("this folder" if entry.name == "." else entry.name),
        "arms": ", ".join(words) + (f" ({measure.name.lower()})" if key == "reward" else ""),
    }


def _word(value: object) -> str:
    return numbers.MISSING if value is None else numbers.printable(str(value))
