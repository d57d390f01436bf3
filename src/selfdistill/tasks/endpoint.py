"""Send requests to an endpoint with OpenAI's ``/chat/completions``, with retries and a key."""

from __future__ import annotations

import os
import time

import requests
from requests.auth import AuthBase

from selfdistill.config.reward import JudgeConfig
from selfdistill.errors import ConfigError
from selfdistill.files.text import printable, well_formed

LONGEST_WAIT = 60.0
"""Maximum of seconds before a retry, even if the endpoint asks for more."""


class Refused(Exception):
    """A request without an answer. ``again`` says whether a retry may succeed, ``after`` how many seconds to wait."""

    def __init__(self, reason: str, *, again: bool, after: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.after = again, after


class _Key(AuthBase):
    """Sends the key, and keeps ``requests`` from taking another one from ``.netrc``."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class Endpoint:
    """The address of a judge, and the key for it."""

    def __init__(self, config: JudgeConfig) -> None:
        """Read the key.

        Raises:
            ConfigError: the environment variable of the key is not set, or cannot be sent in a header.
        """
        self.config = config
        self._key = os.environ.get(config.key_env, "").strip() if config.key_env else ""
        # Otherwise an invalid header would fail at the first request, with the key in the message.
        if config.key_env and not (self._key.isascii() and self._key.isprintable() and self._key):
            problem = "holds line breaks or letters that no header can" if self._key else "is not set"
            raise ConfigError(
                f"reward.judge.key_env names the environment variable {config.key_env}, which {problem}: give it the "
                "endpoint's key"
            )
        self._session = requests.Session()

    def post(self, body: str, retries: int) -> str:
        """The text of the answer to one request, tried again after growing pauses.

        Raises:
            Refused: no answer after all retries, or an error that a retry would not change.
        """
        pause = self.config.wait
        for tries_left in range(retries, -1, -1):
            try:
                return self._send(body)
            except Refused as refused:
                if not (refused.again and tries_left):
                    raise
                time.sleep(min(max(pause, refused.after), LONGEST_WAIT))
                pause *= 2
        raise AssertionError("a try either answers or raises")

    def _send(self, body: str) -> str:
        try:
            response = self._session.post(
                f"{self.config.url.rstrip('/')}/chat/completions",
                data=body.encode(),
                headers={"Content-Type": "application/json"},
                auth=_Key(self._key),
                timeout=self.config.timeout,
                # Send the question and the key only to the configured address.
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # The message of the system's own error, without those of the libraries that wrap it.
            cause: BaseException = error
            while (inner := cause.__cause__ or cause.__context__) is not None:
                cause = inner
            reason = self._clean(str(cause) or type(cause).__name__)
            raise Refused(f"does not answer ({reason})", again=True) from error
        if response.status_code != 200:
            again = response.status_code in (408, 409, 425, 429) or response.status_code >= 500
            after = response.headers.get("Retry-After", "")
            raise Refused(
                f"status {response.status_code} ({self._clean(response.text)})",
                again=again,
                after=float(after) if after.isdecimal() else 0.0,
            )
        try:
            text = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"answers no chat completion ({self._clean(response.text)})", again=False) from error
        if not isinstance(text, str):
            raise Refused("answers without text", again=False)
        return well_formed(text)

    def _clean(self, text: str) -> str:
        """The beginning of a message, without the key, which an endpoint may repeat."""
        redacted = text.replace(self._key, "…") if self._key else text
        return printable(" ".join(redacted.split())[:200])
