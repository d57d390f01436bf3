"""Reward functions of the user that replace a task's reward.

A function has TRL's signature ``(prompts, completions, **columns) -> list[float | None]``. It is called once with all
completions of a step or an evaluation, so a reward model can batch them. Every argument is a list with one entry per
completion. ``prompts`` has the last message of each prompt and ``completions`` the text, or both have lists of
messages. ``completion_ids`` has the token ids. Every column of the rows is passed under its own name, with None for a
row that lacks it. A function without ``**columns`` gets only the arguments in its signature. It may be ``async``. A
reward of None means "not judged". The reward of several functions is their weighted sum over those that judged.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from numbers import Real
from typing import Any, TypeAlias

from pydantic import ValidationError

from selfdistill.config.base import load_named
from selfdistill.config.reward import RewardConfig
from selfdistill.config.suggest import suggest
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.frames import raised_in, shown_path
from selfdistill.tasks.judge import Judge, judge_details
from selfdistill.tasks.judging import verify_all
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Example, Task, Verdict

RewardFunction = Callable[..., Any]
"""``(prompts, completions, **columns) -> list[float | None]``, also ``async``; the result is checked at every call."""
RewardLike: TypeAlias = "str | RewardFunction | Sequence[str | RewardFunction] | Mapping[str, Any] | RewardConfig"
"""A function, its import path, a list of them, or a ``[reward]`` table whose ``function`` is one of these."""

DEFAULT_SUCCESS = 1.0
"""A completion is right from this reward on, unless the config or the verifier says otherwise."""
JUDGE = "judge"
"""Name of the judge among the functions."""
DETAIL = "reward/"
"""Prefix of a verdict's details that contain the reward of a single function."""

_ONLY_TRL = ("trainer_state", "log_extra", "log_metric", "environments")


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


def parse_reward(given: object) -> tuple[tuple[RewardFunction, ...], RewardConfig]:
    """The functions of a :data:`RewardLike`, and its table, which names them by import path.

    Raises:
        ConfigError: ``given`` is not a reward, or a function cannot be loaded.
    """
    if isinstance(given, RewardConfig):
        given = given.model_dump()
    table: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"function": given}
    named = table.pop("function", None)
    listed = list(named) if isinstance(named, list | tuple) else [] if named is None else [named]
    for function in listed:
        if not (isinstance(function, str) or callable(function)):
            raise ConfigError(
                f"reward must be a function or 'package.module:function', a list of them, or a table whose function is "
                f"one of these, got {type(function).__name__}"
            )
    functions = tuple(load_reward(function) if isinstance(function, str) else function for function in listed)
    paths = [function if isinstance(function, str) else _path_of(function) for function in listed]
    if paths:
        table["function"] = paths if isinstance(named, list | tuple) else paths[0]
    try:
        return functions, RewardConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"reward.{suggest(error, RewardConfig)}") from error


class RewardedTask:
    """A task whose rewards come from functions, or whose graded reward counts as right from a threshold on.

    Examples and answers are those of the inner task. Its verifier still parses the answer, for maj@k, and writes the
    feedback.

    Args:
        task: the inner task.
        reward: the function that computes the rewards, or several; without any the verifier's rewards remain.
        config: weights, threshold, form of the arguments, and the settings of a judge.
        judge: an existing judge to share with another task; unset: a new one if the config has a judge.
    """

    def __init__(
        self,
        task: Task,
        reward: RewardFunction | Sequence[RewardFunction] = (),
        config: RewardConfig | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.name = task.name
        self.contexts = task.contexts
        if environment_of(task) is not None:
            raise ConfigError(
                f"task {task.name!r} is played in turns, and its environment gives the rewards: no reward"
            )
        self.task = task
        """The task whose rewards are replaced."""
        self.functions = (reward,) if callable(reward) else tuple(reward)
        """The functions that compute the rewards."""
        self.config = config or RewardConfig()
        self.judge = judge
        """The model that judges in addition to the functions."""
        if judge is None and self.config.judge is not None:
            self.judge = Judge(self.config.judge, concurrency=self.config.concurrency)
        judges = [JUDGE] if self.judge else []
        self.has_verifier = bool(self.functions or judges) or task.has_verifier
        self.names = _distinct([*(_name_of(function) for function in self.functions), *judges])
        """The name of each function and of the judge, for metrics."""
        self.weights = self.config.weights or [1.0] * len(self.names)
        if len(self.weights) != len(self.names):
            raise ConfigError(
                f"reward.weights must have one number for each function{' and the judge' if judges else ''}: "
                f"{len(self.weights)} for {len(self.names)}"
            )
        if self.config.success == "verifier" and not task.has_verifier:
            raise ConfigError(
                'reward.success = "verifier", but the task has no verifier: write a number, the reward from which on a '
                "completion is right"
            )

    def over(self, task: Task) -> RewardedTask:
        """The same rewards on another task."""
        return RewardedTask(task, self.functions, self.config, self.judge)

    def without_judge(self) -> RewardedTask:
        """The task with the functions but without the judge, so that verifying makes no requests."""
        config = self.config.model_copy(update={"judge": None, "weights": None})
        if not self.functions and config.success == "verifier":
            config = config.model_copy(update={"success": None})
        return RewardedTask(self.task, self.functions, config)

    @property
    def right(self) -> str:
        """Which completions count as right, in words."""
        if self.config.success == "verifier":
            return "where the task's verifier says so (reward.success)"
        if self.config.success is None and not self.names:
            return describe_right(self.task)
        threshold = DEFAULT_SUCCESS if self.config.success is None else self.config.success
        return f"from a reward of {threshold:g} on (reward.success)"

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

    def verify_many(self, batch: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """The task's verdict on each (example, text, finished), with the rewards of one call of every function.

        Raises:
            UserError: a row lacks a column that a function needs, or a function raises or does not return one finite
                number or None per completion.
        """
        return self._judge(batch, None)

    def verify_tokens(
        self, batch: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]]
    ) -> list[Verdict]:
        """The same as :meth:`verify_many`, for functions that read ``completion_ids``.

        Raises:
            UserError: as for :meth:`verify_many`.
        """
        return self._judge(batch, ids)

    def _judge(
        self, batch: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]] | None
    ) -> list[Verdict]:
        if not batch:
            return []
        verdicts = verify_all(self.task, batch, ids=ids)
        if self.names:
            columns = self._columns(batch, ids)
            if self.judge is not None:
                judged = self.judge.judge(batch)
                columns.append([judgement.reward for judgement in judged])
                verdicts = [
                    replace(verdict, details={**verdict.details, **judge_details(judgement)})
                    for verdict, judgement in zip(verdicts, judged, strict=True)
                ]
            verdicts = [
                self._rewarded(verdict, [column[n] for column in columns]) for n, verdict in enumerate(verdicts)
            ]
        success = self.config.success
        if success is None or success == "verifier":
            return verdicts
        return [replace(v, success=v.reward is not None and v.reward >= success) for v in verdicts]

    def _rewarded(self, verdict: Verdict, rewards: Sequence[float | None]) -> Verdict:
        """The verdict with the weighted sum of the rewards that are not None; None if all are None."""
        given = {name: reward for name, reward in zip(self.names, rewards, strict=True) if reward is not None}
        weights = dict(zip(self.names, self.weights, strict=True))
        total = math.fsum(weights[name] * reward for name, reward in given.items()) if given else None
        details = {f"{DETAIL}{name}": reward for name, reward in given.items()} if len(self.names) > 1 else {}
        return replace(
            verdict,
            reward=total,
            success=verdict.correct if self.config.success == "verifier" else None,
            details={**verdict.details, **details},
        )

    def _columns(
        self, batch: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]] | None
    ) -> list[list[float | None]]:
        """The checked rewards of every function, after one call of each. Async functions are awaited together."""
        rows = [self._row(example, text, None if ids is None else ids[n]) for n, (example, text, _) in enumerate(batch)]
        examples = [example for example, _, _ in batch]
        returned: list[Any] = []
        for function in self.functions:
            arguments = _arguments(function, rows, examples)
            try:
                returned.append(function(**arguments))
            # SystemExit too: a function that calls sys.exit() would end the run without a message.
            except (Exception, SystemExit) as error:
                raise raised_in(_label(function), error, definition=_definition_of(function)) from error
        waiting = {n: value for n, value in enumerate(returned) if inspect.isawaitable(value)}
        if waiting:
            calls = [(self.functions[n], value) for n, value in waiting.items()]
            # In a separate thread, because a notebook's thread already runs an event loop.
            with ThreadPoolExecutor(max_workers=1) as pool:
                results = pool.submit(asyncio.run, _gather(calls, self.config.concurrency)).result()
            for n, result in zip(waiting, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                returned[n] = result
        return [_checked(function, value, examples) for function, value in zip(self.functions, returned, strict=True)]

    def _row(self, example: Example, text: str, ids: tuple[int, ...] | None) -> dict[str, Any]:
        """The values of one completion, by argument."""
        chat = _is_chat(example) if self.config.messages is None else self.config.messages
        turns = [{"role": m.role, "content": m.content} for m in example.prompt if m.role != "tools"]
        row = {
            **example.columns,
            "prompts": turns if chat else example.prompt[-1].content,
            "completions": [{"role": "assistant", "content": text}] if chat else text,
        }
        return row if ids is None else {**row, "completion_ids": list(ids)}


def describe_right(task: Task) -> str:
    """Which completions of a task count as right, in words."""
    return task.right if isinstance(task, RewardedTask) else "with the verifier's full reward of 1"


def function_rewards(verdict: Verdict) -> dict[str, float]:
    """The reward of each function that judged a completion, by name; empty unless several functions judge."""
    return {k.removeprefix(DETAIL): value for k, value in verdict.details.items() if k.startswith(DETAIL)}


def _arguments(
    function: RewardFunction, rows: Sequence[Mapping[str, Any]], examples: Sequence[Example]
) -> dict[str, list[Any]]:
    """The function's keyword arguments: one list per column, with one entry per completion."""
    parameters = inspect.signature(function).parameters.values()
    accepts_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    required = {
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for example, row in zip(examples, rows, strict=True):
        missing = sorted(required - row.keys())
        if missing:
            columns = ", ".join(example.columns) or "no columns"
            why = "which only TRL's trainer passes" if missing[0] in _ONLY_TRL else ""
            why = why or f"but example {example.id} has {columns}"
            raise UserError(f"{_label(function)} needs {missing[0]!r}, {why}")
    accepted = {parameter.name for parameter in parameters}
    names = dict.fromkeys(name for row in rows for name in row if accepts_all or name in accepted)
    return {name: [row.get(name) for row in rows] for name in names}


def _checked(function: RewardFunction, returned: Any, examples: Sequence[Example]) -> list[float | None]:
    """The returned rewards as floats, after checking their number and type. An array counts as its list."""
    as_list = getattr(returned, "tolist", None)
    values = as_list() if callable(as_list) else returned
    definition = _definition_of(function)
    label = f"{_label(function)} ({definition})" if definition else _label(function)
    if not isinstance(values, list | tuple) or len(values) != len(examples):
        size = _counted(len(values), "value") if isinstance(values, list | tuple) else f"a {type(returned).__name__}"
        raise UserError(
            f"{label} must return a list with one reward a completion, got {size} for "
            f"{_counted(len(examples), 'completion')}"
        )
    rewards: list[float | None] = []
    for given, example in zip(values, examples, strict=True):
        as_number = getattr(given, "tolist", None)
        value = as_number() if callable(as_number) else given
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise UserError(f"{label} must return floats or None, got {given!r:.80} for example {example.id}")
        rewards.append(None if value is None else float(value))
    return rewards


async def _gather(calls: Sequence[tuple[RewardFunction, Awaitable[Any]]], most: int) -> list[Any]:
    """The results of awaitables, or the errors that they raised. At most ``most`` run at once."""
    gate = asyncio.Semaphore(most)

    async def gated(function: RewardFunction, awaitable: Awaitable[Any]) -> Any:
        async with gate:
            try:
                return await awaitable
            # A SystemExit would end the event loop and lose the results of the others.
            except (Exception, SystemExit) as error:
                raise raised_in(_label(function), error, definition=_definition_of(function)) from error

    return await asyncio.gather(*(gated(*call) for call in calls), return_exceptions=True)


def _definition_of(function: RewardFunction) -> str:
    """File and line of a function's definition; empty if it has none."""
    plain = inspect.unwrap(function)
    code = getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)
    return f"{shown_path(code.co_filename)}:{code.co_firstlineno}" if code is not None else ""


def _name_of(function: RewardFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _path_of(function: RewardFunction) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{name}"


def _label(function: RewardFunction) -> str:
    return f"reward function {_name_of(function)!r}"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number appended to each repeated one."""
    counts: Counter[str] = Counter()
    result = []
    for name in names:
        counts[name] += 1
        result.append(name if counts[name] == 1 else f"{name}_{counts[name]}")
    return result


def _is_chat(example: Example) -> bool:
    """Whether the row's own prompt is a list of messages."""
    columns = (example.columns.get(name) for name in ("prompt", "messages"))
    return any(isinstance(c, list | tuple) and bool(c) and isinstance(c[0], Mapping) for c in columns)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
