"""JSON files that are written atomically, and JSONL files that a resume checks and truncates."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError
from selfdistill.files.text import printable_json

Row = Mapping[str, Any]
"""A JSON object from a file."""
UNREADABLE = (ValueError, RecursionError)
"""Exceptions of Python's JSON reader, also for an integer with too many digits and for too many nested brackets."""


class JsonLines:
    """An append-only JSONL file, synced to disk after every append. Only the rank with ``writes`` writes it."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self._digest = hashlib.sha256()
        self._bytes = 0

    def append(self, *objects: Mapping[str, Any]) -> None:
        """Append the objects, one per line; numbers that are not finite become null. No objects create no file."""
        if not objects or not self.writes:
            return
        lines = (printable_json(json.dumps(finite(value), ensure_ascii=False)) + "\n" for value in objects)
        data = "".join(lines).encode()
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(data)
        self._bytes += len(data)

    def mark(self) -> dict[str, Any]:
        """Return the number of bytes written and their hash, for :meth:`differs` and :meth:`cut`."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def mark_after(self, step: int) -> dict[str, Any]:
        """Return the mark after the lines up to a step, for a checkpoint of an older version without marks."""
        digest, size = hashlib.sha256(), 0
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError), self.path.open("rb") as file:
            for line in file:
                if json.loads(line)["step"] > step:
                    break
                digest.update(line)
                size += len(line)
        return {"bytes": size, "sha256": digest.hexdigest()}

    def differs(self, mark: Mapping[str, Any]) -> bool:
        """Whether the file does not begin with the bytes of the mark: lines were lost, torn or duplicated."""
        try:
            return bool(self._prefix(mark["bytes"])[1] != mark["sha256"])
        except FileNotFoundError:
            return bool(mark["bytes"])

    def cut(self, mark: Mapping[str, Any] | None) -> None:
        """Truncate the file to a mark, which also drops a torn last line. None deletes the file."""
        if not self.writes or not self.path.exists():
            return
        if mark is None:
            self.path.unlink()
            return
        os.truncate(self.path, mark["bytes"])
        sync(self.path)
        self._digest, _ = self._prefix(mark["bytes"])
        self._bytes = mark["bytes"]

    def _prefix(self, size: int) -> tuple[Any, str]:
        digest, remaining = hashlib.sha256(), size
        with self.path.open("rb") as file:
            while remaining and (chunk := file.read(min(remaining, 1 << 20))):
                digest.update(chunk)
                remaining -= len(chunk)
        return digest, digest.hexdigest() if not remaining else "too short"

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of the file; none if the file does not exist."""
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)


def finite(value: Any) -> Any:
    """Return a JSON value with null in place of NaN and infinity, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(printable_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSONL file; none if the file does not exist.

    A torn last line is skipped: a run may stop while it writes that line.

    Raises:
        DataError: another line is not a JSON object.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UNREADABLE as error:
                if not line.endswith("\n"):
                    return
                raise DataError(f"{path}, line {number}: not valid JSON ({getattr(error, 'msg', error)})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            yield row


def read_object(path: Path) -> Row:
    """Return the object of a JSON file; empty if the file does not exist.

    Raises:
        DataError: the file is not valid JSON or not an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except UNREADABLE as error:
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path} is not valid JSON: {getattr(error, 'msg', error)}{line}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return value
