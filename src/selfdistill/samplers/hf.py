"""Sampling with the learner's own transformers model: no other engine, no copy of the weights.

What it does that ``generate`` does not: a prompt's completions share one prefill, finished rows leave the batch, the
cache is written in place, and the log-probability of every sampled token comes back for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from selfdistill.errors import ModelError
from selfdistill.memory import is_full
from selfdistill.policy import Policy
from selfdistill.samplers.room import Rows, give_back
from selfdistill.samplers.uniform import uniform
from selfdistill.seeds import derive
from selfdistill.types import Completion

COMPACT_BELOW = 0.95
"""Share of unfinished rows under which finished ones leave the batch: so few at a time that moving others into their
places costs less than decoding them on."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the next token is drawn: temperature 0 is greedy, ``top_k`` 0 and ``top_p`` 1 leave it whole."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class HFSampler:
    """Draws completions from a :class:`~selfdistill.policy.Policy`."""

    def __init__(
        self, policy: Policy, *, stop_ids: Sequence[int], decoding: Decoding | None = None, max_rows: int | Rows = 512
    ) -> None:
        """``decoding`` unset: the model's own distribution. ``max_rows`` completions are decoded at once."""
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

        Log-probabilities are the model's own at temperature 1, whatever the decoding: they are what training compares
        with. Every completion has random numbers of its own, named by the seed, its prompt's ordinal and its place
        among the prompt's completions: what it says does not depend on ``max_rows`` or on who is drawn beside it.
        """
        ordinals = range(len(prompts)) if ordinals is None else ordinals
        # Prompts of one length need no padding and no mask.
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        seeds = [derive(seed, ordinals[i], k) for i in order for k in range(count)]
        with self.policy.whole():
            drawn = self._within_memory([prompts[i] for i in order], seeds, max_tokens) if order else []
        results = {i: drawn[place * count : (place + 1) * count] for place, i in enumerate(order)}
        return [results[i] for i in range(len(prompts))]

    def _within_memory(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_tokens: int
    ) -> list[Completion]:
        """A completion for each seed, as many seeds for every prompt; in halves, where they are too many at once."""
        if len(seeds) <= self.rows.most or len(seeds) == 1:
            try:
                # Cheaper than no_grad in every operation; shards keep what was made of them beyond sampling.
                with torch.inference_mode(not self.policy.sharded):
                    return self._sample_batch(prompts, seeds, max_tokens)
            except (RuntimeError, MemoryError) as error:
                if len(seeds) == 1 or not is_full(error):
                    raise
            # Here the error is gone, and what it held with it.
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
        state = _Prefill.of(self.policy, prompts, rows // len(prompts))
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
    """One token id per row: where a uniform number in [0, 1) falls among the row's cumulative probabilities."""
    if decoding.temperature == 0:
        return logprobs_BV.argmax(-1)
    scaled = torch.log_softmax(logprobs_BV / decoding.temperature, -1)
    if decoding.top_k:
        lowest = scaled.topk(min(decoding.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < lowest, float("-inf"))
    if decoding.top_p < 1:
        ordered, index = scaled.softmax(-1).sort(-1, descending=True)
        # The token that crosses the threshold stays: the nucleus is the smallest set with at least that mass.
        beyond = ordered.cumsum(-1) - ordered >= decoding.top_p
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(-1, index, beyond), float("-inf"))
    cumulative = scaled.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total also where rounding says otherwise, so that the token found has a probability above 0.
    wanted = (uniform_B[:, None].to(total.dtype) * total).minimum(total.nextafter(torch.zeros_like(total)))
    # Nothing lies above a number that is none; an id beyond the vocabulary would end a GPU's process.
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp_max(cumulative.shape[-1] - 1)


class _Prefill:
    """A batch in the middle of decoding: cache, mask, and the distribution of the next token."""

    def __init__(
        self, policy: Policy, cache: DynamicCache, mask_BL: Tensor | None, position_B: Tensor, logprobs: Tensor
    ):
        self.policy = policy
        self.cache = cache
        self.mask_BL = mask_BL
        self.position_B = position_B
        self.logprobs = logprobs

    @classmethod
    def of(cls, policy: Policy, prompts: Sequence[Sequence[int]], count: int) -> _Prefill:
        """Run every prompt once, then repeat its row for each of its completions."""
        device, longest = policy.device, max(len(prompt) for prompt in prompts)
        ids_PL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        length_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask_PL = torch.arange(longest, device=device)[None] >= longest - length_P[:, None]
        padded = not bool(mask_PL.all())
        cache = DynamicCache(config=policy.causal_lm.config.get_text_config())
        cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        position_PL = (mask_PL.cumsum(-1) - 1).clamp_min(0)
        mask = mask_PL if padded else None
        state = cls(policy, cache, mask, length_P, policy.next_token(ids_PL, mask, position_PL, cache))
        rows = torch.arange(len(prompts), device=device).repeat_interleave(count)
        state.keep(rows)
        state.logprobs = state.logprobs[rows]
        return state

    def keep(self, rows: Tensor) -> None:
        """Select (or repeat) rows of everything."""
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask_BL = self.mask_BL[rows] if self.mask_BL is not None else None
        self.position_B = self.position_B[rows]

    def advance(self, token_B: Tensor) -> Tensor:
        """Feed one token per row; returns the next log-probabilities [B, V]."""
        if self.mask_BL is not None:
            self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(token_B), 1)], 1)
        logprobs = self.policy.next_token(token_B[:, None], self.mask_BL, self.position_B[:, None], self.cache)
        self.position_B = self.position_B + 1
        return logprobs


class InPlaceLayer(DynamicLayer):
    """A cache layer that writes into spare room instead of copying itself at every token."""

    spare = 64

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.room_keys, self.room_values = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self.values = self.room_keys, self.room_values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append key and value states [B, heads, new, dim]; returns all of them as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]  # type: ignore[union-attr]
        end = start + key_states.shape[-2]
        if end > self.room_keys.shape[-2]:
            self.room_keys = self._grown(self.keys, key_states, end)
            self.room_values = self._grown(self.values, value_states, end)
        self.room_keys[:, :, start:end] = key_states
        self.room_values[:, :, start:end] = value_states
        self.keys, self.values = self.room_keys[:, :, :end], self.room_values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows, spare room included; where they become fewer, only those that change their place are copied."""
        end = self.keys.shape[-2]  # type: ignore[union-attr]
        self.room_keys = _selected(self.room_keys, beam_idx, end)
        self.room_values = _selected(self.room_values, beam_idx, end)
        self.keys, self.values = self.room_keys[:, :, :end], self.room_values[:, :, :end]

    def _grown(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        batch, heads, _, dim = new.shape
        room = new.new_empty(batch, heads, end + max(self.spare, end // 2), dim)
        if old is not None and old.shape[-2]:
            room[:, :, : old.shape[-2]] = old
        return room


def closed_up(going_B: Tensor) -> Tensor:
    """Which rows to keep, in an order that moves few of them: the last ones take the places of those that are done."""
    kept = int(going_B.sum())
    rows = torch.arange(kept, device=going_B.device)
    rows[~going_B[:kept]] = going_B[kept:].nonzero().squeeze(-1) + kept
    return rows


def _selected(room_BHLD: Tensor, rows: Tensor, end: int) -> Tensor:
    """Rows of a cache's room, which is full up to ``end``."""
    if len(rows) > len(room_BHLD):
        return room_BHLD.index_select(0, rows)
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
    # What is read is copied before anything is written, so rows may change places with one another.
    room_BHLD[moved, :, :end] = room_BHLD[rows[moved], :, :end]
    return room_BHLD[: len(rows)]


def _completions(ids_BT: Tensor, logprob_BT: Tensor, length_B: Tensor, done_B: Tensor) -> list[Completion]:
    return [
        Completion(tuple(ids[:length]), tuple(logprobs[:length]), done)
        for ids, logprobs, length, done in zip(
            ids_BT.tolist(), logprob_BT.tolist(), length_B.tolist(), done_B.tolist(), strict=True
        )
    ]
