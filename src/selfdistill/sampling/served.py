"""Sampling from servers that hold the weights already: any that return token ids and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import torch

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy
from selfdistill.models.served import ServedModel, Unanswered
from selfdistill.sampling.base import SamplingParams, group_by_prompt
from selfdistill.sampling.requests import SamplingRequest, checked_completion, padding_rows, sampling_requests
from selfdistill.tracking.progress import advance
from selfdistill.types import Completion, RoutedPrompt, SequenceBatch, Server, Weights

SAME = 0.1
"""Nats a token by which the log-probabilities of the same weights differ at most, as for the alarm ``sampler_gap``."""
PROBED_PROMPTS = 2
PROBED_TOKENS = 16


class ServedSampler:
    """Samples from servers as they are. Their weights are compared with those that they should have, not replaced."""

    def __init__(
        self,
        servers: Sequence[ServedModel],
        chat: Chat,
        *,
        concurrency: int,
        log: Callable[[str], None],
    ) -> None:
        """``servers`` hold the same model. ``concurrency`` bounds the requests that one of them has at a time."""
        self.servers = list(servers)
        self.chat = chat
        self.concurrency = concurrency
        self.log = log
        self.padding = range(0)
        self._lost: list[ServedModel] = []
        self._lock = Lock()
        self._unchecked: Policy | None = None

    @property
    def synced(self) -> int:
        """0: nothing is sent."""
        return 0

    def update(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> None:
        """Name the weights that the servers should have. The next :meth:`sample` compares a few log-probabilities."""
        self.padding = padding_rows(policy)
        self._unchecked = policy

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt.

        A server that fails after all retries is left out from then on, and the others take its requests.

        Raises:
            SamplerError: a server has other weights, refuses a request, or none answers after all retries.
        """
        if self._unchecked is not None and prompts:
            for server in self._left():
                try:
                    self._check_weights(server, self._unchecked, prompts[:PROBED_PROMPTS], params.max_tokens)
                except Unanswered as error:
                    if not self._lose(server, error):
                        raise
            self._unchecked = None
        requests = sampling_requests(prompts, params)
        completions = []
        with ThreadPoolExecutor(self.concurrency * len(self.servers)) as pool:
            turns = range(len(requests))
            for completion in pool.map(lambda turn: self._complete(turn, requests[turn], params), turns):
                advance(1, tokens=len(completion.ids))
                completions.append(completion)
        return group_by_prompt(completions, params.count)

    def close(self) -> None:
        """Close the connections. The servers keep running."""
        for server in self.servers:
            server.close()

    def _complete(self, turn: int, request: SamplingRequest, params: SamplingParams) -> Completion:
        """One completion, of the next server if one has failed."""
        while True:
            left = self._left()
            server = left[turn % len(left)]
            try:
                return self._completion(server, request, params)
            except Unanswered as error:
                if not self._lose(server, error):
                    raise

    def _left(self) -> list[ServedModel]:
        """The servers that have not failed. There always is one."""
        return [server for server in self.servers if server not in self._lost]

    def _lose(self, server: ServedModel, error: Unanswered) -> bool:
        """Leave a server out from here on, unless it is the last one; returns whether others are left."""
        with self._lock:
            if server in self._lost:
                return True
            if len(self._lost) + 1 == len(self.servers):
                return False
            self._lost.append(server)
            self.log(f"{error}; from here on the other servers take its requests")
            return True

    def _completion(self, server: ServedModel, request: SamplingRequest, params: SamplingParams) -> Completion:
        answer = server.complete(
            request.prompt,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=request.seed,
            stop_ids=self.chat.stop_ids,
            padding=self.padding,
        )
        # A server that knows no stop ids goes on past them. What it sampled up to the first is what others sample.
        stop = next((place for place, token in enumerate(answer.ids) if token in self.chat.stop_ids), None)
        length = len(answer.ids) if stop is None else stop + 1
        if answer.stopped and answer.ids and stop is None:
            raise SamplerError(
                f"server {server.url} ended a completion at token {answer.ids[-1]}, which ends no turn of "
                f"{self.chat.name}: its model or its stop settings differ"
            )
        return checked_completion(
            answer.ids[:length],
            answer.logprobs[:length],
            stop_ids=self.chat.stop_ids,
            max_tokens=params.max_tokens,
            engine=f"server {server.url}",
        )

    def _check_weights(
        self, server: ServedModel, policy: Policy, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> None:
        """Compare the log-probabilities of a few sampled tokens with the policy's own."""
        gaps: list[float] = []
        for prompt in prompts:
            # At temperature 1, because SGLang's log-probabilities are those at the sampling temperature.
            answer = server.complete(
                prompt,
                max_tokens=min(max_tokens, PROBED_TOKENS),
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                seed=0,
                stop_ids=self.chat.stop_ids,
                padding=self.padding,
            )
            if answer.ids:
                own = _logprobs(policy, prompt, answer.ids)
                gaps += [abs(mine - theirs) for mine, theirs in zip(own, answer.logprobs, strict=True)]
        if not gaps:
            raise SamplerError(f"server {server.url} sampled no token to compare its weights by")
        gap = sum(gaps) / len(gaps)
        said = f"log-probabilities differ by {gap:.2g} nats a token on {len(gaps)} tokens"
        if not gap <= SAME:
            raise SamplerError(
                f"server {server.url} serves other weights than {self.chat.name}: {said}; serve these weights, or let "
                "them be sent to a vLLM server (VLLM_SERVER_DEV_MODE=1 and --enable-scale-out)"
            )
        self.log(f"server {server.url} has the weights of {self.chat.name}: {said}")


class TeacherSampler:
    """Samples from the servers of a teacher: from the one that reads a prompt, if there are several."""

    def __init__(
        self,
        servers: Mapping[Server, ServedModel],
        kind: Server,
        chat: Chat,
        *,
        concurrency: int,
        log: Callable[[str], None],
    ) -> None:
        """``concurrency`` bounds the requests that a server has at a time."""
        self.kind = kind
        self.samplers = {
            server: ServedSampler([servers[server]], chat, concurrency=concurrency, log=log) for server in kind.each
        }

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt, in order, each under its own ordinal.

        Raises:
            SamplerError: as for :meth:`ServedSampler.sample`.
        """
        readers = [prompt.teacher if isinstance(prompt, RoutedPrompt) else self.kind for prompt in prompts]
        ordinals = range(len(prompts)) if params.ordinals is None else params.ordinals
        rows: dict[int, list[Completion]] = {}
        for server, sampler in self.samplers.items():
            places = [place for place, reader in enumerate(readers) if reader == server]
            own = replace(params, ordinals=[ordinals[place] for place in places])
            rows.update(zip(places, sampler.sample([prompts[place] for place in places], own), strict=True))
        return [rows[place] for place in range(len(prompts))]


def _logprobs(policy: Policy, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
    """The policy's log-probabilities of a completion."""
    if max(ids) >= policy.vocab_size:
        return [float("nan")] * len(ids)
    columns = torch.arange(len(prompt) - 1, len(prompt) + len(ids) - 1)
    batch = SequenceBatch(torch.tensor([[*prompt, *ids]]), torch.zeros_like(columns), columns, torch.tensor(list(ids)))
    scores = policy.score(batch, max_logits_per_chunk=1 << 24)
    return [float(number) for number in scores.target_N.tolist()]
