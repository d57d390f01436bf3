"""From the ``[task]`` table to a task."""

from __future__ import annotations

from typing import Any

from selfdistill.taskconfig import (
    ChoiceConfig,
    CodeConfig,
    CountdownConfig,
    MathConfig,
    RowsConfig,
    SourceConfig,
    TaskConfig,
    ToolboxConfig,
    ToolsConfig,
)
from selfdistill.tasks.choice import ChoiceTask
from selfdistill.tasks.code import CodeTask
from selfdistill.tasks.countdown import CountdownTask
from selfdistill.tasks.custom import RewardedTask, load_reward
from selfdistill.tasks.math import MathTask
from selfdistill.tasks.rows import RowTask
from selfdistill.tasks.toolbox import ToolboxTask
from selfdistill.tasks.tools import ToolsTask
from selfdistill.types import DataSource, Task


def build_task(config: TaskConfig, *, seed: int, reward: str | None) -> Task:
    """The task, its rewards replaced where the user has a function for them.

    Raises:
        UserError: rows that cannot be used, all of them listed; or anything else that cannot be right.
    """
    task: Task = build_row_task(config, seed=seed) if isinstance(config, RowsConfig) else _generated(config, seed)
    return RewardedTask(task, load_reward(reward)) if reward else task


def build_row_task(config: MathConfig | ChoiceConfig | ToolsConfig | CodeConfig, *, seed: int) -> RowTask:
    """A task over rows of data.

    Raises:
        UserError: as for :func:`build_task`.
    """
    options = _options(config)
    if isinstance(config, ChoiceConfig):
        return ChoiceTask(seed=seed, **options)
    if isinstance(config, ToolsConfig):
        return ToolsTask(**options)
    if isinstance(config, CodeConfig):
        return CodeTask(**options)
    return MathTask(**options)


def remarks_on(task: Task) -> list[str]:
    """What a user should know of a task's rows, a sentence each."""
    inner = task.task if isinstance(task, RewardedTask) else task
    return inner.remarks() if isinstance(inner, RowTask) else []


def _generated(config: CountdownConfig | ToolboxConfig, seed: int) -> Task:
    options = config.model_dump(exclude={"kind"})
    return (
        CountdownTask(seed=seed, **options)
        if isinstance(config, CountdownConfig)
        else ToolboxTask(seed=seed, **options)
    )


def _options(config: RowsConfig) -> dict[str, Any]:
    given = {name: getattr(config, name) for name in type(config).model_fields if name not in ("kind", "preset")}
    return {
        name: DataSource(**value.model_dump()) if isinstance(value, SourceConfig) else value
        for name, value in given.items()
    }
