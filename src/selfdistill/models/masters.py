"""Weights that are trained in float32 behind a model that computes in a narrower type.

bfloat16 keeps eight bits of a weight: beside a weight of 0.02 the next number is 1e-4 away, and an update of 1e-6
rounds to nothing. So the optimiser and averages work on *masters* in float32, and the model computes with what they
round to. Gradients of micro-batches are added up in float32 too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def narrower(parameter: nn.Parameter) -> bool:
    """Whether a weight is trained, and in a floating type with fewer bits than float32."""
    return parameter.requires_grad and torch.promote_types(parameter.dtype, torch.float32) != parameter.dtype


class Masters:
    """The float32 weights behind a module's trained ones, by name; none where the module's own are as wide."""

    def __init__(self, module: nn.Module | None = None) -> None:
        """Copy what is trained in ``module``, where it lies now. From here on its gradients go to the copies."""
        self.weights: dict[str, nn.Parameter] = {}
        self.computed: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters() if module is not None else ():
            if narrower(parameter):
                self.weights[name] = nn.Parameter(parameter.detach().float())
                self.computed[name] = parameter
                parameter.register_post_accumulate_grad_hook(_hand_on(self.weights[name]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Let the module compute with what the masters are now."""
        for name, master in self.weights.items():
            self.computed[name].copy_(master)


def _hand_on(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that adds a weight's gradient to its master's as soon as it is there, and frees it."""

    def add(computed: Tensor) -> None:
        assert computed.grad is not None
        if master.grad is None:
            master.grad = computed.grad.to(master.dtype)
        else:
            master.grad += computed.grad
        computed.grad = None

    return add


def widen(module: nn.Module) -> torch.dtype | None:
    """Make a module's own trained weights float32, as shards are kept; returns the type that they had, None if wide."""
    found: torch.dtype | None = None
    for parameter in module.parameters():
        if narrower(parameter):
            found = found or parameter.dtype
            parameter.data = parameter.data.float()
    return found
