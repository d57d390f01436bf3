"""The first request to an address that a user gave: it notices at once what is no endpoint of the expected kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import requests

SECONDS = 2.0
"""Seconds within which an endpoint answers a request that asks for nothing that takes time."""

Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class Unusable(Exception):
    """An address cannot be used: the message says what answered, and ``silent`` whether nothing did."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.silent = silent


def first_answer(
    url: str, *, auth: Auth | None = None, body: dict[str, Any] | None = None, seconds: float = SECONDS
) -> requests.Response:
    """The answer to one request: GET, or POST with a ``body``. Redirects are not followed, so no key goes elsewhere.

    Raises:
        Unusable: nothing answers within ``seconds``, or it redirects, wants a login, or is a web page.
    """
    try:
        answer = requests.request(
            "GET" if body is None else "POST",
            url,
            json=body,
            auth=auth,
            timeout=min(seconds, SECONDS),
            allow_redirects=False,
        )
    except requests.Timeout as error:
        raise Unusable(f"does not answer (nothing came from it within {SECONDS:g} s)", silent=True) from error
    except requests.RequestException as error:
        raise Unusable(f"does not answer ({innermost(error)})", silent=True) from error
    if answer.is_redirect:
        target = answer.headers.get("Location", "")[:200]
        raise Unusable(f"redirects {url} to {target} ({answer.status_code})")
    if answer.status_code in (401, 403):
        raise Unusable(f"wants a login or another key ({answer.status_code} at {url})")
    if "html" in answer.headers.get("Content-Type", "") or answer.text.lstrip()[:1] == "<":
        raise Unusable(f"answers with a web page at {url} ({answer.status_code}), not as an endpoint")
    return answer


def innermost(error: requests.RequestException) -> str:
    """The innermost cause of a library's error, which has the system's message."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__


def json_of(answer: requests.Response) -> Any:
    """The document of an answer; None if it is no JSON."""
    try:
        return answer.json()
    except ValueError:
        return None


def listed_models(document: Any) -> list[dict[str, Any]] | None:
    """The models of an answer to OpenAI's ``/models``; None if it is another document."""
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
