"""Products by the quicker kernel: the same numbers, where they are used, and that a model is left as it was."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.distributed.fsdp import checkpoint_activations
from selfdistill.models import products
from selfdistill.models.products import LARGE, linear, quick_products, times


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the states that the quicker kernel gets."""
    shapes: list[tuple[int, ...]] = []
    kernel = torch.ops.mkldnn._linear_pointwise

    def noted(states: torch.Tensor, *rest: object) -> torch.Tensor:
        shapes.append(tuple(states.shape))
        product: torch.Tensor = kernel(states, *rest)
        return product

    if not products._works():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", noted)
    return shapes


@pytest.mark.parametrize("shape", [(1, 512), (3, 512), (2, 5, 512), (0, 512)])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_the_quicker_product_is_the_product(
    shape: tuple[int, ...], has_bias: bool, calls: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(shape), torch.randn(LARGE // 512, 512)
    bias = torch.randn(LARGE // 512) if has_bias else None
    exact = states.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = linear(states, weight, bias)
    assert calls == ([shape] if states.numel() else [])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)


def test_it_is_used_for_much_float32_work_and_for_nothing_else(
    calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_mkl_is_wide", lambda: True)
    large, small = torch.randn(LARGE // 512, 512), torch.randn(64, 512)
    linear(torch.randn(1, 512), large)
    linear(torch.randn(256, 512), small)
    times(torch.randn(1, LARGE // 512), large)
    assert calls == [(1, 512), (256, 512), (1, LARGE // 512)]
    linear(torch.randn(255, 512), small)
    linear(torch.randn(512), large)
    linear(torch.randn(1, 512).double(), large.double())
    linear(torch.randn(1, 512).bfloat16(), large.bfloat16())
    linear(torch.randn(1, LARGE // 512), large.T)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(1, 512), large).dtype == torch.bfloat16
    assert len(calls) == 3
    monkeypatch.setattr(products, "_mkl_is_wide", lambda: False)
    linear(torch.randn(128, 512), small)
    linear(torch.randn(127, 512), small)
    assert calls[3:] == [(128, 512)]


@pytest.mark.parametrize("wide_mkl", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [(600,), (2, 300)])
@pytest.mark.parametrize("size", [(128, 256), (256, 128)])
def test_its_gradients_are_those_of_the_product(
    size: tuple[int, int],
    rows: tuple[int, ...],
    has_bias: bool,
    wide_mkl: bool,
    calls: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_mkl_is_wide", lambda: wide_mkl)
    torch.manual_seed(0)
    leaves = [torch.randn(*rows, size[1]), torch.randn(size), *([torch.randn(size[0])] if has_bias else [])]
    grad = torch.randn(*rows, size[0])

    def gradients(product: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        return torch.autograd.grad(product(*inputs), inputs, grad.to(dtype))

    found, exact = gradients(linear, torch.float32), gradients(nn.functional.linear, torch.float64)
    assert calls == [(*rows, size[1]), (*rows, size[0]), *([] if wide_mkl else [(128, 600)])]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-3)


def test_only_gradients_that_are_asked_for_are_computed(calls: list[tuple[int, ...]]) -> None:
    states, weight = torch.randn(600, 256, requires_grad=True), torch.randn(128, 256)
    # The gradient of a sum is a single one, repeated without memory of its own.
    linear(states, weight).sum().backward()
    assert states.grad is not None and weight.grad is None
    assert torch.allclose(states.grad, weight.sum(0).expand(600, 256), atol=1e-4)
    assert calls == [(600, 256), (600, 128)]
    with torch.no_grad():
        assert not linear(states, weight).requires_grad


@pytest.mark.parametrize("size", [(1024, 512), (512, 1024)])
def test_no_rows_have_gradients_of_zero(size: tuple[int, int]) -> None:
    states, weight = torch.randn(0, size[1], requires_grad=True), torch.randn(size, requires_grad=True)
    linear(states, weight).sum().backward()
    assert states.grad is not None and states.grad.shape == states.shape
    assert weight.grad is not None and not weight.grad.any()


def test_layers_that_are_computed_again_use_it_too(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(256, 128), nn.ReLU()) for _ in range(2)]
    states = torch.randn(600, 256, requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        weight = dict(layers[0].named_parameters())["0.weight"]
        with quick_products(nn.ModuleList(layers)):
            product = layers[0](states) + layers[1](states)
        return list(torch.autograd.grad(product.square().sum(), [states, weight]))

    expected, first = gradients(), list(calls)
    calls.clear()
    checkpoint_activations(layers, quick_products)
    found = gradients()
    assert len(calls) == len(first) + 2  # the forward pass of each layer once more
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert all("forward" not in vars(layer[0]) for layer in layers)


def test_the_kernels_that_are_kept_take_little_memory() -> None:
    """Each of 500 lengths has kernels of its own; with torch's defaults they fill 300 MiB and more."""
    code = """
import os, torch
from pathlib import Path
from selfdistill.models.products import CACHES, linear
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
weight = torch.randn(512, 192)
linear(torch.randn(1000, 192), weight)
before = resident()
for rows in range(1000, 1500):
    linear(torch.randn(rows, 192), weight)
assert not set(CACHES) & set(os.environ)
print(resident() - before)
"""
    environment = {name: value for name, value in os.environ.items() if name not in products.CACHES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert float(done.stdout) < 150


def test_a_model_is_quick_inside_and_as_it_was_outside(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    foreign = nn.Linear(512, LARGE // 512)
    foreign.forward = lambda input: input  # type: ignore[method-assign]
    model = nn.Sequential(nn.Linear(512, LARGE // 512), nn.ReLU())
    both = nn.ModuleList([model, foreign])
    states = torch.randn(3, 512)
    with torch.no_grad():
        expected = model(states)
        with quick_products(both):
            found = model(states)
            with quick_products(both):
                model(states)
            model(states)
            # A copy that is made inside has a forward of its own weights.
            twin = copy.deepcopy(model)
            for parameter in twin.parameters():
                parameter.zero_()
            assert not twin(states).any()
            assert foreign(states) is states
        assert calls == [(3, 512)] * 4
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(model(states), expected)
    assert "forward" not in vars(model[0])
    assert "forward" in vars(foreign)


def test_without_the_kernel_it_is_torchs_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*rest: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", missing)
    products._works.cache_clear()
    states, weight = torch.randn(3, 512), torch.randn(LARGE // 512, 512)
    with torch.no_grad():
        assert torch.equal(linear(states, weight), nn.functional.linear(states, weight))
    products._works.cache_clear()
