"""Requests to addresses that a user gave: odd addresses and answers, retries, and connections that stay open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from urllib3 import HTTPResponse
from urllib3.exceptions import MaxRetryError

from selfdistill.files.http import Reply, Unusable, back_off, exchange, first_answer, open_session, reconnection

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """The address of a server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, text: str, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(text.encode())


@pytest.mark.parametrize(
    "host",
    ["a" * 64 + ".com", "..", "host:99999", "[::1", "a b", ""],
    ids=["long", "dots", "port", "bracket", "blank", "none"],
)
def test_an_address_that_cannot_be_one_does_not_answer(host: str) -> None:
    url = f"http://{host}/v1/models"
    session = open_session(back_off(0, wait=0.0), connections=1)
    asks: list[Callable[[], Reply]] = [
        lambda: first_answer(url, key=""),
        lambda: exchange(session, "POST", url, body={}, key="", timeout=1.0),
    ]
    for ask in asks:
        with pytest.raises(Unusable, match=r"^does not answer \(") as error:
            ask()
        assert error.value.silent


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_without_end_is_not_waited_for(chunked: bool) -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "1000000")))
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b"1\r\n \r\n" if chunked else b" ")
            handler.wfile.flush()

    with answering(drip) as url:
        with pytest.raises(Unusable, match=r"does not end its answer \(within 0\.2 s\)"):
            first_answer(url, key="", seconds=0.2)
        over.set()


def test_a_first_answer_is_read_whole_and_once() -> None:
    text = '{"data": "' + "ü" * 200_000 + '"}'
    asked = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers.get("Authorization"))
        reply(handler, 500 if len(asked) > 1 else 200, text)

    with answering(answer) as url:
        assert first_answer(url, key="Bearer k", body={"a": 1}) == Reply(200, text)
        assert first_answer(url, key="").status == 500
    assert asked == ["Bearer k", None]


@pytest.mark.parametrize(
    ("text", "document", "reason"),
    [
        ('{"error": {"message": "too long\\nby far"}}', {"error": {"message": "too long\nby far"}}, "too long"),
        ('{"detail": [{"loc": "body"}]}', {"detail": [{"loc": "body"}]}, '[{"loc": "body"}]'),
        ("[" * 100_000, None, "[" * 300),
        ("gone\nfor good", None, "gone"),
        ("", None, "no reason given"),
    ],
    ids=["OpenAI", "FastAPI", "brackets", "text", "nothing"],
)
def test_what_an_error_says(text: str, document: object, reason: str) -> None:
    assert (Reply(400, text).document, Reply(400, text).reason) == (document, reason)


def test_pauses_are_doubled_to_a_minute() -> None:
    tries, pauses = back_off(6, wait=3.0), []
    for _ in range(6):
        tries = tries.increment()
        pauses.append(tries.get_backoff_time())
    assert pauses == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0]
    with pytest.raises(MaxRetryError):
        tries.increment()


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("30", 30.0),
        ("1", 3.0),
        ("3600", 60.0),
        ("in five hours", 60.0),
        ("soon", None),
        (None, None),
    ],
)
def test_a_server_that_asks_for_a_pause_gets_it_up_to_a_minute(header: str | None, pause: float | None) -> None:
    if header == "in five hours":
        # Not among the parameters: processes that collect a second apart would collect different tests.
        header = format_datetime(datetime.now(UTC) + timedelta(hours=5))
    tries = back_off(2, wait=3.0).increment()
    response = HTTPResponse(headers={} if header is None else {"Retry-After": header})
    assert tries.get_retry_after(response) == pause


@pytest.mark.parametrize(("status", "asked"), [(503, 3), (429, 3), (418, 1)])
def test_what_may_succeed_later_is_sent_again(status: int, asked: int) -> None:
    calls = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        reply(handler, status, "not now")

    with answering(answer) as url:
        session = open_session(back_off(2, wait=0.0), connections=1)
        assert exchange(session, "POST", url, body="[]", key="", timeout=9.0) == Reply(status, "not now")
        session.close()
    assert len(calls) == asked


def test_a_redirect_is_not_followed() -> None:
    calls = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        reply(handler, 307, "", Location="/elsewhere")

    with answering(answer) as url:
        session = open_session(back_off(2, wait=0.0), connections=1)
        answered = exchange(session, "POST", f"{url}/here", body={}, key="Bearer k", timeout=9.0)
        session.close()
    assert (answered.status, answered.ok, calls) == (307, False, ["/here"])


def test_no_more_requests_run_than_connections() -> None:
    running, most, lock = [0], [0], threading.Lock()
    go = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 2:
                go.set()
        go.wait()
        reply(handler, 200, "{}")
        with lock:
            running[0] -= 1

    with answering(answer) as url, ThreadPoolExecutor(8) as pool:
        session = open_session(back_off(0, wait=0.0), connections=2)
        asked = [pool.submit(exchange, session, "POST", url, body={}, key="", timeout=99.0) for _ in range(8)]
        assert [one.result().document for one in asked] == [{}] * 8
        session.close()
    assert most == [2]


def test_each_of_many_servers_keeps_its_connection() -> None:
    connections: list[tuple[str, int]] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        connections.append(handler.client_address)
        reply(handler, 200, "{}")

    with ExitStack() as stack:
        urls = [stack.enter_context(answering(answer)) for _ in range(12)]
        session = open_session(back_off(0, wait=0.0), connections=1, servers=12)
        for url in urls * 2:
            assert exchange(session, "POST", url, body={}, key="", timeout=9.0).ok
        session.close()
    assert (len(connections), len(set(connections))) == (24, 12)


def test_a_closed_connection_is_opened_once_more_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        if len(calls) != 2:
            handler.close_connection = True
            return
        reply(handler, 200, "{}")

    with answering(answer) as url, caplog.at_level(logging.WARNING):
        session = open_session(reconnection(0, wait=9.0), connections=1)
        assert exchange(session, "POST", url, body={}, key="", timeout=9.0).ok
        with pytest.raises(Unusable, match="does not answer"):
            exchange(session, "POST", url, body={}, key="", timeout=9.0)
        session.close()
    assert (len(calls), caplog.records) == (4, [])


def test_an_answer_that_was_waited_for_in_vain_is_not_asked_for_again() -> None:
    over, calls = threading.Event(), []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        calls.append(handler.path)
        over.wait()
        handler.close_connection = True

    with answering(answer) as url:
        session = open_session(reconnection(3, wait=0.0), connections=1)
        with pytest.raises(Unusable, match="does not answer"):
            exchange(session, "POST", url, body={}, key="", timeout=0.1)
        over.set()
        session.close()
    assert len(calls) == 1
