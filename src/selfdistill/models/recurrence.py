"""Convolutions and linear attention over packed tokens: a segment goes on from the state that its parent left.

transformers keeps packed sequences apart only with kernels for GPUs, and shares no prefix. The layers of LFM2, Qwen3.5,
Qwen3-Next and OLMo-Hybrid call two functions of their own module, and pass on what the decoder's forward was called
with. :func:`install` replaces these functions by ones that read the layout of packed tokens. They call the library's
functions, so its kernels are used where they are installed; without a layout they change nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.models.architecture import decoder_of
from selfdistill.types import AttentionGroup, Layout

Function = Callable[..., Any]


def convolve(
    original: Function, states_1CT: Tensor, *args: Any, layout: Layout | None = None, **options: Any
) -> Tensor:
    """Causal convolution [1, C, T] of packed channels: each token sees the tokens before it in its own sequence.

    ``original`` is the library's function; it is called with the weight [C, K], and with the other arguments as given.
    """
    if layout is None:
        unpacked: Tensor = original(states_1CT, *args, **options)
        return unpacked
    weight_CK: Tensor = options["weight"] if "weight" in options else args[0]
    before = weight_CK.shape[-1] - 1
    # A segment's tokens, and as many before them as the kernel sees. Where there are fewer, the sequence begins.
    windows = [group.key_SK[:, -(group.suffix_length + before) :] for group in layout.groups]
    outputs = [
        original(window_SLC.transpose(1, 2), *args, **options)[..., -group.suffix_length :]
        .transpose(1, 2)
        .flatten(0, 1)
        for window_SLC, group in zip(_gather(states_1CT[0].T, windows), layout.groups, strict=True)
    ]
    return torch.cat(outputs).index_select(0, layout.restore_T).T[None]


def delta_rule(
    original: Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Gated delta rule over packed tokens. All arguments are [1, T, heads, …], and so is the output.

    Segments are computed from the roots down. A segment begins with the state after its parent's last token, which all
    of its siblings share, or with none.
    """
    if layout is None:
        both: tuple[Tensor, Tensor | None] = original(query, key, value, g=g, beta=beta, **options)
        return both
    options = {name: value for name, value in options.items() if name not in ("initial_state", "output_final_state")}
    suffixes = [group.key_SK[:, -group.suffix_length :] for group in layout.groups]
    inputs = [_gather(states[0], suffixes) for states in (query, key, value, g, beta)]
    parents = {parent for group in layout.groups for parent in group.parents if parent is not None}
    outputs: dict[int, Tensor] = {}
    state_of: dict[int, Tensor] = {}
    # Parents have fewer tokens before them than their children.
    for index in sorted(range(len(suffixes)), key=lambda i: layout.groups[i].key_SK.shape[1] - suffixes[i].shape[1]):
        group = layout.groups[index]
        query_SLHD, key_SLHD, value_SLHD, g_SLH, beta_SLH = (states[index] for states in inputs)
        left = parents & set(group.segments)
        if left and len(set(group.lengths)) > 1:
            # Padding neither decays the state that a segment leaves nor writes to it.
            real_SL1 = _is_real(group).to(g)[..., None]
            g_SLH, beta_SLH = g_SLH * real_SL1, beta_SLH * real_SL1.to(beta)
        begun = [state_of[parent] for parent in group.parents if parent is not None]
        outputs[index], last = original(
            *(query_SLHD, key_SLHD, value_SLHD),
            g=g_SLH,
            beta=beta_SLH,
            initial_state=torch.stack(begun) if begun else None,
            output_final_state=bool(left),
            **options,
        )
        state_of |= {segment: last[row] for row, segment in enumerate(group.segments) if segment in left}
    flat = torch.cat([outputs[index].flatten(0, 1) for index in range(len(suffixes))])
    return flat.index_select(0, layout.restore_T)[None], None


PACKED: Mapping[str, Function] = {"causal_conv1d_fn": convolve, "torch_chunk_gated_delta_rule": delta_rule}
"""Names of transformers' functions, and what replaces them."""
NEEDED: Mapping[str, frozenset[str]] = {
    "conv": frozenset({"causal_conv1d_fn"}),
    "linear_attention": frozenset(PACKED),
}
"""Type of a layer in a config → the functions that mix its tokens."""


def resettable(model: nn.Module, layer_types: Sequence[str]) -> bool:
    """Whether the recurrent layers that a config names mix tokens with functions that :func:`install` replaces."""
    needed = frozenset[str]().union(*(NEEDED.get(kind, frozenset()) for kind in layer_types))
    if not needed:
        return True
    mixers = _mixers(model)
    return bool(mixers) and all(needed <= vars(_module_of(mixer)).keys() for mixer in mixers)


def install(model: nn.Module) -> None:
    """Make a model's recurrent layers read the layout of packed tokens. Changes modules of transformers, once."""
    for module in {_module_of(mixer) for mixer in _mixers(model)}:
        for name, function in PACKED.items():
            original = getattr(module, name, None)
            if original is not None and getattr(original, "func", None) is not function:
                setattr(module, name, partial(function, original))


def _mixers(model: nn.Module) -> list[nn.Module]:
    """Layers of a model's decoder with a convolution along the sequence."""
    modules = decoder_of(model).modules()
    return [module for module in modules if any(isinstance(child, nn.Conv1d) for child in module.children())]


def _module_of(mixer: nn.Module) -> Any:
    """The Python module whose functions a layer calls."""
    return sys.modules[type(mixer).__module__]


def _gather(states: Tensor, indices: Sequence[Tensor]) -> list[Tensor]:
    """States [S, L, …] of each group at its token indices [S, L], by one ``index_select`` for all groups."""
    gathered = states.index_select(0, torch.cat([index_SL.flatten() for index_SL in indices]))
    parts = gathered.split([index_SL.numel() for index_SL in indices])
    return [part.unflatten(0, index_SL.shape) for part, index_SL in zip(parts, indices, strict=True)]


def _is_real(group: AttentionGroup) -> Tensor:
    """Whether a token [S, L] of a group's suffixes is no padding."""
    device = group.key_SK.device
    return torch.arange(group.suffix_length, device=device) < torch.tensor(group.lengths, device=device)[:, None]
