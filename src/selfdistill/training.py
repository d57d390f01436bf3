"""One optimiser step: advantages, views, scores, loss, gradient, update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdistill.batching import collate, concatenate, micro_batches
from selfdistill.chat import Chat
from selfdistill.contexts import Template
from selfdistill.distributed import World
from selfdistill.errors import TrainingError
from selfdistill.head import STUDENT, SliceJob
from selfdistill.methods.base import Method, Observation
from selfdistill.policy import Policy
from selfdistill.scoring import readouts, score_views, split
from selfdistill.teachers import Teachers
from selfdistill.types import RolloutGroup, Scores, StepRecord, View
from selfdistill.views import ViewSet, build_views


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory bounds. They change how the work is cut, never its result.

    ``tokens`` per micro-batch and role, padding included; ``elements`` in one [slice, vocabulary] tensor.
    """

    tokens: int = 16384
    elements: int = 1 << 24


@dataclass(slots=True)
class StepResult:
    """What a step leaves: its record, and per-token scores by role for each view (None where not scored)."""

    record: StepRecord
    views: list[View]
    scores: dict[str, list[Scores | None]] = field(default_factory=dict)


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Trainer:
    """The student, its teachers, its optimiser, and what to do with a batch of groups."""

    def __init__(
        self,
        policy: Policy,
        teachers: Teachers,
        method: Method,
        templates: Mapping[str, Template],
        chat: Chat,
        optimiser: torch.optim.Optimizer,
        *,
        learning_rate: Callable[[int], float],
        clip_norm: float,
        limits: Limits,
        thinking: bool | None,
        world: World,
    ) -> None:
        self.policy = policy
        self.teachers = teachers
        self.method = method
        self.templates = templates
        self.chat = chat
        self.optimiser = optimiser
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.limits = limits
        self.thinking = thinking
        self.world = world
        self.state = method.new_state()

    def step(self, groups: Sequence[RolloutGroup], *, step: int, clock: Clock) -> StepResult:
        """One update of the student on these groups, then one of its teachers.

        Raises:
            TrainingError: the loss or its gradient is not a number; nothing has been updated then.
        """
        with clock.phase("views"):
            prepared = self.views(groups)
        with clock.phase("teacher"):
            beforehand = self._score_beforehand(prepared.views)
            values = dict(self.method.observe(self.state, Observation(beforehand)))
        rate = self.learning_rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss, scores, metrics, weight = self._backward(prepared.views, beforehand, values, clock)
        with clock.phase("update"):
            norm = float(torch.nn.utils.clip_grad_norm_(self.policy.trainable(), self.clip_norm or math.inf))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: loss {loss} with gradient norm {norm} is not a number; the weights were not updated"
                )
            self.optimiser.step()
            self.teachers.update()
        scores.update(beforehand)
        record = StepRecord(
            step=step,
            sums=_sums(scores),
            counts={"tokens": float(sum(len(v.completion_ids) for v in prepared.views)), "weight": weight},
            values={
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": rate,
                "dropped": float(prepared.dropped),
                **{f"skipped: {reason}": float(count) for reason, count in sorted(prepared.skipped.items())},
                **values,
                **metrics,
            },
        )
        return StepResult(record, prepared.views, scores)

    def views(self, groups: Sequence[RolloutGroup]) -> ViewSet:
        """The views that a step over these groups would score."""
        advantages = self.method.advantages(_rewards(groups))
        return build_views(groups, self.method, self.templates, self.chat, advantages, thinking=self.thinking)

    def _score_beforehand(self, views: Sequence[View]) -> dict[str, list[Scores | None]]:
        result: dict[str, list[Scores | None]] = {}
        if not self.method.scored_beforehand:
            return result
        for name, role in self.method.roles().items():
            shown = [i for i, view in enumerate(views) if name in view.prompts]
            result[name] = [None] * len(views)
            if shown:
                with self.teachers.weights(role.weights) as policy:
                    scores = score_views(
                        policy,
                        [views[i] for i in shown],
                        name,
                        max_tokens=self.limits.tokens,
                        elements=self.limits.elements,
                    )
                for i, score in zip(shown, scores, strict=True):
                    result[name][i] = score
        return result

    def _backward(
        self,
        views: Sequence[View],
        beforehand: Mapping[str, list[Scores | None]],
        values: Mapping[str, float],
        clock: Clock,
    ) -> tuple[float, dict[str, list[Scores | None]], dict[str, float], float]:
        """Gradient of the weighted mean over all views; loss, scores by role, weighted metrics, total weight."""
        total_weight = self.world.sum(math.fsum(weight for view in views for weight in view.weights))
        loss = 0.0
        sums: dict[str, float] = {}
        scores: dict[str, list[Scores | None]] = {}
        for chosen in micro_batches(views, max_tokens=self.limits.tokens):
            picked = [views[i] for i in chosen]
            batch = collate(picked, STUDENT)
            job = self._job(picked, batch.target_N, chosen, beforehand, values, total_weight, clock)
            with clock.phase("student"):
                result = self.policy(batch, job)
                result.loss.backward()
            loss += float(result.loss.detach())
            for name, value in result.metric_sums.items():
                sums[name] = sums.get(name, 0.0) + value
            for role, score in result.scores.items():
                column = scores.setdefault(role, [None] * len(views))
                for i, part in zip(chosen, split(score, picked), strict=True):
                    column[i] = part
        return loss, scores, sums, total_weight

    def _job(
        self,
        picked: Sequence[View],
        target_N: Tensor,
        chosen: Sequence[int],
        beforehand: Mapping[str, list[Scores | None]],
        values: Mapping[str, float],
        total_weight: float,
        clock: Clock,
    ) -> SliceJob:
        device, wide = self.policy.device, _wide(self.policy)
        weights = {} if self.method.scored_beforehand else {n: r.weights for n, r in self.method.roles().items()}
        with clock.phase("teacher"):
            others = readouts(self.teachers, picked, weights, target_N)
        inputs = {
            "advantage": concatenate([[view.advantage] * len(view.completion_ids) for view in picked], wide),
            "old_logprob": concatenate([view.old_logprobs for view in picked], wide),
        }
        inputs = {name: numbers.to(device) for name, numbers in inputs.items()}
        for role, column in beforehand.items():
            inputs[role] = torch.cat(
                [_or_nan(column[i], view, device, wide) for i, view in zip(chosen, picked, strict=True)]
            )
        return SliceJob(
            target_N=target_N.to(device),
            weight_N=concatenate([view.weights for view in picked], wide).to(device) / (total_weight or 1.0),
            loss=self.method.loss,
            metrics=self.method.metrics,
            readouts=others,
            inputs=inputs,
            values=values,
            elements=self.limits.elements,
        )


def _rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    rows = [[math.nan if v.reward is None else v.reward for v in group.verdicts] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _wide(policy: Policy) -> torch.dtype:
    return torch.promote_types(next(policy.parameters()).dtype, torch.float32)


def _or_nan(scores: Scores | None, view: View, device: torch.device, dtype: torch.dtype) -> Tensor:
    if scores is None:
        return torch.full((len(view.completion_ids),), math.nan, dtype=dtype, device=device)
    return scores.target_N.to(dtype)


def _sums(scores: Mapping[str, Sequence[Scores | None]]) -> dict[str, float]:
    """Sums over tokens: entropy and number of tokens of each role, and u of each teacher."""
    sums: dict[str, float] = {}
    student = scores.get(STUDENT, [])
    for role, column in scores.items():
        present = [(mine, theirs) for mine, theirs in zip(student, column, strict=True) if mine and theirs]
        sums[f"{role}_tokens"] = float(sum(len(theirs.target_N) for _, theirs in present))
        sums[f"{role}_entropy"] = math.fsum(float(theirs.entropy_N.double().sum()) for _, theirs in present)
        if role != STUDENT:
            sums[f"{role}_u"] = math.fsum(float((t.target_N - s.target_N).double().sum()) for s, t in present)
    return sums
