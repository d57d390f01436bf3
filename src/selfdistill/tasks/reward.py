"""A reward function of the user, named by import path, that replaces a task's reward.

The function has the widely used signature ``(prompts, completions, **columns) -> list[float | None]``. It is called
once with all completions of a step or an evaluation, so a reward model can batch them. Every argument is a list with
one entry per completion. ``prompts`` holds the last message of each prompt, ``completions`` the text. Every column of
the rows is passed under its own name; it is None for a row that lacks it. A function without ``**columns`` gets only
the columns in its signature. A reward of None means "not judged".
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from selfdistill.config.base import load_named
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.judging import verify_all
from selfdistill.types import Example, Task, Verdict

RewardFunction = Callable[..., Any]
"""``(prompts, completions, **columns) -> list[float | None]``; the result is checked at every call."""


def load_reward(spec: str) -> RewardFunction:
    """Load the function named ``"package.module:function"``. Modules in the working folder are importable too.

    Raises:
        ConfigError: the text is not such a path, or the module or the function is missing.
    """
    function = load_named(spec, "reward", "function")
    if not callable(function):
        module, _, name = spec.partition(":")
        raise ConfigError(f"reward {spec!r}: module {module!r} has no function {name!r}")
    reward: RewardFunction = function
    return reward


class RewardedTask:
    """A task whose rewards come from a function. Examples and answers are those of the inner task.

    The inner task's verifier still parses the answer, which maj@k votes on, and writes the feedback.
    """

    def __init__(self, task: Task, reward: RewardFunction) -> None:
        self.name = task.name
        self.contexts = task.contexts
        self.has_verifier = True
        self.task = task
        """The task whose rewards are replaced."""
        self.reward = reward
        """The function that computes the rewards."""
        self._label = f"reward function {getattr(reward, '__name__', type(reward).__name__)!r}"
        parameters = inspect.signature(reward).parameters.values()
        self._accepts_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._accepted = {parameter.name for parameter in parameters}
        self._required = {
            parameter.name
            for parameter in parameters
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }

    def examples(self, split: str) -> Sequence[Example]:
        """The task's own examples."""
        return self.task.examples(split)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """The verdict on one completion: :meth:`verify_many` with a batch of one.

        Raises:
            UserError: as for :meth:`verify_many`.
        """
        [verdict] = self.verify_many([(example, text, finished)])
        return verdict

    def verify_many(self, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """The task's verdict on each (example, text, finished), with the rewards of one call of the function.

        Raises:
            UserError: a row lacks a column that the function needs, or the function does not return one finite number
                or None per completion.
        """
        if not asked:
            return []
        verdicts = verify_all(self.task, asked)
        rewards = self._checked(self.reward(**self._arguments(asked)), [example for example, _, _ in asked])
        return [replace(verdict, reward=reward) for verdict, reward in zip(verdicts, rewards, strict=True)]

    def _arguments(self, asked: Sequence[tuple[Example, str, bool]]) -> dict[str, list[Any]]:
        """The function's keyword arguments: one list per column, with one entry per completion."""
        rows = [
            {**example.columns, "prompts": example.prompt[-1].content, "completions": text}
            for example, text, _ in asked
        ]
        for (example, _, _), row in zip(asked, rows, strict=True):
            missing = sorted(self._required - row.keys())
            if missing:
                columns = ", ".join(example.columns) or "no columns"
                raise UserError(f"{self._label} needs {missing[0]!r}, but example {example.id} has {columns}")
        names = dict.fromkeys(name for row in rows for name in row if self._accepts_all or name in self._accepted)
        return {name: [row.get(name) for row in rows] for name in names}

    def _checked(self, returned: object, examples: Sequence[Example]) -> list[float | None]:
        """The returned rewards as floats, after checking their number and type."""
        if not isinstance(returned, Sequence) or isinstance(returned, str | bytes) or len(returned) != len(examples):
            size = f"a {type(returned).__name__}"
            if isinstance(returned, list | tuple):
                size = _counted(len(returned), "value")
            raise UserError(
                f"{self._label} must return a list with one reward a completion, got {size} for "
                f"{_counted(len(examples), 'completion')}"
            )
        for value, example in zip(returned, examples, strict=True):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise UserError(f"{self._label} must return floats or None, got {value!r} for example {example.id}")
        return [None if value is None else float(value) for value in returned]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
