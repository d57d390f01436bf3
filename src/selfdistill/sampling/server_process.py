"""A vLLM server in a process of its own, which ends with the process that started it. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from selfdistill.errors import SamplerError
from selfdistill.files.text import counted, printable
from selfdistill.sampling import keeper
from selfdistill.tracking.progress import activity, advance

HOST = "127.0.0.1"
POLL = 0.2
"""Seconds between two looks at servers that start."""
HEALTH = 10.0
"""Seconds within which a server says that it is well."""
LINES, WIDTH = 12, 300
"""Lines of a log that an error shows, and characters of each."""


class ServerProcess:
    """One server. Its keeper, see :mod:`selfdistill.sampling.keeper`, ends it with this process."""

    def __init__(self, name: str, port: int, log: Path) -> None:
        """``name`` is used in messages. What the server prints is appended to ``log``."""
        self.name = name
        self.port = port
        self.log = log
        self.starts = 0
        """How often it was started."""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._log_size = 0

    @property
    def url(self) -> str:
        """Its address on this machine."""
        return f"http://{HOST}:{self.port}"

    @property
    def ended(self) -> bool:
        """Whether it was never started, or has ended."""
        return self._keeper is None or self._keeper.poll() is not None

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended, or does so soon. A server that fails may break its connections first."""
        with suppress(subprocess.TimeoutExpired):
            if self._keeper is not None:
                self._keeper.wait(seconds)
        return self.ended

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. It answers once :meth:`healthy` says so."""
        self.starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_size = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the run, which samples on until its step is done.
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def healthy(self) -> bool:
        """Whether it answers that it is well, within :data:`HEALTH` seconds."""
        # No proxy of the environment stands between two processes of one machine.
        connection = HTTPConnection(HOST, self.port, timeout=HEALTH)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def last_lines(self) -> str:
        """The last lines that it printed since its start, each after a line break."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(max(self._log_size, self.log.stat().st_size - 64 * 1024))
            lines = [line.strip() for line in log.read().decode("utf-8", errors="replace").splitlines()]
            return "".join(f"\n  {printable(line[:WIDTH])}" for line in [line for line in lines if line][-LINES:])
        return ""

    def ask_to_end(self) -> None:
        """Let the keeper end it."""
        if self._keeper is not None and self._keeper.poll() is None:
            self._keeper.terminate()

    def end(self) -> None:
        """End it with all processes that it has started."""
        if self._keeper is None:
            return
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(keeper.GRACE + 5)
        # What is left of the group if somebody killed the keeper, or stopped it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._keeper.pid, signal.SIGKILL)
        self._keeper.wait()
        self._keeper = None


def free_ports(count: int) -> list[int]:
    """So many different ports of this machine that no program listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait_for_health(servers: Sequence[ServerProcess], doing: str) -> None:
    """Wait until all servers are well, and show how many are. ``doing`` names the activity.

    Raises:
        SamplerError: one ended. The message holds the last lines of its log.
    """
    waiting = list(servers)
    with activity(f"{doing} {counted(len(servers), 'vLLM server')}", len(servers), "ready"):
        while waiting:
            for server in list(waiting):
                if server.ended:
                    raise SamplerError(f"{server.name} ended while it started; it said last:{server.last_lines()}")
                if server.healthy():
                    waiting.remove(server)
                    advance(1)
            if waiting:
                time.sleep(POLL)


def end_all(servers: Sequence[ServerProcess]) -> None:
    """End several servers at the same time."""
    for server in servers:
        server.ask_to_end()
    for server in servers:
        server.end()
