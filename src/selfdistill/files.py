"""The JSON files of a run: lines of metrics and of completions, written one object a line and cut back by a resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError
from selfdistill.text import printable_json
from selfdistill.types import STUDENT, StepRecord

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


@dataclass(frozen=True, slots=True)
class RolloutLine:
    """A line of ``rollouts.jsonl``: one completion of a step. Lists have one entry per token."""

    example: str
    """Id of the example."""
    prompt: str
    """The last message of the student's prompt."""
    text: str
    """The completion without special tokens."""
    ids: tuple[int, ...] = ()
    step: int = 0
    index: int = 0
    """Index of the completion in its group."""
    source: str = STUDENT
    """The role that sampled it."""
    tokens: tuple[str, ...] = ()
    """The text of each token."""
    logprobs: tuple[float | None, ...] = ()
    """Log-probability of each token when it was sampled; None if it was not finite."""
    finished: bool = True
    policy_version: int = 0
    reward: float | None = None
    feedback: str | None = None
    u: tuple[float | None, ...] | None = None
    """u = log T(y) − log S(y) of each token, in nats; None if no teacher scored the completion."""

    def to_json(self) -> dict[str, Any]:
        """The line as a JSON object; without ``u`` if no teacher scored the completion."""
        line = {name: getattr(self, name) for name in LINE_KEYS}
        return line if self.u is None else {**line, "u": self.u}

    @classmethod
    def from_json(cls, row: Row, where: str) -> RolloutLine:
        """The line of a JSON object. ``where`` names it in messages.

        Raises:
            DataError: a key is missing that every run writes, or a value is of another type.
        """
        values: dict[str, Any] = {}
        for key, fits in _FITS.items():
            value = row.get(key)
            if key not in row and key not in _REQUIRED:
                continue
            if not fits(value):
                raise DataError(f"{where}: {key!r} is not what a run writes (got {str(value)[:40]!r})")
            values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


LINE_KEYS = (
    "step", "example", "index", "source", "prompt", "text", "ids", "tokens", "logprobs", "finished", "policy_version",
    "reward", "feedback",
)  # fmt: skip
"""Keys of a :class:`RolloutLine` in the order of the file."""
_REQUIRED = ("example", "prompt", "text")


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _list_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_FITS: Mapping[str, Callable[[object], bool]] = {
    "step": _is_count,
    "example": _is_text,
    "index": _is_count,
    "source": _is_text,
    "prompt": _is_text,
    "text": _is_text,
    "ids": _list_of(_is_count),
    "tokens": _list_of(_is_text),
    "logprobs": _list_of(_is_number),
    "finished": lambda value: isinstance(value, bool),
    "policy_version": _is_count,
    "reward": _is_number,
    "feedback": lambda value: value is None or isinstance(value, str),
    "u": lambda value: value is None or _list_of(_is_number)(value),
}
"""What a value of each key must be."""


def read_rollouts(path: Path) -> Iterator[RolloutLine]:
    """The lines of a ``rollouts.jsonl``, one at a time; nothing if there is no such file.

    Raises:
        DataError: a line is not what a run writes.
    """
    for number, row in enumerate(read_lines(path), start=1):
        yield RolloutLine.from_json(row, f"{path}, completion {number}")


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
                file.write(printable_json(json.dumps(_finite(value), ensure_ascii=False)) + "\n")
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
    aside.write_text(printable_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
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
