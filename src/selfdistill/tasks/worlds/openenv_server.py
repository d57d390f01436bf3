"""Environments behind a server of OpenEnv, through its own client: a session on the server for every episode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from selfdistill.config.worlds import OpenEnvConfig
from selfdistill.errors import ConfigError, SamplerError
from selfdistill.tasks.frames import errors_of
from selfdistill.tasks.worlds.base import SeededTask
from selfdistill.types import Reply


class OpenEnvTask(SeededTask):
    """Episodes of an environment that an OpenEnv server holds.

    An episode is a session: ``reset(seed=…)``, and a ``step`` a turn, with the model's text in one field of the action.
    All episodes of a step are open at once, so the server needs as many sessions.

    Args:
        config: the task's table.
        seed: decides the seeds of the episodes.

    Raises:
        UserError: the package is missing, no server answers, or it does not open a session.
    """

    name = "openenv"
    package = "openenv"

    def __init__(self, config: OpenEnvConfig, *, seed: int = 0) -> None:
        super().__init__(config, place=config.url, seed=seed)
        from openenv.core import GenericEnvClient

        self._client: Any = GenericEnvClient
        self.config = config
        with errors_of(self._label):
            client, _ = self.open(0)
            self.close(client)

    def open(self, seed: int) -> tuple[Any, str]:
        """Open a session on the server and reset its environment."""
        seconds = self.world.seconds
        client = self._client(self.place, connect_timeout_s=seconds, message_timeout_s=seconds).sync()
        try:
            client.connect()
        except ConnectionError as error:
            client.close()
            raise SamplerError(f"{self._label}: no OpenEnv server answers there ({error}); start it first") from error
        try:
            return client, self.text_of(client.reset(seed=seed, **self.config.arguments).observation)
        except BaseException:
            client.close()
            raise

    def step(self, env: Any, action: str) -> Reply:
        """Send the text as an action."""
        result = env.step({self.config.action: action})
        reward = None if result.reward is None else float(result.reward)
        return Reply(self.text_of(result.observation), bool(result.done), reward)

    def close(self, env: Any) -> None:
        """Close the session."""
        env.close()

    def text_of(self, observation: Mapping[str, Any]) -> str:
        """What the model reads of an observation: its field ``observation`` of the table, its only text, or its JSON.

        Raises:
            ConfigError: the observation has no such field.
        """
        if self.config.observation is not None:
            if self.config.observation not in observation:
                raise ConfigError(
                    f"an observation of {self.place} has no {self.config.observation!r}; its fields are "
                    f"{', '.join(observation) or 'none'}: name one as task.observation"
                )
            shown = observation[self.config.observation]
        else:
            texts = [value for value in observation.values() if isinstance(value, str)]
            shown = texts[0] if len(texts) == 1 else dict(observation)
        return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
