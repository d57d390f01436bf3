"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from selfdistill.config.bits import MOMENTS_IN_8_BITS
from selfdistill.config.sections import Optimiser
from selfdistill.models.policy import Policy
from selfdistill.models.quantised import import_bitsandbytes
from selfdistill.models.sizing import SMALLEST_IN_8_BITS


def build_optimiser(policy: Policy, config: Optimiser) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, with moments in float32, or in 8 bits by bitsandbytes.

    Raises:
        ConfigError: bitsandbytes is needed and cannot be imported.
    """
    betas = (config.beta1, config.beta2)
    if config.kind == MOMENTS_IN_8_BITS:
        optim = import_bitsandbytes(f"optimiser.kind {config.kind!r}").optim
        in_8_bits: torch.optim.Optimizer = optim.AdamW8bit(
            policy.trainable(),
            lr=config.learning_rate,
            betas=betas,
            weight_decay=config.weight_decay,
            min_8bit_size=SMALLEST_IN_8_BITS,
        )
        return in_8_bits
    return torch.optim.AdamW(policy.trainable(), lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay)


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
