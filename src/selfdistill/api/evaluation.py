"""Accuracy from Python: the numbers of ``selfdistill evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.api.quiet import silenced
from selfdistill.api.rollouts import check_pair
from selfdistill.api.settings import Overrides, as_pairs, check_counts
from selfdistill.api.tasks import as_task, take_rows
from selfdistill.cli.evaluate import evaluate_model
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.models.policy import Policy
from selfdistill.tasks.own import checked_task
from selfdistill.tasks.reward import RewardLike
from selfdistill.types import Task

ModelLike: TypeAlias = str | Path | tuple[Policy, Chat]
"""A config, run folder, checkpoint, model directory, hub id or shipped name; or what ``load_policy`` returned."""
TaskLike: TypeAlias = str | Mapping[str, Any] | Task
"""A task by kind, its table (``{"kind": "math", "path": …}``), or an object from ``load_task``."""


def evaluate(
    model: ModelLike,
    task: TaskLike | None = None,
    *,
    samples: int | None = None,
    limit: int | None = None,
    split: str = "test",
    temperature: float | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    checkpoint: int | str | None = None,
    engine: str | None = None,
    reward: RewardLike | None = None,
    overrides: Overrides = (),
) -> dict[str, Any]:
    """Measure the accuracy on held-out problems: the same numbers as ``selfdistill evaluate`` with the same seed.

    Args:
        model: a config, a run folder, a checkpoint, a model directory, a hub id or a shipped name; or
            ``(policy, chat)``.
        task: by kind, as a table, or from :func:`load_task`; unset: that of the config or run.
        samples: completions of every problem; unset: ``evaluation.samples``, by default 8.
        limit, split: only the first problems of ``"train"``, ``"validation"`` or ``"test"``.
        temperature: of sampling; 0 is greedy; unset: ``evaluation.temperature``, by default 1. A nucleus is set by
            ``overrides``, for example ``{"evaluation.top_p": 0.95}``.
        max_tokens: longest completion; unset: that of the config or run, else 1024 or half the window.
        seed, checkpoint: of sampling; and of a run folder: ``"last"``, ``"best"`` or a step; unset: the last.
        engine: what samples: ``"hf"`` (the model itself), ``"vllm"``, or the address of a server (several with commas);
            unset: ``sampler`` of the config or run, by default ``"hf"``.
        reward: a function that replaces the task's reward, as for :func:`load_task`.
        overrides: config keys, as ``--set`` takes them.

    Returns:
        ``avg``, ``pass`` and ``maj`` at ``samples``, each with ``value``, ``low`` and ``high`` (95 %), ``length`` in
        tokens, ``truncated`` as a share, and the arguments of the evaluation. ``judged`` counts completions with a
        reward; if it is 0, ``avg``, ``pass``, ``maj`` and ``hits`` are None. ``entropy`` is in nats per token, None
        unless sampled at temperature 1.

    Raises:
        UserError: the model or the task cannot be loaded or used.
    """
    name, loaded = model_of(model)
    table, judge = task_of(task, reward)
    check_counts(samples=samples, limit=limit, max_tokens=max_tokens)
    with silenced():
        return evaluate_model(
            name,
            table,
            samples=samples,
            limit=limit,
            split=split,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            checkpoint=None if checkpoint is None else str(checkpoint),
            overrides=as_pairs(overrides),
            loaded=loaded,
            judge=judge,
            engine=engine,
        )


def model_of(model: ModelLike) -> tuple[str, tuple[Policy, Chat] | None]:
    """Return a model's name, and the model itself if it is in memory.

    Raises:
        UserError: it is neither a name nor what ``load_policy`` returns.
    """
    if isinstance(model, str | Path):
        return str(model), None
    pair: object = model
    if not isinstance(pair, tuple) or len(pair) != 2:
        kind = type(pair).__name__
        raise ConfigError(f"a model is a name, a path, or the pair (policy, chat) from load_policy; this is a {kind}")
    check_pair(*pair)
    return model[1].name, model


def task_of(
    task: TaskLike | None, reward: RewardLike | None = None
) -> tuple[str | Mapping[str, Any] | None, Task | None]:
    """Return a task as the commands take it: its kind or table, and the object if it is one.

    Raises:
        UserError: the argument is not a task, or a reward function has no task.
    """
    if isinstance(task, str) and reward is None:
        return task, None
    if isinstance(task, Mapping) and reward is None:
        table = dict(task)
        if not take_rows(table):
            return table, None
    if isinstance(task, Mapping):
        from selfdistill.api.tasks import load_task

        judge: Task | None = load_task(**{"reward": reward, **task})
    elif task is None and reward is None:
        return None, None
    elif task is None:
        raise ConfigError("a reward function needs the task whose problems it judges: name task= as well")
    else:
        judge = as_task(task if isinstance(task, str) else checked_task(task), reward)
    assert judge is not None
    return {"kind": "object", "name": judge.name}, judge
