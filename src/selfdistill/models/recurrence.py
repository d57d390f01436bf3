"""Convolutions and linear recurrences over packed tokens: a segment goes on from the state that its parent left.

transformers keeps packed sequences apart only with kernels for GPUs, and shares no prefix. The layers of LFM2, Qwen3.5,
Qwen3-Next, OLMo-Hybrid and of the families with Mamba-2 call functions of their own module, and pass on what the
decoder's forward was called with. :func:`install` replaces these functions by ones that read the layout of packed
tokens. They call the library's functions, so its kernels are used where they are installed; without a layout they
change nothing.
"""

from __future__ import annotations

import math
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
    """Gated delta rule over packed tokens. All arguments are [1, T, heads, …], and so is the output."""
    if layout is None:
        both: tuple[Tensor, Tensor | None] = original(query, key, value, g=g, beta=beta, **options)
        return both
    options = {name: value for name, value in options.items() if name not in ("initial_state", "output_final_state")}

    def compute(states: Sequence[Tensor], gates: Sequence[Tensor], begun: Tensor | None, leaves: bool) -> Any:
        g_SLH, beta_SLH = gates
        return original(*states, g=g_SLH, beta=beta_SLH, initial_state=begun, output_final_state=leaves, **options)

    return _from_the_roots(layout, (query, key, value), (g, beta), compute), None


def scan(
    original: Function,
    states: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    layout: Layout | None = None,
    **options: Any,
) -> Any:
    """Mamba-2's scan over packed tokens: states and output [1, T, heads, dim], steps [1, T, heads]."""
    if layout is None:
        return original(states, step, A, B, C, **options)
    # The time step as the library's function makes it, so that padding can have a step of 0: it leaves a state alone.
    bias, softplus = options.pop("dt_bias", None), options.pop("dt_softplus", False)
    lowest, highest = options.pop("dt_limit", (0.0, math.inf))
    step = step.float() if bias is None else step.float() + bias.float()
    step = (nn.functional.softplus(step) if softplus else step).clamp(lowest, highest)
    options = {name: value for name, value in options.items() if name not in ("initial_states", "return_final_states")}

    def compute(states: Sequence[Tensor], gates: Sequence[Tensor], begun: Tensor | None, leaves: bool) -> Any:
        (states_SLHD, B_SLGN, C_SLGN), (step_SLH,) = states, gates
        initial = {} if begun is None else {"initial_states": begun}
        result = original(states_SLHD, step_SLH, A, B_SLGN, C_SLGN, **initial, **options, return_final_states=leaves)
        return result if leaves else (result, None)

    return _from_the_roots(layout, (states, B, C), (step,), compute)


def fused(original: Function, *args: Any, layout: Layout | None = None, **options: Any) -> Any:
    """Mamba-2's layer as one kernel; None for packed tokens, for which the layer then takes its steps one by one."""
    return original(*args, **options) if layout is None else None


def _from_the_roots(
    layout: Layout, states: Sequence[Tensor], gates: Sequence[Tensor], compute: Callable[..., tuple[Tensor, Any]]
) -> Tensor:
    """The outputs [1, T, …] of a recurrence over packed tokens, from states and gates [1, T, …].

    Segments are computed from the roots down: each begins with the state after its parent's last token, which all of
    its siblings share, or with none. ``compute`` takes states, gates [S, L, …], the states at their beginning (or None)
    and whether it must return those at their ends. A gate of 0 leaves a state as it is.
    """
    suffixes = [group.key_SK[:, -group.suffix_length :] for group in layout.groups]
    inputs = [_gather(tensor[0], suffixes) for tensor in states]
    gated = [_gather(tensor[0], suffixes) for tensor in gates]
    parents = {parent for group in layout.groups for parent in group.parents if parent is not None}
    outputs: dict[int, Tensor] = {}
    state_of: dict[int, Tensor] = {}
    # Parents have fewer tokens before them than their children.
    for index in sorted(range(len(suffixes)), key=lambda i: layout.groups[i].key_SK.shape[1] - suffixes[i].shape[1]):
        group, own = layout.groups[index], [tensors[index] for tensors in gated]
        left = parents & set(group.segments)
        if left and len(set(group.lengths)) > 1:
            # Padding neither decays the state that a segment leaves nor writes to it.
            real_SL1 = _is_real(group)[..., None]
            own = [gate_SLH * real_SL1.to(gate_SLH) for gate_SLH in own]
        begun = [state_of[parent] for parent in group.parents if parent is not None]
        outputs[index], last = compute(
            [tensors[index] for tensors in inputs], own, torch.stack(begun) if begun else None, bool(left)
        )
        state_of |= {segment: last[row] for row, segment in enumerate(group.segments) if segment in left}
    flat = torch.cat([outputs[index].flatten(0, 1) for index in range(len(suffixes))])
    return flat.index_select(0, layout.restore_T)[None]


CONVOLUTION, RULES = "causal_conv1d_fn", ("torch_chunk_gated_delta_rule", "mamba2_chunk_scan")
"""Names of transformers' functions that mix tokens: a layer has a convolution, and one of the rules or none."""
PACKED: Mapping[str, Function] = {
    CONVOLUTION: convolve,
    **dict(zip(RULES, (delta_rule, scan), strict=True)),
    "mamba2_split_conv1d_scan_combined": fused,
}
"""Names of transformers' functions, and what replaces them."""
RECURRENT = {"linear_attention", "hybrid"}
"""Types of layers with a rule. A hybrid layer has attention besides."""
TYPES = {"conv", *RECURRENT}
"""Types of layers, in a config, that have a convolution."""


def resettable(model: nn.Module, layer_types: set[str]) -> bool:
    """Whether the recurrent layers that a config names mix tokens with functions that :func:`install` replaces."""
    if not layer_types & TYPES:
        return True
    mixers = _mixers(model)
    names = [vars(_module_of(mixer)).keys() for mixer in mixers]
    rules = set(RULES) if layer_types & RECURRENT else {CONVOLUTION}
    return bool(mixers) and all(CONVOLUTION in known and rules & known for known in names)


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
