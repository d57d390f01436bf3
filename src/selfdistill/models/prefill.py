"""Decoding with a key-value cache: each prompt is run once for all of its rows; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from selfdistill.models.shared_prompts import DEVICES, DTYPES, SHARE_FROM, SharedPrompts


class Decoder(Protocol):
    """The attributes of a model that decoding uses."""

    @property
    def causal_lm(self) -> Any:
        """The transformers model."""

    device: torch.device
    shares: bool

    def next_token(
        self,
        ids_BL: Tensor,
        mask_BL: Tensor | None,
        position_BL: Tensor,
        cache: Any,
        prompts: SharedPrompts | None = None,
    ) -> Tensor:
        """Log-probabilities [B, V] of the next token after these ids. Appends the ids to the cache."""


@dataclass(frozen=True, slots=True)
class KeptRow:
    """What a model has read of one row: keys and values [heads, length, dim] of every layer, without padding."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """Tokens that were read."""
        return self.layers[0][0].shape[-2]


class Prefill:
    """State of a batch that is being decoded: cache, mask, positions, log-probabilities of the next token."""

    def __init__(
        self,
        model: Decoder,
        ids_PL: Tensor,
        mask_PL: Tensor | None,
        position_PL: Tensor,
        cache: DynamicCache | None = None,
    ) -> None:
        """Run the ids. ``cache`` has what was read before them; the mask then covers it too."""
        self.model = model
        self.mask_BL = mask_PL
        self.position_B = position_PL[:, -1] + 1
        self.cache = cache or new_cache(model.causal_lm.config)
        self.prompts: SharedPrompts | None = None
        # Without keys in the cache, only the prompt needs a mask. Given one later, Mamba would broadcast the new token
        # over the mask's whole length.
        self.mask_prompt_only = not keeps_keys(self.cache)
        self.logprobs = model.next_token(ids_PL, mask_PL, position_PL, self.cache)

    @classmethod
    def of(
        cls, model: Decoder, prompts: Sequence[Sequence[int]], count: int, *, share_from: int | None = None
    ) -> Prefill:
        """Run each prompt once, then go on from it in ``count`` rows, one per completion.

        If the model can share and the longest prompt has ``share_from`` tokens, rows share what was read of their
        prompt; else each has a copy. None: from where sharing is faster. Equal prompts are one, as those of a group's
        episodes before their first turn.
        """
        device, row_of = model.device, dict[tuple[int, ...], int]()
        for prompt in prompts:
            row_of.setdefault(tuple(prompt), len(row_of))
        ids_PL, mask_PL = left_padded(list(row_of), device)
        padded = not bool(mask_PL.all())
        position_PL = (mask_PL.cumsum(-1) - 1).clamp_min(0)
        state = cls(model, ids_PL, mask_PL if padded else None, position_PL)
        rows = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device).repeat_interleave(count)
        layers: Any = state.cache.layers
        long = ids_PL.shape[1] >= (SHARE_FROM if share_from is None else share_from)
        if (
            long
            and len(rows) > len(row_of)
            and model.shares
            and keeps_all(state.cache)
            and layers[0].keys.device.type in DEVICES
            and layers[0].keys.dtype in DTYPES
        ):
            # The prompts stay as they were read, and the rows begin a cache of their own.
            state.prompts = SharedPrompts([(layer.keys, layer.values) for layer in layers], state.mask_BL, rows)
            state.cache, state.mask_BL = new_cache(model.causal_lm.config), None
            state.position_B = state.position_B[rows]
        else:
            state.keep(rows)
        state.logprobs = state.logprobs[rows]
        return state

    @classmethod
    def continued(cls, model: Decoder, kept: Sequence[KeptRow], following: Sequence[Sequence[int]]) -> Prefill:
        """Go on with rows that were read before: run the ids that follow, at least one in each row.

        What was read is padded on its left and what follows on its own left, so padding may stand between the two.
        """
        device = model.device
        ids_BN, mask_BN = left_padded(following, device)
        length_B = torch.tensor([row.length for row in kept], device=device)
        longest = int(length_B.max())
        past_BP = torch.arange(longest, device=device)[None] >= longest - length_B[:, None]
        cache = new_cache(model.causal_lm.config)
        layers: Any = cache.layers
        for index, layer in enumerate(layers):
            layer.update(*(_stacked([row.layers[index][part] for row in kept], longest) for part in (0, 1)))
        position_BN = length_B[:, None] + (mask_BN.cumsum(-1) - 1).clamp_min(0)
        return cls(model, ids_BN, torch.cat([past_BP, mask_BN], 1), position_BN, cache)

    def row(self, index: int, length: int) -> KeptRow:
        """A copy of what the model has read of a row, up to ``length`` tokens. See :func:`keeps_all`."""
        if self.prompts is not None:
            return KeptRow(tuple(self._own(index, layer, length) for layer in range(len(self.cache.layers))))
        mask = None if self.mask_BL is None else self.mask_BL[index].nonzero().squeeze(-1)[:length]
        columns: Any = slice(0, length) if mask is None else mask
        layers: Any = self.cache.layers
        return KeptRow(
            tuple((each.keys[index][:, columns].clone(), each.values[index][:, columns].clone()) for each in layers)
        )

    def _own(self, index: int, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer for a row's prompt and what was read after it, up to ``length`` tokens."""
        assert self.prompts is not None
        layers: Any = self.cache.layers
        before, own = self.prompts.row(index, layer, length), layers[layer]
        if own.keys is None or own.values is None or before[0].shape[1] == length:
            return before[0].clone(), before[1].clone()
        left = length - before[0].shape[1]
        after = own.keys[index][:, :left], own.values[index][:, :left]
        return torch.cat([before[0], after[0]], 1), torch.cat([before[1], after[1]], 1)

    def keep(self, rows: Tensor) -> None:
        """Select or repeat rows of cache, mask and positions."""
        if self.prompts is not None:
            self.prompts.keep(rows)
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        self.mask_BL = self.mask_BL[rows] if self.mask_BL is not None else None
        self.position_B = self.position_B[rows]

    def advance(self, token_B: Tensor) -> Tensor:
        """Feed one token per row; returns the next log-probabilities [B, V]."""
        if self.mask_BL is not None:
            self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(token_B), 1)], 1)
        mask_BL = None if self.mask_prompt_only else self.mask_BL
        logprobs = self.model.next_token(token_B[:, None], mask_BL, self.position_B[:, None], self.cache, self.prompts)
        self.position_B = self.position_B + 1
        return logprobs


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this config. Plain attention layers are written in place."""
    cache = DynamicCache(config=config.get_text_config())
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [B, L] with zeros before the shorter rows, and the mask [B, L] of what is no padding."""
    longest = max(len(row) for row in rows)
    ids_BL = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    length_B = torch.tensor([len(row) for row in rows], device=device)
    return ids_BL, torch.arange(longest, device=device)[None] >= longest - length_B[:, None]


def _stacked(rows: Sequence[Tensor], longest: int) -> Tensor:
    """Rows [heads, length, dim] as [B, heads, longest, dim], with zeros before the shorter ones."""
    heads, _, dim = rows[0].shape
    stacked = rows[0].new_zeros(len(rows), heads, longest, dim)
    for row, own in zip(stacked, rows, strict=True):
        row[:, longest - own.shape[-2] :] = own
    return stacked


def keeps_all(cache: DynamicCache) -> bool:
    """Whether every layer keeps keys and values of all tokens: no window, no state that sums them up."""
    return all(isinstance(layer, InPlaceLayer) for layer in cache.layers)


def keeps_keys(cache: DynamicCache) -> bool:
    """Whether any layer caches the keys of earlier tokens. The other layers keep a state of constant size."""
    return any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


class InPlaceLayer(DynamicLayer):
    """A cache layer with spare capacity, so that appending a token does not copy the whole cache."""

    spare = 64

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.key_buffer, self.value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self.values = self.key_buffer, self.value_buffer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append key and value states [B, heads, new, dim]; returns all of them as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]  # type: ignore[union-attr]
        end = start + key_states.shape[-2]
        if end > self.key_buffer.shape[-2]:
            self.key_buffer = self._grow(self.keys, key_states, end)
            self.value_buffer = self._grow(self.values, value_states, end)
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the buffers. With fewer rows than before, only rows that move are copied."""
        if not self.is_initialized:
            return
        end = self.keys.shape[-2]  # type: ignore[union-attr]
        self.key_buffer = _select_rows(self.key_buffer, beam_idx, end)
        self.value_buffer = _select_rows(self.value_buffer, beam_idx, end)
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]

    def _grow(self, old: Tensor | None, new: Tensor, end: int) -> Tensor:
        batch, heads, _, dim = new.shape
        buffer = new.new_empty(batch, heads, end + max(self.spare, end // 2), dim)
        if old is not None and old.shape[-2]:
            buffer[:, :, : old.shape[-2]] = old
        return buffer


def closed_up(unfinished_B: Tensor) -> Tensor:
    """Rows to keep, ordered so that few move: the last unfinished rows take the indices of finished ones."""
    count = int(unfinished_B.sum())
    rows = torch.arange(count, device=unfinished_B.device)
    rows[~unfinished_B[:count]] = unfinished_B[count:].nonzero().squeeze(-1) + count
    return rows


def _select_rows(buffer_BHLD: Tensor, rows: Tensor, end: int) -> Tensor:
    """Select rows of a buffer that is filled up to ``end``."""
    if len(rows) > len(buffer_BHLD):
        return buffer_BHLD.index_select(0, rows)
    moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(-1)
    # The right-hand side is a copy, so rows may be swapped.
    buffer_BHLD[moved, :, :end] = buffer_BHLD[rows[moved], :, :end]
    return buffer_BHLD[: len(rows)]
