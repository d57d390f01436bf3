"""Build a task from the ``[task]`` table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfdistill.config.tasks import (
    ChoiceConfig,
    CodeConfig,
    CountdownTurnsConfig,
    MathConfig,
    ObjectConfig,
    OwnTaskConfig,
    ReasoningGymConfig,
    RowsConfig,
    TaskConfig,
    TextConfig,
    ToolboxConfig,
    ToolboxTurnsConfig,
    ToolsConfig,
)
from selfdistill.config.worlds import GymnasiumConfig, OpenEnvConfig, TextArenaConfig, VerifiersConfig, WorldConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.tasks.choice.task import ChoiceTask
from selfdistill.tasks.code.task import CodeTask
from selfdistill.tasks.countdown.task import CountdownTask
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.tasks.data import MemoryRows
from selfdistill.tasks.math.task import MathTask
from selfdistill.tasks.own import build_own_task
from selfdistill.tasks.reasoning_gym.task import ReasoningGymTask
from selfdistill.tasks.reward import RewardedTask, RewardLike, parse_reward
from selfdistill.tasks.rows import RowTask
from selfdistill.tasks.text.task import TextTask
from selfdistill.tasks.toolbox.task import ToolboxTask
from selfdistill.tasks.toolbox.turns import ToolboxTurnsTask
from selfdistill.tasks.tools.task import ToolsTask
from selfdistill.tasks.worlds.gym import GymnasiumTask
from selfdistill.tasks.worlds.openenv_server import OpenEnvTask
from selfdistill.tasks.worlds.textarena_games import TextArenaTask
from selfdistill.tasks.worlds.verifiers_tasksets import verifiers_task
from selfdistill.types import Task


def build_task(
    config: TaskConfig, *, seed: int, reward: RewardLike | None, rows: Mapping[str, MemoryRows] | None = None
) -> Task:
    """The task of a config. Reward functions replace the rewards of its verifier.

    ``rows`` holds rows in memory, by the config key that they replace (``path``, ``test_path`` …).

    Raises:
        UserError: the config is invalid, or rows cannot be used; the message lists the first of them.
    """
    task: Task
    if isinstance(config, ObjectConfig):
        raise ConfigError(f"task {config.name!r} is an object of the Python code that trained: give that task again")
    if isinstance(config, RowsConfig):
        task = build_row_task(config, seed=seed, rows=rows)
    elif rows:
        raise ConfigError(
            f"task {config.kind!r} makes its own problems and reads no rows: name a task that does, for example "
            "task={'kind': 'math', 'prompt': 'question', 'answer': 'answer'}"
        )
    elif isinstance(config, OwnTaskConfig):
        task = build_own_task(config, seed=seed)
    elif isinstance(config, ToolboxConfig):
        task = ToolboxTask(config, seed=seed)
    elif isinstance(config, ToolboxTurnsConfig):
        task = ToolboxTurnsTask(config, seed=seed)
    elif isinstance(config, ReasoningGymConfig):
        task = ReasoningGymTask(config, seed=seed)
    elif isinstance(config, CountdownTurnsConfig):
        task = CountdownTurnsTask(config, seed=seed)
    elif isinstance(config, WorldConfig | VerifiersConfig):
        task = build_world(config, seed=seed)
    else:
        task = CountdownTask(config, seed=seed)
    return task if reward is None or reward == "" else RewardedTask(task, *parse_reward(reward))


def build_row_task(
    config: MathConfig | ChoiceConfig | ToolsConfig | CodeConfig | TextConfig,
    *,
    seed: int,
    rows: Mapping[str, MemoryRows] | None = None,
) -> RowTask:
    """A task over rows of data; ``rows`` as for :func:`build_task`.

    Raises:
        UserError: as for :func:`build_task`.
    """
    if isinstance(config, ChoiceConfig):
        return ChoiceTask(config, rows, seed=seed)
    if isinstance(config, ToolsConfig):
        return ToolsTask(config, rows)
    if isinstance(config, CodeConfig):
        return CodeTask(config, rows)
    return TextTask(config, rows) if isinstance(config, TextConfig) else MathTask(config, rows)


def build_world(config: WorldConfig | VerifiersConfig, *, seed: int) -> Any:
    """A task whose environment is another package's. It rewards in its replies, so it has no ``verify``.

    Raises:
        UserError: the package is missing, or the environment cannot be made.
    """
    if isinstance(config, TextArenaConfig):
        return TextArenaTask(config, seed=seed)
    if isinstance(config, OpenEnvConfig):
        return OpenEnvTask(config, seed=seed)
    if isinstance(config, VerifiersConfig):
        return verifiers_task(config, seed=seed)
    assert isinstance(config, GymnasiumConfig)
    return GymnasiumTask(config, seed=seed)


def fitted(task: Task, chat: Chat) -> Task:
    """The task for a chat template: tool calls are parsed and written in the template's syntax.

    Raises:
        UserError: the template writes calls in a syntax that no parser here reads.
    """
    if isinstance(task, RewardedTask) and isinstance(task.task, ToolsTask):
        return task.over(task.task.fitted(chat))
    return task.fitted(chat) if isinstance(task, ToolsTask) else task


def warnings_for(task: Task) -> list[str]:
    """Warnings about a task's rows, one sentence each. Empty for tasks whose problems are always enough."""
    inner = task.task if isinstance(task, RewardedTask) else task
    return inner.warnings() if isinstance(inner, RowTask | ReasoningGymTask) else []
