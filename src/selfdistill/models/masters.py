"""float32 master weights of a model that computes in bf16.

bfloat16 has eight significant bits: next to a weight of 0.02 the spacing is 1e-4, and an update of 1e-6 rounds to
zero. So the optimiser and weight averages work on *masters* in float32, and the model computes with the rounded
masters. Gradients of micro-batches are accumulated in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def narrower(parameter: nn.Parameter) -> bool:
    """Whether a parameter is trained and its type is narrower than float32."""
    return parameter.requires_grad and torch.promote_types(parameter.dtype, torch.float32) != parameter.dtype


class Masters:
    """float32 masters of a module's trained parameters, by name; empty if these are float32 or wider."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """Copy the trained parameters, on their current device. Gradients then accumulate in the copies."""
        self.weights: dict[str, nn.Parameter] = {}
        self.computed: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters() if module is not None else ():
            if narrower(parameter):
                self.weights[name] = nn.Parameter(parameter.detach().float())
                self.computed[name] = parameter
                parameter.register_post_accumulate_grad_hook(_accumulate_into(self.weights[name]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters, rounded, to the module's parameters."""
        for name, master in self.weights.items():
            self.computed[name].copy_(master)


def _accumulate_into(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a parameter's gradient to its master's as soon as it is computed, and frees it."""

    def add(computed: Tensor) -> None:
        assert computed.grad is not None
        if master.grad is None:
            master.grad = computed.grad.to(master.dtype)
        else:
            master.grad += computed.grad
        computed.grad = None

    return add


def widen(module: nn.Module) -> torch.dtype | None:
    """Convert a module's trained parameters to float32, in place. Returns their former type; None if none was narrower.

    Sharded weights have no masters: the shards themselves are float32, and FSDP2 casts them for each forward pass.
    """
    former: torch.dtype | None = None
    for parameter in module.parameters():
        if narrower(parameter):
            former = former or parameter.dtype
            parameter.data = parameter.data.float()
    return former
