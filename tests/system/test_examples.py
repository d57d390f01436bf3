"""The examples do what the library does."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

from selfdistill.config.sections import limits_on
from selfdistill.contexts.templates import load_templates
from selfdistill.distributed.world import World
from selfdistill.methods.antisd import AntiSD
from selfdistill.models.policy import load_policy
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.tasks.countdown.task import CountdownTask
from selfdistill.training.clock import Clock
from selfdistill.training.trainer import Trainer

LOOP = Path(__file__).parents[2] / "examples" / "minimal_loop.py"


def test_the_minimal_loop_has_the_gradient_of_the_trainer() -> None:
    example = runpy.run_path(str(LOOP))
    torch.manual_seed(0)
    stepped = example["main"](steps=1, prompts_per_step=2)

    policy, chat = load_policy("countdown-base", dtype=torch.float32, device=torch.device("cpu"))
    task, method = CountdownTask(), AntiSD(gated=False, strength=example["STRENGTH"], context="solution_verdict")
    params = SamplingParams(count=example["COMPLETIONS"], max_tokens=example["MAX_TOKENS"])
    groups = sample_and_verify(task.examples("train")[:2], task, policy_sampler(policy, chat), chat, params)
    trainer = Trainer(
        policy,
        Teachers(policy, needed={"live"}, rate=0.0),
        method,
        load_templates("countdown"),
        chat,
        torch.optim.AdamW(policy.trainable(), lr=example["LEARNING_RATE"], weight_decay=0.0),
        learning_rate=lambda step: example["LEARNING_RATE"],
        clip_norm=1.0,
        limits=limits_on("cpu"),
        thinking=None,
        world=World(),
    )
    trainer.step(groups, step=1, clock=Clock())

    # Clipped to norm 1 by both; the step itself would hide the gradient's size behind AdamW's normalisation.
    largest = 0.0
    for mine, theirs in zip(policy.trainable(), stepped.trainable(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-3, atol=1e-6)
        largest = max(largest, float(mine.grad.abs().max()))
    assert largest > 1e-3
