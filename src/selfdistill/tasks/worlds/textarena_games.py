"""Games for one player of the package textarena."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from selfdistill.config.suggest import near
from selfdistill.config.worlds import TextArenaConfig
from selfdistill.errors import ConfigError
from selfdistill.tasks.frames import errors_of
from selfdistill.tasks.worlds.base import SeededTask
from selfdistill.types import Reply

_RANDOM = threading.Lock()
"""Held while a game runs: all games draw from the interpreter's own generators."""


@dataclass(slots=True)
class Game:
    """A game, and the state of the generators as it left them."""

    env: Any
    generators: tuple[Any, Any]
    said: list[Any] = field(default_factory=list)
    """The game's first messages."""

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Let the game draw from generators of its own, so that no other game, and nothing else, changes its draws."""
        # Not above: a mistake in a config is told before numpy is imported.
        import numpy as np

        with _RANDOM:
            outside = random.getstate(), np.random.get_state()
            random.setstate(self.generators[0])
            np.random.set_state(self.generators[1])
            try:
                yield
            finally:
                self.generators = random.getstate(), np.random.get_state()
                random.setstate(outside[0])
                np.random.set_state(outside[1])


class TextArenaTask(SeededTask):
    """Episodes of a TextArena game for one player.

    The opening is the game's prompt. After a turn the model reads what the game has said since; its own turn is not
    repeated. The game's reward comes at its end. Its reason for the end is the feedback, an invalid move is an error.

    Args:
        config: the task's table.
        seed: decides the seeds of the episodes.

    Raises:
        ConfigError: the package is missing, the game is unknown, or it is one for several players.
    """

    name = package = "textarena"

    def __init__(self, config: TextArenaConfig, *, seed: int = 0) -> None:
        super().__init__(config, place=config.env, seed=seed)
        self.arguments = config.arguments
        import textarena
        from textarena.envs.registration import ENV_REGISTRY

        self._arena: Any = textarena
        if config.env not in ENV_REGISTRY:
            known = [name for name in ENV_REGISTRY if not name.endswith(("-raw", "-train"))]
            hint = near(config.env, known) or "textarena.pprint_registry_detailed() lists them"
            raise ConfigError(f"unknown task.env {config.env!r}: {hint}")
        with errors_of(self._label):
            self.open(0)

    def open(self, seed: int) -> tuple[Game, str]:
        """Make the game and set it up for one player."""
        from numpy.random import RandomState

        generators = random.Random(seed).getstate(), RandomState(seed).get_state()
        game = Game(None, generators)
        with game.playing():
            try:
                game.env = self._arena.make(self.place, **self.arguments)
                game.env.reset(num_players=1, seed=seed)
            except AssertionError as error:
                raise ConfigError(f"{self._label} is no game for one player: {error}") from error
            except LookupError as error:
                if "nltk.download" not in str(error):
                    raise
                raise ConfigError(
                    f"{self._label} needs word lists that NLTK downloads, and they are not on this machine: "
                    "python -m nltk.downloader words averaged_perceptron_tagger_eng"
                ) from error
        if not isinstance(self._base(game).state, self._arena.SinglePlayerState):
            raise ConfigError(f"{self._label} is no game for one player")
        return game, self._said(game)[0]

    def step(self, env: Any, action: str) -> Reply:
        """Make a move. The game's own wrappers read it, and put brackets around it where it has none."""
        assert isinstance(env, Game)
        with env.playing():
            done, _ = env.env.step(action=action)
        said, invalid = self._said(env)
        if not done:
            return Reply(said, reward=0.0, feedback=said if invalid else None, error=invalid)
        rewards, info = env.env.close()
        about = info[0]
        return Reply(
            said,
            done=True,
            reward=float(rewards[0]),
            feedback=None if about.get("reason") is None else str(about["reason"]),
            error=bool(about.get("invalid_move")),
        )

    def _base(self, game: Game) -> Any:
        env = game.env
        while isinstance(env, self._arena.Wrapper):
            env = env.env
        return env

    def _said(self, game: Game) -> tuple[str, bool]:
        """What the game has said since the last turn, and whether a move was refused."""
        # The wrappers of observations would repeat the whole game, and the player's own moves.
        kinds = self._arena.ObservationType
        _, messages = self._base(game).get_observation()
        texts = [text for _, text, kind in messages if kind != kinds.PLAYER_ACTION]
        return "\n".join(texts).strip(), any(kind == kinds.GAME_ADMIN for _, _, kind in messages)

    def close(self, env: Any) -> None:
        """A game holds nothing that is to be released."""
