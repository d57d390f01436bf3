"""Keep a server running as long as the process that started it: ``keeper.py PID COMMAND…``.

The keeper leads the server's process group. It ends the whole group when the process PID is gone, whatever ended that
process, when it receives SIGTERM itself, and when the server ends. Only the standard library is imported, so a keeper
starts at once and needs little memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

POLL = 0.2
"""Seconds between two looks at the server and at the process that started it."""
GRACE = 10.0
"""Seconds that a server gets to end by itself. It then removes its shared memory, which SIGKILL leaves behind."""
PR_SET_PDEATHSIG = 1


def keep(parent: int, command: Sequence[str]) -> None:
    """Run a command until it ends or is no longer needed, then kill this process's group. Does not return."""
    stops: list[int] = []
    # The run may block signals while it starts a process.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    server = subprocess.Popen(command, preexec_fn=_end_with_keeper())
    try:
        # A process whose parent has ended gets another parent.
        while server.poll() is None and not stops and os.getppid() == parent:
            time.sleep(POLL)
        if server.poll() is None:
            os.killpg(0, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(GRACE)
        else:
            print(f"the server {ending(server.returncode)}", file=sys.stderr, flush=True)
    finally:
        # What the server has started itself, and this process.
        os.killpg(0, signal.SIGKILL)


def ending(code: int) -> str:
    """How a process with this return code has ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _end_with_keeper() -> Callable[[], object] | None:
    """What the server's process does before its command: on Linux it asks for SIGTERM when the keeper is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2:])
