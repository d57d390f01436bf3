"""The event loop of an episode, in which the coroutines of its environment and its tools run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class EpisodeLoop:
    """The event loop of an episode's coroutines, made for the first of them.

    What a coroutine leaves behind, such as a connection or a task, still works in the next one.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._lock = threading.Lock()
        self._running = self._closed = False

    @property
    def used(self) -> bool:
        """Whether a coroutine ran in it."""
        return self._runner is not None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end and return its result."""
        with self._lock:
            # An earlier coroutine may hang in the loop still, or the episode may have ended without this one.
            usable = not (self._running or self._closed)
            self._running = self._running or usable
            if usable and self._runner is None:
                self._runner = asyncio.Runner()
                self._runner.get_loop()
        if not usable:
            return asyncio.run(coroutine)
        assert self._runner is not None
        try:
            return self._runner.run(coroutine)
        finally:
            with self._lock:
                self._running, closed = False, self._closed
            if closed:
                self._runner.close()

    def close(self) -> None:
        """Cancel what still runs and close the loop. One in which a coroutine runs is closed when that returns."""
        with self._lock:
            self._closed, running = True, self._running
            if running and self._runner is not None:
                loop = self._runner.get_loop()
                loop.call_soon_threadsafe(_cancel_all, loop)
        if self._runner is not None and not running:
            self._runner.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
