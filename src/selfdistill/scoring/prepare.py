"""Preparation of a batch: the prompts of every role, the views that enter the loss, and the inputs of the loss.

Training, the microscope, the teacher measurement and the ``contexts`` command all prepare here. In order:
:func:`render` the prompts, :func:`prepare` the views, score the roles of ``precompute()``, then :func:`batch_inputs`,
and for every micro-batch :func:`loss_inputs`.

Axis letters: ``P`` problems, ``G`` completions of a problem, ``N`` scored tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import (
    example_fields,
    hindsight,
    other_input,
    role_conversation,
    role_prompt,
    turn_hindsight,
)
from selfdistill.contexts.templates import Template
from selfdistill.errors import ConfigError
from selfdistill.methods.base import BatchScores, Method, State
from selfdistill.models.head import HeadInput, LossInputs
from selfdistill.models.policy import Policy
from selfdistill.scoring.batching import MicroBatch, concatenate
from selfdistill.types import STUDENT, Message, Role, RolloutGroup, Scores, Skipped, View, has_prompt
from selfdistill.types.conversation import Conversation

Rendered: TypeAlias = "list[list[dict[str, tuple[int, ...] | Conversation | Skipped]]]"
"""By group, completion and role: the prompt ids, or the reason why there are none."""


@dataclass(slots=True)
class Prepared:
    """The views of one step, with counts of what was left out."""

    views: list[View] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Contexts that could not be rendered, by reason."""
    dropped: int = 0
    """Completions that are left out of the loss."""


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """Inputs of the loss besides distributions, computed from the whole batch before the backward pass."""

    views: Sequence[View]
    scores: Mapping[str, Sequence[Scores | None]]
    """Scores by role of ``precompute()``, one entry per view; None where the view lacks the role's prompt."""
    values: Mapping[str, float]
    """Numbers of the whole batch, such as a gate."""
    per_view: Mapping[str, Tensor]
    """Numbers [views] by name."""
    per_token: Mapping[str, Sequence[Tensor]]
    """Numbers by name: one tensor for every view, with one number for every token."""
    total_weight: float
    """Sum of all token weights. It divides every token's loss, so splitting the batch does not change the mean."""


def render(
    groups: Sequence[RolloutGroup],
    roles: Mapping[str, Role],
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    seed: int,
    sampling_roles: Sequence[str] = (),
    room: int | None = None,
) -> Rendered:
    """Render the prompt of every role for every completion. A context that is missing or too long is not cut.

    One of ``sampling_roles`` has one prompt per group: the prompt that its completions were sampled from, or else the
    prompt that it would sample from. ``seed`` orders the texts of contrast contexts. ``room`` is the number of tokens
    that must fit behind a prompt; None is the completion's own length.
    """
    rendered: Rendered = []
    for g, group in enumerate(groups):
        prompt_of = {r.source: r.role_prompt_ids for r in group.rollouts if r.role_prompt_ids is not None}
        sampled_from = {name: ids for name, ids in prompt_of.items() if name in sampling_roles}
        rendered.append([])
        for i, rollout in enumerate(group.rollouts):
            prompts: dict[str, tuple[int, ...] | Conversation | Skipped] = {}
            example = replace(group.example, prompt=rollout.episode.opening) if rollout.episode else group.example
            known = {**sampled_from, STUDENT: rollout.prompt_ids}
            for name, role in roles.items():
                if (ids := known.get(name)) is not None:
                    prompts[name] = ids
                else:
                    fields = example_fields(group.example)
                    other: tuple[Message, ...] = ()
                    if name not in sampling_roles:
                        fields = hindsight(groups, g, i, chat, contrast=role.contrast, seed=seed)
                        other = other_input(groups, g, contrast=role.contrast, seed=seed)
                    if rollout.episode:
                        prompts[name] = role_conversation(
                            role,
                            example,
                            rollout,
                            fields,
                            templates,
                            chat,
                            thinking=thinking,
                            turn_fields=turn_hindsight(group, i, chat),
                            other_input=other,
                        )
                        continue
                    prompts[name] = role_prompt(
                        role,
                        example,
                        fields,
                        templates,
                        chat,
                        thinking=thinking,
                        room=len(rollout.completion_ids) if room is None else room,
                        other_input=other,
                    )
            rendered[g].append(prompts)
    return rendered


def prepare(
    groups: Sequence[RolloutGroup], method: Method, rendered: Rendered, *, with_left_out: bool = False
) -> Prepared:
    """Decide which completions enter the loss, and return their views with prompts, token weights and advantages.

    A completion enters if the method keeps it and its contexts could be rendered: all of them, or what
    ``method.without_context`` says. ``with_left_out`` also returns the other completions, with weight 0, so that there
    is one view per completion.
    """
    result = Prepared()
    roles = tuple(method.roles())
    needed = {"drop": roles, "keep": tuple(method.compared()), "mask": ()}[method.without_context]
    advantages_PG = method.advantages(_rewards(groups))
    for g, group in enumerate(groups):
        keep = method.keep(group)
        turn_advantages = method.turn_advantages(group, advantages_PG[g, : len(group.rollouts)].tolist())
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        judged = [verdict.correct for r, verdict in pairs if r.source == STUDENT and verdict.reward is not None]
        for i, rollout in enumerate(group.rollouts):
            prompts: dict[str, tuple[int, ...]] = {STUDENT: rollout.prompt_ids}
            gaps = {STUDENT: rollout.gaps} if rollout.episode else {}
            if not keep[i]:
                result.skipped["left out by the method"] += 1
            for name in roles if keep[i] else ():
                ids = rendered[g][i][name]
                if isinstance(ids, Skipped):
                    result.skipped[ids.reason] += 1
                elif isinstance(ids, Conversation):
                    prompts[name], gaps[name] = ids.ids, ids.gaps
                else:
                    prompts[name] = ids
                    gaps |= {name: rollout.gaps} if rollout.episode else {}
            enters = keep[i] and all(name in prompts for name in needed)
            result.dropped += not enters
            if not (enters or with_left_out):
                continue
            tokens = len(rollout.completion_ids)
            weight = 1.0 if method.weighting == "token" else 1.0 / tokens
            result.views.append(
                View(
                    prompts=prompts,
                    completion_ids=rollout.completion_ids,
                    weights=(weight if enters else 0.0,) * tokens,
                    old_logprobs=rollout.logprobs,
                    advantage=float(advantages_PG[g, i]),
                    group=g,
                    index=i,
                    source=rollout.source,
                    reward=group.verdicts[i].reward,
                    correct=group.verdicts[i].correct,
                    pass_rate=sum(judged) / len(judged) if judged else None,
                    gaps=gaps,
                    turn_advantages=tuple(turn_advantages[i]) if turn_advantages is not None else (),
                )
            )
    return result


def _rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    """Rewards [P, G] of the student's completions; NaN without a reward, or where another role sampled."""
    rewards_PG = torch.full((len(groups), max((len(g.rollouts) for g in groups), default=0)), math.nan).double()
    for p, group in enumerate(groups):
        for i, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
            if verdict.reward is not None and rollout.source == STUDENT:
                rewards_PG[p, i] = verdict.reward
    return rewards_PG


def batch_inputs(
    method: Method,
    state: State | None,
    views: Sequence[View],
    scores: Mapping[str, Sequence[Scores | None]],
    *,
    update: int = 0,
    step: int = 1,
    steps: int | None = None,
) -> BatchInputs:
    """Call the method's ``on_batch`` with the views that enter the loss and their scores.

    ``update`` counts the optimiser updates already made on this batch, ``step`` and ``steps`` are the run's. Views of
    weight 0 have NaN in ``per_view`` and ``per_token``.

    Raises:
        ConfigError: the method returned numbers that are not one for every view, or for every token of a view.
    """
    inside = [n for n, view in enumerate(views) if any(view.weights) or not view.weights]
    entering = {role: [column[n] for n in inside] for role, column in scores.items()}
    computed = method.on_batch(state, BatchScores(entering, [views[n] for n in inside], update, step, steps))
    values: dict[str, float] = {}
    per_view: dict[str, Tensor] = {}
    per_token: dict[str, Sequence[Tensor]] = {}
    for name, value in computed.items():
        if isinstance(value, Tensor):
            per_view[name] = _at_all_views(name, value, views, inside)
        elif isinstance(value, Sequence):
            per_token[name] = _at_all_tokens(name, value, views, inside)
        else:
            values[name] = value
    total_weight = math.fsum(weight for view in views for weight in view.weights)
    return BatchInputs(views, scores, values, per_view, per_token, total_weight)


def _at_all_views(name: str, number: Tensor, views: Sequence[View], inside: Sequence[int]) -> Tensor:
    """A method's numbers for the views ``inside`` the loss, with NaN for the others."""
    if number.shape != (len(inside),):
        raise ConfigError(
            f"on_batch returned {name!r} of shape {tuple(number.shape)}: a tensor holds one number for each of the "
            f"{len(inside)} views; for one number a token, return a list with one tensor a view"
        )
    if len(inside) == len(views):
        return number
    numbers = torch.full((len(views),), math.nan, dtype=torch.float64)
    numbers[list(inside)] = number.cpu().double()
    return numbers


def _at_all_tokens(
    name: str, numbers: Sequence[Tensor], views: Sequence[View], inside: Sequence[int]
) -> Sequence[Tensor]:
    """A method's numbers for the tokens of the views ``inside`` the loss, with NaN for those of the others."""
    lengths = [len(views[n].completion_ids) for n in inside]
    if [tuple(number.shape) for number in numbers] != [(length,) for length in lengths]:
        raise ConfigError(
            f"on_batch returned the list {name!r} with {len(numbers)} tensors: it holds one tensor for each of the "
            f"{len(inside)} views, of one number for each of its tokens"
        )
    numbers_of = dict(zip(inside, numbers, strict=True))
    return [numbers_of.get(n, torch.full((len(view.completion_ids),), math.nan)) for n, view in enumerate(views)]


def loss_inputs(
    method: Method,
    batch: BatchInputs,
    micro_batch: MicroBatch,
    target_N: Tensor,
    head_inputs: Mapping[str, HeadInput],
    policy: Policy,
    *,
    max_logits_per_chunk: int,
) -> LossInputs:
    """Inputs of the loss [N] for one micro-batch, in the order of its completion tokens.

    ``head_inputs`` are the roles whose whole distributions the loss compares. The weights of all micro-batches sum
    to 1; a dummy micro-batch, which only keeps ranks in step, gets weight 0.
    """
    device, dtype = policy.device, wide_dtype(policy)
    views = [batch.views[i] for i in micro_batch.indices]
    lengths = torch.tensor([len(view.completion_ids) for view in views])
    # Per token: the advantage of its turn, its log-probability when it was sampled, and its position.
    inputs = {
        "advantage": concatenate([view.token_advantages for view in views], dtype),
        "old_logprob": concatenate([view.old_logprobs for view in views], dtype),
        "position": torch.cat([torch.arange(length, dtype=dtype) for length in lengths.tolist()]),
        "length": lengths.to(dtype).repeat_interleave(lengths),
        "segment": torch.tensor([turn for view in views for turn in view.turns], dtype=dtype),
    }
    inputs = {name: numbers.to(device) for name, numbers in inputs.items()}
    # A mask of the completions with the context of a compared role, if any lacks it.
    for role in head_inputs:
        if not all(role in view.prompts for view in views):
            present = torch.tensor([role in view.prompts for view in views], dtype=dtype)
            inputs[has_prompt(role)] = present.repeat_interleave(lengths).to(device)
    # Log-probability of the token under each role that was scored before the backward pass. The loss has the student's
    # whole distribution, with gradient.
    for role, column in batch.scores.items():
        if role != STUDENT:
            inputs[role] = logprobs_of(column, batch.views, micro_batch, policy)
    # Numbers that the method computed from the whole batch: one of each completion, repeated, or one of each token.
    for name, number in batch.per_view.items():
        inputs[name] = number[micro_batch.indices].to(dtype).repeat_interleave(lengths).to(device)
    for name, numbers in batch.per_token.items():
        inputs[name] = torch.cat([numbers[i].to(device, dtype) for i in micro_batch.indices])
    weight_N = concatenate([view.weights for view in views], dtype).to(device) / (batch.total_weight or 1.0)
    return LossInputs(
        target_N=target_N.to(device),
        weight_N=torch.zeros_like(weight_N) if micro_batch.is_dummy else weight_N,
        loss=method.loss,
        metrics=method.metrics,
        head_inputs=head_inputs,
        inputs=inputs,
        values=batch.values,
        max_logits_per_chunk=max_logits_per_chunk,
    )


def logprobs_of(
    column: Sequence[Scores | None], views: Sequence[View], micro_batch: MicroBatch, policy: Policy
) -> Tensor:
    """Log-probabilities [N] of a micro-batch's tokens under a role; NaN where a view lacks the role's prompt."""
    device, dtype = policy.device, wide_dtype(policy)
    return torch.cat(
        [
            torch.full((len(views[i].completion_ids),), math.nan, dtype=dtype, device=device)
            if scores is None
            else scores.target_N.to(device, dtype)
            for i, scores in ((i, column[i]) for i in micro_batch.indices)
        ]
    )


def wide_dtype(policy: Policy) -> torch.dtype:
    """The number type of the loss: the weights' own, in float32 at least."""
    return torch.promote_types(next(policy.parameters()).dtype, torch.float32)
