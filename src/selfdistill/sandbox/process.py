"""An isolated process as the trainer sees it: messages in and out, limits, and the end of its whole tree."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import IO, Any, Literal, cast

from selfdistill.errors import UserError
from selfdistill.sandbox.isolation import ENVIRONMENT, SCRATCH, Isolation, is_root

End = Literal["exit", "crash", "time", "memory", "output"]
"""How a process ended: by itself, by a signal, or at a limit."""

_READY = b"ready\n"
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_TICK = 0.05
_STDERR_BYTES = 64 * 1024
_MOST_FILES = 20_000
"""Maximum number of files in the scratch folder. Each takes memory of the kernel, even an empty one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a process. ``memory`` and ``seconds`` bound its whole tree; the others bound each process alone.

    ``cpu`` counts processor seconds, so that a busy machine does not fail right programs. ``seconds`` of wall-clock
    time count from the moment the interpreter runs. Sizes are in bytes.
    """

    cpu: int = 5
    seconds: float = 12.0
    memory: int = 512 * 2**20
    output: int = 4 * 2**20
    processes: int = 16
    files: int = 64
    file_size: int = 16 * 2**20
    stack: int = 64 * 2**20


class Ended(Exception):
    """The process has ended or ran into a limit; ``end`` says which."""

    def __init__(self, end: End) -> None:
        super().__init__(end)
        self.end = end


@cache
def guest_code() -> str:
    """The script for ``python -c``. It makes modules of the codec and the guest, then calls the guest."""
    return (
        f"import sys, types\nfor name, text in {_texts('codec', 'guest')!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(text, name, 'exec'), vars(module))\n"
        "sys.modules['selfdistill.sandbox.guest'].main()\n"
    )


JUDGES = {"judge.judge": ("rewriting", "frameworks", "link", "judge"), "cases.compare": ("link", "cases")}
"""The functions that judge, and the modules that each needs, in the order of their imports."""


@cache
def judge_code(run: str) -> dict[str, str]:
    """The sources of the modules that a judge needs, by module name."""
    return _texts(*JUDGES[run])


def _texts(*names: str) -> dict[str, str]:
    folder = resources.files("selfdistill.sandbox")
    return {f"selfdistill.sandbox.{name}": (folder / f"{name}.py").read_text(encoding="utf-8") for name in names}


class Process:
    """A process in isolation, as a context manager. Leaving the context ends the process and its whole tree.

    Args:
        isolation: how the process is isolated.
        limits: the limits of the process.
        slot: a number that no other running process of this program has. It determines the user id.
    """

    def __init__(self, isolation: Isolation, limits: Limits, *, slot: int) -> None:
        self._limits = limits
        # If the trainer is killed, the process removes the folder itself. So there may be nothing to remove here.
        self._folder = (
            tempfile.TemporaryDirectory(prefix="selfdistill-", ignore_cleanup_errors=True)
            if isolation.name == "none"
            else None
        )
        own = isolation.counts_own_processes
        settings = {
            **asdict(limits),
            "uid": _user_id(slot) if own and is_root() else None,
            "processes": limits.processes if own else None,
            "supervise": not own,
        }
        self._process = subprocess.Popen(
            isolation.command(["-c", guest_code(), json.dumps(settings)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT if self._folder is None else {**ENVIRONMENT, "HOME": self._folder.name},
            cwd=self._folder.name if self._folder else "/",
            start_new_session=True,
        )
        self._output = bytearray()
        self._errors = bytearray()
        self._pending = bytearray()
        self._closing = False
        self._deadline = time.monotonic() + _START_SECONDS
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)
        self._descendants: dict[int, str] = {}
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def __enter__(self) -> Process:
        try:
            self._pump(lambda: len(self._output) >= len(_READY))
            ready = self._output.startswith(_READY)
        except Ended:
            ready = False
        if not ready:
            lines = self.errors.strip().splitlines()
            self.kill()
            raise UserError(
                f"the sandbox does not start: {lines[-1] if lines else 'no word from it'}; try selfdistill doctor"
            )
        del self._output[: len(_READY)]
        self.allow(self._limits.seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def errors(self) -> str:
        """The first 64 KiB of the standard error."""
        return self._errors.decode(errors="replace")

    @property
    def output(self) -> bytes:
        """The standard output that :meth:`take` has not consumed."""
        return bytes(self._output)

    def allow(self, seconds: float) -> None:
        """Set the deadline to ``seconds`` from now."""
        self._deadline = time.monotonic() + seconds

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message. It is written while the trainer waits for the answer."""
        self.pass_on(json.dumps(message).encode())

    def pass_on(self, payload: bytes) -> None:
        """Queue the encoded bytes of a message."""
        self.write(b"%d\n" % len(payload) + payload)

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Queue bytes for the standard input. ``last`` closes the input after them."""
        self._pending += data
        self._closing = last
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._process.stdin)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE)

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Ended: the process ended, ran into a limit, or wrote something else than a message.
        """
        try:
            message = json.loads(self.take())
        except (ValueError, RecursionError) as error:
            raise Ended("crash") from error
        if not isinstance(message, dict):
            raise Ended("crash")
        return message

    def take(self) -> bytes:
        """The bytes of the next message. Hostile bytes are costly to parse, so a process under limits parses them.

        Raises:
            Ended: the process ended, ran into a limit, or wrote something that does not begin as a message.
        """
        self._pump(lambda: b"\n" in self._output[:12] or len(self._output) > 12)
        header, newline, _ = bytes(self._output[:12]).partition(b"\n")
        if not newline or not header.isdigit():
            raise Ended("crash")
        start, length = len(header) + 1, int(header)
        if length > self._limits.output:
            raise Ended("output")
        self._pump(lambda: len(self._output) >= start + length)
        payload = bytes(self._output[start : start + length])
        del self._output[: start + length]
        return payload

    def finish(self) -> End:
        """Wait until the process ends. ``output`` and ``errors`` keep what it wrote."""
        try:
            self._pump(lambda: False)
        except Ended as ended:
            return ended.end
        raise AssertionError("the pump ends only by raising")

    def kill(self) -> None:
        """Kill the process and its whole tree, and wait until all are gone."""
        # The tree of a process that has ended cannot be listed any more, so its latest listing is used.
        descendants = _start_times(_tree(self._process.pid)[1:]) if self._process.poll() is None else self._descendants
        if self._folder is not None:
            # The supervisor kills the tree first, because the descendants of a dead process cannot be listed.
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        _await_end(descendants)
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _pump(self, done: Callable[[], bool]) -> None:
        """Move bytes both ways until ``done`` returns True.

        Raises:
            Ended: the process ended or ran into a limit before that.
        """
        last_check = time.monotonic()
        while not done():
            now = time.monotonic()
            if now > self._deadline:
                raise Ended("time")
            # Memory and files of the whole tree are counted here, because the kernel limits only single processes.
            if now - last_check > _TICK:
                last_check = now
                pids = _tree(self._process.pid)
                self._descendants = _start_times(pids[1:])
                scratch, files = _scratch(pids)
                if _memory(pids) + scratch > self._limits.memory or files > _MOST_FILES:
                    raise Ended("memory")
            for key, _ in self._selector.select(_TICK):
                self._move(cast(IO[bytes], key.fileobj))
            if len(self._output) > self._limits.output + len(_READY) + 12:
                raise Ended("output")
            if self._is_over() and not done():
                raise Ended(self._how_it_ended())

    def _move(self, stream: IO[bytes]) -> None:
        if stream is self._process.stdin:
            self._feed(stream)
            return
        try:
            data = os.read(stream.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(stream)
        elif stream is self._process.stdout:
            self._output += data
        else:
            self._errors += data[: max(0, _STDERR_BYTES - len(self._errors))]

    def _feed(self, stream: IO[bytes]) -> None:
        try:
            del self._pending[: os.write(stream.fileno(), self._pending[: 1 << 16])]
        except BlockingIOError:
            return
        except OSError:  # the process closed its input, so the rest is dropped
            self._pending.clear()
        if not self._pending:
            self._selector.unregister(stream)
            if self._closing:
                with contextlib.suppress(OSError):
                    stream.close()

    def _is_over(self) -> bool:
        """Whether the process has ended and its output is read. A child that keeps the pipe open is not waited for."""
        reading = [key.fileobj for key in self._selector.get_map().values() if key.events & selectors.EVENT_READ]
        if not reading:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TICK)
        if self._process.poll() is None:
            return False
        return not any(key.events & selectors.EVENT_READ for key, _ in self._selector.select(0))

    def _how_it_ended(self) -> End:
        code = self._process.returncode
        number = -code if code < 0 else code - 128
        if number in (signal.SIGXCPU, signal.SIGKILL):
            return "time"  # the kernel sends SIGKILL at the hard limit of processor time, which equals the soft one
        if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGSYS, signal.SIGFPE):
            return "crash"
        return "exit"

    @property
    def code(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._process.poll()


def _user_id(slot: int) -> int:
    """A user id for each program and slot, far above the ids in use: the kernel counts processes by user id."""
    return 2_000_000_000 + (_first_user_id() + slot) % 2_000_000_000


@cache
def _first_user_id() -> int:
    # Random, not derived from the process id: two containers of a machine can have equal process ids.
    return secrets.randbelow(7_000_000) * 256


def _tree(root: int) -> list[int]:
    """The ids of a process and of all its descendants, parents before their children."""
    pids, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        pids.append(pid)
        with contextlib.suppress(OSError, ValueError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    waiting += [int(child) for child in file.read().split()]
    return pids


def _memory(pids: list[int]) -> int:
    """Bytes of anonymous memory that the processes hold together."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) * 1024
    return total


def _scratch(pids: list[int]) -> tuple[int, int]:
    """Bytes and number of files in the scratch folder, which is in memory. Zeros if the sandbox has none."""
    own = os.stat(SCRATCH).st_dev
    for pid in reversed(pids):
        with contextlib.suppress(OSError):
            folder = f"/proc/{pid}/root{SCRATCH}"
            if os.stat(folder).st_dev != own:
                usage = os.statvfs(folder)
                return (usage.f_blocks - usage.f_bfree) * usage.f_frsize, usage.f_files - usage.f_ffree
    return 0, 0


def _await_end(started: dict[int, str]) -> None:
    """Wait until killed processes are gone. The kernel kills a namespace after its process 1 ends, but not at once."""
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        # Another start time means that another process has the id now.
        alive = _start_times(list(started))
        started = {pid: start for pid, start in started.items() if alive.get(pid) == start}
        if not started:
            return
        for pid in started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _start_times(pids: list[int]) -> dict[int, str]:
    """The start time of each living process, in clock ticks since the machine started."""
    times = {}
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                times[pid] = fields[19]
    return times
