"""Attacks on the sandbox, which ``selfdistill doctor`` and the tests run.

Each program of ``attacks.toml`` prints ``ESCAPED`` if it succeeds. Attacks are never run without isolation, because
several would succeed.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from selfdistill.errors import UserError
from selfdistill.sandbox.sandbox import Outcome, Sandbox

ESCAPED = "ESCAPED"

_TRY = """
import ctypes, os, signal, socket, subprocess, sys, time
def attempt(action):
    try:
        result = action()
    except (OSError, ValueError, AttributeError, MemoryError):
        return
    if result is not False and result != -1:
        print("ESCAPED", str(result)[:80], flush=True)
libc = ctypes.CDLL(None)
"""


@cache
def _read() -> Mapping[str, Any]:
    return tomllib.loads((resources.files("selfdistill.sandbox") / "attacks.toml").read_text(encoding="utf-8"))


def attack_names(*, thorough: bool = True) -> list[str]:
    """The names of all attacks; without ``thorough`` those of the quick ones, one of each kind."""
    return [name for name, attack in _read().items() if thorough or attack.get("quick")]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of an attack; ``trouble`` is None if the sandbox held."""

    attack: str
    outcome: Outcome
    trouble: str | None


class Range:
    """The targets of attacks: a secret file and variable, a server, a process, and a name that marks survivors."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox = sandbox
        self._folder = folder
        self._secret = folder / f"secret-{secrets.token_hex(8)}.txt"
        self._secret.write_text("the secret", encoding="utf-8")
        self._marker = secrets.token_hex(7)  # a process's name has at most 15 letters
        self._victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._local = socket.socket(socket.AF_UNIX)
        self._local_name = f"selfdistill-{secrets.token_hex(8)}"
        if sys.platform == "linux":
            self._local.bind("\0" + self._local_name)
            self._local.listen()

    def attack(self, name: str) -> Finding:
        """Run an attack, then look at the targets."""
        values = {
            "SECRET_FILE": str(self._secret),
            "SECRET_NAME": self._secret.name,
            "HOME_FOLDER": str(Path.home()),
            "CANARY_FOLDER": str(self._folder),
            "SOCKET_NAME": self._local_name,
            "PORT": self._server.getsockname()[1],
            "VICTIM": self._victim.pid,
            "MARKER": self._marker,
            "MEMORY": self.sandbox.limits.memory,
            "PROCESSES": self.sandbox.limits.processes,
            "HOST_NAME": socket.gethostname(),
        }
        lines = "".join(f"{key} = {value!r}\n" for key, value in values.items())
        outcome = self.sandbox.run(_TRY + lines + _read()[name]["program"])
        return Finding(name, outcome, self._trouble(outcome))

    def close(self) -> None:
        """Close the sockets and kill the process."""
        self._server.close()
        self._local.close()
        self._victim.kill()
        self._victim.wait()

    def _trouble(self, outcome: Outcome) -> str | None:
        if ESCAPED in outcome.output:
            return f"it says {outcome.output[outcome.output.index(ESCAPED) :].splitlines()[0]!r}"
        if len(outcome.output.encode()) > 2 * self.sandbox.limits.output:
            return "its output was not limited"
        if self._victim.poll() is not None:
            return "it ended another process"
        if [path.name for path in self._folder.iterdir()] != [self._secret.name]:
            return "it left files behind"
        return "a process of it lives on" if processes_named(self._marker) else None


def processes_named(name: str) -> list[str]:
    """The ids of the machine's processes with a name of at most 15 letters; none without ``/proc``."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text(encoding="utf-8").strip() == name:
                pids.append(folder.name)
    return pids


@contextmanager
def attacking(sandbox: Sandbox) -> Iterator[Range]:
    """Set up the targets of attacks on a sandbox, and take them down at the end.

    Raises:
        UserError: the sandbox has no isolation.
    """
    if sandbox.isolation.name == "none":
        raise UserError("attacks are not run without isolation: several would succeed")
    previous = os.environ.get("SELFDISTILL_SECRET")
    os.environ["SELFDISTILL_SECRET"] = "the secret"
    try:
        with tempfile.TemporaryDirectory(prefix="selfdistill-range-") as folder:
            Path(folder).chmod(0o755)
            target = Range(sandbox, Path(folder))
            try:
                yield target
            finally:
                target.close()
    finally:
        os.environ.pop("SELFDISTILL_SECRET")
        if previous is not None:
            os.environ["SELFDISTILL_SECRET"] = previous
