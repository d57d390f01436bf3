"""Attention over packed tokens: each sequence sees itself and nothing else, and a shared beginning is there once.

It stands in for the library's ``sdpa`` attention, and gives what that gives wherever there is no layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfdistill.types import AttentionGroup, Layout

NAME = "packed_sdpa"
LAYERS = {"full_attention", "sliding_attention"}
MASKS_ARE_CHEAP = {"cpu"}
"""Devices whose kernel is as fast with a mask as without; on GPUs the fastest ones take none."""
CHANGING = {"position_bias", "softcap", "s_aux", "cache"}
"""Arguments of a library's attention that make it another function."""
QUERIES = 256
"""Queries that see ancestors are taken so many at a time: their mask is [queries, keys], not [length, length]."""


def packable(model: Any) -> bool:
    """Whether a transformers model says that its tokens meet in attention alone, and that this attention can be ours.

    Linear attention, convolutions and chunked attention mix neighbours whom a layout would keep apart.
    """
    config = model.config.get_text_config()
    return bool(
        config._attn_implementation == "sdpa"
        and model._supports_attention_backend
        # Such models hand a sliding window to the attention function; with ``sdpa`` alone it would be in the mask.
        and model._supports_flash_attn
        and set(getattr(config, "layer_types", None) or LAYERS) <= LAYERS
    )


def install(model: Any) -> None:
    """Make a model attend by :func:`attend` from now on."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def uninstall(model: Any) -> None:
    """Put the library's own attention back."""
    model.set_attn_implementation("sdpa")


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [1, T, heads, dim] of packed query, key and value states [1, heads, T, dim]."""
    if layout is None:
        if not dropout and _products_will_do(query, attention_mask, others):
            return _one_query(query, key, value, attention_mask, scaling), None
        found = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **others
        )
        return found[0], None
    query_THD, key_THD, value_THD = (states[0].transpose(0, 1) for states in (query, key, value))
    cohorts, shared = layout.cohorts, query_THD.shape[1] // key_THD.shape[1]
    squares = [_square(one, sliding_window) for one in cohorts]
    asking = [one.key_SK if square else one.key_SK[:, -one.own :] for one, square in zip(cohorts, squares, strict=True)]
    queries = _rows(query_THD, asking)
    keys, values = (_rows(states, [one.key_SK for one in cohorts], shared) for states in (key_THD, value_THD))
    attended = [
        _attend(one, square, *states, scaling=scaling, dropout=dropout, window=sliding_window)
        for one, square, *states in zip(cohorts, squares, queries, keys, values, strict=True)
    ]
    return torch.cat(attended).index_select(0, layout.restore_T)[None], None


def _products_will_do(query_BHLD: Tensor, mask: Tensor | None, others: Mapping[str, Any]) -> bool:
    """Decoding in full precision on a CPU: two products take three quarters of the time of the library's kernel."""
    wide = query_BHLD.dtype in (torch.float32, torch.float64)
    plain = (mask is None or mask.dtype == torch.bool) and all(others.get(name) is None for name in CHANGING)
    return query_BHLD.shape[2] == 1 and query_BHLD.device.type == "cpu" and wide and plain


def _one_query(
    query_BHLD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention [B, 1, heads, dim] of one query a row; the queries that share a key head are one product."""
    scaled = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    query_BHGD = scaled.reshape(len(scaled), key_BHKD.shape[1], -1, scaled.shape[-1])
    scores_BHGK = torch.matmul(query_BHGD, key_BHKD.transpose(-1, -2))
    if mask is not None:
        scores_BHGK = scores_BHGK.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores_BHGK.softmax(-1), value_BHKD).flatten(1, 2)[:, None]


def mask_of_nothing(device: torch.device) -> Tensor:
    """A mask of four dimensions is taken as it is: the model makes none of its own, and :func:`attend` needs none."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _square(cohort: AttentionGroup, window: int | None) -> bool:
    """Whether a cohort's ancestors are to ask as well, so that no mask is needed.

    Where masks are not cheap, that is worth asking for few ancestors too, whose ancestors²/2 pairs nobody reads; behind
    many, a mask costs less: half a square of own tokens, or of a block.
    """
    length, own = cohort.key_SK.shape[1], cohort.own
    most = 0 if cohort.key_SK.device.type in MASKS_ARE_CHEAP else own * min(own, QUERIES)
    return (window is None or length <= window) and (length - own) ** 2 <= most


def _attend(
    cohort: AttentionGroup,
    square: bool,
    query_SHLD: Tensor,
    key_SHKD: Tensor,
    value_SHKD: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """What the cohort's own tokens attend to, [S · own, heads, dim]; ``square``: queries are there for all keys."""
    own, ancestors = cohort.own, cohort.key_SK.shape[1] - cohort.own
    attend_ = torch.nn.functional.scaled_dot_product_attention
    if square:
        found_SHKD = attend_(query_SHLD, key_SHKD, value_SHKD, is_causal=True, scale=scaling, dropout_p=dropout)
        return found_SHKD[:, :, ancestors:].transpose(1, 2).flatten(0, 1)
    parts = []
    for start in range(0, own, QUERIES):
        end = min(start + QUERIES, own)
        position = torch.arange(ancestors + start, ancestors + end, device=query_SHLD.device)[:, None]
        seen = slice(0 if window is None else max(0, ancestors + start - window + 1), ancestors + end)
        other = torch.arange(seen.start, seen.stop, device=query_SHLD.device)[None]
        mask = other <= position if window is None else (other <= position) & (other > position - window)
        parts.append(
            attend_(
                query_SHLD[:, :, start:end],
                key_SHKD[:, :, seen],
                value_SHKD[:, :, seen],
                attn_mask=mask,
                scale=scaling,
                dropout_p=dropout,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).flatten(0, 1)


def _rows(states_THD: Tensor, places: Sequence[Tensor], times: int = 1) -> list[Tensor]:
    """States [S, heads · times, L, dim] of each cohort at its places [S, L]; a key head serves ``times`` query heads.

    One lookup for all cohorts: backward, each would fill and add up a tensor as large as all states.
    """
    found = states_THD.index_select(0, torch.cat([place.flatten() for place in places]))
    parts = zip(found.split([place.numel() for place in places]), places, strict=True)
    rows = [part.view(*place.shape, *found.shape[1:]).transpose(1, 2) for part, place in parts]
    return [row.repeat_interleave(times, 1) for row in rows] if times > 1 else rows
