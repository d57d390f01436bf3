"""A run folder read for its page: lines one by one, and of the completions only those that can be shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What a run wrote. ``first`` and ``last`` are all completions of the first and the last scored step."""

    name: str
    config: Row
    metrics: tuple[Row, ...]
    summary: Row
    first: tuple[Row, ...]
    last: tuple[Row, ...]


def read_run(run_dir: Path) -> RunFiles:
    """Read a run folder; an unfinished run may lack everything but its config.

    Raises:
        DataError: there is no ``config.json``, or a file is not what its name says.
    """
    if not (run_dir / "config.json").is_file():
        raise DataError(f"{run_dir} is not the folder of a run: it has no config.json")
    first, last = outer_steps(read_lines(run_dir / "rollouts.jsonl"))
    place = run_dir.resolve()
    return RunFiles(
        # Runs of a comparison are named by seed, in a folder of their arm.
        name=f"{place.parent.name}, {place.name}" if place.name.startswith("seed-") else place.name,
        config=_read_object(run_dir / "config.json"),
        metrics=(*_before_training(run_dir), *read_lines(run_dir / "metrics.jsonl")),
        summary=_read_object(run_dir / "summary.json"),
        first=first,
        last=last,
    )


def _before_training(run_dir: Path) -> Iterator[Row]:
    """The evaluation before the first step, which has no line of metrics, in the form of one."""
    for row in read_lines(run_dir / "evaluations.jsonl"):
        if row.get("step") == 0:
            yield {"step": 0, "evaluation": row}


def read_lines(path: Path) -> Iterator[Row]:
    """Objects of a JSONL file, one at a time; nothing where the file is missing.

    The last line may be torn (a run stopped while writing it) and is then left out.

    Raises:
        DataError: another line is not a JSON object.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for place, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    return
                raise DataError(f"{path}, line {place}: not valid JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {place}: not a JSON object")
            yield row


def outer_steps(rows: Iterable[Row]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Completions of the first and of the last step, in one pass that holds no more than those two steps.

    Steps whose completions carry ``u`` are preferred; of such steps, completions without it are left out. With one
    step only, the second answer is empty.
    """
    first: dict[bool, list[Row]] = {True: [], False: []}
    last: dict[bool, list[Row]] = {True: [], False: []}
    for row in rows:
        scored = bool(row.get("u"))
        step = row.get("step")
        if not first[scored] or first[scored][0].get("step") == step:
            first[scored].append(row)
        elif last[scored] and last[scored][0].get("step") == step:
            last[scored].append(row)
        else:
            last[scored] = [row]
    kind = bool(first[True])
    return tuple(first[kind]), tuple(last[kind])


def _read_object(path: Path) -> Row:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error.msg} at line {error.lineno}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return value
