"""Tasks that are played in turns: a model answers, the environment replies, and so on until the episode ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from selfdistill.errors import ConfigError
from selfdistill.types import Example, Reply, Start, Task

MAX_TURNS = 8
SECONDS = 30.0
AT_ONCE = 16


@runtime_checkable
class Environment(Protocol):
    """What a task has that is played in turns. It may be called from several threads at once.

    Four more attributes are optional. ``max_turns`` (8) is the most turns of an episode. ``seconds`` (30) is the time
    limit of a call, and ``at_once`` (16) the number of calls that run at the same time. ``replayable`` (True) says that
    the replies are a function of the example and the model's turns; a run with any other task cannot be resumed.
    A method ``end(state)`` is optional too. It is called once for every episode that was started, after its last turn,
    and may release what the state holds. The coroutines of an episode run in one event loop, which is closed then.
    """

    has_verifier: bool
    """Whether its replies give rewards, as of a :class:`~selfdistill.types.Task`."""

    def start(self, example: Example) -> Start | Awaitable[Start]:
        """Start an episode of an example."""
        ...

    def reply(self, state: object, text: str) -> Reply | Awaitable[Reply]:
        """Answer a turn of the model, given by its text without the end of turn. It may change the state."""
        ...


def environment_of(task: Task) -> Environment | None:
    """The environment of a task that is played in turns, also through a task that wraps it; None for single answers."""
    while not isinstance(task, Environment):
        inner = getattr(task, "task", None)
        if inner is None:
            return None
        task = inner
    return task


def check_limits(environment: Environment, name: str) -> None:
    """Refuse an environment whose limits are no numbers above 0. ``name`` is the task's.

    Raises:
        ConfigError: names the attribute.
    """
    for attribute, kind in (("max_turns", int), ("seconds", int | float), ("at_once", int)):
        value = getattr(environment, attribute, 1)
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            number = "a number of" if attribute == "seconds" else "a whole number of"
            raise ConfigError(f"{attribute} of task {name!r} is {value!r}: it is {number} more than 0")


def is_replayable(task: Task) -> bool:
    """Whether the same turns always get the same replies."""
    environment = environment_of(task)
    return environment is None or bool(getattr(environment, "replayable", True))
