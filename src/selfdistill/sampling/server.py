"""Sampling from vLLM servers over HTTP, with weight sync to all of them.

Connections stay open between requests. Every answer names the version of the weights that it was
sampled with. This reveals a restarted server, which gets the weights and the request again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError

from selfdistill.config.sampler import Address, ServerConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.files.http import AGAIN, BackOff, Unusable, back_off, exchange, open_session, reconnection
from selfdistill.files.jsonl import UNREADABLE
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams, group_by_prompt
from selfdistill.sampling.memory import empty_cache
from selfdistill.sampling.probe import HINTS
from selfdistill.sampling.requests import (
    SamplingRequest,
    checked_completion,
    padding_rows,
    sampling_requests,
    vllm_params,
)
from selfdistill.sampling.weight_sync import WeightSync
from selfdistill.tracking.progress import advance
from selfdistill.types import Completion, Weights


class Failed(Exception):
    """A request failed, but a retry or another server may succeed. ``late``: no answer came within its time."""

    def __init__(self, reason: str, *, late: bool = False) -> None:
        super().__init__(reason)
        self.late = late


class ServerSampler:
    """Samples completions from one or several servers with the same weights."""

    remedy = "start the servers again and continue the run with --resume"
    """What a user does once all tries have failed."""

    def __init__(self, chat: Chat, config: ServerConfig, *, folder: Path, log: Callable[[str], None]) -> None:
        """Weights are written for the servers into ``folder``. ``log`` receives messages about failing servers."""
        self.chat = chat
        self.config = config
        self.authorization = {str(url): url.authorization for url in config.urls if isinstance(url, Address)}
        """The ``Authorization`` header of each server; empty where it wants no password."""
        self.weight_sync = WeightSync(folder, chat)
        self.log = log
        self.label: str | None = None
        """Label of the weights that all servers are to have; None before the first."""
        self.path: Path | None = None
        """Directory of these weights; None for the base of adapters, which the servers have."""
        self.lora = False
        self.padding = range(0)
        self.loaded: dict[str, str] = {}
        """Label of the weights of each server, if known."""
        self.asleep: set[str] = set()
        self._session = open_session(
            reconnection(config.retries, wait=config.wait), connections=config.concurrency, servers=len(config.urls)
        )
        for url in config.urls:
            # An adapter that was loaded without an answer cannot be loaded again before it is unloaded, which the next
            # sync does.
            self._session.mount(f"{url}{LOAD_ADAPTER}", HTTPAdapter(max_retries=0))

    @property
    def synced(self) -> int:
        """Bytes of weights that the servers were sent so far."""
        return self.weight_sync.bytes

    def update(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> None:
        """Sync the weights to every server that answers. The others get them once they answer again.

        Raises:
            SamplerError: no server could load them, after all retries.
        """
        self.lora, self.padding = policy.is_lora, padding_rows(policy)
        # Every server that serves adapters has their base.
        base = self.lora and weights == "frozen"
        self.path = None if base else self.weight_sync.write(policy, version, world, weights=weights)
        if self.config.sleep:
            empty_cache(policy.device)  # servers that share the device are about to wake
        self.label = self.weight_sync.label(version, weights)
        goal = f"take the weights of version {version}"
        world.broadcast_from_rank_zero(lambda: self._retry(lambda: bool(self._ready()), goal))

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt from the weights of the last :meth:`update`.

        A failed request is sent to another server, or again after a pause.

        Raises:
            SamplerError: a server refuses a request for good, or none answers after all retries.
        """
        requests = sampling_requests(prompts, params)
        completions: dict[int, Completion] = {}
        failing: set[str] = set()

        def attempt() -> bool:
            left = [(index, request) for index, request in enumerate(requests) if index not in completions]
            servers = self._ready()
            # Leave out failing servers, which would use up the retries of the others.
            servers = [url for url in servers if url not in failing] or servers
            if servers:
                completions.update(self._send(servers, left, params))
            failing.update(set(servers) - set(self.loaded))
            return len(completions) == len(requests)

        self._retry(attempt, f"sample the {len(requests)} completions of this step")
        if self.config.sleep:
            self._put_to_sleep()
        return group_by_prompt([completions[index] for index in range(len(requests))], params.count)

    def close(self) -> None:
        """Remove the weights written for the servers. The servers keep running with the last ones."""
        self._session.close()
        self.weight_sync.clear()

    def _retry(self, attempt: Callable[[], bool], goal: str) -> None:
        """Retry until ``attempt`` succeeds: immediately while a server is left, else after a growing pause."""
        tries = back_off(self.config.retries, wait=self.config.wait)
        while not attempt():
            try:
                tries = tries.increment()
            except MaxRetryError as error:
                servers, count = ", ".join(self.config.urls), self.config.retries + 1
                raise SamplerError(f"{servers} did not {goal}, after {count} tries: {self.remedy}") from error
            self._recover(tries)

    def _recover(self, tries: BackOff) -> None:
        """Wait for a server to come back if none is left."""
        if not self.loaded:
            pause, left = tries.get_backoff_time(), int(tries.total or 0) + 1
            self.log(f"no sampler server answers: trying again in {pause:g} s, {left} tries left")
            tries.sleep()

    def _ready(self) -> list[str]:
        """URLs of the servers that answer, after syncing the newest weights to those that lack them."""
        with ThreadPoolExecutor(len(self.config.urls)) as pool:
            ready = list(pool.map(self._prepare, self.config.urls))
        return [url for url, ok in zip(self.config.urls, ready, strict=True) if ok]

    def _prepare(self, url: str) -> bool:
        try:
            with _answers_like_vllm(url):
                if self._loaded_label(url) != self._label:
                    self._sync(url)
            self.loaded[url] = self._label
            return True
        except Failed as failure:
            self._lost(url, failure)
            return False

    def _lost(self, url: str, failure: Failed) -> None:
        self.loaded.pop(url, None)
        self.asleep.discard(url)
        self.log(f"sampler {url}: {failure}")

    @property
    def _label(self) -> str:
        assert self.label is not None, "an engine is updated before it samples"
        return self.label

    def _loaded_label(self, url: str) -> str | None:
        """The label of the weights that the server reports; None if they must be replaced in any case."""
        if url not in self.loaded or url in self.asleep:
            return None
        if self.lora and self.path is None:
            return self._label
        if self.lora:
            names = [entry["id"] for entry in self._call(url, "GET", "/v1/models")["data"]]
            return self._label if self._label in names else None
        return str(self._call(url, "GET", "/weight_info")["weight_version"])

    def _sync(self, url: str) -> None:
        if url in self.asleep:
            self._call(url, "POST", "/wake_up?tags=weights")
        if not self.lora:
            self._sync_weights(url)
        elif self.path is not None:
            self._sync_adapter(url)
        if url in self.asleep:
            self._call(url, "POST", "/wake_up?tags=kv_cache")
            self.asleep.discard(url)

    def _sync_weights(self, url: str) -> None:
        # If loading fails half-way, the server must not keep the old label.
        self._call(url, "POST", "/update_weight_version", {"new_version": "loading"})
        if self.config.worker_extension:
            answer = self._call(url, "POST", "/collective_rpc", {"method": "receive_weights", "args": [str(self.path)]})
            if set(answer["results"]) != {str(self.path)}:
                raise Failed(f"was sent the weights in {self.path} and read {answer['results']}")
        else:
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(self.path)}}
            self._call(url, "POST", "/collective_rpc", arguments)
        self._call(url, "POST", "/update_weight_version", {"new_version": self._label})

    def _sync_adapter(self, url: str) -> None:
        known = [entry["id"] for entry in self._call(url, "GET", "/v1/models")["data"]]
        for name in known:
            if name.startswith(self.weight_sync.prefix):
                self._call(url, "POST", "/v1/unload_lora_adapter", {"lora_name": name})
        self._call(url, "POST", LOAD_ADAPTER, {"lora_name": self._label, "lora_path": str(self.path)})

    def _put_to_sleep(self) -> None:
        for url in [*self.loaded]:
            try:
                # Level 1 keeps the adapter's base in CPU memory. Level 2 drops whole weights; the next sync loads them.
                self._call(url, "POST", f"/sleep?level={1 if self.lora else 2}")
                self.asleep.add(url)
            except Failed as failure:
                self._lost(url, failure)

    def _send(
        self, servers: Sequence[str], requests: Sequence[tuple[int, SamplingRequest]], params: SamplingParams
    ) -> dict[int, Completion]:
        """Send the requests to the servers in turn; returns the completions by the requests' indices.

        A server that fails gets no further request.
        """
        completions: dict[int, Completion] = {}
        failures: dict[str, Failed] = {}

        def send(turn: int) -> None:
            index, request = requests[turn]
            url = servers[turn % len(servers)]
            if url in failures:
                return
            try:
                completions[index] = self._completion(url, request, params)
            except Failed as failure:
                failures[url] = failure

        with ThreadPoolExecutor(self.config.concurrency * len(servers)) as pool:
            for turn, _ in enumerate(pool.map(send, range(len(requests)))):
                completion = completions.get(requests[turn][0])
                if completion is not None:
                    advance(1, tokens=len(completion.ids))
        for url, failure in failures.items():
            self._lost(url, failure)
        return completions

    def _completion(self, url: str, request: SamplingRequest, params: SamplingParams) -> Completion:
        body = {
            "model": self._label if self.lora and self.path is not None else None,
            "token_ids": request.prompt,
            "sampling_params": vllm_params(
                params, stop_ids=self.chat.stop_ids, seed=request.seed, padding=self.padding
            ),
            # The salt separates the prefix caches of different versions of the weights.
            "cache_salt": self._label,
        }
        with _answers_like_vllm(url):
            (choice,) = self._call(url, "POST", "/inference/v1/generate", body)["choices"]
            return self._checked(url, choice, params.max_tokens)

    def _checked(self, url: str, choice: Mapping[str, Any], max_tokens: int) -> Completion:
        """Check an answer's weights and log-probabilities and return it as a completion."""
        if choice["finish_reason"] not in ("stop", "length"):
            raise Failed(f"ended a completion with {choice['finish_reason']!r}")
        versions = {span["version"] for span in choice["weight_versions"]}
        # The adapter's name is its version. Its base must be the weights that the server was started with.
        if self.lora and versions != {UNTOUCHED}:
            raise SamplerError(
                f"sampler {url} holds other weights ({', '.join(sorted(versions))}) than the model that the adapter "
                "belongs to: start it again"
            )
        if not self.lora and versions != {self._label}:
            raise Failed(f"sampled from weights {', '.join(sorted(versions))}, not {self._label}")
        content = choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != choice["token_ids"]:
            raise Failed("gave log-probabilities of other tokens than it sampled")
        return checked_completion(
            choice["token_ids"],
            [entry["logprob"] for entry in content],
            stop_ids=self.chat.stop_ids,
            max_tokens=max_tokens,
            engine=f"sampler {url}",
        )

    def _call(self, url: str, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send one request; returns the server's answer.

        Raises:
            Failed: the server cannot be reached, closes the connection, or has an internal error.
            SamplerError: it refuses the request, and will refuse it again.
        """
        try:
            reply = exchange(
                self._session,
                verb,
                url + path,
                body=body,
                key=self.authorization.get(url, ""),
                timeout=self.config.timeout,
            )
        except Unusable as unusable:
            raise Failed(str(unusable), late=unusable.late) from unusable
        if reply.ok:
            return json.loads(reply.text) if reply.text.startswith(("{", "[")) else reply.text
        # 404 for an adapter's name: the server was restarted and no longer has the adapter.
        if reply.status in AGAIN or (reply.status == 404 and path.startswith("/inference") and self.lora):
            raise Failed(f"failed with {reply.status} at {path}: {reply.reason}")
        raise SamplerError(f"sampler {url} refuses {path} ({reply.status}): {reply.reason}{_hint(path, reply.status)}")


@contextmanager
def _answers_like_vllm(url: str) -> Iterator[None]:
    """Report an answer in another format: a web page, truncated JSON, a missing key.

    Raises:
        SamplerError: names the server and what its answer lacks.
    """
    try:
        yield
    except (KeyError, TypeError, *UNREADABLE) as error:
        raise SamplerError(
            f"sampler {url} answers otherwise than vLLM 0.32 does ({type(error).__name__}: {error})"
        ) from error


LOAD_ADAPTER = "/v1/load_lora_adapter"
UNTOUCHED = "default"
"""vLLM's label of the weights that a server was started with."""


def _hint(path: str, code: int) -> str:
    hint = HINTS.get(urlsplit(path).path)
    return f"; it {hint}" if hint and code in (404, 405) else ""
