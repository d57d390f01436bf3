"""A model behind a server: token ids and log-probabilities in and out, over connections that stay open.

vLLM, llama.cpp's server and whatever else answers OpenAI's ``/v1/completions`` with token ids are spoken to there, and
SGLang at its own ``/generate``, because its OpenAI endpoint returns texts alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.config.sampler import Address, ServerConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError, SamplerError
from selfdistill.files.http import (
    AGAIN,
    SECONDS,
    Reply,
    Unusable,
    back_off,
    exchange,
    first_answer,
    listed_models,
    open_session,
)

CONCURRENCY = 32
"""Requests that a teacher's server has at a time."""
EVERY_SORT = (
    "The quick brown fox, 3.14159 × 10^-7?\n\tdef f(x): return {'a': [x]}  # naïve Ünïcödé 你好 🙂 \\frac{1}{2}"
)
"""A text that tokenizers cut into many kinds of tokens."""
ROUNDING = 0.01
"""By how much probabilities in bfloat16 may add up to more than 1. Logits exceed it by far."""
NEEDS = "it must return token ids and log-probabilities, as vLLM, SGLang and llama.cpp's server do"

COMPLETIONS = "/v1/completions"
"""OpenAI's endpoint that samples. vLLM's scores prompts too."""
TAKES_WEIGHTS = ("/inference/v1/generate", "/weight_info", "/update_weight_version", "/collective_rpc")
"""Endpoints of a vLLM server that weights are sent to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as a server answers it."""

    ids: list[int]
    logprobs: list[float]
    stopped: bool
    """Whether it ended by itself; False if the token limit cut it."""
    counted: int | None
    """Tokens that the server says it sampled, if it says so."""


class Unanswered(SamplerError):
    """A server failed after all retries; another one with the same weights may answer."""


class ServedModel:
    """A model at an address. Its methods may be called from several threads."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        authorization: str = "",
        timeout: float = 600.0,
        retries: int = 5,
        wait: float = 1.0,
        concurrency: int = 64,
    ) -> None:
        """``model`` is the name that the server has for it; None is the first that it lists.

        A failed request is sent again ``retries`` times, after ``wait`` seconds, doubled each time. ``authorization``
        is the value of that header.
        """
        self.url = url.rstrip("/")
        self.model = model
        self.authorization = authorization
        self.timeout = timeout
        self.owner = ""
        """Who made the server, as its list of models says: ``"vllm"``, ``"sglang"``, ``"llamacpp"``."""
        self.window: int | None = None
        """Most tokens of prompt and completion together, if it says."""
        self._session = open_session(back_off(retries, wait=wait), connections=concurrency)

    def probe(self) -> None:
        """Ask once what the server serves, without a retry.

        Raises:
            SamplerError: it does not answer within two seconds, is no such server, does not serve the model, or has no
                endpoint that samples.
        """
        reply = self._first("/v1/models")
        models = listed_models(reply.document) if reply.ok else None
        if reply.status in AGAIN:
            raise SamplerError(f"server {self.url} is not ready ({reply.status}: {reply.reason}): wait until it is")
        if not models:
            remedy = "leave /v1 away" if self.url.endswith("/v1") else NEEDS
            raise SamplerError(f"server {self.url} lists no models at /v1/models ({reply.status}): {remedy}")
        names = [entry["id"] for entry in models]
        if self.model is not None and self.model not in names:
            raise SamplerError(f"server {self.url} serves no model {self.model!r}, but {', '.join(names)}")
        entry = models[names.index(self.model or names[0])]
        self.model = entry["id"]
        self.owner = str(entry.get("owned_by") or "")
        window = entry.get("max_model_len")
        self.window = window if isinstance(window, int) else None
        # A request without a prompt samples nothing. Only a server without the endpoint answers it so.
        path, empty = self._samples_at, {"model": self.model, "max_tokens": 1}
        try:
            reply = first_answer(self.url + path, key=self.authorization, body=empty)
        except Unusable as unusable:
            # Some close the connection of such a request.
            if unusable.silent:
                return
            raise SamplerError(f"server {self.url} {unusable}: {NEEDS}") from unusable
        if reply.status in (404, 405):
            raise SamplerError(f"server {self.url} has no {path} ({reply.status}: {reply.reason}): {NEEDS}")

    @property
    def _samples_at(self) -> str:
        return "/generate" if self.owner == "sglang" else COMPLETIONS

    def has(self, path: str) -> bool:
        """Whether the server knows an endpoint. A web page and a login are none.

        Raises:
            SamplerError: it does not answer within two seconds.
        """
        try:
            return first_answer(self.url + path, key=self.authorization).status != 404
        except Unusable as unusable:
            if unusable.silent:
                raise SamplerError(f"server {self.url} {unusable}") from unusable
            return False

    def complete(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        seed: int,
        stop_ids: Sequence[int],
        padding: range = range(0),
    ) -> Answer:
        """One completion of a prompt. ``padding`` are ids without a token, which are never sampled.

        Raises:
            SamplerError: the server fails after all retries, refuses the request, or answers without ids or
                log-probabilities.
        """
        shared = {
            "temperature": temperature,
            "top_p": top_p,
            "min_p": 0.0,
            "stop_token_ids": list(stop_ids),
            **({"logit_bias": dict.fromkeys(map(str, padding), -100.0)} if padding else {}),
        }
        if self.owner == "sglang":
            sampling = {**shared, "top_k": top_k or -1, "max_new_tokens": max_tokens, "sampling_seed": seed}
            body = {"input_ids": list(prompt), "sampling_params": sampling, "return_logprob": True}
            return self._read(_read_sglang, self.post(self._samples_at, body))
        body = {
            **shared,
            "model": self.model,
            "prompt": list(prompt),
            "top_k": top_k,
            "max_tokens": max_tokens,
            "seed": seed,
            "logprobs": 1,
            "return_token_ids": True,
            # Whatever a server's own defaults are. Servers ignore keys that they do not know.
            "repetition_penalty": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # vLLM stops where the Transformers sampler stops; the others know no stop ids, and stop at their own.
            **({"ignore_eos": True} if self.owner == "vllm" else {}),
        }
        return self._read(_read_openai, self.post(self._samples_at, body))

    def prompt_logprobs(self, ids: Sequence[int], *, top: int, begin: int) -> list[dict[int, float]]:
        """Log-probabilities of the ids from ``begin`` on, each with those of the ``top`` likeliest ids in its place.

        Raises:
            SamplerError: the server fails after all retries, refuses the request, or gives no such log-probabilities.
        """
        return self._places(self.post(COMPLETIONS, self._scoring(ids, top)), ids, top=top, begin=begin)

    def _scoring(self, ids: Sequence[int], top: int) -> dict[str, Any]:
        """The body of a request for the log-probabilities of a prompt. One token is the least that can be sampled."""
        shared = {"model": self.model, "max_tokens": 1, "temperature": 0.0, "add_special_tokens": False}
        return {**shared, "prompt": list(ids), "prompt_logprobs": top}

    def _places(self, document: Any, ids: Sequence[int], *, top: int, begin: int) -> list[dict[int, float]]:
        """The log-probabilities in an answer, by place from ``begin`` on and by id."""
        try:
            positions = document["choices"][0]["prompt_logprobs"]
            if len(positions) != len(ids):
                raise ValueError(f"log-probabilities of {len(positions)} ids for {len(ids)}")
            places = [
                {int(token): float(entry["logprob"]) for token, entry in position.items()}
                for position in positions[begin:]
            ]
            for token, entries in zip(ids[begin:], places, strict=True):
                _check_place(token, entries, top)
            return places
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SamplerError(
                f"server {self.url} gives no prompt log-probabilities, which a teacher is scored by "
                f"({type(error).__name__}: {error}): serve the teacher with vLLM"
            ) from error

    def check_teacher(self, chat: Chat, *, top: int) -> None:
        """Check that a teacher has the student's vocabulary, and gives the ``top`` likeliest ids of a position.

        If it holds fewer tokens than the chat's window, that window becomes smaller: what does not fit is then left out
        and counted.

        Raises:
            SamplerError: it does not answer, or gives no prompt log-probabilities of so many ids.
            ModelError: it reads a text as other tokens.
        """
        self.probe()
        text = " ".join([EVERY_SORT, *map(str, chat.tokenizer.all_special_tokens)])
        own = [int(i) for i in chat.tokenizer(text, add_special_tokens=False)["input_ids"]]
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        reply = self._first("/tokenize", asked)
        if reply.status == 404:
            raise SamplerError(
                f"teacher {self.url} has no /tokenize (404: {reply.reason}), which compares its vocabulary: serve it "
                "with vLLM"
            )
        document = self._document("/tokenize", reply)
        theirs = document.get("tokens") if isinstance(document, dict) else None
        if theirs != own:
            raise ModelError(
                f"teacher {self.url} has another vocabulary than {chat.name}: it reads a text as {_short(theirs)}, and "
                f"the student as {_short(own)}; a teacher must share every token"
            )
        probed = own[: self.window - 1 if self.window else None][:64]
        # Scoring may take longer than two seconds, and a server that fails now is not waited for.
        reply = self._first(COMPLETIONS, self._scoring(probed, top), seconds=self.timeout)
        self._places(self._document(COMPLETIONS, reply), probed, top=top, begin=1)
        if self.window is not None:
            # A request samples one token beside those that it scores.
            chat.window = min(chat.window, self.window - 1)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The document that the server answers to a request.

        Raises:
            Unanswered: it fails after all retries.
            SamplerError: it refuses the request, or answers no JSON.
        """
        try:
            reply = exchange(
                self._session, "POST", self.url + path, body=body, key=self.authorization, timeout=self.timeout
            )
        except Unusable as unusable:
            raise Unanswered(f"server {self.url} {unusable}") from unusable
        if reply.status in AGAIN:
            raise Unanswered(_refusal(self.url, path, reply))
        return self._document(path, reply)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _first(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = SECONDS) -> Reply:
        try:
            return first_answer(self.url + path, key=self.authorization, body=body, seconds=seconds)
        except Unusable as unusable:
            raise SamplerError(f"server {self.url} {unusable}") from unusable

    def _document(self, path: str, reply: Reply) -> Any:
        if not reply.ok:
            raise SamplerError(_refusal(self.url, path, reply))
        if reply.document is None:
            raise SamplerError(f"server {self.url} answers {path} with no JSON: {NEEDS}")
        return reply.document

    def _read(self, read: Callable[[Any], Answer], document: Any) -> Answer:
        try:
            answer = read(document)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SamplerError(
                f"server {self.url} ({self.owner or 'of unknown make'}) answers without token ids or log-probabilities "
                f"({type(error).__name__}: {error}): {NEEDS}"
            ) from error
        if len(answer.ids) != len(answer.logprobs):
            raise SamplerError(
                f"server {self.url} gave {len(answer.logprobs)} log-probabilities to {len(answer.ids)} tokens"
            )
        if answer.counted is not None and answer.counted != len(answer.ids):
            raise SamplerError(
                f"server {self.url} ({self.owner or 'of unknown make'}) answers with {len(answer.ids)} of the "
                f"{answer.counted} tokens that it sampled (llama.cpp's server leaves out those that end within a "
                "character): serve the model with vLLM or SGLang"
            )
        return answer


def _refusal(url: str, path: str, reply: Reply) -> str:
    return f"server {url} refuses {path} ({reply.status}): {reply.reason}"


def served_models(config: ServerConfig) -> list[ServedModel]:
    """The servers of a config, not asked yet."""
    return [
        ServedModel(
            url,
            model=config.model,
            authorization=url.authorization if isinstance(url, Address) else "",
            timeout=config.timeout,
            retries=config.retries,
            wait=config.wait,
            concurrency=config.concurrency,
        )
        for url in config.urls
    ]


def takes_weights(servers: Sequence[ServedModel]) -> bool:
    """Whether all servers are vLLM's that can be sent weights."""
    return all(server.has(path) for server in servers for path in TAKES_WEIGHTS)


def _read_openai(document: Any) -> Answer:
    """vLLM names the ids ``token_ids``; llama.cpp has an ``id`` beside each log-probability."""
    (choice,) = document["choices"]
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        ids = [int(entry["id"]) for entry in logprobs["content"]]
        numbers = [float(entry["logprob"]) for entry in logprobs["content"]]
    else:
        ids = [int(token) for token in choice["token_ids"]]
        numbers = [float(number) for number in logprobs["token_logprobs"]]
    return Answer(ids, numbers, _stopped(choice["finish_reason"]), _counted(document.get("usage")))


def _read_sglang(document: Any) -> Answer:
    meta = document["meta_info"]
    entries = meta["output_token_logprobs"]
    ids, numbers = [int(entry[1]) for entry in entries], [float(entry[0]) for entry in entries]
    return Answer(ids, numbers, _stopped(meta["finish_reason"]["type"]), _counted(meta))


def _counted(usage: object) -> int | None:
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _stopped(reason: object) -> bool:
    if reason not in ("stop", "length"):
        raise ValueError(f"a completion ended with {reason!r}")
    return reason == "stop"


def _check_place(token: int, entries: Mapping[int, float], top: int) -> None:
    """Refuse log-probabilities at one place of a prompt that are not those of its token and of the ``top`` likeliest.

    Raises:
        KeyError: its own token is missing.
        ValueError: they are fewer or more, or no log-probabilities.
    """
    if token not in entries:
        raise KeyError(token)
    # The token itself may be among the likeliest.
    if len(entries) not in (max(top, 1), top + 1):
        raise ValueError(f"{len(entries)} log-probabilities at a place where {top} were asked for")
    wrong = next((number for number in entries.values() if not -math.inf < number <= ROUNDING), None)
    if wrong is not None:
        raise ValueError(f"a log-probability of {wrong:g}")
    if math.fsum(map(math.exp, entries.values())) > 1 + ROUNDING:
        raise ValueError("probabilities that add up to more than 1")


def _short(tokens: object) -> str:
    return f"{', '.join(map(str, tokens[:8]))} …" if isinstance(tokens, list) else "no tokens"
