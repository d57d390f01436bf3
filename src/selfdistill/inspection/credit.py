"""Scores every context once under the current weights, and computes the credit of each token under each method.

Nothing is trained, so live, frozen and averaged teachers are all the model itself. Completions count as sampled from
the current weights, so the policy ratio is 1. The *credit* of a token is −∂loss/∂logit of that token, for the method's
own loss (:func:`selfdistill.models.head.token_credit`), with an open gate, before weighting and averaging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template
from selfdistill.distributed.world import ALONE
from selfdistill.inspection.findings import Findings, Floats, columns, join
from selfdistill.methods.base import Method
from selfdistill.models.head import HeadInput, score_head_input, token_credit, token_metrics, token_slices
from selfdistill.models.policy import Policy
from selfdistill.scoring.batching import MicroBatch, collate, micro_batches
from selfdistill.scoring.prepare import Rendered, batch_inputs, loss_inputs, prepare, render
from selfdistill.scoring.score import head_inputs_of, split, spread, together, with_role
from selfdistill.tracking.progress import activity
from selfdistill.types import STUDENT, External, Role, RolloutGroup, Scores, Server, View

TOKENS, MAX_LOGITS_PER_CHUNK, PROMPTS = 4096, 1 << 24, 16
"""Defaults: maximum tokens of a forward pass, maximum logits in memory, and problems of a step."""
CREDIT = "token credit"
"""Key of the credit among a method's own metrics. It contains a space, so it cannot clash with their names."""
ALTERNATIVES = 3
"""Number of likeliest tokens that are kept under student and teacher."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The contexts to score by name, the methods, and the context of each role of each method.

    ``teacher`` is the context whose likeliest tokens are kept, besides the student's. ``left_out`` has the reason for
    each method that cannot be inspected.
    """

    roles: Mapping[str, Role]
    teacher: str | None
    methods: Mapping[str, Method]
    role_contexts: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, str]


class _Contexts(Method):
    """A method with every context as a role, so that one view per completion has all prompts."""

    without_context: ClassVar[Literal["drop", "keep"]] = "keep"

    contexts: Mapping[str, Role]

    def roles(self) -> Mapping[str, Role]:
        """Return the contexts by name."""
        return self.contexts

    def precompute(self) -> Sequence[str]:
        """Return all contexts, so that a completion without some context is kept."""
        return tuple(self.contexts)


@dataclass(slots=True)
class _Batch:
    """A micro-batch with the hidden states of all contexts. ``has_context_N`` marks the tokens that have a context."""

    micro_batch: MicroBatch
    target_N: Tensor
    head_inputs: dict[str, HeadInput]
    has_context_N: dict[str, Tensor]


def plan(
    methods: Mapping[str, Method],
    contexts: Sequence[str],
    templates: Mapping[str, Template],
    *,
    also: Sequence[str] = (),
) -> Plan:
    """Collect the distinct contexts of the user and the methods, and the methods that cannot be inspected.

    The teacher is the first of the user's ``contexts``, or else the first context of a method; never one of ``also``.
    """
    roles: dict[str, Role] = {STUDENT: Role(None)}
    roles.update({name: Role(name) for name in contexts})
    kept: dict[str, Method] = {}
    mapped: dict[str, dict[str, str]] = {}
    left_out: dict[str, str] = {}
    for name, method in methods.items():
        reason = _reason_left_out(method, templates)
        if reason:
            left_out[name] = reason
            continue
        kept[name] = method
        method_roles = method.roles()
        mapped[name] = {role_name: label_of(role) for role_name, role in method_roles.items()}
        roles.update({label_of(role): role for role in method_roles.values()})
    roles.update({name: Role(name) for name in also})
    own = [label for labels in mapped.values() for label in labels.values() if label != STUDENT]
    return Plan(roles, next(iter([*contexts, *own]), None), kept, mapped, left_out)


def _reason_left_out(method: Method, templates: Mapping[str, Template]) -> str | None:
    if not method.on_policy:
        return "it learns from reference solutions and not from sampled completions"
    if tuple(method.sampling_roles()) != (STUDENT,):
        return "it learns from samples of its teacher too, and only the student's are looked at"
    for role in method.roles().values():
        if isinstance(role.weights, External | Server):
            return "its teacher is another model, and only the model's own weights are looked at"
        if role.context is not None and role.context not in templates:
            return f"the context file has no template {role.context!r}"
    return None


def label_of(role: Role) -> str:
    """Return the name of a role's context in an inspection."""
    thinking = {None: "", True: ", thinking", False: ", no thinking"}[role.thinking]
    return (role.context or STUDENT) + (f" {role.contrast + 1}" if role.contrast else "") + thinking


@activity("scoring", unit="micro-batches")
def inspect_groups(
    policy: Policy,
    chat: Chat,
    groups: Sequence[RolloutGroup],
    scoring_plan: Plan,
    templates: Mapping[str, Template],
    *,
    thinking: bool | None,
    seed: int,
    prompts: int = PROMPTS,
    max_tokens: int = TOKENS,
    max_logits_per_chunk: int = MAX_LOGITS_PER_CHUNK,
) -> Findings:
    """Score every context of every completion and compute the credit of every method.

    Problems are grouped into steps of ``prompts``, as in training: contrasts are drawn within a step, and a method that
    averages over a step averages over these problems. The hidden states of a step are kept, so each context has a
    single forward pass.

    Raises:
        ConfigError: a context is not among the templates.
    """
    parts: list[Findings] = []
    for start in range(0, len(groups), prompts):
        step = list(groups[start : start + prompts])
        rendered = render(step, scoring_plan.roles, templates, chat, thinking=thinking, seed=seed)
        parts.append(
            _inspect_step(
                policy, step, rendered, scoring_plan, max_tokens=max_tokens, max_logits_per_chunk=max_logits_per_chunk
            )
        )
    findings = join(parts)
    findings.left_out = dict(scoring_plan.left_out)
    # A context that was rendered for no completion has no column. Its skips are counted.
    findings.contexts = [name for name in findings.contexts if not np.isnan(findings.logprobs[name]).all()]
    if findings.teacher not in findings.contexts:
        findings.teacher = None
        findings.alternatives.pop("teacher", None)
    findings.logprobs = {name: findings.logprobs[name] for name in findings.contexts}
    findings.entropies = {name: findings.entropies[name] for name in findings.contexts}
    return findings


@torch.no_grad()
def _inspect_step(
    policy: Policy,
    groups: list[RolloutGroup],
    rendered: Rendered,
    scoring_plan: Plan,
    *,
    max_tokens: int,
    max_logits_per_chunk: int,
) -> Findings:
    # One view per completion, with every context that could be rendered for it.
    prepared = prepare(groups, _Contexts(contexts=scoring_plan.roles), rendered)
    views = prepared.views
    forwards = together(dict.fromkeys(scoring_plan.roles, "live"), packed=policy.packs)
    cuts = micro_batches(views, max_tokens=max_tokens, forwards=forwards, packed=policy.packs, world=ALONE)
    batches = [_scored_batch(policy, views, micro_batch) for micro_batch in cuts]
    contexts = list(scoring_plan.roles)
    scores = {label: _scores(batches, views, label, max_logits_per_chunk) for label in contexts}
    order = _order(batches, views)
    findings = Findings(
        groups=groups,
        places=[(view.group, view.index) for view in views],
        contexts=contexts,
        teacher=scoring_plan.teacher,
        logprobs={
            label: _concatenated([None if s is None else s.target_N for s in column], views)
            for label, column in scores.items()
        },
        entropies={
            label: _concatenated([None if s is None else s.entropy_N for s in column], views)
            for label, column in scores.items()
        },
        credits={},
        metrics={},
        alternatives={
            name: _alternatives(batches, label, order, max_logits_per_chunk)
            for name, label in ((STUDENT, STUDENT), ("teacher", scoring_plan.teacher))
            if label is not None
        },
        prompts=[dict(view.prompts) for view in views],
        gaps=[dict(view.gaps) for view in views],
        skipped=prepared.skipped,
    )
    for name, method in scoring_plan.methods.items():
        # The method sees the same prompts, scores and hidden states by the names of its roles.
        labels = scoring_plan.role_contexts[name]
        by_role = [[{role: prompts[label] for role, label in labels.items()} for prompts in row] for row in rendered]
        method_views = prepare(groups, method, by_role, with_left_out=True).views
        precomputed = {role: scores[labels.get(role, STUDENT)] for role in method.precompute()}
        for role, temperature in ((role, method.roles()[role].temperature) for role in precomputed if role in labels):
            if temperature != 1.0:
                precomputed[role] = _scores(batches, views, labels[role], max_logits_per_chunk, temperature)
        on_policy_views = on_policy(method_views, scores[STUDENT])
        credit, metrics = _credit(policy, method, labels, on_policy_views, precomputed, batches, max_logits_per_chunk)
        findings.credits[name] = credit[order].numpy()
        findings.metrics[name] = {key: value[order].numpy() for key, value in metrics.items()}
    return findings


def on_policy(views: Sequence[View], scores: Sequence[Scores | None]) -> list[View]:
    """Return the views with the student's current scores as old log-probabilities, so that the ratio is 1."""
    pairs = zip(views, scores, strict=True)
    return [replace(view, old_logprobs=tuple(score.target_N.tolist())) if score else view for view, score in pairs]


def _scored_batch(policy: Policy, views: Sequence[View], micro_batch: MicroBatch) -> _Batch:
    """Compute the hidden states of every context. A completion without a context has zeros and is masked."""
    picked = [views[i] for i in micro_batch.indices]
    target_N = collate(picked, STUDENT).target_N.to(policy.device)
    head_inputs: dict[str, HeadInput] = {}
    has_context_N: dict[str, Tensor] = {}
    labels = list(dict.fromkeys(label for view in picked for label in view.prompts))
    by_label = {}
    for roles in together(dict.fromkeys(labels, "live"), packed=policy.packs):
        by_label.update(head_inputs_of(policy, picked, roles, packed=policy.packs))
    for label, (head_input, _) in by_label.items():
        has_context_N[label] = with_role(picked, label).to(policy.device)
        head_inputs[label] = spread(head_input, has_context_N[label])
    return _Batch(micro_batch, target_N, head_inputs, has_context_N)


def _scores(
    batches: Sequence[_Batch],
    views: Sequence[View],
    label: str,
    max_logits_per_chunk: int,
    temperature: float = 1.0,
) -> list[Scores | None]:
    """Return the scores of each view; None if its context could not be rendered."""
    result: list[Scores | None] = [None] * len(views)
    for batch in batches:
        if label not in batch.head_inputs:
            continue
        head_input = replace(batch.head_inputs[label], temperature=temperature)
        scores = score_head_input(head_input, batch.target_N, max_logits_per_chunk=max_logits_per_chunk)
        indices = batch.micro_batch.indices
        for i, score in zip(indices, split(scores, [views[i] for i in indices]), strict=True):
            if label in views[i].prompts:
                result[i] = Scores(score.target_N.cpu(), score.entropy_N.cpu())
    return result


def _credit(
    policy: Policy,
    method: Method,
    labels: Mapping[str, str],
    views: Sequence[View],
    scores: Mapping[str, Sequence[Scores | None]],
    batches: Sequence[_Batch],
    max_logits_per_chunk: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a method's credit and metrics of every token, in the order of the batches; NaN outside its loss.

    The head gets the same inputs as in training, with the credit as one more metric.
    """
    inputs = batch_inputs(method, None, views, scores)
    parts: list[dict[str, Tensor]] = []
    for batch in batches:
        if not any(weight for i in batch.micro_batch.indices for weight in views[i].weights):
            parts.append({})
            continue
        compared = method.compared()
        student = batch.head_inputs[STUDENT]
        # A method that keeps completions without a context gets zeros as hidden states there, as in training.
        zeros = replace(student, hidden_ND=torch.zeros_like(student.hidden_ND))
        role_inputs = {
            role: replace(batch.head_inputs.get(label, zeros), temperature=method.roles()[role].temperature)
            for role, label in labels.items()
            if role in compared
        }
        head_loss = loss_inputs(
            method,
            inputs,
            batch.micro_batch,
            batch.target_N,
            role_inputs,
            policy,
            max_logits_per_chunk=max_logits_per_chunk,
        )
        head_loss = replace(
            head_loss,
            metrics=lambda tokens: {CREDIT: token_credit(method.loss, tokens), **method.metrics(tokens)},
        )
        metrics_N = token_metrics(student, head_loss)
        parts.append({name: value_N.cpu() for name, value_N in metrics_N.items()})
    sizes = [len(batch.target_N) for batch in batches]
    metrics = columns(parts, sizes)
    return metrics.pop(CREDIT, torch.full((sum(sizes),), math.nan)), metrics


def _alternatives(
    batches: Sequence[_Batch], label: str, order: Tensor, max_logits_per_chunk: int
) -> tuple[NDArray[np.int32], Floats]:
    """Return the likeliest tokens of every position with their log-probabilities, NaN where the context is missing."""
    ids, logprobs = [], []
    for batch in batches:
        head_input = batch.head_inputs.get(label)
        for rows in token_slices(
            len(batch.target_N), batch.head_inputs[STUDENT].weight_VD.shape[0], max_logits_per_chunk
        ):
            if head_input is None:
                ids.append(torch.zeros(rows.stop - rows.start, ALTERNATIVES, dtype=torch.long))
                logprobs.append(torch.full((rows.stop - rows.start, ALTERNATIVES), math.nan))
                continue
            best = head_input.logprobs(rows).topk(ALTERNATIVES, -1)
            ids.append(best.indices.cpu())
            logprobs.append(best.values.masked_fill(~batch.has_context_N[label][rows, None], math.nan).float().cpu())
    return torch.cat(ids)[order].int().numpy(), torch.cat(logprobs)[order].numpy()


def _order(batches: Sequence[_Batch], views: Sequence[View]) -> Tensor:
    """Return for each token, in the order of the views, its index in the order of the batches."""
    starts: dict[int, int] = {}
    offset = 0
    for batch in batches:
        for i in batch.micro_batch.indices:
            starts[i] = offset
            offset += len(views[i].completion_ids)
    return torch.cat([torch.arange(starts[i], starts[i] + len(view.completion_ids)) for i, view in enumerate(views)])


def _concatenated(columns: Sequence[Tensor | None], views: Sequence[View]) -> Floats:
    parts = [
        np.full(len(view.completion_ids), math.nan, dtype=np.float32) if values is None else values.float().numpy()
        for values, view in zip(columns, views, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
