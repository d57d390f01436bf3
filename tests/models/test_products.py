"""Products by the quicker kernel: the same numbers, where they are used, and that a model is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfdistill.models import products
from selfdistill.models.products import LARGE, linear, quick_products


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
    assert calls == [shape]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)


def test_it_is_used_for_much_float32_work_without_gradient_and_for_nothing_else(calls: list[tuple[int, ...]]) -> None:
    large, small = torch.randn(LARGE // 512, 512), torch.randn(64, 512)
    with torch.no_grad():
        linear(torch.randn(1, 512), large)
        linear(torch.randn(256, 512), small)
        assert calls == [(1, 512), (256, 512)]
        linear(torch.randn(255, 512), small)
        linear(torch.randn(1, 512).double(), large.double())
        linear(torch.randn(1, 512).bfloat16(), large.bfloat16())
        linear(torch.randn(1, LARGE // 512), large.T)
    states = torch.randn(1, 512, requires_grad=True)
    linear(states, large).sum().backward()
    assert states.grad is not None
    assert torch.allclose(states.grad[0], large.sum(0), atol=1e-3)
    assert len(calls) == 2


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
