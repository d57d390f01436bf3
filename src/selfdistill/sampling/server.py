"""Sampling from vLLM servers over HTTP, with weight sync to all of them.

Only the standard library is used: a request is one POST. Every answer names the version of the weights that it was
sampled with. A server that was restarted is recognised by it, gets the weights again, and is asked again.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy
from selfdistill.sampling.hf import Decoding
from selfdistill.sampling.memory import give_back
from selfdistill.sampling.requests import Question, by_prompt, completion, padding_rows, parameters, questions
from selfdistill.sampling.weight_sync import Handover
from selfdistill.types import Completion


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Connection settings of the servers; see the config's ``sampler`` table."""

    urls: tuple[str, ...]
    receiver: bool
    timeout: float
    retries: int
    wait: float
    concurrency: int
    sleep: bool


class _Failed(Exception):
    """A request failed, but a retry or another server may succeed."""


class ServedSampler:
    """Samples completions from one or several servers with the same weights."""

    def __init__(
        self,
        chat: Chat,
        *,
        decoding: Decoding,
        options: ServerOptions,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.chat = chat
        self.decoding = decoding
        self.options = options
        self.handover = Handover(folder, chat)
        self.say = say
        self.version: int | None = None
        self.path: Path | None = None
        self.lora = False
        self.padding = range(0)
        self.holding: dict[str, str] = {}
        """Label of the weights of each server, if known."""
        self.asleep: set[str] = set()

    def update(self, policy: Policy, version: int, world: World = ALONE) -> None:
        """Sync the weights to every server that answers. The others get them once they answer again.

        Raises:
            SamplerError: no server could load them, after all retries.
        """
        self.lora, self.padding = policy.is_lora, padding_rows(policy)
        self.path = self.handover.write(policy, version, world)
        if self.options.sleep:
            give_back(policy.device)  # servers that share the device are about to wake
        self.version = version
        goal = f"take the weights of version {version}"
        world.from_first(lambda: self._patiently(lambda: bool(self._ready()), goal))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        max_tokens: int,
        seed: int,
        ordinals: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """``count`` completions for every prompt from the weights of the last :meth:`update`.

        A failed request is sent to another server, or again after a pause.

        Raises:
            SamplerError: a server refuses a request for good, or none answers after all retries.
        """
        asked = questions(prompts, count=count, seed=seed, ordinals=ordinals)
        drawn: dict[int, Completion] = {}
        shunned: set[str] = set()

        def once() -> bool:
            left = [(place, one) for place, one in enumerate(asked) if place not in drawn]
            servers = self._ready()
            # Leave out failing servers, which would use up the retries of the others.
            servers = [url for url in servers if url not in shunned] or servers
            if servers:
                drawn.update(self._ask(servers, left, max_tokens))
            shunned.update(set(servers) - set(self.holding))
            return len(drawn) == len(asked)

        self._patiently(once, f"draw the {len(asked)} completions of this step")
        if self.options.sleep:
            self._put_to_sleep()
        return by_prompt([drawn[place] for place in range(len(asked))], count)

    def close(self) -> None:
        """Remove the weights written for the servers. The servers keep running with the last ones."""
        self.handover.clear()

    def _patiently(self, attempt: Callable[[], bool], goal: str) -> None:
        """Retry until ``attempt`` succeeds: immediately while a server is left, else after a growing pause."""
        pause = self.options.wait
        for tries_left in range(self.options.retries, -1, -1):
            if attempt():
                return
            if not tries_left:
                break
            if not self.holding:
                self.say(f"no sampler server answers: trying again in {pause:g} s, {tries_left} tries left")
                time.sleep(pause)
                pause *= 2
        raise SamplerError(
            f"{', '.join(self.options.urls)} did not {goal}, after {self.options.retries + 1} tries: "
            "start the servers again and continue the run with --resume"
        )

    def _ready(self) -> list[str]:
        """URLs of the servers that answer, after syncing the newest weights to those that lack them."""
        with ThreadPoolExecutor(len(self.options.urls)) as pool:
            fine = list(pool.map(self._prepare, self.options.urls))
        return [url for url, ok in zip(self.options.urls, fine, strict=True) if ok]

    def _prepare(self, url: str) -> bool:
        try:
            if self._held(url) != self._label:
                self._hand_over(url)
            self.holding[url] = self._label
            return True
        except _Failed as failure:
            self._lost(url, failure)
            return False

    def _lost(self, url: str, failure: _Failed) -> None:
        self.holding.pop(url, None)
        self.asleep.discard(url)
        self.say(f"sampler {url}: {failure}")

    @property
    def _label(self) -> str:
        assert self.version is not None, "an engine is updated before it samples"
        return self.handover.label(self.version)

    def _held(self, url: str) -> str | None:
        """The label of the weights that the server reports; None if they must be replaced in any case."""
        if url not in self.holding or url in self.asleep:
            return None
        if self.lora:
            names = [entry["id"] for entry in self._call(url, "GET", "/v1/models")["data"]]
            return self._label if self._label in names else None
        return str(self._call(url, "GET", "/weight_info")["weight_version"])

    def _hand_over(self, url: str) -> None:
        if url in self.asleep:
            self._call(url, "POST", "/wake_up?tags=weights")
        if self.lora:
            self._hand_over_adapter(url)
        else:
            self._hand_over_weights(url)
        if url in self.asleep:
            self._call(url, "POST", "/wake_up?tags=kv_cache")
            self.asleep.discard(url)

    def _hand_over_weights(self, url: str) -> None:
        # If loading fails half-way, the server must not keep the old label.
        self._call(url, "POST", "/update_weight_version", {"new_version": "loading"})
        if self.options.receiver:
            answer = self._call(url, "POST", "/collective_rpc", {"method": "receive_weights", "args": [str(self.path)]})
            if set(answer["results"]) != {str(self.path)}:
                raise _Failed(f"was handed the weights in {self.path} and read {answer['results']}")
        else:
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(self.path)}}
            self._call(url, "POST", "/collective_rpc", arguments)
        self._call(url, "POST", "/update_weight_version", {"new_version": self._label})

    def _hand_over_adapter(self, url: str) -> None:
        known = [entry["id"] for entry in self._call(url, "GET", "/v1/models")["data"]]
        for name in known:
            if name.startswith(self.handover.prefix):
                self._call(url, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
        self._call(url, "POST", "/v1/load_lora_adapter", {"lora_name": self._label, "lora_path": str(self.path)})

    def _put_to_sleep(self) -> None:
        for url in [*self.holding]:
            try:
                # Level 1 keeps the adapter's base in CPU memory. Level 2 drops whole weights; the next sync loads them.
                self._call(url, "POST", f"/sleep?level={1 if self.lora else 2}")
                self.asleep.add(url)
            except _Failed as failure:
                self._lost(url, failure)

    def _ask(
        self, servers: Sequence[str], asked: Sequence[tuple[int, Question]], max_tokens: int
    ) -> dict[int, Completion]:
        """Send the requests to the servers in turn; returns the completions, and the failure of each failing server."""
        drawn: dict[int, Completion] = {}
        failures: dict[str, _Failed] = {}

        def one(turn: int) -> None:
            place, question = asked[turn]
            url = servers[turn % len(servers)]
            if url in failures:
                return
            try:
                drawn[place] = self._completion(url, question, max_tokens)
            except _Failed as failure:
                failures[url] = failure

        with ThreadPoolExecutor(self.options.concurrency * len(servers)) as pool:
            list(pool.map(one, range(len(asked))))
        for url, failure in failures.items():
            self._lost(url, failure)
        return drawn

    def _completion(self, url: str, question: Question, max_tokens: int) -> Completion:
        how = parameters(
            self.decoding,
            stop_ids=self.chat.stop_ids,
            max_tokens=max_tokens,
            seed=question.seed,
            padding=self.padding,
        )
        body = {
            "model": self._label if self.lora else None,
            "token_ids": question.prompt,
            "sampling_params": how,
            # The salt separates the prefix caches of different versions of the weights.
            "cache_salt": self._label,
        }
        answer = self._call(url, "POST", "/inference/v1/generate", body)
        try:
            (choice,) = answer["choices"]
            return self._checked(url, choice, max_tokens)
        except (KeyError, TypeError, ValueError) as error:
            raise SamplerError(
                f"sampler {url} answers otherwise than vLLM 0.32 does ({type(error).__name__}: {error})"
            ) from error

    def _checked(self, url: str, choice: Mapping[str, Any], max_tokens: int) -> Completion:
        """Check an answer's weights and log-probabilities and return it as a completion."""
        if choice["finish_reason"] not in ("stop", "length"):
            raise _Failed(f"ended a completion with {choice['finish_reason']!r}")
        versions = {span["version"] for span in choice["weight_versions"]}
        # The adapter's name is its version. Its base must be the weights that the server was started with.
        if self.lora and versions != {UNTOUCHED}:
            raise SamplerError(
                f"sampler {url} holds other weights ({', '.join(sorted(versions))}) than the model that the adapter "
                "belongs to: start it again"
            )
        if not self.lora and versions != {self._label}:
            raise _Failed(f"drew from weights {', '.join(sorted(versions))}, not {self._label}")
        content = choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != choice["token_ids"]:
            raise _Failed("gave log-probabilities of other tokens than it drew")
        return completion(
            choice["token_ids"],
            [entry["logprob"] for entry in content],
            stop_ids=self.chat.stop_ids,
            max_tokens=max_tokens,
            engine=f"sampler {url}",
        )

    def _call(self, url: str, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send one request; returns the server's answer.

        Raises:
            _Failed: the server cannot be reached, closes the connection, or has an internal error.
            SamplerError: it refuses what it was asked, and will refuse it again.
        """
        request = urllib.request.Request(
            url + path,
            method=verb,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.options.timeout) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error.read().decode(errors="replace"))
            # 404 for an adapter's name: the server was restarted and no longer has the adapter.
            if error.code >= 500 or (error.code == 404 and path.startswith("/inference") and self.lora):
                raise _Failed(f"failed with {error.code} at {path}: {said}") from error
            raise SamplerError(
                f"sampler {url} refuses {path} ({error.code}): {said}{_hint(path, error.code)}"
            ) from error
        except (OSError, HTTPException) as error:
            raise _Failed(f"does not answer ({getattr(error, 'reason', None) or error})") from error
        return json.loads(text) if text.startswith(("{", "[")) else text


UNTOUCHED = "default"
"""vLLM's label of the weights that a server was started with."""
HINTS = {
    "/weight_info": "needs vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1",
    "/update_weight_version": "needs vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1",
    "/collective_rpc": "needs VLLM_SERVER_DEV_MODE=1",
    "/sleep": "needs VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode",
    "/v1/load_lora_adapter": "needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora",
    "/inference/v1/generate": "needs vLLM 0.32 or newer",
}
"""What to change on a server that does not know a path."""


def _hint(path: str, code: int) -> str:
    hint = HINTS.get(urllib.parse.urlsplit(path).path)
    return f"; it {hint}" if hint and code in (404, 405) else ""


def _said(text: str) -> str:
    """The message in the body of an HTTP error."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip().splitlines()[0][:300] if text.strip() else "no reason given"
    error = body.get("error", body) if isinstance(body, dict) else body
    sentence = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return str(sentence).splitlines()[0][:300]
