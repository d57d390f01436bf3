"""The JSON files of a run: lines of metrics and completions that a resume checks and cuts back, and the folder's lock.

Whatever a disk refuses becomes one sentence here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import CheckpointError, DataError, UserError
from selfdistill.text import printable_json
from selfdistill.types import STUDENT, StepRecord

Row = Mapping[str, Any]
"""A JSON object of a file."""

_REFUSALS = {
    errno.EACCES: "no permission: change its owner or its rights, or choose another place",
    errno.EPERM: "no permission: change its owner or its rights, or choose another place",
    errno.EROFS: "its disk can only be read: choose another place",
    errno.ENOTDIR: "it is or lies below a file, where a folder is needed: choose another place",
    errno.EEXIST: "something of that name is there already, a file or a link to nothing: choose another name",
    errno.EISDIR: "it is a folder, where a file is needed: choose another name",
    errno.ENOENT: "there is no such file or folder, or it is a link to nothing: give the path of one that exists",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: choose another place",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some programs",
    errno.EIO: "the disk does not answer: look after it, and choose another place",
    errno.ESTALE: "the disk was taken away meanwhile: mount it again",
    errno.EFBIG: "the file would be larger than it may be: raise the limit (ulimit -f), or choose another disk",
}
"""What a disk's error means and what helps, by its number."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]|(No space left on device)|(quota exceeded)", re.IGNORECASE)


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
        self._digest = hashlib.sha256()
        self._bytes = 0

    def append(self, *objects: Mapping[str, Any]) -> None:
        """Write the objects, one a line; numbers that are not finite become null. No objects leave no file."""
        if not objects or not self.writes:
            return
        lines = (printable_json(json.dumps(_finite(value), ensure_ascii=False)) + "\n" for value in objects)
        written = "".join(lines).encode()
        with self.path.open("ab") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(written)
        self._bytes += len(written)

    def mark(self) -> dict[str, Any]:
        """How much this object has written, and a hash of it: what :meth:`differs` compares the file with."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def mark_after(self, step: int) -> dict[str, Any]:
        """The mark behind the lines up to a step, for a checkpoint of an older version, which holds none."""
        digest, size = hashlib.sha256(), 0
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError), self.path.open("rb") as file:
            for line in file:
                if json.loads(line)["step"] > step:
                    break
                digest.update(line)
                size += len(line)
        return {"bytes": size, "sha256": digest.hexdigest()}

    def differs(self, mark: Mapping[str, Any]) -> bool:
        """Whether the file does not begin with what was written up to a mark: lines were lost, torn or doubled."""
        try:
            return bool(self._prefix(mark["bytes"])[1] != mark["sha256"])
        except FileNotFoundError:
            return bool(mark["bytes"])

    def cut(self, mark: Mapping[str, Any] | None) -> None:
        """Drop what was written after a mark, a torn last line too; None drops everything."""
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
        digest, left = hashlib.sha256(), size
        with self.path.open("rb") as file:
            while left and (part := file.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
        return digest, digest.hexdigest() if not left else "too short"

    def read(self) -> Iterator[dict[str, Any]]:
        """Its objects, one at a time; nothing where there is no file yet."""
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)


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


def lock_folder(folder: Path, held: str) -> int | None:
    """Make a folder and lock it; returns the descriptor that holds the lock until it is closed, in children too.

    The kernel ends the lock with the last process that holds it, however that ends. None where the folder's file
    system knows no locks.

    Raises:
        CheckpointError: somebody holds the lock; ``held`` is what to say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(held) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        return None
    return descriptor


def check_name(folder: Path) -> None:
    """Refuse a folder whose name no text file could hold, and a link to nothing.

    Raises:
        CheckpointError: one sentence.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"the name {os.fsencode(folder)!r} is not UTF-8: choose another one") from error
    if folder.is_symlink() and not folder.exists():
        raise CheckpointError(f"{folder} is a link to nothing: choose another place, or make what it points to")


@contextmanager
def told_of_disk(folder: Path | None = None, *, resume: str = "") -> Iterator[None]:
    """Turn what a disk refuses, in whatever words of whatever library, into one sentence.

    ``folder`` is named where the error names no file; ``resume`` says how to go on once there is room again.

    Raises:
        CheckpointError: a disk is full, or refuses a file.
    """
    try:
        yield
    except Exception as error:
        sentence = None if isinstance(error, UserError) else disk_sentence(error, folder, resume=resume)
        if sentence is None:
            raise
        raise CheckpointError(sentence) from error


def disk_sentence(error: BaseException, folder: Path | None = None, *, resume: str = "") -> str | None:
    """What an error says of a disk and what helps; None where it is about something else, such as a connection.

    The number is looked for in the errors behind it and in their texts: torch buries it, Rust's libraries print it.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        found = re.search(
            r"\(os error (\d+)\)|\[Errno (\d+)\]|(No space left on device)|(quota exceeded)", str(seen), re.I
        )
        if number is None and found:
            number = int(found[1] or found[2] or (errno.ENOSPC if found[3] else errno.EDQUOT))
        name = getattr(seen, "filename2", None) or getattr(seen, "filename", None)
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
        if number in _FULL:
            where = folder or path
            kind = "no room is left on" if number == errno.ENOSPC else "the quota is used up on"
            go_on = f", and {resume}" if resume else ", and run the same command again"
            return f"{kind} the disk{f' of {where}' if where else ''}: make some{go_on}"
        if number in _REFUSALS and path is not None:
            return f"{path}: {_REFUSALS[number]}"
        seen = seen.__cause__ or seen.__context__
    return None
