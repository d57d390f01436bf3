"""Send requests to an endpoint with OpenAI's ``/chat/completions``, with retries and a key."""

from __future__ import annotations

import os

from selfdistill.config.reward import JudgeConfig
from selfdistill.errors import ConfigError, UserError
from selfdistill.files.http import (
    AGAIN,
    SECONDS,
    Unusable,
    back_off,
    exchange,
    first_answer,
    listed_models,
    open_session,
)
from selfdistill.files.text import printable, well_formed


class Refused(Exception):
    """A request without an answer. ``again`` says whether it may have one later."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Endpoint:
    """The address of a judge, and the key for it."""

    def __init__(self, config: JudgeConfig, *, concurrency: int = 1) -> None:
        """Read the key. ``concurrency`` is the number of requests at once.

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
        self._header = f"Bearer {self._key}" if self._key else ""
        self._sessions = {
            patient: open_session(back_off(config.retries if patient else 0, wait=config.wait), connections=concurrency)
            for patient in (True, False)
        }

    def probe(self) -> None:
        """Notice at once an address that is no such endpoint, a key that it refuses and a model that it lacks.

        It costs no tokens: the models are listed, and where the model is not among them an empty request is sent.

        Raises:
            UserError: nothing answers, or what answers is something else; the message says what would be right.
        """
        url, seconds = self.config.url.rstrip("/"), min(self.config.timeout, SECONDS)
        models, names = None, list[str]()
        try:
            try:
                models = listed_models(first_answer(f"{url}/models", key=self._header, seconds=seconds).document)
            except Unusable as unusable:
                # A key may be good for chat completions alone. What does not answer at all is final.
                if unusable.silent:
                    raise
            names = [entry["id"] for entry in models or []]
            if self.config.model in names:
                return
            # Not every endpoint lists its models, or all names that it takes: an empty request costs nothing.
            request = {"model": self.config.model, "messages": [], "max_tokens": 1}
            answer = first_answer(f"{url}/chat/completions", key=self._header, body=request, seconds=seconds)
        except Unusable as unusable:
            if unusable.silent and names:
                return
            remedy = "start the endpoint, or correct reward.judge" if unusable.silent else "correct reward.judge"
            if "wants a login" in str(unusable):
                remedy = "name the environment variable that holds its key in reward.judge.key_env"
            raise UserError(f"judge {self.config.url}: {self._clean(str(unusable))}: {remedy}") from unusable
        if answer.status not in (404, 405):
            return
        if models is None:
            below = "" if url.endswith("/v1") else f", as in {url}/v1"
            raise UserError(
                f"judge {self.config.url}: has no /chat/completions ({answer.status}): give the base address of "
                f"an OpenAI-compatible endpoint{below}"
            )
        raise UserError(
            f"judge {self.config.url}: does not know the model {self.config.model!r} ({self._clean(answer.text)}): "
            f"correct reward.judge.model; it lists {', '.join(names[:10]) or 'none'}"
        )

    def post(self, body: str, *, patient: bool = True) -> str:
        """The text of the answer to one request, tried again after growing pauses if ``patient``.

        Raises:
            Refused: no answer after all retries, or an error that a retry would not change.
        """
        # The question and the key go to the configured address alone.
        url = f"{self.config.url.rstrip('/')}/chat/completions"
        try:
            reply = exchange(
                self._sessions[patient], "POST", url, body=body, key=self._header, timeout=self.config.timeout
            )
        except Unusable as unusable:
            raise Refused(self._clean(str(unusable)), again=True) from unusable
        if reply.status != 200:
            raise Refused(f"status {reply.status} ({self._clean(reply.text)})", again=reply.status in AGAIN)
        try:
            text = reply.document["choices"][0]["message"]["content"]
        except (LookupError, TypeError) as error:
            raise Refused(f"answers no chat completion ({self._clean(reply.text)})", again=False) from error
        if not isinstance(text, str):
            raise Refused("answers without text", again=False)
        return well_formed(text)

    def _clean(self, text: str) -> str:
        """The beginning of a message, without the key, which an endpoint may repeat."""
        redacted = text.replace(self._key, "…") if self._key else text
        return printable(" ".join(redacted.split())[:200])
