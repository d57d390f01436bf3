"""An episode of a task in turns, by hand."""

from __future__ import annotations

from typing import Any

from selfdistill.tasks.episode_loop import EpisodeLoop
from selfdistill.types import Example


class Episode:
    """An episode that begins at once, in an event loop of its own."""

    def __init__(self, task: Any, example: Example) -> None:
        self.task, self.loop = task, EpisodeLoop()
        try:
            self.begun: Any = self.loop.run(task.start(example))
        except BaseException:
            self.loop.close()
            raise

    def says(self, text: str) -> Any:
        """The environment's reply to a turn."""
        return self.loop.run(self.task.reply(self.begun.state, text))

    def end(self) -> None:
        """Tell the environment that nothing follows."""
        self.loop.run(self.task.end(self.begun.state))
        self.loop.close()
