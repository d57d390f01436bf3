"""One training step: advantages, views, teacher scores, loss, backward pass, optimiser update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from selfdistill.config.sections import Limits, limits_on
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, may_show
from selfdistill.distributed.fsdp import clip_grad_norm
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import ConfigError, TrainingError
from selfdistill.methods.base import Method
from selfdistill.models.head import LossInputs, LossOutput
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.batching import MicroBatch, collate, concatenate, micro_batches
from selfdistill.scoring.prepare import (
    BatchInputs,
    Prepared,
    batch_inputs,
    logprobs_of,
    loss_inputs,
    prepare,
    render,
    wide_dtype,
)
from selfdistill.scoring.score import head_inputs, score_roles, split, together
from selfdistill.seeds import derive
from selfdistill.tracking.progress import advance
from selfdistill.training.clock import Clock
from selfdistill.training.importance import LEARNER, SAMPLER, corrected, gaps, metrics_of_learner, sampled_logprobs
from selfdistill.training.movement import Movement
from selfdistill.training.notes import NOTE, Notes
from selfdistill.training.shaping import Shaping
from selfdistill.types import STUDENT, External, Role, RoleSums, RolloutGroup, Scores, Server, StepRecord, View


@dataclass(slots=True)
class StepResult:
    """Result of a step."""

    record: StepRecord
    views: list[View]
    scores: dict[str, list[Scores | None]] = field(default_factory=dict)
    """Per-token scores by role, one entry per view; None where the view lacks the role's prompt."""


@dataclass(frozen=True, slots=True)
class _Update:
    """Result of one optimiser update: ``values`` are all other numbers, ``scores`` those of every role."""

    loss: float
    grad_norm: float
    weight: float
    values: Mapping[str, float]
    scores: dict[str, list[Scores | None]]


@dataclass(slots=True)
class _Totals:
    """Totals of this rank's micro-batches: loss, weighted sums of metrics, scores by role and view."""

    loss: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[int, Scores]] = field(default_factory=dict)

    def add(self, indices: Sequence[int], result: LossOutput, views: Sequence[View]) -> None:
        """Add the result of one micro-batch over the views of these indices."""
        self.loss += float(result.loss.detach())
        for name, value in result.metric_sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for role, scores in result.scores.items():
            pairs = zip(indices, views, split(scores, views), strict=True)
            scores_by_view = {i: view_scores for i, view, view_scores in pairs if role in view.prompts}
            self.scores.setdefault(role, {}).update(scores_by_view)

    def alone(self) -> _Totals:
        """A CPU copy for all_gather."""
        scores = {
            role: {i: view_scores.alone() for i, view_scores in column.items()} for role, column in self.scores.items()
        }
        return _Totals(self.loss, self.sums, scores)


class Trainer:
    """Makes training steps: holds the student, its teachers, the method and the optimiser."""

    def __init__(
        self,
        policy: Policy,
        teachers: Teachers | None,
        method: Method,
        templates: Mapping[str, Template],
        chat: Chat,
        optimiser: torch.optim.Optimizer,
        *,
        learning_rate: Callable[[int], float] | float,
        clip_norm: float = 1.0,
        limits: Limits | None = None,
        thinking: bool | None = None,
        world: World | None = None,
        seed: int = 0,
        updates_per_batch: int = 1,
        importance_cap: float | None = None,
        steps: int | None = None,
        shaping: Shaping | None = None,
    ) -> None:
        """Build a trainer.

        ``updates_per_batch`` is the number of optimiser updates on each batch. ``seed`` orders the texts of contrast
        contexts.
        ``teachers`` None makes the teachers that the method needs, copied from the student as it is now.
        ``importance_cap`` caps the importance weights of completions that another engine or older weights sampled;
        None makes no correction, for completions that the student itself sampled. ``steps`` is the run's length, for
        methods with a schedule. ``shaping`` drops, weighs and punishes completions; None leaves all as they are.
        """
        self.policy = policy
        self.teachers = teachers or teachers_of(method, policy)
        self.method = method
        self.templates = templates
        self.chat = chat
        self.optimiser = optimiser
        self.learning_rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
        self.clip_norm = clip_norm
        self.limits = limits or limits_on(policy.device.type)
        self.thinking = thinking
        self.world = world or World()
        self.seed = seed
        self.updates_per_batch = updates_per_batch
        self.importance_cap = importance_cap
        self.steps = steps
        self.shaping = shaping
        self.state = method.new_state()
        contexts = [name for name in templates if name in {role.context for role in method.roles().values()}]
        self.notes = Notes(chat, seed, wanted=any(NOTE in may_show(templates, name) for name in contexts))

    def step(self, groups: Sequence[RolloutGroup], *, step: int, clock: Clock | None = None) -> StepResult:
        """Make the optimiser updates on these groups; returns the record and scores of the last update.

        The averaged teacher follows the student after every update.

        Raises:
            TrainingError: the loss or the gradient norm is not finite; that update is not made.
        """
        clock = clock or Clock(self.policy.device)
        # Compute the advantages, and render each completion under the prompt of every role.
        with clock.phase("views"):
            prepared = self.prepare(groups, step=step)
        # Set the learning rate of this step.
        rate = self.learning_rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Update the student; keep its scores before the first update for the importance weights.
        first: Sequence[Scores | None] | None = None
        for update in range(self.updates_per_batch):
            last = self._update(prepared.views, step, update, clock, first)
            first = first or last.scores.get(STUDENT)
        self.teachers.take_snapshots(step)
        self.notes.record(groups)
        # Collect what metrics.jsonl records of the step.
        record = StepRecord(
            step=step,
            loss=last.loss,
            grad_norm=last.grad_norm,
            weight=last.weight,
            tokens=sum(len(view.completion_ids) for view in prepared.views),
            skipped=prepared.skipped,
            roles=_role_sums(last.scores),
            values={
                "learning_rate": rate,
                "dropped": float(prepared.dropped),
                **last.values,
                **({} if self.importance_cap is None else gaps(prepared.views, first or (), cap=self.importance_cap)),
            },
        )
        return StepResult(record, prepared.views, last.scores)

    def prepare(self, groups: Sequence[RolloutGroup], *, step: int) -> Prepared:
        """The views of these groups that a step scores, with their advantages."""
        shaping, groups = self.shaping, self.notes.shown(groups, step=step)
        rewarded = shaping.punish(groups) if shaping else groups
        prepared = prepare_step(
            rewarded, self.method, self.templates, self.chat, thinking=self.thinking, seed=self.seed, step=step
        )
        return shaping.shape(prepared, groups) if shaping else prepared

    def _update(
        self, views: Sequence[View], step: int, update: int, clock: Clock, first: Sequence[Scores | None] | None
    ) -> _Update:
        """Make one optimiser update."""
        # Score the roles that the method needs before the loss, and compute the values of the whole batch.
        with clock.phase("teacher"):
            precomputed = self._precompute(views)
            batch = batch_inputs(
                self.method, self.state, views, precomputed, update=update, step=step, steps=self.steps
            )
        # Accumulate the gradients of all micro-batches.
        self.optimiser.zero_grad(set_to_none=True)
        loss, scores, metrics = self._backward(batch, first, clock)
        # Clip the gradients, then update the student and the averaged teacher.
        with clock.phase("update"):
            norm = clip_grad_norm(self.policy.trainable(), self.clip_norm or math.inf)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: loss {loss} with gradient norm {norm} is not a number; the weights were not "
                    "updated; try a lower optimiser.learning_rate or optimiser.clip_norm, or model.dtype = 'float32'"
                )
            moved = self._move()
        scores.update(precomputed)
        return _Update(loss, norm, batch.total_weight, {**moved, **batch.values, **metrics}, scores)

    def _move(self) -> dict[str, float]:
        """Update the student, then the averaged teacher; returns the share of weights that changed, for each.

        Weights with gradient 0 and averages that equal the student are not counted. Rounding may undo other changes.
        """
        weights, world = self.policy.trainable(), self.world if self.policy.sharded else ALONE
        student = Movement(weights)
        self.optimiser.step()
        self.policy.refresh()
        shares = {"moved": student.share(student.sample([weight.grad for weight in weights]), world)}
        averages, students = self.teachers.averaged()
        average = Movement(averages)
        self.teachers.update()
        gaps_to_close = [s - a for s, a in zip(average.sample(students), average.before, strict=True)]
        shares["average_moved"] = average.share(gaps_to_close, world)
        return {name: share for name, share in shares.items() if share is not None}

    def _precompute(self, views: Sequence[View]) -> dict[str, list[Scores | None]]:
        """Score the roles that the method needs before the loss."""
        roles = {STUDENT: Role(None), **self.method.roles()}
        weights = {name: roles[name].weights for name in self.method.precompute()}
        scores = score_roles(
            self.teachers,
            views,
            weights,
            temperatures={name: roles[name].temperature for name in weights},
            max_tokens=self.limits.max_tokens_per_microbatch,
            max_logits_per_chunk=self.limits.max_logits_per_chunk,
            world=self.world,
        )
        self.teachers.release()
        return scores

    def _backward(
        self, batch: BatchInputs, first: Sequence[Scores | None] | None, clock: Clock
    ) -> tuple[float, dict[str, list[Scores | None]], dict[str, float]]:
        """Backward pass of the weighted mean loss over all views; returns loss, scores by role and metrics.

        ``first`` are the student's scores at the first update on this batch, None during that update. The views are
        split over ranks, gradients are all-reduced, and all other results are all-gathered.
        """
        views, packed = batch.views, self.teachers.pack
        totals = _Totals()
        # Compared roles enter the loss with their whole distribution; they run in the same micro-batch as the student.
        roles = self.method.roles()
        compared = {name: roles[name].weights for name in self.method.compared()}
        temperatures = {name: roles[name].temperature for name in compared}
        forwards = [[STUDENT], *together(compared, packed=packed)]
        # Split the views over ranks, and this rank's share into micro-batches.
        with clock.phase("views"):
            batches = micro_batches(
                views,
                max_tokens=self.limits.max_tokens_per_microbatch,
                forwards=forwards,
                packed=packed,
                world=self.world,
            )
        advance(of=len(batches))
        for micro_batch in batches:
            advance(1)
            # Compute the hidden states of the teacher roles, without gradient.
            picked = [views[i] for i in micro_batch.indices]
            with clock.phase("student"):
                sequences = collate(picked, STUDENT, packed=packed)
            with clock.phase("teacher"):
                teachers = head_inputs(
                    self.teachers, picked, compared, sequences.target_N, temperatures, self.method.likeliest
                )
            # Forward and backward pass of the student; the head makes logits in slices.
            with clock.phase("student"):
                job = loss_inputs(
                    self.method,
                    batch,
                    micro_batch,
                    sequences.target_N,
                    teachers,
                    self.policy,
                    max_logits_per_chunk=self.limits.max_logits_per_chunk,
                )
                result = self.policy(sequences, self._corrected(job, batch.views, micro_batch, first))
                result.loss.backward()
                if not micro_batch.is_dummy:
                    totals.add(micro_batch.indices, result, picked)
        # All-reduce gradients, which FSDP2 has done already, and all-gather results. Waits for the slowest rank.
        with clock.phase("update"):
            self.teachers.release()
            if not self.policy.sharded:
                self.world.add_gradients(self.policy.trainable())
            loss, scores, metrics = _together(totals, len(views), self.world)
        return loss, scores, metrics

    def _corrected(
        self,
        job: LossInputs,
        views: Sequence[View],
        micro_batch: MicroBatch,
        first: Sequence[Scores | None] | None,
    ) -> LossInputs:
        """The same job with importance weights for completions that another engine or older weights sampled."""
        if self.importance_cap is None:
            return job
        sampled = concatenate([sampled_logprobs(views[i]) for i in micro_batch.indices], wide_dtype(self.policy))
        inputs = {**job.inputs, SAMPLER: sampled.to(self.policy.device)}
        if first is not None:
            inputs[LEARNER] = logprobs_of(first, views, micro_batch, self.policy)
        loss, metrics = corrected(self.method.loss, cap=self.importance_cap), metrics_of_learner(self.method.metrics)
        return replace(job, loss=loss, metrics=metrics, inputs=inputs)


def prepare_step(
    groups: Sequence[RolloutGroup],
    method: Method,
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    seed: int,
    step: int,
) -> Prepared:
    """The views of these groups that a step of a run scores, with their advantages. ``seed`` is the run's."""
    rendered = render(
        groups,
        method.roles(),
        templates,
        chat,
        thinking=thinking,
        seed=derive(seed, "contrast", step),
        sampling_roles=method.sampling_roles(),
    )
    return prepare(groups, method, rendered)


def teachers_of(method: Method, policy: Policy) -> Teachers:
    """The teachers that a method needs, for a student that is not sharded.

    Raises:
        ConfigError: the method has an external teacher, whose model has to be loaded first.
    """
    needed = {role.weights for role in method.roles().values()}
    if any(isinstance(weights, External | Server) for weights in needed):
        raise ConfigError("a method with another model as its teacher is trained by train(…), which loads that model")
    return Teachers(policy, needed=needed, rate=method.teacher_rate)


def _together(
    totals: _Totals, views: int, world: World
) -> tuple[float, dict[str, list[Scores | None]], dict[str, float]]:
    """All-gather the totals of the ranks; returns loss, scores by role for each view, and sums of metrics."""
    parts = world.all_gather(totals.alone()) if world.size > 1 else [totals]
    sums: dict[str, float] = {}
    scores: dict[str, list[Scores | None]] = {}
    for part in parts:
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + value
        for role, column in part.scores.items():
            scores_by_view = scores.setdefault(role, [None] * views)
            for i, view_scores in column.items():
                scores_by_view[i] = view_scores
    return math.fsum(part.loss for part in parts), scores, sums


def _role_sums(scores: Mapping[str, Sequence[Scores | None]]) -> dict[str, RoleSums]:
    """Sums over tokens by role: the entropy, and u for each teacher."""
    result: dict[str, RoleSums] = {}
    students = scores.get(STUDENT, [])
    for role, column in scores.items():
        pairs = [(student, other) for student, other in zip(students, column, strict=True) if student and other]
        result[role] = RoleSums(
            tokens=sum(len(other.target_N) for _, other in pairs),
            entropy=math.fsum(float(other.entropy_N.double().sum()) for _, other in pairs),
            u=None
            if role == STUDENT
            else math.fsum(float((other.target_N - student.target_N).double().sum()) for student, other in pairs),
        )
    return result
