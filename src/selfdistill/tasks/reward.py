"""Reward functions of the user, named by import path, that replace a task's reward.

A function has the widely used signature ``(prompts, completions, **columns) -> list[float | None]``, that of TRL. It is
called once with all completions of a step or an evaluation, so a reward model can batch them. Every argument is a list
with one entry per completion: ``prompts`` holds the last message of each prompt and ``completions`` the text, or both
hold lists of messages; ``completion_ids`` the token ids; every column of the rows comes under its own name, None for a
row that lacks it. A function without ``**columns`` gets only what is in its signature. It may be ``async``. A reward of
None means "not judged". Several functions are added up by their weights, each over the completions that it judges.
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
from selfdistill.types import Example, Task, Verdict

RewardFunction = Callable[..., Any]
"""``(prompts, completions, **columns) -> list[float | None]``, also ``async``; the result is checked at every call."""
RewardLike: TypeAlias = "str | RewardFunction | Sequence[str | RewardFunction] | Mapping[str, Any] | RewardConfig"
"""A function, its import path, a list of them, or a ``[reward]`` table whose ``function`` is one of these."""

DEFAULT_SUCCESS = 1.0
"""A completion is right from this reward on, where neither config nor verifier says otherwise."""
JUDGE = "judge"
"""The name of a judge among the functions."""
DETAIL = "reward/"
"""Begins the names of a verdict's details that hold the reward of a single function."""

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
    """The functions of a :data:`RewardLike`, and its table, in which they stand by import path.

    Raises:
        ConfigError: it is none of these, or a function cannot be loaded.
    """
    if isinstance(given, RewardConfig):
        given = given.model_dump()
    table: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"function": given}
    named = table.pop("function", None)
    listed = list(named) if isinstance(named, list | tuple) else [] if named is None else [named]
    for one in listed:
        if not (isinstance(one, str) or callable(one)):
            raise ConfigError(
                f"reward must be a function or 'package.module:function', a list of them, or a table whose function is "
                f"one of these, got {type(one).__name__}"
            )
    functions = tuple(load_reward(one) if isinstance(one, str) else one for one in listed)
    paths = [one if isinstance(one, str) else _path_of(one) for one in listed]
    if paths:
        table["function"] = paths if isinstance(named, list | tuple) else paths[0]
    try:
        return functions, RewardConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"reward.{suggest(error, RewardConfig)}") from error


class RewardedTask:
    """A task whose rewards come from functions, or of which a graded reward counts as right from a threshold on.

    Examples and answers are those of the inner task. Its verifier still parses the answer, which maj@k votes on, and
    writes the feedback.

    Args:
        task: the inner task.
        reward: the function that computes the rewards, or several; none leaves the verifier's rewards.
        config: weights, threshold, form of the arguments, and the settings of a judge.
        judge: the judge itself, where another task has it already.
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
        self.task = task
        """The task whose rewards are replaced."""
        self.functions = (reward,) if callable(reward) else tuple(reward)
        """The functions that compute the rewards."""
        self.config = config or RewardConfig()
        self.judge = judge
        """The model that judges beside the functions."""
        if judge is None and self.config.judge is not None:
            self.judge = Judge(self.config.judge, concurrency=self.config.concurrency)
        judges = [JUDGE] if self.judge else []
        self.has_verifier = bool(self.functions or judges) or task.has_verifier
        self.names = _distinct([*(_name_of(function) for function in self.functions), *judges])
        """A name for each function and the judge, for its column in metrics."""
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
        """The same functions alone, which cost no requests."""
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

    def verify_many(self, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        """The task's verdict on each (example, text, finished), with the rewards of one call of every function.

        Raises:
            UserError: a row lacks a column that a function needs, or a function raises or does not return one finite
                number or None per completion.
        """
        return self._judge(asked, None)

    def verify_tokens(
        self, asked: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]]
    ) -> list[Verdict]:
        """The same as :meth:`verify_many`, for functions that read ``completion_ids``.

        Raises:
            UserError: as for :meth:`verify_many`.
        """
        return self._judge(asked, ids)

    def _judge(
        self, asked: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]] | None
    ) -> list[Verdict]:
        if not asked:
            return []
        verdicts = verify_all(self.task, asked, ids=ids)
        if self.names:
            columns = self._columns(asked, ids)
            if self.judge is not None:
                judged = self.judge.judge(asked)
                columns.append([one.reward for one in judged])
                verdicts = [
                    replace(verdict, details={**verdict.details, **judge_details(one)})
                    for verdict, one in zip(verdicts, judged, strict=True)
                ]
            verdicts = [
                self._rewarded(verdict, [column[n] for column in columns]) for n, verdict in enumerate(verdicts)
            ]
        success = self.config.success
        if success is None or success == "verifier":
            return verdicts
        return [replace(v, success=v.reward is not None and v.reward >= success) for v in verdicts]

    def _rewarded(self, verdict: Verdict, rewards: Sequence[float | None]) -> Verdict:
        """The verdict with the weighted sum of the rewards that are given; None if no function judges."""
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
        self, asked: Sequence[tuple[Example, str, bool]], ids: Sequence[tuple[int, ...]] | None
    ) -> list[list[float | None]]:
        """The checked rewards of every function, after one call of each. Async functions are awaited together."""
        rows = [self._row(example, text, None if ids is None else ids[n]) for n, (example, text, _) in enumerate(asked)]
        examples = [example for example, _, _ in asked]
        returned: list[Any] = []
        for function in self.functions:
            arguments = _arguments(function, rows, examples)
            try:
                returned.append(function(**arguments))
            # A function that leaves the interpreter would end the run without a word.
            except (Exception, SystemExit) as error:
                raise raised_in(_label(function), error, place=_place_of(function)) from error
        waiting = {n: one for n, one in enumerate(returned) if inspect.isawaitable(one)}
        if waiting:
            calls = [(self.functions[n], one) for n, one in waiting.items()]
            # In a thread of its own: a notebook's thread already runs an event loop.
            with ThreadPoolExecutor(max_workers=1) as pool:
                results = pool.submit(asyncio.run, _gather(calls, self.config.concurrency)).result()
            for n, result in zip(waiting, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                returned[n] = result
        return [_checked(function, one, examples) for function, one in zip(self.functions, returned, strict=True)]

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
    where = _place_of(function)
    label = f"{_label(function)} ({where})" if where else _label(function)
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
    """What functions return to be awaited, or the sentence on what they raised; at most ``most`` run at once."""
    gate = asyncio.Semaphore(most)

    async def one(function: RewardFunction, awaitable: Awaitable[Any]) -> Any:
        async with gate:
            try:
                return await awaitable
            # A SystemExit would leave the event loop, past the results of the others.
            except (Exception, SystemExit) as error:
                raise raised_in(_label(function), error, place=_place_of(function)) from error

    return await asyncio.gather(*(one(*call) for call in calls), return_exceptions=True)


def _place_of(function: RewardFunction) -> str:
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
    """The names, with a number behind each that was there before."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _is_chat(example: Example) -> bool:
    """Whether the row's own prompt is a list of messages."""
    columns = (example.columns.get(name) for name in ("prompt", "messages"))
    return any(isinstance(c, list | tuple) and bool(c) and isinstance(c[0], Mapping) for c in columns)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
