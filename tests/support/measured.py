"""One step of a method on a tiny student that has moved, to be compared with brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
from selfdistill.config.sections import Limits, LoraConfig
from selfdistill.contexts.templates import Template
from selfdistill.training.trainer import StepResult
from selfdistill.types import RolloutGroup
from support.engine import Bench, distance, invent_groups, load_exact, make_bench, perturb, size_of
from support.hindsight import Shown, scored


class Measured:
    """A step of a method on a student that has moved, with the models as they were before and after the move."""

    def __init__(
        self,
        folder: Path,
        templates: Mapping[str, Template],
        name: str,
        hyperparameters: Mapping[str, Any],
        *,
        sides: bool = False,
        change: Callable[[RolloutGroup], RolloutGroup] | None = None,
        step: int = 1,
        lora: LoraConfig | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.policy, self.chat = load_exact(folder, lora=lora)
        self.start = copy.deepcopy(self.policy.model)
        self.bench: Bench = make_bench(
            self.policy,
            self.chat,
            templates,
            name,
            {**hyperparameters, "teacher_rate": 0.0},
            limits=limits,
            move=perturb,
        )
        self.groups: list[RolloutGroup] = invent_groups(self.policy, self.chat)
        if sides:
            self.groups = [drawn_by_both(group) for group in self.groups]
        if change is not None:
            self.groups = [change(group) for group in self.groups]
        self.result: StepResult = self.bench.step(self.groups, step=step)
        self.student = copy.deepcopy(self.start)
        # Without the adapters of averaged and copied teachers.
        names = self.student.state_dict().keys()
        self.student.load_state_dict({n: p for n, p in self.policy.model.state_dict().items() if n in names})

    def scored(self, *, live: bool = False, **roles: Any) -> list[hand.Scored]:
        """Every completion by brute force; the teachers have the weights of the start, or the student's."""
        teacher = self.student if live else self.start
        return scored(self.student, teacher, self.groups, self.chat, self.policy.vocab_size, **roles)

    def shown(self, role: str) -> Shown:
        """What each completion's role was shown, read off the prompts that were scored."""
        found = {
            (view.group, view.index): self.chat.tokenizer.decode(view.prompts[role]).strip() + " "
            for view in self.result.views
            if role in view.prompts
        }
        return lambda g, i: found.get((g, i))

    def compare(self, loss: torch.Tensor) -> None:
        """Value and gradient are those of ``loss``."""
        assert self.result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
        expected = hand.gradient(self.student, loss)
        assert size_of(expected) > 1e-5
        assert distance(self.bench.gradient(), expected) < 1e-8


def drawn_by_both(group: RolloutGroup) -> RolloutGroup:
    """Half of the completions as if the teacher's context had drawn them."""
    half = len(group.rollouts) // 2
    rollouts = tuple(replace(r, source="teacher") if i >= half else r for i, r in enumerate(group.rollouts))
    return replace(group, rollouts=rollouts)


def nothing_wrong(group: RolloutGroup) -> RolloutGroup:
    """Graded rewards of which all count as right."""
    return replace(
        group,
        verdicts=tuple(
            replace(v, success=True, reward=v.reward if v.reward is not None else 0.3) for v in group.verdicts
        ),
    )
