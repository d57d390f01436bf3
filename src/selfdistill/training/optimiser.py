"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from selfdistill.config.sections import Optimiser
from selfdistill.models.policy import Policy


def build_optimiser(policy: Policy, config: Optimiser) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters."""
    return torch.optim.AdamW(
        policy.trainable(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )


def schedule(config: Optimiser, steps: int) -> Callable[[int], float]:
    """The learning rate as a function of the step, counted from 1. A resume then needs no scheduler state."""
    peak = config.learning_rate

    def rate(step: int) -> float:
        if step <= config.warmup:
            return peak * step / config.warmup
        done = (step - config.warmup - 1) / max(1, steps - config.warmup)
        if config.schedule == "linear":
            return peak * (1 - done)
        if config.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak

    return rate
