"""A web server for the page of a run, or of every run in a folder, rendered again whenever a run's files change.

The server renders pages and serves no files. It looks paths up among the runs that it found, so path traversal is
impossible. By default it listens on the loopback address and refuses requests for other host names. Otherwise a website
whose name resolves to this machine (DNS rebinding) could read the run through a visitor's browser.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from hashlib import sha256
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from urllib.parse import quote, unquote

from selfdistill.errors import ConfigError, DataError
from selfdistill.files.jsonl import UNREADABLE
from selfdistill.files.records import RolloutLine
from selfdistill.report.files import OuterSteps, missing_run, read_run
from selfdistill.report.index import find_runs, render_index
from selfdistill.report.page import Live, render, render_run

EVERY = 5
"""Seconds between two requests of a page for its content; a training step rarely takes less."""
IDLE = 10.0
"""Timeout in seconds of a connection, for its request and for each write of the answer."""
MAX_CONNECTIONS = 32
"""Maximum number of open connections, with one thread each. A further one closes the oldest."""
FOLLOWED = ("config.json", "metrics.jsonl", "evaluations.jsonl", "rollouts.jsonl", "alarms.jsonl", "summary.json")


class Pages(Protocol):
    """The pages that a server has."""

    def __call__(self, path: str) -> str | None:
        """Return the page at a path, None if there is none. Raises DataError if a file cannot be read."""


class Follower:
    """Renders the page of a run when a file has changed. It reads each stored completion only once.

    ``up`` is the address of the index of all runs, empty if only this run is served.
    """

    def __init__(self, folder: Path, up: str = "") -> None:
        """Render the page once. Raises DataError if there is no run, or a file of it cannot be read."""
        self.folder = folder
        self.up = up
        self._lock = Lock()
        self._completions = OuterSteps()
        self._inode = 0
        self._offset = 0
        self._pages: dict[bool, tuple[object, str]] = {}
        self.page(still=False)

    def __call__(self, path: str) -> str | None:
        """Return the page that follows the run at ``/``, and one that does not poll at ``/still``."""
        return self.page(still=path == "/still") if path in ("/", "/still") else None

    def page(self, *, still: bool) -> str:
        """Return the current page. A ``still`` page does not poll.

        Raises:
            DataError: a file cannot be read.
        """
        with self._lock:
            state = [_state(self.folder / name) for name in FOLLOWED]
            if still not in self._pages or self._pages[still][0] != state:
                self._read_on()
                run = read_run(self.folder, self._completions)
                finished = run.summary.get("finished") is True
                self._pages[still] = (state, render_run(run, Live(None if still or finished else EVERY, self.up)))
            return self._pages[still][1]

    def _read_on(self) -> None:
        """Read the new lines of ``rollouts.jsonl``, from its start if a resume has replaced or truncated the file."""
        path = self.folder / "rollouts.jsonl"
        if not path.is_file():
            self._completions, self._inode, self._offset = OuterSteps(), 0, 0
            return
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._completions, self._inode, self._offset = OuterSteps(), stat.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # The run is still writing this line.
                    break
                self._completions.add(_rollout(line, path))
                self._offset += len(line)


class FolderFollower:
    """Renders the index of a folder of runs at ``/``, the pages of its comparisons, and those of each run below it."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError if there is no run in the folder."""
        self.folder = folder
        self._lock = Lock()
        self._followers: dict[str, Follower] = {}
        runs, comparisons = find_runs(folder)
        if not runs and not comparisons:
            raise DataError(missing_run(folder) + (", and no run is in it" if folder.exists() else ""))

    def __call__(self, path: str) -> str | None:
        """Return the index at ``/``, and at ``/NAME/`` and ``/NAME/still`` the page of a run.

        Raises:
            DataError: a file of the run cannot be read.
        """
        runs, comparisons = find_runs(self.folder)
        if path == "/":
            live = Live(EVERY)
            return render_index(
                self.folder,
                runs,
                comparisons,
                link=lambda entry, page: quote(entry.name) + ("/" if page == "report.html" else f"/{page}"),
                live=live,
            )
        name, _, page = unquote(path).removeprefix("/").rpartition("/")
        if page == "compare.html":
            path_of_page = next((entry.folder / page for entry in comparisons if entry.name == (name or ".")), None)
            return path_of_page.read_text(encoding="utf-8") if path_of_page and path_of_page.is_file() else None
        entry = next((entry for entry in runs if entry.name == name), None)
        if entry is None:
            return None
        with self._lock:
            follower = self._followers.get(name)
            if follower is None:
                up = "../" * (name.count("/") + 1)
                follower = self._followers[name] = Follower(entry.folder, up)
        return follower(f"/{page}")


def _rollout(line: bytes, path: Path) -> RolloutLine:
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except UNREADABLE as error:
        raise DataError(f"{path}: a line is not valid JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}: a line is not a JSON object")
    return RolloutLine.from_json(row, f"{path}, a line")


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Answer(BaseHTTPRequestHandler):
    """Answers the paths that have a page, and refuses all others."""

    timeout = IDLE
    server_version = "selfdistill"
    sys_version = ""

    def __init__(self, pages: Pages, *rest: Any, loopback: bool) -> None:
        self.pages = pages
        self.loopback = loopback
        super().__init__(*rest)

    def do_GET(self) -> None:
        """Send the requested page."""
        if self.loopback and not _names_this_machine(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, "this run is shown on this machine only")
            return
        try:
            page = self.pages(self.path)
        except (DataError, OSError) as error:
            # The error page polls too, and shows the run once its files can be read.
            trouble = render(
                "trouble.html", polls=True, scripts=("page.js", "live.js"), message=str(error), seconds=EVERY
            )
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, trouble, html=True)
            return
        if page is None:
            self._send(HTTPStatus.NOT_FOUND, "there is no such page")
            return
        self._send(HTTPStatus.OK, page, html=True)

    def _send(self, status: HTTPStatus, text: str, *, html: bool = False) -> None:
        body = (text if html else f"<!doctype html><title>selfdistill</title><p>{escape(text)}</p>").encode(
            "utf-8", errors="replace"
        )
        tag = f'"{sha256(body).hexdigest()[:32]}"'
        if status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            status, body = HTTPStatus.NOT_MODIFIED, b""
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        try:
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # The browser closed the connection or does not read the answer.

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests: the terminal shows only the address of the page."""


def _names_this_machine(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return is_loopback(name.strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    """Bounds the number of connections, so that idle clients cannot exhaust threads or file descriptors."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}  # in order of arrival, oldest first
        self._open_lock = Lock()
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. If no file descriptor is free, close the oldest connection for the next attempt."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._close_oldest()
                # The connection is still pending. Without a pause, the caller's loop would retry at once.
                time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a new thread, and close the oldest connection if there are too many."""
        with self._open_lock:
            self._open[request] = None
            full = len(self._open) > MAX_CONNECTIONS
        if full:
            self._close_oldest()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Remove a connection that has been answered or has ended."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def _close_oldest(self) -> None:
        with self._open_lock:
            oldest = next(iter(self._open), None)
            if oldest is None:
                return
            del self._open[oldest]
            # The shutdown ends the read in its thread, which closes the socket. The lock keeps it open until then.
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that the client broke off; print any other error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


def server_of(folder: Path, *, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server for the page of a run, bound and ready for ``serve_forever``. Port 0 takes any free port.

    A folder that is no run itself but holds some gets an index of them.

    Raises:
        UserError: the folder holds no run, or the address cannot be bound.
    """
    follower: Pages = Follower(folder) if (folder / "config.json").is_file() else FolderFollower(folder)
    answer = partial(_Answer, follower, loopback=is_loopback(host))
    try:
        return (_Server6 if ":" in host else _Server)((host, port), answer)
    except OSError as error:
        raise ConfigError(f"cannot serve at {host}:{port}: {error.strerror or error}; try another --port") from error
