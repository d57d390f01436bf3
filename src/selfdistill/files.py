"""Where a run's numbers go: JSON lines that a resume can cut back, one object a step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError
from selfdistill.types import StepRecord

Row = Mapping[str, Any]
"""A JSON object of a file."""


def flatten(record: StepRecord) -> dict[str, Any]:
    """The step's line of ``metrics.jsonl``: means of each role over its tokens, then plain numbers, then seconds."""
    flat: dict[str, Any] = {"step": record.step}
    for role, sums in sorted(record.roles.items()):
        if sums.tokens:
            flat[f"{role}_entropy"] = sums.entropy / sums.tokens
            if sums.u is not None:
                flat["pmi" if role == "teacher" else f"{role}_u"] = sums.u / sums.tokens
    flat |= {"tokens": float(record.tokens), "weight": record.weight}
    flat |= {"loss": record.loss, "grad_norm": record.grad_norm, **record.values}
    flat["skipped"] = {reason: float(count) for reason, count in sorted(record.skipped.items())}
    flat["seconds"] = sum(record.seconds.values())
    flat["phase_seconds"] = dict(record.seconds)
    return flat


class JsonLines:
    """An append-only file of JSON objects, flushed line by line; of several ranks one ``writes``."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def append(self, *objects: Mapping[str, Any]) -> None:
        """Write the objects, one a line; numbers that are not finite become null. No objects leave no file."""
        if not objects or not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for value in objects:
                file.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """Its objects, one at a time; nothing where there is no file yet."""
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def cut(self, *, after_step: int) -> None:
        """Drop lines of later steps, and a torn last line, as a resume from ``after_step`` must."""
        if not self.writes or not self.path.exists():
            return
        aside = self.path.with_name(self.path.name + ".tmp")
        # A line may be torn in the middle of a letter; it is dropped, and whole lines hold no such bytes.
        with self.path.open(encoding="utf-8", errors="replace") as old, aside.open("w", encoding="utf-8") as new:
            for line in old:
                step = _step_of(line)
                if step is not None and step <= after_step:
                    new.write(line)
        aside.replace(self.path)


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside and rename it, so that a reader never sees half of it."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    aside.replace(path)


def sync(path: Path) -> None:
    """Let a file's or folder's bytes reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def read_object(path: Path) -> Row:
    """A JSON file's object; empty where the file is missing.

    Raises:
        DataError: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: {error.msg} at line {error.lineno}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return value
