"""The check behind the step benchmark: on the same completions both trainers compute the same thing.

TRL makes one step. Its completions then go through our step under the same weights, and three things must agree: the
teacher's prompts token by token, the loss, and the gradient. TRL averages over the tokens of each completion and then
over completions, which our trainer does here by its views' weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from our_side import build as build_ours
from selfdistill.scoring.prepare import Prepared
from selfdistill.scoring.score import score_views
from selfdistill.training.build import Parts
from selfdistill.training.clock import Clock
from selfdistill.training.trainer import Trainer
from selfdistill.types import Example, Rollout, RolloutGroup, View
from their_side import build as build_theirs
from workload import FixedFeedback, Workload, examples_of_step, workload_from


@dataclass(slots=True)
class Theirs:
    """What TRL's step left: the batch it trained on, its loss and its gradient."""

    batch: dict[str, Any]
    loss: float
    gradient: Tensor


class Catch(TrainerCallback):
    """Keeps the gradient before the update."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The gradient is there and clipped."""
        self.gradient = flat_gradient(kwargs["model"].parameters())


class PerSequence(Trainer):
    """Our trainer with every completion's tokens weighing 1 together, as TRL averages."""

    def prepare(self, groups: Sequence[RolloutGroup], *, step: int) -> Prepared:
        """The views of :class:`Trainer`, weighed anew."""
        made = super().prepare(groups, step=step)
        made.views = [replace(v, weights=tuple(w / len(v.weights) for w in v.weights)) for v in made.views]
        return made


def flat_gradient(parameters: Any) -> Tensor:
    """All gradients in one vector, in the model's order."""
    return torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None])


def their_step(workload: Workload) -> Theirs:
    """One step of TRL."""
    losses: list[float] = []
    catch = Catch()
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = build_theirs(replace(workload, warmup=0, timed=1), folder)
        trainer.add_callback(catch)
        compute_loss = trainer.compute_loss

        def recorded(*args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

        trainer.compute_loss = recorded
        trainer.train()
    assert catch.gradient is not None
    return Theirs(trainer.batch, sum(losses), catch.gradient)


def groups_from(batch: dict[str, Any], examples: Sequence[Example], parts: Parts, count: int) -> list[RolloutGroup]:
    """TRL's completions as our rollouts, judged by our task, with the log-probabilities that our own student gives."""
    task = FixedFeedback(parts.task)
    groups = []
    for g, example in enumerate(examples):
        prompt = parts.chat.encode(example.prompt)
        rollouts = []
        for row in range(g * count, (g + 1) * count):
            ids = tuple(batch["completion_ids"][row, : int(batch["raw_completion_lengths"][row])].tolist())
            unknown = (0.0,) * len(ids)
            rollouts.append(Rollout(prompt, ids, unknown, ids[-1] in parts.chat.stop_ids, parts.chat.decode(ids), 0))
        verdicts = tuple(task.verify(example, rollout.text, finished=rollout.finished) for rollout in rollouts)
        groups.append(RolloutGroup(example, tuple(rollouts), verdicts))
    return groups


def on_policy(groups: Sequence[RolloutGroup], parts: Parts) -> list[RolloutGroup]:
    """The groups with the log-probabilities under which the student would have sampled them."""
    views = parts.trainer.prepare(groups, step=1).views
    limits = parts.trainer.limits
    scores = score_views(
        parts.policy,
        views,
        "student",
        max_tokens=limits.max_tokens_per_microbatch,
        max_logits_per_chunk=limits.max_logits_per_chunk,
    )
    known = {(v.group, v.index): tuple(s.target_N.tolist()) for v, s in zip(views, scores, strict=True)}
    return [
        replace(group, rollouts=tuple(replace(r, logprobs=known[g, i]) for i, r in enumerate(group.rollouts)))
        for g, group in enumerate(groups)
    ]


def our_trainer(parts: Parts) -> Trainer:
    """The run's trainer, averaging as TRL does."""
    made = parts.trainer
    return PerSequence(
        made.policy,
        made.teachers,
        made.method,
        made.templates,
        made.chat,
        made.optimiser,
        learning_rate=made.learning_rate,
        clip_norm=made.clip_norm,
        limits=made.limits,
        thinking=made.thinking,
        world=made.world,
    )


def different_prompts(batch: dict[str, Any], views: Sequence[View], count: int) -> int:
    """Completions whose teacher prompts are not the same token ids on both sides."""
    width = batch["teacher_input_ids"].shape[1] - batch["completion_ids"].shape[1]
    ours = {view.group * count + view.index: view.prompts["teacher"] for view in views}
    different = 0
    for row, (ids, mask) in enumerate(zip(batch["teacher_input_ids"], batch["teacher_attention_mask"], strict=True)):
        theirs = tuple(ids[:width][mask[:width].bool()].tolist())
        different += ours.get(row) != theirs
    return different


def compare(workload: Workload) -> dict[str, float]:
    """Both losses and how far the gradients are apart."""
    theirs = their_step(workload)
    parts = build_ours(workload)
    examples = examples_of_step(parts.examples, workload, 0)
    groups = on_policy(groups_from(theirs.batch, examples, parts, workload.completions), parts)
    result = our_trainer(parts).step(groups, step=1, clock=Clock())
    ours = flat_gradient(parts.policy.model.parameters())
    loss = result.record.loss
    return {
        "completions": float(workload.rows),
        "different teacher prompts": float(different_prompts(theirs.batch, result.views, workload.completions)),
        "our loss": loss,
        "their loss": theirs.loss,
        "relative difference of the losses": abs(loss - theirs.loss) / abs(theirs.loss),
        "relative difference of the gradients": float((ours - theirs.gradient).norm() / theirs.gradient.norm()),
    }


def main(workload: Workload, target: Path) -> None:
    """Compare and write the report."""
    target.write_text(json.dumps(compare(workload)), encoding="utf-8")


if __name__ == "__main__":
    main(workload_from(sys.argv[1]), Path(sys.argv[2]))
