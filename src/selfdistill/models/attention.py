"""Attention over packed tokens: each sequence attends to its own tokens only, and shared prefixes are stored once.

It replaces the attention of transformers. Without a layout it returns what ``sdpa`` returns, or for layers with sinks
what ``eager`` returns.

A *sink* (GPT-OSS) is a learned logit of a head that takes a share of the softmax and gives nothing to the output. It
is computed as the logit of one more key whose value is zero, so that the fast kernels of ``sdpa`` apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from selfdistill.models import recurrence
from selfdistill.models.shared_prompts import SharedPrompts, attend_over_prompts
from selfdistill.types import AttentionGroup, Layout

NAME = "packed_attention"
"""Not a name that holds sdpa: transformers refuses that for models that do not support its own."""
LAYERS = {"full_attention", "sliding_attention"}
APART = {"moe", "mlp"}
"""Types of layers that mix no tokens."""
MASKS_ARE_CHEAP = {"cpu"}
"""Devices whose attention kernel is as fast with a mask as without. The fastest GPU kernels take no mask."""
CHANGING = {"position_bias", "softcap", "cache"}
"""Arguments of transformers' attention that change its result."""
QUERIES = 256
"""Queries per attention call if a mask is needed. It bounds the mask to [queries, keys]."""
SINK_DIMENSIONS = 8
"""Dimensions that a sink adds to queries, keys and values. One holds its logit; kernels want multiples of eight."""


def obstacle(model: Any) -> str | None:
    """Why a model's tokens cannot be packed, in a few words; None if packing may work, which a probe then decides.

    Layers that mix tokens in ways that :func:`attend` and :mod:`selfdistill.models.recurrence` do not compute would mix
    those of different packed sequences.
    """
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or LAYERS)
    if "chunked_attention" in layer_types:
        return "attention in chunks"
    if not recurrence.resettable(model, layer_types) or not layer_types <= LAYERS | recurrence.TYPES | APART:
        return "recurrent states that are not forked"
    # Models with sinks do not support sdpa in transformers, and their default is eager attention.
    known = {"sdpa", "eager"} if has_sinks(model) else {"sdpa"}
    functional = (
        config._attn_implementation in known
        # Without either, a model may compute attention by itself. Those with recurrent layers do not set the first.
        and (model._supports_attention_backend or layer_types & recurrence.TYPES)
        # These models pass the sliding window to the attention function. Others put it into the mask.
        and model._supports_flash_attn
    )
    return None if functional or not attends(model) else "attention of its own"


def attends(model: Any) -> bool:
    """Whether a layer of a model has attention, as far as its config says."""
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or LAYERS)
    return bool(layer_types & (LAYERS | {"hybrid"}))


def has_sinks(model: torch.nn.Module) -> bool:
    """Whether an attention layer of a model has sinks."""
    return any(isinstance(getattr(module, "sinks", None), torch.nn.Parameter) for module in model.modules())


def install(model: Any) -> None:
    """Make a model use :func:`attend`, and its recurrent layers read the layout."""
    recurrence.install(model)
    if attends(model):
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def uninstall(model: Any, implementation: str) -> None:
    """Restore an attention of transformers by its name."""
    if attends(model):
        model.set_attn_implementation(implementation)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    prompts: SharedPrompts | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention [1, T, heads, dim] of packed query, key and value states [1, heads, T, dim].

    With ``prompts`` it is that of one query [B, heads, 1, dim] per row, over its prompt and then over its own keys.
    ``s_aux`` [heads] are the heads' sinks.

    Raises:
        ValueError: tokens are packed or go on from shared prompts, and an argument changes attention in a way that is
            not computed here.
    """
    if prompts is not None:
        if dropout or sliding_window or not _is_plain_decoding(query, None, others):
            raise ValueError("rows that share prompts have no attention with these arguments")
        layer: Any = module.layer_idx
        return attend_over_prompts(query, key, value, prompts, layer, scaling=scaling, sink_H=s_aux), None
    if layout is None:
        if not dropout and _is_plain_decoding(query, attention_mask, others):
            return _one_query(query, key, value, attention_mask, scaling, s_aux), None
        if s_aux is not None:
            return _with_sinks(query, key, value, attention_mask, s_aux, scaling=scaling, dropout=dropout), None
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **others
        )
        return output, None
    if unknown := sorted(name for name in CHANGING if others.get(name) is not None):
        raise ValueError(f"packed tokens have no attention with {', '.join(unknown)}")
    sink_HD: Tensor | None = None
    if s_aux is not None:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key, value, sink_HD = _widened(query, key, value, s_aux / scaling)
    query_THD, key_THD, value_THD = (states[0].transpose(0, 1) for states in (query, key, value))
    groups, queries_per_key = layout.groups, query_THD.shape[1] // key_THD.shape[1]
    squares = [_is_square(group, sliding_window) for group in groups]
    query_indices = [
        group.key_SK if square else group.key_SK[:, -group.suffix_length :]
        for group, square in zip(groups, squares, strict=True)
    ]
    key_indices = [group.key_SK for group in groups]
    queries = _gather_groups(query_THD, query_indices)
    keys, values = (_gather_groups(states, key_indices, queries_per_key) for states in (key_THD, value_THD))
    attended = [
        _attend(group, square, *states, scaling=scaling, dropout=dropout, window=sliding_window, sink_HD=sink_HD)
        for group, square, *states in zip(groups, squares, queries, keys, values, strict=True)
    ]
    output_1THD = torch.cat(attended).index_select(0, layout.restore_T)[None]
    return output_1THD if sink_HD is None else output_1THD[..., :-SINK_DIMENSIONS], None


def _is_plain_decoding(query_BHLD: Tensor, mask: Tensor | None, others: Mapping[str, Any]) -> bool:
    """Whether :func:`_one_query` applies: decoding in float32 or float64 on a CPU. It takes 3/4 of the time."""
    wide = query_BHLD.dtype in (torch.float32, torch.float64)
    plain = (mask is None or mask.dtype == torch.bool) and all(others.get(name) is None for name in CHANGING)
    return query_BHLD.shape[2] == 1 and query_BHLD.device.type == "cpu" and wide and plain


def _one_query(
    query_BHLD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    sink_H: Tensor | None,
) -> Tensor:
    """Attention [B, 1, heads, dim] of one query per row: one matrix product for all queries of a key head."""
    scaled = query_BHLD * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    query_BHGD = scaled.reshape(len(scaled), key_BHKD.shape[1], -1, scaled.shape[-1])
    scores_BHGK = torch.matmul(query_BHGD, key_BHKD.transpose(-1, -2))
    if mask is not None:
        scores_BHGK = scores_BHGK.masked_fill(~mask, float("-inf"))
    if sink_H is None:
        shares_BHGK = scores_BHGK.softmax(-1)
    else:
        sink_BHG1 = sink_H.view(1, *scores_BHGK.shape[1:3], 1).expand(len(scores_BHGK), -1, -1, -1)
        shares_BHGK = torch.cat([scores_BHGK, sink_BHG1], -1).softmax(-1)[..., :-1]
    return torch.matmul(shares_BHGK, value_BHKD).flatten(1, 2)[:, None]


def _widened(query: Tensor, key: Tensor, value: Tensor, sink_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States with :data:`SINK_DIMENSIONS` more, and the sinks' keys [heads, dim].

    A query is 1 in the first of these dimensions, where a sink's key has its logit and any other key has 0.
    """
    size = query.shape[-1]
    query, key, value = (torch.nn.functional.pad(states, (0, SINK_DIMENSIONS)) for states in (query, key, value))
    sink_HD = torch.nn.functional.pad(sink_H.to(key.dtype)[:, None], (size, SINK_DIMENSIONS - 1))
    query[..., size] = 1.0
    return query, key, value, sink_HD


def _behind(first_HD: Tensor, states_SHLD: Tensor) -> Tensor:
    """States with one more in front of them, the same in each row."""
    return torch.cat([first_HD[None, :, None].expand(len(states_SHLD), -1, -1, -1), states_SHLD], 2)


def _with_sinks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    sink_H: Tensor,
    *,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention [B, L, heads, dim] with sinks of states [B, heads, L, dim] that are not packed."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value, sink_HD = _widened(query, key, value, sink_H / scaling)
    queries_per_key, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (states.repeat_interleave(queries_per_key, 1) for states in (key, value))
    causal = mask is None and length > 1
    if causal:
        # As transformers does: without a mask, keys behind the last query are empty places of a cache.
        key, value = key[:, :, :length], value[:, :, :length]
        query = _behind(torch.zeros_like(sink_HD), query)
    if mask is not None:
        mask = torch.nn.functional.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        _behind(sink_HD, key),
        _behind(torch.zeros_like(sink_HD), value),
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        dropout_p=dropout,
    )
    return output[:, :, -length:, :-SINK_DIMENSIONS].transpose(1, 2)


def mask_of_nothing(device: torch.device) -> Tensor:
    """A dummy mask. Models build no mask if they get one of four dimensions, and :func:`attend` ignores it."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _is_square(group: AttentionGroup, window: int | None) -> bool:
    """Whether to compute queries for a group's prefix too, so that causal attention needs no mask.

    The prefix adds prefix²/2 query-key pairs that are thrown away. With few prefix tokens that costs less than a mask
    on devices with fast mask-free kernels; with many, the mask costs less: half of suffix² pairs, or of a block.
    """
    length, suffix = group.key_SK.shape[1], group.suffix_length
    limit = 0 if group.key_SK.device.type in MASKS_ARE_CHEAP else suffix * min(suffix, QUERIES)
    return (window is None or length <= window) and (length - suffix) ** 2 <= limit


def _attend(
    group: AttentionGroup,
    square: bool,
    query_SHLD: Tensor,
    key_SHKD: Tensor,
    value_SHKD: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    sink_HD: Tensor | None,
) -> Tensor:
    """Attention output [S · suffix, heads, dim] of a group's suffixes. ``square``: there is a query for every key."""
    suffix, prefix = group.suffix_length, group.key_SK.shape[1] - group.suffix_length
    attend_ = torch.nn.functional.scaled_dot_product_attention
    zero_HD = None if sink_HD is None else torch.zeros_like(sink_HD)

    def behind(first_HD: Tensor | None, states: Tensor) -> Tensor:
        return states if first_HD is None else _behind(first_HD, states)

    if square:
        # A sink is seen by every query: it stands first, beside a query that is thrown away.
        query_SHLD, key_SHKD = behind(zero_HD, query_SHLD), behind(sink_HD, key_SHKD)
        value_SHKD = behind(zero_HD, value_SHKD)
        output_SHKD = attend_(query_SHLD, key_SHKD, value_SHKD, is_causal=True, scale=scaling, dropout_p=dropout)
        return output_SHKD[:, :, -suffix:].transpose(1, 2).flatten(0, 1)
    parts = []
    for start in range(0, suffix, QUERIES):
        end = min(start + QUERIES, suffix)
        position = torch.arange(prefix + start, prefix + end, device=query_SHLD.device)[:, None]
        visible = slice(0 if window is None else max(0, prefix + start - window + 1), prefix + end)
        other = torch.arange(visible.start, visible.stop, device=query_SHLD.device)[None]
        mask = other <= position if window is None else (other <= position) & (other > position - window)
        if sink_HD is not None:
            mask = torch.nn.functional.pad(mask, (1, 0), value=True)
        parts.append(
            attend_(
                query_SHLD[:, :, start:end],
                behind(sink_HD, key_SHKD[:, :, visible]),
                behind(zero_HD, value_SHKD[:, :, visible]),
                attn_mask=mask,
                scale=scaling,
                dropout_p=dropout,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).flatten(0, 1)


def _gather_groups(states_THD: Tensor, indices: Sequence[Tensor], repeats: int = 1) -> list[Tensor]:
    """States [S, heads · repeats, L, dim] of each group at its token indices [S, L].

    ``repeats`` is the number of query heads per key head. All groups share one ``index_select``: the backward of each
    call would allocate and add a tensor as large as all states.
    """
    states = states_THD.index_select(0, torch.cat([index_SL.flatten() for index_SL in indices]))
    parts = zip(states.split([index_SL.numel() for index_SL in indices]), indices, strict=True)
    gathered = [part.view(*index_SL.shape, *states.shape[1:]).transpose(1, 2) for part, index_SL in parts]
    return [group.repeat_interleave(repeats, 1) for group in gathered] if repeats > 1 else gathered
