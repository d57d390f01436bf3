"""Sampling with the learner's own transformers model, without another engine or a copy of the weights.

In contrast to ``generate``, completions of a prompt share one prefill, finished rows leave the batch, the cache is
written in place, and the log-probability of every sampled token is returned at no extra cost. Between the turns of
episodes what the model has read is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError, is_full
from selfdistill.models.policy import Policy
from selfdistill.models.prefill import Prefill, closed_up
from selfdistill.models.products import quick_products
from selfdistill.sampling.base import SamplingParams, group_by_prompt
from selfdistill.sampling.conversations import Conversations
from selfdistill.sampling.memory import BatchSizeLimit, empty_cache
from selfdistill.sampling.rng import uniform
from selfdistill.tracking.progress import advance, check_stop, position, rewind
from selfdistill.types import Completion

REPORT_EVERY = 16
"""Tokens between two progress reports of a batch. Counting finished rows waits for the device."""
COMPACT_BELOW = 0.95
"""Share of unfinished rows below which finished rows leave the batch. Above it, moving rows in the cache would cost
more than decoding the finished rows."""


class HFSampler:
    """Samples completions from a :class:`~selfdistill.models.policy.Policy`."""

    def __init__(
        self,
        policy: Policy,
        *,
        stop_ids: Sequence[int],
        max_batch_size: int | BatchSizeLimit = 512,
        conversations: Conversations | None = None,
    ) -> None:
        """``stop_ids`` end a completion. ``max_batch_size`` bounds the completions that are decoded at once.

        ``conversations`` keeps what the model has read from one call to the next.
        """
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.limit = max_batch_size if isinstance(max_batch_size, BatchSizeLimit) else BatchSizeLimit(max_batch_size)
        self.conversations = conversations

    def in_turns(self) -> HFSampler:
        """A sampler of the turns of episodes that are played together: what it has read is not read again.

        Use it for as long as the weights stay the same.
        """
        if not self.policy.continues:
            return self
        kept = Conversations()
        return HFSampler(self.policy, stop_ids=self.stop_ids, max_batch_size=self.limit, conversations=kept)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt, in order.

        Log-probabilities are the model's own at temperature 1 whatever the parameters, because training compares with
        them. A completion does not depend on ``max_batch_size`` or on the rest of the batch.
        """
        seeds = params.seeds(len(prompts))
        # Prompts of one length need no padding. A model that decodes padded prompts wrongly gets one batch per length.
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batches = [order] if self.policy.pads else [list(same) for _, same in groupby(order, lambda i: len(prompts[i]))]
        if (kept := self.conversations) is not None:
            kept.keeps = self.limit.keeps_turns and len(prompts) * params.count <= self.limit.value
            # Conversations that go on are one batch, and what is new is another: it has more to read.
            read = {i for i in order if kept.knows(prompts[i])}
            batches = [[i for i in order if i in read], [i for i in order if i not in read]]
            order = [*batches[0], *batches[1]]
        sampled: list[Completion] = []
        with self.policy.unsharded(), quick_products(self.policy.model):
            for batch in filter(None, batches):
                batch_seeds = [seed for i in batch for seed in seeds[i]]
                sampled += self._within_memory([prompts[i] for i in batch], batch_seeds, params)
        if kept is not None:
            kept.end_turn()
        rows = dict(zip(order, group_by_prompt(sampled, params.count), strict=True))
        return [rows[i] for i in range(len(prompts))]

    def _within_memory(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Completion]:
        """One completion per seed, with equally many seeds per prompt. Halves the batch when memory runs out."""
        if len(seeds) <= self.limit.value or len(seeds) == 1:
            check_stop()
            before = position()
            try:
                # inference_mode is faster than no_grad, but FSDP2 keeps tensors made here for later passes.
                with torch.inference_mode(not self.policy.sharded):
                    return self._sample_batch(prompts, seeds, params)
            except (RuntimeError, MemoryError) as error:
                if len(seeds) == 1 or not is_full(error):
                    raise
            # Outside the except block, so that the error has released the tensors of its traceback.
            rewind(before)
            # What is kept of conversations is the first to go; without it the batch may fit as it is.
            if self.conversations is not None and self.conversations.clear():
                self.limit.forget_turns()
                empty_cache(self.policy.device)
                return self._within_memory(prompts, seeds, params)
            self.limit.halve(len(seeds))
            empty_cache(self.policy.device)
        if len(prompts) > 1:
            middle = (len(prompts) + 1) // 2
            cut = middle * (len(seeds) // len(prompts))
            halves = (prompts[:middle], seeds[:cut]), (prompts[middle:], seeds[cut:])
        else:
            cut = (len(seeds) + 1) // 2
            halves = (prompts, seeds[:cut]), (prompts, seeds[cut:])
        return [
            completion
            for half_prompts, half_seeds in halves
            for completion in self._within_memory(half_prompts, half_seeds, params)
        ]

    def _sample_batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Completion]:
        device, rows, max_tokens = self.policy.device, len(seeds), params.max_tokens
        stops = torch.tensor(self.stop_ids, device=device)
        # Read the prompts, or what follows in conversations that were read before.
        count, kept = rows // len(prompts), self.conversations
        known = kept.take(prompts) if kept is not None and count == 1 else None
        if known is None:
            state = Prefill.of(self.policy, prompts, count)
        else:
            following = [prompt[row.length :] for prompt, row in zip(prompts, known, strict=True)]
            state = Prefill.continued(self.policy, known, following)
        seed_B = torch.tensor(seeds, device=device)
        ids_BT = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
        logprob_BT = torch.zeros(rows, max_tokens, dtype=torch.float64, device=device)
        length_B = torch.full((rows,), max_tokens, device=device)
        done_B = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)
        logprobs, reported = state.logprobs, (0, 0)
        for t in range(max_tokens):
            token = sample_token(logprobs, params, uniform(seed_B[alive], t))
            ids_BT[alive, t] = token
            logprob_BT[alive, t] = logprobs.gather(-1, token[:, None]).squeeze(-1).double()
            stopped = torch.isin(token, stops) & ~done_B[alive]
            length_B[alive[stopped]] = t + 1
            done_B[alive[stopped]] = True
            going = ~done_B[alive]
            # What was read of a conversation waits for its next turn. The token that ends this one is not read yet.
            if kept is not None and kept.keeps:
                for at in stopped.nonzero().flatten().tolist():
                    row = int(alive[at])
                    read = (*prompts[row // count], *ids_BT[row, :t].tolist())
                    kept.add(read, state.row(at, len(read)))
            if t % REPORT_EVERY == 0:
                reported = _report(reported, length_B, done_B, t + 1)
            if not going.any() or t + 1 == max_tokens:
                break
            if going.float().mean() < COMPACT_BELOW:
                rows_left = closed_up(going)
                state.keep(rows_left)
                alive, token = alive[rows_left], token[rows_left]
            logprobs = state.advance(token)
        if logprob_BT.isnan().any():
            raise ModelError(
                "the model gives probabilities that are not numbers: its weights are broken, or too large for its dtype"
            )
        _report(reported, length_B, torch.ones_like(done_B), max_tokens)
        return _completions(ids_BT, logprob_BT, length_B, done_B)


def _report(reported: tuple[int, int], length_B: Tensor, done_B: Tensor, length: int) -> tuple[int, int]:
    """Report the completions and tokens of a batch beyond those ``reported`` before; returns the new counts."""
    counts = int(done_B.sum()), int(length_B.clamp_max(length).sum())
    advance(counts[0] - reported[0], tokens=counts[1] - reported[1])
    return counts


def policy_sampler(policy: Policy, chat: Chat, *, max_batch_size: int | BatchSizeLimit = 512) -> HFSampler:
    """The sampler of a policy that stops where its chat template ends a turn."""
    return HFSampler(policy, stop_ids=chat.stop_ids, max_batch_size=max_batch_size)


def sample_token(logprobs_BV: Tensor, params: SamplingParams, uniform_B: Tensor) -> Tensor:
    """Sample one token id per row by inverting the cumulative probabilities at a uniform number in [0, 1)."""
    if params.temperature == 0:
        return logprobs_BV.argmax(-1)
    scaled = torch.log_softmax(logprobs_BV / params.temperature, -1)
    if params.top_k:
        lowest = scaled.topk(min(params.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < lowest, float("-inf"))
    if params.top_p < 1:
        ordered, index = scaled.softmax(-1).sort(-1, descending=True)
        # Keep the token that crosses the threshold: the nucleus is the smallest set with at least that mass.
        beyond = ordered.cumsum(-1) - ordered >= params.top_p
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), float("-inf"))
    cumulative = scaled.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding must not bring the number up to the total: the sampled token needs a probability above 0.
    threshold = (uniform_B[:, None].to(total.dtype) * total).minimum(total.nextafter(torch.zeros_like(total)))
    # With NaN probabilities the search returns an index past the vocabulary, which would crash a CUDA process.
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(cumulative.shape[-1] - 1)


def _completions(ids_BT: Tensor, logprob_BT: Tensor, length_B: Tensor, done_B: Tensor) -> list[Completion]:
    return [
        Completion(tuple(ids[:length]), tuple(logprobs[:length]), done)
        for ids, logprobs, length, done in zip(
            ids_BT.tolist(), logprob_BT.tolist(), length_B.tolist(), done_B.tolist(), strict=True
        )
    ]
