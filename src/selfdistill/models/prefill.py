"""Decoding with a cache: every prompt is run once, its row repeated, and rows leave as their completions end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer


class Decoder(Protocol):
    """What decoding asks of a model."""

    @property
    def causal_lm(self) -> Any:
        """The transformers model."""

    device: torch.device

    def next_token(self, ids_BL: Tensor, mask_BL: Tensor | None, position_BL: Tensor, cache: Any) -> Tensor:
        """Log-probabilities [B, V] of what follows the last of these ids, which are appended to the cache."""


class Prefill:
    """A batch in the middle of decoding: cache, mask, and the distribution of the next token."""

    def __init__(self, model: Decoder, ids_PL: Tensor, mask_PL: Tensor | None, position_PL: Tensor) -> None:
        self.model = model
        self.mask_BL = mask_PL
        self.position_B = position_PL[:, -1] + 1
        self.cache = new_cache(model.causal_lm.config)
        # A state that holds no keys has forgotten the pads: only the prompt needs its mask, and Mamba would spread a
        # later token over the mask's whole length.
        self.mask_once = not keeps_keys(self.cache)
        self.logprobs = model.next_token(ids_PL, mask_PL, position_PL, self.cache)

    @classmethod
    def of(cls, model: Decoder, prompts: Sequence[Sequence[int]], count: int) -> Prefill:
        """Run every prompt once, then repeat its row for each of its completions."""
        device, longest = model.device, max(len(prompt) for prompt in prompts)
        ids_PL = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        length_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask_PL = torch.arange(longest, device=device)[None] >= longest - length_P[:, None]
        padded = not bool(mask_PL.all())
        position_PL = (mask_PL.cumsum(-1) - 1).clamp_min(0)
        state = cls(model, ids_PL, mask_PL if padded else None, position_PL)
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
        mask_BL = None if self.mask_once else self.mask_BL
        logprobs = self.model.next_token(token_B[:, None], mask_BL, self.position_B[:, None], self.cache)
        self.position_B = self.position_B + 1
        return logprobs


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this config, whose layers are written in place where that is known to be right."""
    cache = DynamicCache(config=config.get_text_config())
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_keys(cache: DynamicCache) -> bool:
    """Whether any layer keeps the keys of earlier tokens. The others keep a state of one size."""
    return any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


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
        if not self.is_initialized:
            return
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
