"""Verdicts on many completions, together where the task can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfdistill.errors import UserError
from selfdistill.files.text import well_formed
from selfdistill.types import Example, JudgesMany, Task, Verdict


def verify_all(task: Task, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
    """A verdict on each (example, text, finished), in order; in one call where the task judges many at once.

    A task that wraps another one judges many by this function too, or it would hide that the inner one can.

    Raises:
        UserError: the task's ``verify_many`` returns another number of verdicts.
    """
    if not isinstance(task, JudgesMany):
        return [_clean(task.verify(example, text, finished=finished)) for example, text, finished in asked]
    if not asked:
        return []
    verdicts = task.verify_many(asked)
    if len(verdicts) != len(asked):
        raise UserError(
            f"verify_many of task {task.name!r} must return one verdict a completion: {len(verdicts)} for {len(asked)}"
        )
    return [_clean(verdict) for verdict in verdicts]


def _clean(verdict: Verdict) -> Verdict:
    """The verdict with texts that a tokenizer and a file can take: a task may quote what a program wrote."""
    answer, feedback = (text if text is None else well_formed(text) for text in (verdict.answer, verdict.feedback))
    if (answer, feedback) == (verdict.answer, verdict.feedback):
        return verdict
    return replace(verdict, answer=answer, feedback=feedback)
