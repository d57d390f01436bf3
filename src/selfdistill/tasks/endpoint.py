"""Send requests to an endpoint with OpenAI's ``/chat/completions``, with retries and a key."""

from __future__ import annotations

import os
import time

import requests
from requests.auth import AuthBase

from selfdistill.config.reward import JudgeConfig
from selfdistill.errors import ConfigError, UserError
from selfdistill.files.http import Unusable, first_answer, innermost, json_of, listed_models
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

    def probe(self) -> None:
        """Notice at once an address that is no such endpoint, a key that it refuses and a model that it lacks.

        It costs no tokens: the models are listed, and where the model is not among them an empty request is sent.

        Raises:
            UserError: nothing answers, or what answers is something else; the message says what would be right.
        """
        url, key, seconds = self.config.url.rstrip("/"), _Key(self._key), self.config.timeout
        models, names = None, list[str]()
        try:
            try:
                models = listed_models(json_of(first_answer(f"{url}/models", auth=key, seconds=seconds)))
            except Unusable as unusable:
                # A key may be good for chat completions alone. What does not answer at all is final.
                if unusable.silent:
                    raise
            names = [entry["id"] for entry in models or []]
            if self.config.model in names:
                return
            # Not every endpoint lists its models, or all names that it takes: an empty request costs nothing.
            request = {"model": self.config.model, "messages": [], "max_tokens": 1}
            answer = first_answer(f"{url}/chat/completions", auth=key, body=request, seconds=seconds)
        except Unusable as unusable:
            if unusable.silent and names:
                return
            remedy = "start the endpoint, or correct reward.judge" if unusable.silent else "correct reward.judge"
            if "wants a login" in str(unusable):
                remedy = "name the environment variable that holds its key in reward.judge.key_env"
            raise UserError(f"judge {self.config.url}: {self._clean(str(unusable))}: {remedy}") from unusable
        if answer.status_code not in (404, 405):
            return
        if models is None:
            below = "" if url.endswith("/v1") else f", as in {url}/v1"
            raise UserError(
                f"judge {self.config.url}: has no /chat/completions ({answer.status_code}): give the base address of "
                f"an OpenAI-compatible endpoint{below}"
            )
        raise UserError(
            f"judge {self.config.url}: does not know the model {self.config.model!r} ({self._clean(answer.text)}): "
            f"correct reward.judge.model; it lists {', '.join(names[:10]) or 'none'}"
        )

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
            raise Refused(f"does not answer ({self._clean(innermost(error))})", again=True) from error
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
