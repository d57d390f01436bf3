"""Ctrl-C and SIGTERM: the first finishes and saves the current step, the second stops immediately."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOPPED_BY_ALARM = 3
"""Exit code of a run that was ended by an alarm listed in ``stop_on``."""
LOST = 4
"""Exit code of a rank that lost a peer; another process reports the error."""
LAUNCHED = "SELFDISTILL_LAUNCHED"
"""Environment variable of ranks started by ``--launch``. Their parent process reports a lost rank."""


@dataclass(slots=True)
class StopRequest:
    """Whether the run was asked to stop, and by which signal."""

    signal: int | None = None

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return self.signal is not None


@contextmanager
def stop_on_signals(announce: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a stop request; the second raises KeyboardInterrupt."""
    request = StopRequest()
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        # Signals to other ranks are merged into the request, so the count of this process's own signals decides.
        if len(received) > 1:
            raise KeyboardInterrupt
        request.signal = number
        announce(
            "Finishing this step, then stopping; a long sampling ends after its current batch. "
            "Press Ctrl-C again to stop immediately."
        )

    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, handle) for kind in kinds}
    try:
        yield request
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
