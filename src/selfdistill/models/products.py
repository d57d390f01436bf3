"""Matrix products on a CPU in float32 by oneDNN's kernels, with and without gradient.

For float32 torch itself calls MKL. MKL is slow on few rows, and on AMD's processors it leaves AVX-512 unused: products
of a training step then take twice as long as with oneDNN (docs/performance.md). The results differ by rounding.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 1 << 18
"""Elements of a weight from which the products of any number of rows are faster: each has a start of its own."""
MUCH = 1 << 23
"""Products of numbers, rows times elements, from which smaller weights are faster too; half of it suffices where MKL
leaves AVX-512 unused."""
KEPT = 16
"""Kernels that stay ready, in each of two caches. Every shape has its own kernel, of half a megabyte, and with 1,024 of
them, which is the default, batches of ever new lengths fill a gigabyte."""
CACHES = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
"""Environment variables with the sizes of the caches: torch and oneDNN read them when the first kernel is made."""


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``states`` [..., D] times the transpose of ``weight`` [V, D], plus ``bias`` [V]: [..., V].

    It is ``torch.nn.functional.linear`` by the faster kernel where there is one. Its gradient has no gradient itself.
    """
    if not _gains(states, weight):
        return nn.functional.linear(states, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (states, weight, bias)):
        product: Tensor = _Linear.apply(states, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _kernel(states, weight, bias)


def times(states: Tensor, weight: Tensor) -> Tensor:
    """``states`` [N, V] times ``weight`` [V, D]: [N, D], without gradient, by the faster kernel where there is one."""
    return _kernel(states, weight.T) if _gains(states, weight) else states @ weight


@contextmanager
def quick_products(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model use :func:`linear`."""
    # A layer with a forward of its own is another library's, or is quick already.
    layers = [each for each in model.modules() if type(each) is nn.Linear and "forward" not in vars(each)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Linear(torch.autograd.Function):
    """A linear map whose gradients are products by the same kernel."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return _kernel(states, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        # A sum's gradient is one number that is repeated without memory of its own, which the kernel does not read.
        grad = grad.contiguous()
        grad_NV, states_ND = grad.flatten(0, -2), states.flatten(0, -2)
        grad_states = _kernel(grad, weight.T) if needs_states else None
        grad_weight = _grad_of_weight(grad_NV, states_ND) if needs_weight else None
        return grad_states, grad_weight, grad_NV.sum(0) if needs_bias else None


def _grad_of_weight(grad_NV: Tensor, states_ND: Tensor) -> Tensor:
    if _mkl_is_wide():
        return grad_NV.T @ states_ND
    # The kernel is fast where the product has more columns than rows.
    if grad_NV.shape[1] > states_ND.shape[1]:
        return _kernel(states_ND.T, grad_NV.T).T
    return _kernel(grad_NV.T, states_ND.T)


def _forward(layer: nn.Linear, states: Tensor) -> Tensor:
    return linear(states, layer.weight, layer.bias)


def _kernel(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _gains(states: Tensor, weight: Tensor) -> bool:
    plain = type(states) in (Tensor, nn.Parameter) and type(weight) in (Tensor, nn.Parameter)
    if not plain or weight.device.type != "cpu" or not states.dtype == weight.dtype == torch.float32:
        return False
    elements = weight.numel()
    # The kernel makes no weight's gradient of no rows.
    if not states.numel():
        return False
    if elements < LARGE and states.numel() // states.shape[-1] * elements < (MUCH if _mkl_is_wide() else MUCH // 2):
        return False
    # A compiler chooses kernels itself, and autocast would compute in fewer bits.
    others = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return not others and states.dim() > 1 and weight.is_contiguous() and _works()


@cache
def _works() -> bool:
    """Whether this is where the kernel was measured, and this build of torch has it.

    It has no public name: torch's compiler calls it by this one.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    states, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    sizes = {name: str(KEPT) for name in CACHES if name not in os.environ}
    os.environ.update(sizes)
    try:
        product = _kernel(states, weight)
    except (AttributeError, RuntimeError, TypeError):
        return False
    finally:
        for name in sizes:
            del os.environ[name]
    return bool(torch.equal(product, states @ weight.T))


@cache
def _mkl_is_wide() -> bool:
    """Whether MKL uses all of this processor's vector units: it does on Intel's, and where they have 256 bits."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return True
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
