"""A child process that answers JSON requests, a line each, and is replaced when a limit of its own has ended it.

Work on hostile text may never end, and a thread cannot be stopped. The script that the process runs sets timers of the
operating system for itself, so reading its replies cannot hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WorkerProcess:
    """Runs a script in a process that starts with the first request, and ends with this object or this process.

    Args:
        script: the file to run. It writes one line when it is ready, then replies to requests.
        arguments: its command line.
        environment: variables besides those of this process.
    """

    def __init__(self, script: Path, arguments: list[str], *, environment: Mapping[str, str] | None = None) -> None:
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[str] | None = None
        self._ending: weakref.finalize[[subprocess.Popen[str]], WorkerProcess] | None = None

    @property
    def running(self) -> bool:
        """Whether the process has started and not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> dict[str, Any] | None:
        """Start the process anew. Returns its first line, or None if it ended before that."""
        self.close()
        # -P: the script's own folder may hold a math.py, which must not hide Python's. A session of its own: Ctrl-C in
        # the terminal is for the run, which finishes its step and still needs verdicts.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=self._environment,
            start_new_session=True,
        )
        self._ending = weakref.finalize(self, _end, self._process)
        return self.receive()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a request to the running process. Returns the first line of its reply, or None if it has ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.receive()

    def receive(self) -> dict[str, Any] | None:
        """The next line, or None if the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return reply

    def close(self) -> None:
        """End the process."""
        if self._ending is not None:
            self._ending()
        self._process = None


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                pipe.close()
