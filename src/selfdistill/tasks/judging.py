"""Verify many completions, in one call if the task supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from selfdistill.errors import UserError
from selfdistill.files.text import well_formed
from selfdistill.tasks.turns import Environment
from selfdistill.types import Example, Task, Verdict


@runtime_checkable
class JudgesMany(Protocol):
    """A task that judges many completions faster together than one by one."""

    def verify_many(self, batch: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """A verdict on each (example, text, finished), in order."""
        ...


@runtime_checkable
class JudgesTokens(Protocol):
    """A task whose judge may ask for the token ids of the completions, or that wraps such a task."""

    def verify_tokens(
        self, batch: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]]
    ) -> list[Verdict]:
        """A verdict on each (example, text, finished) with these token ids, in order."""
        ...


def verify_all(
    task: Task, batch: Sequence[tuple[Example, str, bool]], *, ids: Sequence[tuple[int, ...]] | None = None
) -> list[Verdict]:
    """A verdict for each (example, text, finished), in order. Uses one call if the task has ``verify_many``.

    ``ids`` are the token ids of the completions, for tasks with ``verify_tokens``. A task that wraps another calls
    this function too. Otherwise it would hide the inner task's ``verify_many``.

    Raises:
        UserError: the task's ``verify_many`` returns another number of verdicts, or the task is played in turns and
            has no verifier of single texts.
    """
    if batch and isinstance(task, Environment) and not hasattr(task, "verify"):
        raise UserError(
            f"task {task.name!r} is played in turns and judges no single text: give it a verify, or play it"
        )
    if ids is not None and batch and isinstance(task, JudgesTokens):
        return [_clean(verdict) for verdict in task.verify_tokens(batch, ids)]
    if not isinstance(task, JudgesMany):
        return [_clean(task.verify(example, text, finished=finished)) for example, text, finished in batch]
    if not batch:
        return []
    verdicts = task.verify_many(batch)
    if len(verdicts) != len(batch):
        raise UserError(
            f"verify_many of task {task.name!r} must return one verdict a completion: {len(verdicts)} for {len(batch)}"
        )
    return [_clean(verdict) for verdict in verdicts]


def _clean(verdict: Verdict) -> Verdict:
    """The verdict with well-formed text. A task may quote program output that a tokenizer or a file cannot encode."""
    answer, feedback = (text if text is None else well_formed(text) for text in (verdict.answer, verdict.feedback))
    if (answer, feedback) == (verdict.answer, verdict.feedback):
        return verdict
    return replace(verdict, answer=answer, feedback=feedback)
