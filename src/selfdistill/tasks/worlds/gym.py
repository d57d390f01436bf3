"""Text environments of the package gymnasium: observations and actions are in ``gymnasium.spaces.Text``."""

from __future__ import annotations

from typing import Any

from selfdistill.config.base import load_named
from selfdistill.config.worlds import GymnasiumConfig
from selfdistill.errors import ConfigError
from selfdistill.tasks.frames import errors_of
from selfdistill.tasks.worlds.base import SeededTask
from selfdistill.types import Reply

NOT_AN_ACTION = "This is no action here: {action!r}. {space}"


class GymnasiumTask(SeededTask):
    """Episodes of a Gymnasium environment with texts on both sides.

    An episode is ``reset(seed=…)`` of a new environment, and a ``step`` a turn; its rewards are the turns'. Termination
    and truncation end it. An action outside the action space takes no step and is answered with an error.

    Args:
        config: the task's table.
        seed: decides the seeds of the episodes.

    Raises:
        ConfigError: the package is missing, the environment cannot be made, or its spaces hold no texts.
    """

    name = package = "gymnasium"

    def __init__(self, config: GymnasiumConfig, *, seed: int = 0) -> None:
        super().__init__(config, place=config.env, seed=seed)
        self.arguments = config.arguments
        import gymnasium

        self._make: Any = gymnasium.make
        module, colon, name = config.env.partition(":")
        self._own = load_named(config.env, "task.env", "class") if name.isidentifier() else None
        if colon and self._own is None:
            # An id such as "my_lake:Lake-v0": the module registers it. It may be in the working folder.
            try:
                load_named(f"{module}:__name__", "task.env", "class")
            except ConfigError as error:
                raise ConfigError(str(error).replace(f"{module}:__name__", config.env)) from error
        with errors_of(self._label):
            env, _ = self.open(0)
            spaces = {"observations": env.observation_space, "actions": env.action_space}
            self.close(env)
        for side, space in spaces.items():
            if not isinstance(space, gymnasium.spaces.Text):
                raise ConfigError(
                    f"{self._label} has {side} of {space}, and a language model reads and writes texts: wrap it so "
                    "that both spaces are gymnasium.spaces.Text"
                )

    def open(self, seed: int) -> tuple[Any, str]:
        """Make the environment and reset it."""
        if self._own is not None:
            env = self._own(**self.arguments)
        else:
            # The checker only warns, once for every episode.
            env = self._make(self.place, disable_env_checker=True, **self.arguments)
        try:
            observation, _ = env.reset(seed=seed)
        except BaseException:
            env.close()
            raise
        return env, observation

    def step(self, env: Any, action: str) -> Reply:
        """Step with a text of the action space."""
        if not env.action_space.contains(action):
            said = NOT_AN_ACTION.format(action=action[:80], space=env.action_space)
            return Reply(said, reward=0.0, error=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        return Reply(observation, bool(terminated or truncated), float(reward), error=False)

    def close(self, env: Any) -> None:
        """Close the environment."""
        env.close()
