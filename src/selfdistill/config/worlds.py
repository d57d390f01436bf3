"""Tables of tasks whose environments are other packages': an environment by its name, and how many episodes of it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from selfdistill.config.sections import JsonTable, Strict


class WorldConfig(Strict):
    """Keys of every environment of another package. Each episode begins from a seed of its own."""

    system: str | None = Field(None, description="System message before the environment's first words.")
    action_pattern: str | None = Field(
        None,
        description="Regular expression whose first group is the action; its last match in a turn counts. Unset: the "
        "whole turn after its thinking.",
    )
    turns: int = Field(8, ge=1, description="Turns of an episode, at most.")
    seconds: float = Field(30.0, gt=0, description="Time limit of a step of the environment.")
    success: float = Field(1.0, description="An episode is right if it earned so much.")
    replayable: bool = Field(
        True, description="Whether the same seed and turns always get the same replies; without, no run is resumed."
    )
    train: int = Field(256, ge=1, description="Training episodes.")
    validation: int = Field(64, ge=1, description="Validation episodes.")
    test: int = Field(64, ge=1, description="Test episodes.")

    @field_validator("action_pattern")
    @classmethod
    def _has_a_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"action_pattern is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"action_pattern has {groups} groups: it needs one, which is the action")
        return value


class GymnasiumConfig(WorldConfig):
    """An environment of the package gymnasium (an extra) whose observations and actions are texts."""

    kind: Literal["gymnasium"]
    env: str = Field(description="Registered id, for example 'my_module:Maze-v0', or a class 'my_module:Maze'.")
    arguments: JsonTable = Field({}, description="Arguments with which the environment is made.")


class TextArenaConfig(WorldConfig):
    """A game for one player of the package textarena (an extra)."""

    kind: Literal["textarena"]
    env: str = Field(description="Id of the game, for example 'GuessTheNumber-v0'.")
    arguments: JsonTable = Field({}, description="Arguments with which the game is made.")


class OpenEnvConfig(WorldConfig):
    """An environment behind a server of OpenEnv (an extra)."""

    kind: Literal["openenv"]
    url: str = Field(description="Address of the server, for example 'http://127.0.0.1:8000'.")
    action: str = Field("message", description="Field of an action that holds the model's text.")
    observation: str | None = Field(
        None,
        description="Field of an observation that the model reads; unset: the only text in it, or all of it as JSON.",
    )
    arguments: JsonTable = Field({}, description="Arguments of a reset, beside the seed.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        scheme, _, location = value.partition("://")
        if scheme not in ("http", "https", "ws", "wss") or not location:
            raise ValueError(f"url is an http:// or https:// address, not {value!r}")
        return value


class VerifiersConfig(Strict):
    """An environment of the package verifiers (an extra): a taskset, or one that has ``load_environment``."""

    kind: Literal["verifiers"]
    env: str = Field(
        description="Id of the taskset; before verifiers 0.4 the package or module that has load_environment()."
    )
    arguments: JsonTable = Field(
        {},
        description="The package's table [env], for example taskset and agent; else arguments of load_environment().",
    )
    turns: int | None = Field(
        None, ge=1, description="Turns of an episode, at most; unset: the environment's own limit, or 8 without one."
    )
    seconds: float = Field(30.0, gt=0, description="Time limit of the environment's reply to a turn.")
    success: float = Field(1.0, description="An episode is right if it earned so much.")
    replayable: bool = Field(True, description="Whether the same turns always get the same replies and rewards.")
    train: int = Field(1024, ge=1, description="Training rows, at most.")
    validation: int = Field(256, ge=1, description="Validation rows, at most.")
    test: int = Field(256, ge=1, description="Test rows, at most.")
