"""AdamW and its learning rate as a config names them, against the formulas in numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from selfdistill.config.sections import Optimiser
from selfdistill.models.policy import Policy
from selfdistill.training.optimiser import build_optimiser, schedule
from support.runs import open_run, tiny_run


class One:
    """A policy with a single weight."""

    def __init__(self, value: float) -> None:
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))

    def trainable(self) -> list[nn.Parameter]:
        """That weight."""
        return [self.weight]


def test_two_steps_of_adamw_by_hand() -> None:
    """θ ← θ (1 − lr · wd) − lr · m̂ / (√v̂ + ε), with every hyperparameter off its default."""
    one = One(2.0)
    config = Optimiser(learning_rate=0.1, weight_decay=0.5, beta1=0.6, beta2=0.9)
    optimiser = build_optimiser(cast(Policy, one), config)
    first, second, epsilon = 0.5, -3.0, 1e-8
    after_one = 2.0 * (1 - 0.1 * 0.5) - 0.1 * first / (first + epsilon)
    m = 0.6 * 0.4 * first + 0.4 * second
    v = 0.9 * 0.1 * first**2 + 0.1 * second**2
    after_two = after_one * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.6**2)) / (math.sqrt(v / (1 - 0.9**2)) + epsilon)
    for gradient, expected in ((first, after_one), (second, after_two)):
        one.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        assert float(one.weight.detach()) == pytest.approx(expected, rel=1e-12)


HALF = 0.5 * math.sqrt(2.0)
RATES = {
    "constant": [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0],
    # Four steps after the warm-up, at 0, 1/4, 1/2 and 3/4 of the way down: step 9 would stand at 0.
    "linear": [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25],
    "cosine": [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 * (1 + HALF), 0.5, 0.5 * (1 - HALF)],
}


@pytest.mark.parametrize("shape", RATES)
def test_the_rate_rises_to_its_peak_and_falls_to_nothing(shape: Any) -> None:
    rate = schedule(Optimiser(learning_rate=0.02, schedule=shape, warmup=4), 8)
    assert [rate(step) for step in range(1, 9)] == pytest.approx([0.02 * each for each in RATES[shape]], abs=1e-15)
    if shape != "constant":
        assert rate(9) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("shape", RATES)
def test_without_a_warm_up_the_first_step_has_the_peak(shape: Any) -> None:
    assert schedule(Optimiser(learning_rate=0.02, schedule=shape), 8)(1) == 0.02
    # A run that is warm-up and nothing else ends at its peak.
    assert schedule(Optimiser(learning_rate=0.02, schedule=shape, warmup=2), 2)(2) == 0.02


def test_a_run_hands_every_knob_to_what_uses_it(model: Path, tmp_path: Path) -> None:
    config = tiny_run(
        model,
        {"name": "sdft", "teacher_rate": 0.3},
        "seed=7",
        "optimiser.weight_decay=0.125",
        "optimiser.beta1=0.5",
        "optimiser.beta2=0.75",
        "optimiser.clip_norm=0.25",
        "optimiser.updates_per_batch=2",
        "limits.max_tokens_per_microbatch=1000",
        "limits.max_logits_per_chunk=2000",
    )
    trainer = open_run(config, tmp_path / "run").parts.trainer
    [group] = trainer.optimiser.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.125, (0.5, 0.75))
    assert (trainer.clip_norm, trainer.updates_per_batch, trainer.seed) == (0.25, 2, 7)
    assert (trainer.limits.max_tokens_per_microbatch, trainer.limits.max_logits_per_chunk) == (1000, 2000)
    assert trainer.teachers.rate == 0.3
    assert trainer.importance_cap is None
    # tiny_run: five steps, two of them warm-up, then linear.
    assert [trainer.learning_rate(step) for step in (1, 2, 3, 5)] == pytest.approx([0.005, 0.01, 0.01, 0.01 / 3])
