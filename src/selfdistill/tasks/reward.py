"""Rewards of the user's own: a function by import path, in the place of a task's reward.

The function has the widely used signature ``(prompts, completions, **columns) -> list[float | None]``: every argument
is a list with one entry a completion, ``prompts`` and ``completions`` are strings (the last user message, the
completion's text), and every column of the row comes under its own name; a function without ``**columns`` gets those
that it names. None means "not judged".
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
from selfdistill.types import Example, Task, Verdict

RewardFunction = Callable[..., Any]
"""``(prompts, completions, **columns) -> list[float | None]``; the result is checked at every call."""


def load_reward(spec: str) -> RewardFunction:
    """The function that ``"package.module:function"`` names; modules in the working folder are found as well.

    Raises:
        ConfigError: the text is no such path, or module or function are missing.
    """
    function = load_named(spec, "reward", "function")
    if not callable(function):
        module, _, name = spec.partition(":")
        raise ConfigError(f"reward {spec!r}: module {module!r} has no function {name!r}")
    reward: RewardFunction = function
    return reward


class RewardedTask:
    """A task whose examples and answers stay, and whose rewards come from a function.

    The task's own verifier still reads the answer (maj@k votes with it) and writes the feedback.
    """

    def __init__(self, task: Task, reward: RewardFunction) -> None:
        self.name = task.name
        self.contexts = task.contexts
        self.judges = True
        self.task = task
        """The task whose rewards are replaced."""
        self._reward = reward
        self._label = f"reward function {getattr(reward, '__name__', type(reward).__name__)!r}"
        parameters = inspect.signature(reward).parameters.values()
        self._accepts_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
        self._accepted = {one.name for one in parameters}
        self._required = {
            one.name
            for one in parameters
            if one.default is inspect.Parameter.empty
            and one.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        }

    def examples(self, split: str) -> Sequence[Example]:
        """The task's own examples."""
        return self.task.examples(split)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """The task's verdict with the function's reward.

        Raises:
            UserError: the function needs a column that the row lacks, or returns anything but one number or None.
        """
        verdict = self.task.verify(example, text, finished=finished)
        known = {**example.columns, "prompts": example.prompt[-1].content, "completions": text}
        arguments = {name: [value] for name, value in known.items() if self._accepts_all or name in self._accepted}
        missing = sorted(self._required - arguments.keys())
        if missing:
            columns = ", ".join(example.columns) or "no columns"
            raise UserError(f"{self._label} needs {missing[0]!r}, but example {example.id} has {columns}")
        return replace(verdict, reward=self._one_reward(self._reward(**arguments)))

    def _one_reward(self, returned: object) -> float | None:
        if not isinstance(returned, Sequence) or isinstance(returned, str) or len(returned) != 1:
            size = f"{len(returned)} values" if isinstance(returned, list | tuple) else f"a {type(returned).__name__}"
            raise UserError(
                f"{self._label} must return a list with one reward a completion, got {size} for 1 completion"
            )
        value = returned[0]
        if value is None:
            return None
        if not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(f"{self._label} must return floats or None, got {value!r}")
        return float(value)
