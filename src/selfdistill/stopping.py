"""Ctrl-C and SIGTERM: the step in hand is finished and saved; a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOPPED_BY_ALARM = 3
"""Exit code of a run that an alarm of ``stop_on`` has ended."""


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: int | None = None

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None


@contextmanager
def stop_on_signals(announce: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request; the second of them raises KeyboardInterrupt."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.signal = number
        announce("stopping after this step; once more to stop at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, handle) for kind in kinds}
    try:
        yield request
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
