"""Run several commands as child processes, a few at a time.

Every child has its own session, so Ctrl-C in the terminal reaches only the parent. A child that received it twice, from
the terminal and from the parent, would stop immediately instead of finishing its step.
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
"""Seconds between two polls of the children: short for a user and short compared with a training step."""
OWN_WORDS = "selfdistill: "
"""Prefix of the error messages of the command line."""


@dataclass(frozen=True, slots=True)
class Child:
    """A command, its name in messages, and the file that receives its output."""

    name: str
    command: tuple[str, ...]
    log: Path


@dataclass(frozen=True, slots=True)
class State:
    """The children that are running, and the number that have succeeded."""

    running: tuple[Child, ...]
    done: int


def run_children(
    children: Sequence[Child],
    *,
    environments: Sequence[Mapping[str, str]],
    stop: StopRequest,
    watch: Callable[[State], None],
    fine: Collection[int] = (0,),
    keep_open: Sequence[int] = (),
) -> None:
    """Run all children in order, each in one of the ``environments``; returns early when a stop is requested.

    At most one child at a time has an environment, so there are as many at a time as environments.
    No child survives this call: running children get SIGTERM and are waited for, and a second signal kills them.
    ``fine`` are the exit codes that count as success. ``keep_open`` are file descriptors that the children inherit.

    Raises:
        TrainingError: a child failed. The message holds the child's last message and the path of its log.
    """
    waiting = deque(children)
    log_size = {child: child.log.stat().st_size if child.log.exists() else 0 for child in children}
    running: dict[Child, subprocess.Popen[bytes]] = {}
    free, taken = list(environments), dict[Child, Mapping[str, str]]()
    done = 0
    try:
        while (waiting or running) and not stop.requested:
            while waiting and free:
                child = waiting.popleft()
                taken[child] = free.pop(0)
                running[child] = _start(child, taken[child], keep_open)
            for child, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[child]
                free.append(taken.pop(child))
                if code not in fine and not stop.requested:
                    raise TrainingError(f"{child.name}: {_reason(child, code, since=log_size[child])}")
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
    """Why a child failed: its last error message to the user, else the last line of its output."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; what it said is in {child.log}"
    text = child.log.read_bytes()[since:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    messages = [line.removeprefix(OWN_WORDS) for line in lines if line.startswith(OWN_WORDS)] or lines
    return f"{messages[-1] if messages else f'ended with exit code {code}'} (log: {child.log})"
