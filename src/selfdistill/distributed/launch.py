"""``--launch``: start the ranks of one run on this machine, stop them together, and end all when one dies.

``torchrun`` also handles several machines and restarts. This launcher gives ranks the time to finish a step after a
stop request, and reports a dead rank in one sentence.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from selfdistill.distributed.signals import LAUNCHED, LOST, STOPPED_BY_ALARM, StopRequest
from selfdistill.errors import TrainingError

POLL = 0.1
"""Seconds between two polls of the processes."""
GRACE = 20.0
"""Seconds that the other ranks get to exit after one has failed. Ranks blocked in a collective never exit."""
SPOKEN = 2
"""Exit code of a rank that has reported a user error, or whose peer has reported it."""
TOGETHER = (0, STOPPED_BY_ALARM, *(128 + number for number in (signal.SIGINT, signal.SIGTERM)))
"""Exit codes on which all ranks agree. No rank has failed."""


def launch(arguments: Sequence[str], processes: int, *, stop: StopRequest, resume: str) -> int:
    """Run the command line with ``arguments`` in ``processes`` ranks; returns the run's exit code.

    A stop request is forwarded to every rank once; the ranks then finish their step and exit.

    Raises:
        TrainingError: a rank died and the others were ended. ``resume`` tells the user how to continue.
    """
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        LAUNCHED: "1",
    }
    command = [sys.executable, "-m", "selfdistill", *arguments]
    # Each rank has its own session: Ctrl-C in the terminal reaches only the parent, which forwards it once.
    ranks = [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(processes)
    ]
    try:
        failed = _watch(ranks, stop)
    finally:
        for process in ranks:
            process.kill()
        codes = [process.wait() for process in ranks]
    if failed is None:
        return max(codes)
    rank, code = failed
    if code == SPOKEN:
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise TrainingError(f"rank {rank} {how}, and the others were ended; {resume}")


def _watch(ranks: Sequence[subprocess.Popen[bytes]], stop: StopRequest) -> tuple[int, int] | None:
    """Wait for all ranks to exit; returns the rank and exit code of the one that failed, or None.

    After a failure the others get :data:`GRACE` seconds. A stop request is forwarded once.
    """
    forwarded, failed, until = False, None, float("inf")
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        if stop.signal is not None and not forwarded:
            forwarded = True
            for process in ranks:
                process.send_signal(stop.signal)
        if failed is None and (failed := _failed(ranks)):
            until = time.monotonic() + GRACE
        time.sleep(POLL)
    return failed or _failed(ranks)


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Rank and exit code of the rank that failed, or None. A rank that died comes before one that lost a peer."""
    # A rank that loses a peer exits after that peer, so a second poll sees both.
    for _ in range(2):
        codes = [process.poll() for process in ranks]
    ended = [(rank, code) for rank, code in enumerate(codes) if code is not None and code not in TOGETHER]

    def consequence(failure: tuple[int, int]) -> tuple[bool, bool, bool, int]:
        """Sort key with causes first. SIGKILL comes from outside; a rank that lost a peer may abort with SIGABRT."""
        rank, code = failure
        return code == LOST, code == SPOKEN, code != -signal.SIGKILL, rank

    return min(ended, key=consequence, default=None)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
