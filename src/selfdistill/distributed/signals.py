"""Ctrl-C and SIGTERM: the step in hand is finished and saved; a second one stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOPPED_BY_ALARM = 3
"""Exit code of a run that an alarm of ``stop_on`` has ended."""
LOST = 4
"""Exit code of a process that has lost another one of its run, and leaves it to others to say so."""
LAUNCHED = "SELFDISTILL_LAUNCHED"
"""In the environment of processes that have a parent, which tells when one of them is lost."""


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
    heard: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        # What other processes of the run have heard stands in the request too, and is no second signal to this one.
        if len(heard) > 1:
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
