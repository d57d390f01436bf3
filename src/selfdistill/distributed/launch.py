"""Several processes of one run on this machine: started, watched, stopped together, ended when one of them dies.

``torchrun`` also knows several machines and restarts. Here a stop may take as long as a step does, and a death is told
in one sentence.
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
"""Seconds between two looks at the processes."""
GRACE = 20.0
"""Seconds in which the others may end by themselves when one has failed. Those that wait for it in vain never would."""
SPOKEN = 2
"""Exit code of a process that has said in a sentence what is wrong, or knows that another has."""
TOGETHER = (0, STOPPED_BY_ALARM, *(128 + number for number in (signal.SIGINT, signal.SIGTERM)))
"""Exit codes that all processes of a run agree on: none of them has failed."""


def launch(arguments: Sequence[str], processes: int, *, stop: StopRequest, resume: str) -> int:
    """Run the command line with ``arguments`` in that many processes; returns the run's exit code.

    A request to stop is passed on, and the run then ends by itself.

    Raises:
        TrainingError: a process died; the others have been ended, and ``resume`` is the way to go on.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        LAUNCHED: "1",
    }
    command = [sys.executable, "-m", "selfdistill", *arguments]
    # Sessions of their own: Ctrl-C in the terminal reaches the parent alone, which passes it on once.
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
    """Wait until all have ended, or for a while only when one has failed: its rank and exit code.

    A request to stop is passed on, once.
    """
    told, failed, until = False, None, float("inf")
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        if stop.signal is not None and not told:
            told = True
            for process in ranks:
                process.send_signal(stop.signal)
        if failed is None and (failed := _failed(ranks)):
            until = time.monotonic() + GRACE
        time.sleep(POLL)
    return failed or _failed(ranks)


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Rank and exit code of the process that failed, if one has: rather one that died than one that missed it."""
    # Who notices a loss ends after whom it lost: a second look finds both.
    for _ in range(2):
        codes = [process.poll() for process in ranks]
    ended = [(rank, code) for rank, code in enumerate(codes) if code is not None and code not in TOGETHER]

    def consequence(found: tuple[int, int]) -> tuple[bool, bool, bool, int]:
        """Sorts causes first: SIGKILL comes from outside, whereas a rank that has lost a peer may abort (SIGABRT)."""
        rank, code = found
        return code == LOST, code == SPOKEN, code != -signal.SIGKILL, rank

    return min(ended, key=consequence, default=None)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
