"""A run followed in the browser: served to this machine alone, as its files grow, and nothing but its page."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.app import main
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.records import RolloutLine
from selfdistill.report import server as watching
from selfdistill.report.page import write_report
from selfdistill.report.server import Follower, is_loopback, server_of

HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(2)>"
CONFIG = {"seed": 0, "steps": 9, "model": {"path": "tiny"}, "task": {"kind": "countdown"}, "method": {"name": "opsd"}}


def completion(step: int, **more: Any) -> dict[str, Any]:
    row = {"step": step, "example": "a", "index": 0, "prompt": "use 3", "text": f"number{step}"}
    return {**row, "tokens": [f"number{step}"], "logprobs": [-0.5], "reward": 1.0, "u": [0.25], **more}


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def measured(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "reward": 0.5, "loss": 0.1, "seconds": 1.0, "alarms": [], **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two steps of a run that goes on: no summary yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    append(folder / "metrics.jsonl", measured(1), measured(2, alarms=["no_signal"]))
    append(folder / "rollouts.jsonl", completion(1), completion(2, text=HOSTILE, tokens=[HOSTILE]))
    alarm = {"step": 2, "name": "no_signal", "evidence": f"91% {HOSTILE}", "suggestion": "draw <b>more</b>"}
    append(folder / "alarms.jsonl", alarm)
    return folder


class Browser:
    """Asks a server in this process."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(
        self, path: str = "/", *, method: str = "GET", host: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[HTTPResponse, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=host is not None)
            if host is not None:
                connection.putheader("Host", host)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return response, response.read().decode("utf-8")
        finally:
            connection.close()


@pytest.fixture
def browse(run: Path) -> Iterator[Browser]:
    with server_of(run, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Browser(int(server.server_address[1]))
        server.shutdown()
        thread.join()


def test_a_run_in_progress_is_shown_and_asked_for_again(browse: Browser) -> None:
    response, page = browse()
    assert response.status == 200
    assert response.getheader("Cache-Control") == "no-store"
    assert 'http-equiv="refresh"' not in page
    assert 'data-every="5"' in page
    assert "Asked for again every 5 seconds" in page
    assert "connect-src 'self'" in page
    assert "not finished" in page
    assert "2 of 9" in page
    assert page.index("<h3>Step 2</h3>") < page.index("<h3>Step 1</h3>"), "the latest completions come first"
    assert "default-src 'none'" in page


def test_held_still_it_is_the_same_page_without_the_order_to_come_again(browse: Browser) -> None:
    _, page = browse("/still")
    assert 'data-every="' not in page
    assert "connect-src" not in page
    assert "Follow the run" in page
    assert "<h3>Step 2</h3>" in page


def test_alarms_are_shown_with_evidence_and_suggestion(browse: Browser, run: Path) -> None:
    _, page = browse()
    assert "<b>no signal</b> <span>since step 2</span>" in page
    assert "91% &lt;/span&gt;" in page
    append(run / "metrics.jsonl", measured(3))
    _, page = browse()
    assert "<b>no signal</b> <span>step 2, cleared at 3</span>" in page


def test_hostile_text_is_shown_as_text(browse: Browser) -> None:
    _, page = browse()
    assert "<script>alert(1)" not in page
    assert "<img" not in page
    assert "draw <b>more" not in page
    assert "draw &lt;b&gt;more" in page


def test_the_page_grows_with_the_files_and_reads_each_completion_once(
    browse: Browser, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rollout = watching._rollout

    def counted(line: bytes, path: Path) -> RolloutLine:
        found = rollout(line, path)
        read.append(found.step)
        return found

    monkeypatch.setattr(watching, "_rollout", counted)
    browse()
    assert read == [], "nothing has changed since the server began"
    append(run / "metrics.jsonl", measured(3))
    append(run / "rollouts.jsonl", completion(3))
    half = json.dumps(completion(4)).encode()
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(half[:20])
    assert "number3" in browse()[1]
    with (run / "rollouts.jsonl").open("ab") as file:
        file.write(half[20:] + b"\n")
    assert "number4" in browse()[1]
    assert read == [3, 4]


def test_a_run_that_is_taken_up_again_is_read_from_its_start(browse: Browser, run: Path) -> None:
    append(run / "rollouts.jsonl", completion(3), completion(4))
    assert "number4" in browse()[1]
    aside = run / "rollouts.jsonl.tmp"
    append(aside, completion(1), completion(3, text="another3", tokens=["another3"]))
    aside.replace(run / "rollouts.jsonl")
    _, page = browse()
    assert "number4" not in page
    assert "another3" in page


def test_completions_that_were_cut_off_in_place_are_forgotten(browse: Browser, run: Path) -> None:
    append(run / "rollouts.jsonl", completion(3))
    assert "number3" in browse()[1]
    path = run / "rollouts.jsonl"
    with path.open("r+", encoding="utf-8") as file:
        file.truncate(len(path.read_text(encoding="utf-8").splitlines(keepends=True)[0].encode()))
    page = browse()[1]
    assert "number1" in page
    assert "number3" not in page


def test_a_finished_run_is_not_asked_for_again(browse: Browser, run: Path) -> None:
    summary = {"steps": 2, "finished": False, "stopped_by": ["no_signal"]}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert "ended by no signal" in browse()[1]
    append(run / "metrics.jsonl", measured(3))
    assert "ended by" not in browse()[1], "it went on, so what the summary says is no longer so"
    (run / "summary.json").write_text(json.dumps({"steps": 3, "finished": True}), encoding="utf-8")
    _, page = browse()
    assert 'data-every="' not in page
    assert "Asked for again" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/config.json",
        "/../config.json",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/still/",
        "/?x=1",
        "http://localhost/",
    ],
)
def test_nothing_else_is_served(path: str, browse: Browser) -> None:
    response, text = browse(path)
    assert response.status == 404
    assert "countdown" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_written(method: str, browse: Browser) -> None:
    assert browse(method=method)[0].status == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8642", 403),
        ("", 403),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:1", 200),
    ],
)
def test_only_requests_that_name_this_machine_are_answered(host: str, status: int, browse: Browser) -> None:
    response, text = browse(host=host)
    assert response.status == status
    assert ("number1" in text) == (status == 200)


def test_a_broken_file_is_a_sentence_and_is_asked_for_again(browse: Browser, run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("<oops>\n" + json.dumps(measured(4)) + "\n")
    response, text = browse()
    assert (response.status, response.getheader("Refresh")) == (500, None)
    assert 'data-every="5"' in text
    assert "line 3: not valid JSON" in text
    assert "<oops>" not in text


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    page = Follower(tmp_path).page(still=False)
    assert "No completions yet." in page
    assert "No evaluation on held-out problems yet." in page
    assert "Not yet recorded: training reward, " in page
    assert "Not recorded in this run" not in page
    append(tmp_path / "metrics.jsonl", measured(1))
    assert "Not recorded so far: held-out length, " in Follower(tmp_path).page(still=False)


def test_no_run_and_no_room_are_one_sentence_each(tmp_path: Path, browse: Browser, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is not the folder of a run: it has no config\.json, and no run is in it"):
        server_of(tmp_path / "empty", host="127.0.0.1", port=0)
    with pytest.raises(DataError, match="is not the folder of a run"):
        server_of(run / "metrics.jsonl", host="127.0.0.1", port=0)
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; a run makes its own when its model is loaded"):
        server_of(tmp_path / "nowhere", host="127.0.0.1", port=0)
    with pytest.raises(ConfigError, match=f"cannot serve at 127.0.0.1:{browse.port}: .*; try another --port"):
        server_of(run, host="127.0.0.1", port=browse.port)


def test_a_page_that_has_not_changed_is_not_sent_again(browse: Browser, run: Path) -> None:
    response, _ = browse()
    tag = response.getheader("ETag") or ""
    response, body = browse(headers={"If-None-Match": tag})
    assert (response.status, body) == (304, "")
    append(run / "metrics.jsonl", measured(3))
    response, body = browse(headers={"If-None-Match": tag})
    assert response.status == 200
    assert "3 of 9" in body


def test_loopback_is_told_from_the_world() -> None:
    inside = [
        host
        for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "10.0.0.1", "::", "a.b")
        if is_loopback(host)
    ]
    assert inside == ["localhost", "127.0.0.1", "127.9.9.9", "::1"]


def test_static_writes_the_runs_own_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["watch", str(run), "--static"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"page: {run / 'report.html'}\n"
    page = (run / "report.html").read_text(encoding="utf-8")
    write_report(run)
    assert page == (run / "report.html").read_text(encoding="utf-8")
    assert "since step 2" in page
    assert 'http-equiv="refresh"' not in page
    assert 'href="/' not in page


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_ctrl_c_ends_it_cleanly(host: str, warned: bool, run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", "watch", str(run), "--port", "0", "--host", host],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"page: http://{host}:"), line
        response, _ = Browser(int(line.split(":")[3].split("/")[0]))()
        assert response.status == 200
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert output == "no longer served; the run itself goes on\n"
    assert ("there is no password" in errors) == warned
    assert "Traceback" not in errors


def open_idle(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]


def test_visitors_who_say_nothing_keep_nobody_out(browse: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_CONNECTIONS", 4)
    idle = open_idle(browse.port, 12)
    response, text = browse()
    assert (response.status, "number1" in text) == (200, True)
    assert [one.recv(1) for one in idle[:8]] == [b""] * 8, "the oldest connections were closed"
    for one in idle:
        one.close()


def test_a_connection_that_sends_no_request_is_closed(browse: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watching._Answer.timeout == watching.IDLE < float("inf")
    monkeypatch.setattr(watching._Answer, "timeout", 0.05)
    (idle,) = open_idle(browse.port, 1)
    assert idle.recv(1) == b""
    idle.close()


def test_a_full_table_of_descriptors_is_survived(browse: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    (idle,) = open_idle(browse.port, 1)
    browse()  # after this the server has accepted the idle connection
    accept, refusals = HTTPServer.get_request, iter(range(3))

    def full(server: HTTPServer) -> Any:
        if next(refusals, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(HTTPServer, "get_request", full)
    assert browse()[0].status == 200
    assert idle.recv(1) == b"", "the oldest connection was closed to make room"
    idle.close()


def test_a_file_that_cannot_be_opened_is_a_sentence(browse: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, completions: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(folder))

    monkeypatch.setattr(watching, "read_run", full)
    response, text = browse("/still")
    assert (response.status, "Too many open files" in text) == (500, True)
