"""Tasks and problems from Python: shipped tasks, rows in memory, plain prompts, and reward functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.build import build_task
from selfdistill.tasks.data import MemoryRows, Row
from selfdistill.tasks.judging import verify_all
from selfdistill.tasks.own import checked_task
from selfdistill.tasks.reward import RewardedTask, RewardLike, parse_reward
from selfdistill.tasks.rows import RowTask
from selfdistill.types import Example, Message, Task, Verdict

Prompt: TypeAlias = str | Sequence[Message | Mapping[str, str]]
"""A user's message, or a list of messages (``{"role": "user", "content": "…"}``)."""

SOURCES = ("path", "validation_path", "test_path")
"""Keys of a task's table that are sources of rows."""


def load_task(kind: str | None = None, *, seed: int = 0, reward: RewardLike | None = None, **options: Any) -> Task:
    """Load a task: problems, and a verifier of completions.

    ``load_task("countdown")`` generates its problems; ``load_task("math", path="rows.jsonl", prompt="question",
    answer="answer")`` reads rows; ``load_task(preset="gsm8k", path=rows)`` fills the keys for a well-known schema.
    ``task.examples("train")`` are its problems, ``task.verify(example, text, finished=True)`` judges one text.

    Args:
        kind: ``selfdistill tasks`` lists them; unset: the preset's.
        seed: draws generated problems, and the order of moving options.
        reward: a function that replaces the verifier's reward, or ``"package.module:function"``. It is called with
            lists ``prompts``, ``completions`` and the row's columns, and returns one float (or None: not judged) per
            completion. A list of several is added up; a table ``{"function": f, "success": 0.5}`` takes the keys of
            ``[reward]``, and without a function says which of the verifier's rewards count as right.
            For code, ``"all"`` and ``"share"`` are the task's own key.
        options: keys of the task's table (``docs/data.md``). ``path``, ``validation_path`` and ``test_path`` may be
            files, or rows in memory: a list of dicts or a ``datasets.Dataset``.

    Returns:
        The task.

    Raises:
        UserError: a kind or key is unknown, or a row cannot be used; the message names its number.
    """
    table: dict[str, Any] = {**options, **({} if kind is None else {"kind": kind})}
    if isinstance(reward, str) and ":" not in reward:
        table["reward"], reward = reward, None
    rows = take_rows(table)
    if "kind" not in table and "preset" not in table:
        raise ConfigError("load_task needs a kind, for example load_task('countdown'), or a preset")
    config = parse_config({"method": "grpo", "task": table, "seed": seed}, "load_task")
    return build_task(config.task, seed=config.seed, reward=reward, rows=rows)


def take_rows(table: dict[str, Any]) -> dict[str, MemoryRows]:
    """Take the rows in memory out of a task's table, and replace each by a name with the hash of the rows.

    Raises:
        DataError: a source is neither a path nor rows.
    """
    rows: dict[str, MemoryRows] = {}
    for key in SOURCES:
        value = table.get(key)
        if isinstance(value, Path):
            table[key] = str(value)
        elif value is not None and not isinstance(value, str) and not _is_source(value):
            rows[key] = memory_rows(value, key)
            table[key] = f"rows in memory, sha256 {_digest(rows[key].rows)}"
    return rows


def memory_rows(value: Any, argument: str) -> MemoryRows:
    """Return a list of dicts or a ``datasets.Dataset`` as a source of rows.

    Raises:
        DataError: the value is something else.
    """
    if isinstance(value, Mapping):
        raise DataError(f"{argument} has several splits ({', '.join(map(str, value))}): name one, as in data['train']")
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DataError(f"{argument} must be a list of dicts, a datasets.Dataset or a task, got {type(value).__name__}")
    rows = list(value)
    wrong = next((row for row in rows if not isinstance(row, Mapping)), None)
    if wrong is not None:
        raise DataError(f"{argument}: every row must be a dict of columns, this one is {wrong!r:.80}")
    return MemoryRows(rows, "rows")


def as_task(given: object, reward: RewardLike | None = None) -> Task | None:
    """Return a task, given by kind or as an object, with its rewards replaced by ``reward``; None for None.

    Raises:
        ConfigError: the argument is not a task, or the reward is no function.
    """
    if isinstance(given, str):
        return load_task(given, reward=reward)
    task = None if given is None else checked_task(given)
    return task if reward is None else RewardedTask(task or Prompts(), *parse_reward(reward))


def as_examples(given: Any, task: Task | None) -> list[Example]:
    """Convert problems to examples: examples, rows (dicts), prompts (texts or lists of messages), or a task.

    Raises:
        DataError: an entry is none of these; the message names its number.
    """
    if isinstance(given, str | Message | Mapping):
        raise DataError("problems come as a list: write [problem] for a single one")
    if _has(given, "examples"):
        return list(checked_task(given).examples("train"))
    if not isinstance(given, Iterable):
        raise DataError(f"problems are a list of examples, rows or prompts, got {type(given).__name__}")
    return [_example(entry, number, task) for number, entry in enumerate(given, start=1)]


def _example(given: Any, number: int, task: Task | None) -> Example:
    if isinstance(given, Example):
        return given
    if isinstance(given, Mapping):
        inner = task.task if isinstance(task, RewardedTask) else task
        if isinstance(inner, RowTask):
            return inner.example_of(Row(number, given, "rows"))[1]
        if "prompt" not in given:
            raise DataError(f"row {number} has no 'prompt', and the task does not say how rows are read: {given!r:.80}")
        texts = {key: value for key, value in given.items() if key != "prompt" and isinstance(value, str)}
        return Example(f"rows:{number}", _messages(given["prompt"], number), texts, dict(given))
    return Example(f"prompts:{number}", _messages(given, number))


def _messages(prompt: Any, number: int) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, Sequence) and prompt:
        messages = [entry if isinstance(entry, Message) else _message(entry) for entry in prompt]
        if None not in messages:
            return tuple(message for message in messages if message is not None)
    raise DataError(
        f"prompt {number} is neither a text nor a list of messages such as {{'role': 'user', 'content': '…'}}: "
        f"{prompt!r:.80}"
    )


def _message(given: Any) -> Message | None:
    if isinstance(given, Mapping) and isinstance(given.get("role"), str) and isinstance(given.get("content"), str):
        return Message(given["role"], given["content"])
    return None


class Prompts:
    """A task of plain prompts without a verifier."""

    name = "prompts"
    contexts = "default"
    has_verifier = False

    def examples(self, split: str) -> Sequence[Example]:
        """Return no examples, because the prompts are given with every call."""
        return ()

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Return a verdict without a reward."""
        return Verdict(None)


class Chosen:
    """A task with chosen training problems. The held-out problems and the verifier are those of the original task."""

    def __init__(self, task: Task, examples: Sequence[Example]) -> None:
        self.task = task
        self.contexts = task.contexts
        self.has_verifier = task.has_verifier
        self.chosen = tuple(examples)
        self.name = f"{task.name}: {len(self.chosen)} chosen examples, sha256 {_digest([e.id for e in self.chosen])}"

    def examples(self, split: str) -> Sequence[Example]:
        """Return the chosen problems for ``train``, and the task's own for other splits."""
        return self.chosen if split == "train" else self.task.examples(split)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Return the task's own verdict."""
        return self.task.verify(example, text, finished=finished)

    def verify_many(self, batch: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """Return the task's own verdicts, in one call if it verifies many at once."""
        return verify_all(self.task, batch)

    def verify_tokens(
        self, batch: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]]
    ) -> list[Verdict]:
        """Return the task's own verdicts, with the token ids for a judge that asks for them."""
        return verify_all(self.task, batch, ids=ids)


def _is_source(value: object) -> bool:
    return isinstance(value, Mapping) and "path" in value


def _has(given: object, name: str) -> bool:
    return getattr(given, name, None) is not None


def _digest(rows: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
