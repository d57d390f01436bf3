"""Products of states with weights on a CPU, in float32 and without gradient, by oneDNN's kernels.

For float32 torch itself calls MKL, which is slow on few rows: three rows and 49,152 × 576 weights take three times as
long as with oneDNN. With many rows oneDNN is a tenth faster (docs/log.md). The results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType

import torch
from torch import Tensor, nn

LARGE = 1 << 18
"""Elements of a weight from which the products of any number of rows are faster: each has a start of its own."""
MUCH = 1 << 23
"""Products of numbers, rows times elements, from which smaller weights are faster too."""


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states`` [..., D] times the transpose of ``weight`` [V, D], plus ``bias`` [V]: [..., V].

    It is ``torch.nn.functional.linear`` by the faster kernel where there is one.
    """
    if _gains(states, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
        return product
    return nn.functional.linear(states, weight, bias)


@contextmanager
def quick_products(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model use :func:`linear`. Products that need a gradient stay as they are."""
    # A layer with a forward of its own is another library's, or is quick already.
    layers = [each for each in model.modules() if type(each) is nn.Linear and "forward" not in vars(each)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Linear, states: Tensor) -> Tensor:
    return linear(states, layer.weight, layer.bias)


def _gains(states: Tensor, weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    if torch.is_grad_enabled() or not plain or not states.dtype == weight.dtype == torch.float32:
        return False
    elements = weight.numel()
    much = elements >= LARGE or states.numel() // weight.shape[1] * elements >= MUCH
    return much and weight.is_contiguous() and _works()


@cache
def _works() -> bool:
    """Whether this build of torch has the kernel. It has no public name: torch's compiler calls it by this one."""
    if not torch.backends.mkldnn.is_available():
        return False
    states, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        product = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.equal(product, states @ weight.T))
