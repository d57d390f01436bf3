"""Sampling with the learner's own transformers model, without another engine or a copy of the weights.

In contrast to ``generate``, completions of a prompt share one prefill, finished rows leave the batch, the cache is
written in place, and the log-probability of every sampled token is returned at no extra cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from selfdistill.errors import ModelError, is_full
from selfdistill.models.policy import Policy
from selfdistill.models.prefill import Prefill, closed_up
from selfdistill.sampling.memory import Rows, give_back
from selfdistill.sampling.rng import uniform
from selfdistill.seeds import derive
from selfdistill.types import Completion

COMPACT_BELOW = 0.95
"""Share of unfinished rows below which finished rows leave the batch. Above it, moving rows in the cache would cost
more than decoding the finished rows."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding parameters. Temperature 0 is greedy; ``top_k`` 0 and ``top_p`` 1 do not truncate the distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class HFSampler:
    """Samples completions from a :class:`~selfdistill.models.policy.Policy`."""

    def __init__(
        self, policy: Policy, *, stop_ids: Sequence[int], decoding: Decoding | None = None, max_rows: int | Rows = 512
    ) -> None:
        """``decoding`` None samples from the model's own distribution. ``max_rows`` is the maximum batch size."""
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.decoding = decoding or Decoding()
        self.rows = max_rows if isinstance(max_rows, Rows) else Rows(max_rows)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        max_tokens: int,
        seed: int,
        ordinals: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """``count`` completions of at most ``max_tokens`` tokens for every prompt, in order.

        Log-probabilities are the model's own at temperature 1 for any decoding, because training compares with them.
        The random numbers of a completion are a function of the seed, its prompt's ordinal and its index among the
        prompt's completions. A completion therefore does not depend on ``max_rows`` or on the rest of the batch.
        """
        ordinals = range(len(prompts)) if ordinals is None else ordinals
        # Prompts of one length need no padding. A model that decodes padded prompts wrongly gets one batch per length.
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        batches = [order] if self.policy.pads else [list(same) for _, same in groupby(order, lambda i: len(prompts[i]))]
        drawn: list[Completion] = []
        with self.policy.whole():
            for batch in filter(None, batches):
                seeds = [derive(seed, ordinals[i], k) for i in batch for k in range(count)]
                drawn += self._within_memory([prompts[i] for i in batch], seeds, max_tokens)
        results = {i: drawn[place * count : (place + 1) * count] for place, i in enumerate(order)}
        return [results[i] for i in range(len(prompts))]

    def _within_memory(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_tokens: int
    ) -> list[Completion]:
        """One completion per seed, with equally many seeds per prompt. Halves the batch when memory runs out."""
        if len(seeds) <= self.rows.most or len(seeds) == 1:
            try:
                # inference_mode is faster than no_grad, but FSDP2 keeps tensors made here for later passes.
                with torch.inference_mode(not self.policy.sharded):
                    return self._sample_batch(prompts, seeds, max_tokens)
            except (RuntimeError, MemoryError) as error:
                if len(seeds) == 1 or not is_full(error):
                    raise
            # Outside the except block, so that the error has released the tensors of its traceback.
            self.rows.halve(len(seeds))
            give_back(self.policy.device)
        if len(prompts) > 1:
            middle = (len(prompts) + 1) // 2
            cut = middle * (len(seeds) // len(prompts))
            halves = (prompts[:middle], seeds[:cut]), (prompts[middle:], seeds[cut:])
        else:
            cut = (len(seeds) + 1) // 2
            halves = (prompts, seeds[:cut]), (prompts, seeds[cut:])
        return [one for shown, some in halves for one in self._within_memory(shown, some, max_tokens)]

    def _sample_batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_tokens: int
    ) -> list[Completion]:
        device, rows = self.policy.device, len(seeds)
        stops = torch.tensor(self.stop_ids, device=device)
        state = Prefill.of(self.policy, prompts, rows // len(prompts))
        seed_B = torch.tensor(seeds, device=device)
        ids_BT = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
        logprob_BT = torch.zeros(rows, max_tokens, dtype=torch.float64, device=device)
        length_B = torch.full((rows,), max_tokens, device=device)
        done_B = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)
        logprobs = state.logprobs
        for t in range(max_tokens):
            token = draw(logprobs, self.decoding, uniform(seed_B[alive], t))
            ids_BT[alive, t] = token
            logprob_BT[alive, t] = logprobs.gather(-1, token[:, None]).squeeze(-1).double()
            stopped = torch.isin(token, stops) & ~done_B[alive]
            length_B[alive[stopped]] = t + 1
            done_B[alive[stopped]] = True
            going = ~done_B[alive]
            if not going.any() or t + 1 == max_tokens:
                break
            if going.float().mean() < COMPACT_BELOW:
                kept = closed_up(going)
                state.keep(kept)
                alive, token = alive[kept], token[kept]
            logprobs = state.advance(token)
        if logprob_BT.isnan().any():
            raise ModelError(
                "the model gives probabilities that are not numbers: its weights are broken, or too large for its dtype"
            )
        return _completions(ids_BT, logprob_BT, length_B, done_B)


def draw(logprobs_BV: Tensor, decoding: Decoding, uniform_B: Tensor) -> Tensor:
    """Sample one token id per row by inverting the cumulative probabilities at a uniform number in [0, 1)."""
    if decoding.temperature == 0:
        return logprobs_BV.argmax(-1)
    scaled = torch.log_softmax(logprobs_BV / decoding.temperature, -1)
    if decoding.top_k:
        lowest = scaled.topk(min(decoding.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < lowest, float("-inf"))
    if decoding.top_p < 1:
        ordered, index = scaled.softmax(-1).sort(-1, descending=True)
        # Keep the token that crosses the threshold: the nucleus is the smallest set with at least that mass.
        beyond = ordered.cumsum(-1) - ordered >= decoding.top_p
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), float("-inf"))
    cumulative = scaled.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding must not bring the number up to the total: the sampled token needs a probability above 0.
    wanted = (uniform_B[:, None].to(total.dtype) * total).minimum(total.nextafter(torch.zeros_like(total)))
    # With NaN probabilities the search returns an index past the vocabulary, which would crash a CUDA process.
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp_max(cumulative.shape[-1] - 1)


def _completions(ids_BT: Tensor, logprob_BT: Tensor, length_B: Tensor, done_B: Tensor) -> list[Completion]:
    return [
        Completion(tuple(ids[:length]), tuple(logprobs[:length]), done)
        for ids, logprobs, length, done in zip(
            ids_BT.tolist(), logprob_BT.tolist(), length_B.tolist(), done_B.tolist(), strict=True
        )
    ]
