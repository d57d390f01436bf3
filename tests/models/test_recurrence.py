"""Recurrent layers over packed tokens: what they compute is what each sequence gives alone, and prefixes stand once."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.qwen3_next import modeling_qwen3_next as library

from selfdistill.models import recurrence
from selfdistill.models.attention import obstacle
from selfdistill.models.packing import Packed, build_prefix_tree, pack
from selfdistill.models.policy import load_policy
from support.families import saved

Ids = tuple[int, ...]
CONVOLVE = partial(recurrence.convolve, library.causal_conv1d_fn)
SCAN = partial(recurrence.scan, mamba2.mamba2_chunk_scan)
DELTA_RULE = partial(recurrence.delta_rule, library.torch_chunk_gated_delta_rule)


def packed(seed: int, share_from: int, *, longest: int) -> Packed:
    """Sequences of few different tokens, so that many begin alike, on trees of several floors."""
    generator = random.Random(seed)
    sequences = [tuple(generator.choices(range(2), k=generator.randint(1, longest))) for _ in range(10)]
    long = tuple(generator.choices(range(2), k=longest))
    # Siblings of unequal length behind one prefix, a sequence that ends inside of another, and one that stands twice.
    sequences += [(*long, 0, 1, 1), (*long, 1), (*long, 0, 1, 0, *long), long, long[: longest // 2]]
    return pack(build_prefix_tree(sequences, share_from=share_from))


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("share_from", [1, 4, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_a_convolution_over_the_pack_is_that_of_each_sequence_alone(
    seed: int, share_from: int, kernel: int, activation: str | None
) -> None:
    made, generator = packed(seed, share_from, longest=9), torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    states, weight, bias = drawn(1, 5, len(made.ids_T)), drawn(5, kernel), drawn(5)
    found = CONVOLVE(states, weight, bias, activation=activation, layout=made.layout)
    of_weight = CONVOLVE(states, weight=weight, bias=bias, activation=activation, layout=made.layout)
    assert torch.equal(found, of_weight)
    mine, theirs = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for number, places in enumerate(made.token_indices, start=1):
        alone = library.causal_conv1d_fn(states[..., places], weight, bias, activation=activation)
        torch.testing.assert_close(found[..., places], alone, rtol=1e-12, atol=1e-12)
        mine, theirs = mine + number * found[..., places].square().sum(), theirs + number * alone.square().sum()
    inputs = (states, weight, bias)
    for one, other in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def by_hand(query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The gated delta rule, token by token, in float64: S ← e^g S, then S ← S + β k (v − Sᵀk)ᵀ, and out = Sᵀq/√d."""
    repeats = value.shape[2] // key.shape[2]
    query, key = (states.double().repeat_interleave(repeats, 2) for states in (query, key))
    query, key = (states * (states.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for states in (query, key))
    state, outputs = torch.zeros(*value.shape[2:3], key.shape[-1], value.shape[-1], dtype=torch.float64), []
    for t in range(key.shape[1]):
        state = state * g[0, t].double().exp()[:, None, None]
        wrong = value[0, t].double() - torch.einsum("hkv,hk->hv", state, key[0, t])
        state = state + torch.einsum("hk,hv->hkv", key[0, t], beta[0, t].double()[:, None] * wrong)
        outputs.append(torch.einsum("hkv,hk->hv", state, query[0, t]) * key.shape[-1] ** -0.5)
    return torch.stack(outputs)[None]


@pytest.mark.parametrize("share_from", [1, 8, 1000])
@pytest.mark.parametrize(("seed", "longest"), [(0, 9), (1, 9), (2, 80)])
def test_the_delta_rule_over_the_pack_is_that_of_each_sequence_alone(seed: int, longest: int, share_from: int) -> None:
    """Over chunks of 64 tokens, which begin anew with each segment; in float32, as the library computes."""
    made, generator = packed(seed, share_from, longest=longest), torch.Generator().manual_seed(seed)
    count = len(made.ids_T)
    query, key, value = (torch.randn(1, count, heads, 4, generator=generator) for heads in (2, 2, 4))
    g, beta = -torch.rand(1, count, 4, generator=generator), torch.rand(1, count, 4, generator=generator)
    inputs = tuple(states.requires_grad_() for states in (query, key, value, g, beta))
    found, last = DELTA_RULE(*inputs[:3], g=g, beta=beta, layout=made.layout, use_qk_l2norm_in_kernel=True)
    assert last is None
    mine, theirs = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for number, places in enumerate(made.token_indices, start=1):
        alone = by_hand(*(states[:, places] for states in inputs))
        torch.testing.assert_close(found[:, places].double(), alone, rtol=0, atol=2e-6)
        mine, theirs = mine + number * found[:, places].square().sum(), theirs + number * alone.square().sum()
    for one, other in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def scanned_by_hand(states: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba-2's recurrence, token by token, in float64: S ← e^(A·step) S + step · x Bᵀ, and out = S C + D x."""
    repeats = states.shape[2] // B.shape[2]
    B, C = (each.double().repeat_interleave(repeats, 2) for each in (B, C))
    state, outputs = torch.zeros(*states.shape[2:], B.shape[-1], dtype=torch.float64), []
    for t in range(states.shape[1]):
        decay = (A.double() * step[0, t].double()).exp()
        written = torch.einsum("h,hp,hn->hpn", step[0, t].double(), states[0, t].double(), B[0, t])
        state = state * decay[:, None, None] + written
        outputs.append(torch.einsum("hpn,hn->hp", state, C[0, t]) + D.double()[:, None] * states[0, t].double())
    return torch.stack(outputs)[None]


@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.3, 0.8)])
@pytest.mark.parametrize("share_from", [1, 8, 1000])
@pytest.mark.parametrize(("seed", "longest"), [(0, 9), (1, 30)])
def test_a_scan_over_the_pack_is_that_of_each_sequence_alone(
    seed: int, longest: int, share_from: int, limits: tuple[float, float]
) -> None:
    """In chunks of 8 tokens. The smallest step is not 0, which padding behind a prefix must not take for its own."""
    made, generator = packed(seed, share_from, longest=longest), torch.Generator().manual_seed(seed)
    count = len(made.ids_T)
    states, step = torch.randn(1, count, 4, 3, generator=generator), torch.randn(1, count, 4, generator=generator)
    B, C = (torch.randn(1, count, 2, 5, generator=generator) for _ in range(2))
    A, D, bias = -torch.rand(4, generator=generator), *torch.randn(2, 4, generator=generator)
    inputs = tuple(each.requires_grad_() for each in (states, step, A, B, C, D, bias))
    options = {"dt_softplus": True, "dt_limit": limits, "initial_states": None, "return_final_states": False}
    found = SCAN(states, step, A, B, C, chunk_size=8, D=D, dt_bias=bias, layout=made.layout, **options)
    taken = torch.nn.functional.softplus(step + bias).clamp(*limits)
    mine, theirs = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for number, places in enumerate(made.token_indices, start=1):
        alone = scanned_by_hand(states[:, places], taken[:, places], A, B[:, places], C[:, places], D)
        torch.testing.assert_close(found[:, places].double(), alone, rtol=1e-5, atol=1e-5)
        mine, theirs = mine + number * found[:, places].square().sum(), theirs + number * alone.square().sum()
    for one, other in zip(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    # A scan that a cache asks for its state is the library's own, and so is the fused layer of what is not packed.
    plain = {"chunk_size": 8, "D": D, "dt_bias": bias, "dt_softplus": True, "return_final_states": True}
    for one, other in zip(
        SCAN(states, step, A, B, C, **plain), mamba2.mamba2_chunk_scan(states, step, A, B, C, **plain), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_fused_layer_is_left_where_tokens_are_packed() -> None:
    def layer(states: str, *, weight: int) -> tuple[str, int]:
        return states, weight

    layout = packed(0, 1, longest=3).layout
    assert recurrence.fused(layer, "x", weight=2) == ("x", 2)
    assert recurrence.fused(layer, "x", weight=2, layout=layout) is None


def test_without_a_layout_the_library_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(2, 5, 7, generator=generator), torch.randn(5, 4, generator=generator)
    assert torch.equal(CONVOLVE(states, weight, None), library.causal_conv1d_fn(states, weight, None))
    query, g = torch.randn(2, 7, 2, 4, generator=generator), -torch.rand(2, 7, 2, generator=generator)
    begun = torch.randn(2, 2, 4, 4, generator=generator)
    for state in (begun, None):
        options: dict[str, Any] = {"initial_state": state, "output_final_state": True}
        mine = DELTA_RULE(query, query, query, g=g, beta=-g, **options)
        theirs = library.torch_chunk_gated_delta_rule(query, query, query, g=g, beta=-g, **options)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_functions_are_replaced_once_and_layers_that_take_no_layout_are_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, "qwen3-next")

    def packs() -> bool:
        return load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"))[0].packs

    assert packs() and packs()
    for name in ("causal_conv1d_fn", "torch_chunk_gated_delta_rule"):
        function, replaced = recurrence.PACKED[name], getattr(library, name)
        assert replaced.func is function and not isinstance(replaced.args[0], partial)
    # As in a release whose layers do not pass on what the decoder is called with, and in one that refuses it.
    for other in (unaware, refusing):
        monkeypatch.setattr(library, "torch_chunk_gated_delta_rule", partial(other, DELTA_RULE.args[0]))
        monkeypatch.setattr(recurrence, "install", lambda model: None)
        assert not packs()


def unaware(original: recurrence.Function, *args: Tensor, layout: object = None, **options: object) -> object:
    return original(*args, **options)


def refusing(original: recurrence.Function, *args: Tensor, layout: object = None, **options: object) -> object:
    if layout is not None:
        raise TypeError("got an unexpected keyword argument 'layout'")
    return original(*args, **options)


def test_recurrent_layers_whose_functions_are_not_known_are_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(saved(tmp_path / name, name), dtype=torch.float32)

    why = "recurrent states that are not forked"
    assert obstacle(model("minimax, a cache of its own")) == why
    known = model("qwen3-next")
    assert obstacle(known) is None
    assert recurrence.resettable(known, {"conv", "full_attention"})
    monkeypatch.delattr(library, "torch_chunk_gated_delta_rule")
    assert obstacle(known) == why
    assert recurrence.resettable(known, {"conv", "full_attention"})
    assert recurrence.resettable(known, {"sliding_attention", "full_attention"})
    monkeypatch.delattr(library, "causal_conv1d_fn")
    assert not recurrence.resettable(known, {"conv", "full_attention"})
    # The first Mamba has the convolution, and a scan of its own that takes no state to begin with.
    assert obstacle(model("mamba")) == why
