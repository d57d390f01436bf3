"""Several commands as child processes, some at a time: started, watched, asked to stop, waited for.

Every child has a session of its own, so that Ctrl-C in the terminal reaches the parent alone: a child that heard it
twice, from the terminal and from the parent, would take the second for an order to stop at once.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfdistill.distributed.signals import StopRequest
from selfdistill.errors import TrainingError

POLL = 0.1
"""Seconds between two looks at the children: nothing beside a step, and soon enough for a person."""
OWN_WORDS = "selfdistill: "
"""What the command line begins its sentence with when it refuses."""


@dataclass(frozen=True, slots=True)
class Child:
    """A command, what people call it, and the file that gets all it says."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True, slots=True)
class State:
    """Which children run now, and how many have ended well."""

    running: tuple[Child, ...]
    done: int


def run_children(
    children: Sequence[Child],
    *,
    jobs: int,
    environment: Mapping[str, str],
    stop: StopRequest,
    watch: Callable[[State], None],
    fine: Collection[int] = (0,),
    keep_open: Sequence[int] = (),
) -> None:
    """Run all, at most ``jobs`` at a time and in order; returns early when a stop is requested.

    However it ends, no child is left: those still running are sent SIGTERM and waited for; on a second signal they are
    killed. ``fine`` are the exit codes of children that did not fail; ``keep_open`` are file descriptors that the
    children inherit.

    Raises:
        TrainingError: a child failed; its own last sentence, and where the rest of its words are.
    """
    waiting = deque(children)
    said = {child: child.log.stat().st_size if child.log.exists() else 0 for child in children}
    running: dict[Child, subprocess.Popen[bytes]] = {}
    done = 0
    try:
        while (waiting or running) and not stop.requested:
            while waiting and len(running) < jobs:
                child = waiting.popleft()
                running[child] = _start(child, environment, keep_open)
            for child, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[child]
                if code not in fine and not stop.requested:
                    raise TrainingError(f"{child.name}: {_reason(child, code, since=said[child])}")
                done += 1
            watch(State(tuple(running), done))
            if running:
                time.sleep(POLL)
    finally:
        _end(list(running.values()))


def _start(child: Child, environment: Mapping[str, str], keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with child.log.open("ab") as log:
        return subprocess.Popen(
            child.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=tuple(keep_open),
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        raise


def _reason(child: Child, code: int, *, since: int) -> str:
    """The sentence that the child ended with: what it wrote last, what it wrote to the user before anything else."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; what it said is in {child.log}"
    text = child.log.read_bytes()[since:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    spoken = [line.removeprefix(OWN_WORDS) for line in lines if line.startswith(OWN_WORDS)] or lines
    return f"{spoken[-1] if spoken else f'ended with exit code {code}'} (log: {child.log})"
