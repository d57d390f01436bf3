"""HTTP to addresses that a user gave: sessions that stay open, retries with back-off, and a first request that notices
at once what is no endpoint of the expected kind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import HTTPError, InvalidHeader, ReadTimeoutError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from selfdistill.files.jsonl import UNREADABLE

SECONDS = 2.0
"""Seconds within which an endpoint answers a request that asks for nothing that takes time."""
LATER = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
AGAIN = frozenset((*LATER, *range(500, 600)))
"""Statuses after which a request is sent again."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries, at most, even if a server asks for more."""
PIECE = 1 << 16
"""Bytes of an answer that are read at once."""


class _Authorization(AuthBase):
    """Adds the ``Authorization`` header. Without it requests would take one from a .netrc."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.value:
            request.headers["Authorization"] = self.value
        return request


class Unusable(Exception):
    """An address cannot be used: the message says what answered, and ``silent`` whether nothing did.

    ``late`` is set if a request was sent and no answer came within its time.
    """

    def __init__(self, reason: str, *, silent: bool = False, late: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent
        self.late = late


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered to a request."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        """Whether the request was done. A redirect is not followed, so it is not."""
        return 200 <= self.status < 300

    @property
    def document(self) -> Any:
        """The JSON document; None if it is none."""
        try:
            return json.loads(self.text)
        except UNREADABLE:
            return None

    @property
    def reason(self) -> str:
        """The first line of the message of an error."""
        document = self.document
        error = document.get("error", document) if isinstance(document, dict) else document
        message = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
        text = self.text if message is None else message if isinstance(message, str) else json.dumps(message)
        return next(iter(text.strip().splitlines()), "no reason given")[:300]


class BackOff(Retry):
    """Retries of urllib3 of which the first has a pause too, and a server that asks for a long one gets a minute."""

    def get_backoff_time(self) -> float:
        """Seconds before the next try: the back-off factor after one failure, twice as long after each further one."""
        return min(self.backoff_factor * 2.0 ** (len(self.history) - 1), self.backoff_max) if self.history else 0.0

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        """Seconds that the server asks for, at least the pause that is due."""
        try:
            asked = super().get_retry_after(response)
        except InvalidHeader:
            return None
        return None if asked is None else min(max(asked, self.get_backoff_time()), self.backoff_max)


class Reconnection(BackOff):
    """A try more, at once, where a server closed the connection, as it may do just as a request is sent on it."""

    def get_backoff_time(self) -> float:
        """Seconds before the next try: none after an error without a status, which is that of a closed connection."""
        return super().get_backoff_time() if self.history and self.history[-1].status else 0.0

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Reconnection:
        """The retries that are left. One that waited for an answer in vain is not sent again.

        Raises:
            Exception: the error, or that no retry is left.
        """
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, *args, **kwargs)


class _Wanted(logging.Filter):
    """Leaves out what urllib3 says of a connection that is opened again, which is no trouble."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(isinstance(part, Reconnection) for part in record.args or ())


logging.getLogger("urllib3.connectionpool").addFilter(_Wanted())


def back_off(retries: int, *, wait: float, statuses: Collection[int] = AGAIN) -> BackOff:
    """``retries``, the first after ``wait`` seconds, each further one after twice as many, to a minute."""
    return BackOff(
        total=retries,
        backoff_factor=wait,
        backoff_max=LONGEST_PAUSE,
        status_forcelist=statuses,
        # Requests that sample, score or judge may be repeated.
        allowed_methods=None,
        raise_on_status=False,
    )


def reconnection(retries: int, *, wait: float) -> Reconnection:
    """One retry where a connection was closed, and some where the server has too many requests; none of others."""
    return Reconnection(
        total=max(retries, 1),
        connect=0,
        read=1,
        status=retries,
        other=0,
        backoff_factor=wait,
        backoff_max=LONGEST_PAUSE,
        status_forcelist=LATER,
        allowed_methods=None,
        raise_on_status=False,
    )


def open_session(retry: Retry, *, connections: int, servers: int = 1) -> requests.Session:
    """A session for several threads that keeps up to ``connections`` open to a server, and opens no more at a time."""
    session = requests.Session()
    adapter = HTTPAdapter(pool_connections=servers, pool_maxsize=connections, pool_block=True, max_retries=retry)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def exchange(
    session: requests.Session,
    verb: str,
    url: str,
    *,
    body: Mapping[str, Any] | str | None = None,
    key: str,
    timeout: float,
) -> Reply:
    """The reply to one request with the session's retries. A ``body`` of text is JSON already.

    ``key`` is the value of the header ``Authorization``. Redirects are not followed, so that the key goes nowhere else.

    Raises:
        Unusable: nothing answers, after all retries.
    """
    text = isinstance(body, str)
    try:
        answer = session.request(
            verb,
            url,
            json=None if text else body,
            data=body.encode() if isinstance(body, str) else None,
            headers={"Content-Type": "application/json"} if text else {},
            auth=_Authorization(key),
            timeout=timeout,
            allow_redirects=False,
        )
    # urllib3's own error: requests passes on that of a name which cannot be one.
    except (requests.RequestException, HTTPError) as error:
        late = isinstance(error, requests.ReadTimeout)
        raise Unusable(f"does not answer ({_innermost(error)})", silent=True, late=late) from error
    return Reply(answer.status_code, answer.content.decode("utf-8", "replace"))


def first_answer(url: str, *, key: str, body: Mapping[str, Any] | None = None, seconds: float = SECONDS) -> Reply:
    """The reply to one request without a retry, as for :func:`exchange`: GET, or POST with a ``body``.

    Raises:
        Unusable: nothing answers within ``seconds``, or it redirects, wants a login, or is a web page.
    """
    end = time.monotonic() + seconds
    late = Unusable(f"does not answer (nothing came from it within {seconds:g} s)", silent=True)
    verb, auth = "GET" if body is None else "POST", _Authorization(key)
    try:
        with (
            requests.Session() as session,
            session.request(
                verb, url, json=body, auth=auth, timeout=seconds, allow_redirects=False, stream=True
            ) as answer,
        ):
            content = bytearray()
            # An answer that comes a little at a time must not take longer.
            while piece := answer.raw.read1(PIECE, decode_content=True):
                content += piece
                if time.monotonic() > end:
                    raise Unusable(f"does not end its answer (within {seconds:g} s)", silent=True)
    except (requests.Timeout, ReadTimeoutError) as error:
        raise late from error
    except (requests.RequestException, HTTPError) as error:
        raise Unusable(f"does not answer ({_innermost(error)})", silent=True) from error
    reply = Reply(answer.status_code, content.decode("utf-8", "replace"))
    if answer.is_redirect:
        target = answer.headers.get("Location", "")[:200]
        raise Unusable(f"redirects {url} to {target} ({reply.status})")
    if reply.status in (401, 403):
        raise Unusable(f"wants a login or another key ({reply.status} at {url})")
    if "html" in answer.headers.get("Content-Type", "") or reply.text.lstrip()[:1] == "<":
        raise Unusable(f"answers with a web page at {url} ({reply.status}), not as an endpoint")
    return reply


def _innermost(error: Exception) -> str:
    """The innermost cause of a library's error, which has the system's message."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__


def listed_models(document: Any) -> list[dict[str, Any]] | None:
    """The models of an answer to OpenAI's ``/models``; None if it is another document."""
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
