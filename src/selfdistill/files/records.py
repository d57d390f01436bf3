"""The records that a run writes: a line of metrics.jsonl per step, a line of rollouts.jsonl per completion."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfdistill.errors import DataError, first_line
from selfdistill.files.jsonl import Row, read_lines
from selfdistill.types import STUDENT, Episode, StepRecord


def flatten(record: StepRecord) -> dict[str, Any]:
    """Return the step's line of ``metrics.jsonl``: means over the tokens of each role, then values, then seconds."""
    flat: dict[str, Any] = {"step": record.step}
    for role, sums in sorted(record.roles.items()):
        if sums.tokens:
            # A teacher behind a server gives no distributions, and so no entropy.
            if not math.isnan(sums.entropy):
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
class Budget:
    """The cost of one or several steps, over all ranks. Tokens are those of completions; prompts are not counted.

    A role that samples nothing, or scores nothing, is not among the keys.
    """

    completions: Mapping[str, int]
    """Completions that were sampled, by role, whether or not the loss used them."""
    drawn: Mapping[str, int]
    """Their tokens, by role."""
    scored: Mapping[str, int]
    """Tokens that a role's weights scored without a backward pass, by role."""
    trained: int
    """Tokens with a weight in the loss, forward and backward, counted once for each optimiser update."""

    def to_json(self) -> dict[str, Any]:
        """The budget as plain JSON, as in ``metrics.jsonl`` and ``summary.json``."""
        return asdict(self)


def completions_drawn(line: Mapping[str, Any]) -> int:
    """The completions that the step of a line of ``metrics.jsonl`` drew, those of every role.

    Older versions did not count them: their lines have 0.
    """
    drawn: Mapping[str, int] = line.get("budget", {}).get("completions", {})
    return sum(drawn.values())


def total_budget(lines: Iterable[Mapping[str, Any]]) -> Budget | None:
    """The sum over the lines of ``metrics.jsonl``; None if an older version wrote a line without a budget."""
    totals = {"completions": Counter[str](), "drawn": Counter[str](), "scored": Counter[str]()}
    trained = 0
    for line in lines:
        if "budget" not in line:
            return None
        for name, total in totals.items():
            total.update(line["budget"][name])
        trained += line["budget"]["trained"]
    return Budget(**{name: dict(total) for name, total in totals.items()}, trained=trained)


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
    correct: bool | None = None
    """Whether it counts as right; None if it was not judged."""
    rewards: Mapping[str, float] | None = None
    """The reward of each function by name, if several functions judge."""
    feedback: str | None = None
    u: tuple[float | None, ...] | None = None
    """u = log T(y) − log S(y) of each token, in nats; None if no teacher scored the completion."""
    episode: Episode | None = None
    """The turns of an episode, with what the environment said; None for a single answer."""

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON object, without ``u``, ``rewards`` and ``episode`` if they are None."""
        line = {name: getattr(self, name) for name in LINE_KEYS}
        line |= {name: getattr(self, name) for name in ("u", "rewards") if getattr(self, name) is not None}
        return line if self.episode is None else line | {"episode": asdict(self.episode)}

    @classmethod
    def from_json(cls, row: Row, where: str) -> RolloutLine:
        """Parse a JSON object. ``where`` names the line in error messages.

        Raises:
            DataError: a required key is missing, or a value has the wrong type.
        """
        values: dict[str, Any] = {}
        for key, fits in _FITS.items():
            value = row.get(key)
            if key not in row and key not in _REQUIRED:
                continue
            if not fits(value):
                raise DataError(f"{where}: {key!r} is not what a run writes (got {str(value)[:40]!r})")
            values[key] = tuple(value) if isinstance(value, list) else value
        if row.get("episode") is not None:
            try:
                values["episode"] = TypeAdapter(Episode).validate_python(row["episode"])
            except ValidationError as error:
                raise DataError(f"{where}: 'episode' is not what a run writes ({first_line(error)})") from error
        # Runs before this key counted a completion as right by the full reward of 1.
        if "correct" not in row and values.get("reward") is not None:
            values["correct"] = values["reward"] >= 1
        return cls(**values)


LINE_KEYS = (
    "step", "example", "index", "source", "prompt", "text", "ids", "tokens", "logprobs", "finished", "policy_version",
    "reward", "correct", "feedback",
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
    "correct": lambda value: value is None or isinstance(value, bool),
    "rewards": lambda value: value is None or (isinstance(value, dict) and all(map(_is_number, value.values()))),
    "feedback": lambda value: value is None or isinstance(value, str),
    "u": lambda value: value is None or _list_of(_is_number)(value),
}
"""The type check of each key."""


def read_rollouts(path: Path) -> Iterator[RolloutLine]:
    """Yield the lines of a ``rollouts.jsonl``; none if the file does not exist.

    Raises:
        DataError: a line is not a valid record.
    """
    for number, row in enumerate(read_lines(path), start=1):
        yield RolloutLine.from_json(row, f"{path}, completion {number}")
