"""What environments of other packages have in common: a seed an episode, the action in a turn, the reward so far."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.config.suggest import choices
from selfdistill.config.worlds import WorldConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError, UserError
from selfdistill.seeds import derive
from selfdistill.tasks.frames import errors_of
from selfdistill.types import Example, Message, Reply, Start

SPLITS = ("train", "validation", "test")
NO_ACTION = "There is no action in this turn. Write one."
NOT_THE_SAME = (
    "the opening is not the one that the same seed had before: write replayable = false in the table of the task"
)


@dataclass(slots=True)
class World:
    """The state of an episode: the package's environment, and what the episode has earned so far."""

    env: Any
    earned: float = 0.0


class SeededTask(ABC):
    """Episodes of an environment that begins from a seed. A subclass opens it, takes a step in it and closes it.

    The opening of every example is read when the examples are listed. With ``replayable`` an episode whose opening is
    another one is not played.
    """

    contexts = "default"
    has_verifier = True
    name: str
    package: str
    """The package that is imported."""

    def __init__(self, config: WorldConfig, *, place: str, seed: int = 0) -> None:
        """Check that the package is here. ``place`` is the environment's name or address.

        Raises:
            ConfigError: it is not installed; the message names the extra.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"task.kind {self.name!r} needs the package {self.package}: pip install 'selfdistill[{self.name}]'"
            )
        self.world, self.place, self.seed = config, place, seed
        self.max_turns, self.seconds, self.replayable = config.turns, config.seconds, config.replayable
        self._label = f"task.{'url' if '://' in place else 'env'} {place!r}"
        self._examples: dict[str, Sequence[Example]] = {}

    @abstractmethod
    def open(self, seed: int) -> tuple[Any, str]:
        """A new environment that began from a seed, and its first words."""

    @abstractmethod
    def step(self, env: Any, action: str) -> Reply:
        """Take a step. ``success`` is filled in, from what the episode has earned."""

    @abstractmethod
    def close(self, env: Any) -> None:
        """Release what an environment holds."""

    def examples(self, split: str) -> Sequence[Example]:
        """One example for each seed of a split. No seed is in two splits.

        Raises:
            UserError: the split is unknown, or the environment cannot be made or raises.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        if split not in self._examples:
            numbers = range(getattr(self.world, split))
            self._examples[split] = tuple(self._example(split, number) for number in numbers)
        return self._examples[split]

    def _example(self, split: str, number: int) -> Example:
        # Below 2 ** 31, because some environments hand it to generators of 32 bits.
        drawn = derive(self.seed, self.name, self.place, split, number) % 2**29
        seed = drawn * len(SPLITS) + SPLITS.index(split)
        with errors_of(self._label):
            env, said = self.open(seed)
            self.close(env)
        if not isinstance(said, str):
            raise ConfigError(
                f"{self._label} begins with a value of type {type(said).__name__}, and a language model reads texts"
            )
        return Example(f"{self.name}-{self.place}-{seed}", self._prompt(said), columns={"seed": seed})

    def _prompt(self, said: str) -> tuple[Message, ...]:
        system = () if self.world.system is None else (Message("system", self.world.system),)
        return (*system, Message("user", said))

    def start(self, example: Example) -> Start:
        """Begin from the example's seed.

        Raises:
            UserError: the opening is another one than before, though ``replayable`` says that it is not.
        """
        env, said = self.open(example.columns["seed"])
        opening = self._prompt(said)
        if self.replayable and opening != example.prompt:
            self.close(env)
            raise UserError(NOT_THE_SAME)
        return Start(World(env), opening)

    def reply(self, state: object, text: str) -> Reply:
        """Take a step with the action of a turn. A turn without one is answered with an error."""
        assert isinstance(state, World)
        action = self.action_of(text)
        reply = Reply(NO_ACTION, reward=0.0, error=True) if action is None else self.step(state.env, action)
        state.earned += reply.reward or 0.0
        success = state.earned >= self.world.success
        messages = reply.messages
        if isinstance(messages, str):
            # An environment may say nothing: the model then reads an empty message.
            messages = (Message("user", messages),) if messages or not reply.done else ()
        return replace(reply, messages=messages, success=success)

    def action_of(self, text: str) -> str | None:
        """The action in a turn: what the last match of ``action_pattern`` names, or all after the thinking."""
        said = after_thinking(text)
        if self.world.action_pattern is None:
            return said.strip() or None
        matches = re.findall(self.world.action_pattern, said)
        return matches[-1].strip() if matches else None

    def end(self, state: object) -> None:
        """Close the environment of an episode."""
        assert isinstance(state, World)
        self.close(state.env)
