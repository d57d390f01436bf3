"""The credit microscope: every context scored once under the weights as they are, and what each method makes of it.

Nothing is trained, so live, frozen and averaged teachers are all the model itself. Completions count as just drawn
from it: the policy ratio is 1. A method's *credit* of a token is −∂loss/∂logit of that token, by its own loss
(:func:`selfdistill.models.head.token_credit`), its gate open, before weights and means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import hindsight, role_prompt
from selfdistill.contexts.templates import Template
from selfdistill.inspection.findings import Findings, Floats, columns, join
from selfdistill.methods.base import BatchScores, Method
from selfdistill.models.head import HeadInput, score_head_input, token_credit, token_slices
from selfdistill.models.policy import Policy
from selfdistill.scoring.batching import collate, cut_by_tokens
from selfdistill.scoring.score import head_inputs_of, together
from selfdistill.types import STUDENT, External, Role, RolloutGroup, Scores, Skipped, TokenSlice, View

TOKENS, MAX_LOGITS_PER_CHUNK, PROMPTS = 4096, 1 << 24, 16
"""Tokens of one forward pass, logits that exist at once, and problems of a step, where nobody sets them."""
ALTERNATIVES = 3
"""Likeliest tokens kept under student and teacher."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is scored: contexts by name, and every method with the context that stands for each of its roles.

    ``teacher`` is the context whose likeliest tokens are kept beside the student's.
    """

    roles: Mapping[str, Role]
    teacher: str | None
    methods: Mapping[str, Method]
    role_contexts: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, str]


@dataclass(slots=True)
class _Batch:
    """Some completions with the hidden states of all their contexts. ``shown_N`` says which tokens have a context."""

    chosen: list[int]
    target_N: Tensor
    head_inputs: dict[str, HeadInput]
    shown_N: dict[str, Tensor]


def plan(
    methods: Mapping[str, Method],
    contexts: Sequence[str],
    templates: Mapping[str, Template],
    *,
    also: Sequence[str] = (),
) -> Plan:
    """Gather every distinct context that the user and the methods want; say which methods cannot be looked at.

    The first of the user's ``contexts`` is the teacher; without one, the first method's is, never one of ``also``.
    """
    roles: dict[str, Role] = {STUDENT: Role(None)}
    roles.update({name: Role(name) for name in contexts})
    kept: dict[str, Method] = {}
    mapped: dict[str, dict[str, str]] = {}
    left_out: dict[str, str] = {}
    for name, method in methods.items():
        reason = _unfit(method, templates)
        if reason:
            left_out[name] = reason
            continue
        kept[name] = method
        mapped[name] = {role: _label(one) for role, one in method.roles().items()}
        roles.update({_label(one): one for one in method.roles().values()})
    roles.update({name: Role(name) for name in also})
    own = [label for labels in mapped.values() for label in labels.values() if label != STUDENT]
    return Plan(roles, next(iter([*contexts, *own]), None), kept, mapped, left_out)


def _unfit(method: Method, templates: Mapping[str, Template]) -> str | None:
    if not method.on_policy:
        return "it learns from reference solutions and not from sampled completions"
    if tuple(method.sampling_roles()) != (STUDENT,):
        return "it learns from samples of its teacher too, and only the student's are looked at"
    for role in method.roles().values():
        if isinstance(role.weights, External):
            return "its teacher is another model, and only the model's own weights are looked at"
        if role.context is not None and role.context not in templates:
            return f"the context file has no template {role.context!r}"
    return None


def _label(role: Role) -> str:
    thinking = {None: "", True: ", thinking", False: ", no thinking"}[role.thinking]
    return (role.context or STUDENT) + (f" {role.contrast + 1}" if role.contrast else "") + thinking


def inspect_groups(
    policy: Policy,
    chat: Chat,
    groups: Sequence[RolloutGroup],
    wanted: Plan,
    templates: Mapping[str, Template],
    *,
    thinking: bool | None,
    seed: int,
    prompts: int = PROMPTS,
    max_tokens: int = TOKENS,
    max_logits_per_chunk: int = MAX_LOGITS_PER_CHUNK,
) -> Findings:
    """Score every context of every completion and ask every method for its credits.

    Problems come in steps of ``prompts``, as in training: contrasts are drawn within a step, and a method that
    averages over a step averages over these. Hidden states of one step are kept, so each context runs once.

    Raises:
        ConfigError: a context that the templates lack.
    """
    parts: list[Findings] = []
    for start in range(0, len(groups), prompts):
        step = list(groups[start : start + prompts])
        views, skipped = _render(step, wanted, templates, chat, thinking=thinking, seed=seed)
        parts.append(
            _inspect_step(policy, step, views, wanted, max_tokens=max_tokens, max_logits_per_chunk=max_logits_per_chunk)
        )
        parts[-1].skipped = skipped
    found = join(parts)
    found.left_out = dict(wanted.left_out)
    # A context that could be shown beside no completion is counted among the skipped, and has no column.
    found.contexts = [name for name in found.contexts if not np.isnan(found.logprobs[name]).all()]
    if found.teacher not in found.contexts:
        found.teacher = None
        found.alternatives.pop("teacher", None)
    found.logprobs = {name: found.logprobs[name] for name in found.contexts}
    found.entropies = {name: found.entropies[name] for name in found.contexts}
    return found


def _render(
    groups: Sequence[RolloutGroup],
    wanted: Plan,
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    seed: int,
) -> tuple[list[View], Counter[str]]:
    """Every completion under every context that can be shown beside it."""
    views: list[View] = []
    skipped: Counter[str] = Counter()
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            prompts: dict[str, tuple[int, ...]] = {}
            for label, role in wanted.roles.items():
                fields = hindsight(groups, g, i, chat, contrast=role.contrast, seed=seed)
                room = len(rollout.completion_ids)
                ids = role_prompt(role, group.example, fields, templates, chat, thinking=thinking, room=room)
                if label == STUDENT:
                    prompts[label] = rollout.prompt_ids
                elif isinstance(ids, Skipped):
                    skipped[ids.reason] += 1
                else:
                    prompts[label] = ids
            views.append(View(prompts, rollout.completion_ids, (), (), 0.0, g, i, reward=group.verdicts[i].reward))
    return views, skipped


@torch.no_grad()
def _inspect_step(
    policy: Policy,
    groups: list[RolloutGroup],
    views: list[View],
    wanted: Plan,
    *,
    max_tokens: int,
    max_logits_per_chunk: int,
) -> Findings:
    forwards = together(dict.fromkeys(wanted.roles, "live"), packed=policy.packs)
    cut = cut_by_tokens(views, max_tokens=max_tokens, forwards=forwards, packed=policy.packs)
    batches = [_scored_batch(policy, views, chosen) for chosen in cut]
    contexts = list(wanted.roles)
    scores = {label: _scores(batches, views, label, max_logits_per_chunk) for label in contexts}
    order = _order(batches, views)
    found = Findings(
        groups=groups,
        place=[(view.group, view.index) for view in views],
        contexts=contexts,
        teacher=wanted.teacher,
        logprobs={
            label: _flat([None if s is None else s.target_N for s in column], views) for label, column in scores.items()
        },
        entropies={
            label: _flat([None if s is None else s.entropy_N for s in column], views)
            for label, column in scores.items()
        },
        credits={},
        metrics={},
        alternatives={
            name: _alternatives(batches, label, order, max_logits_per_chunk)
            for name, label in ((STUDENT, STUDENT), ("teacher", wanted.teacher))
            if label is not None
        },
        prompts=[dict(view.prompts) for view in views],
    )
    for name, method in wanted.methods.items():
        credit, metrics = _ask(method, wanted.role_contexts[name], groups, views, scores, batches, max_logits_per_chunk)
        found.credits[name] = credit[order].numpy()
        found.metrics[name] = {key: value[order].numpy() for key, value in metrics.items()}
    return found


def _scored_batch(policy: Policy, views: Sequence[View], chosen: list[int]) -> _Batch:
    """Hidden states of every context; zeros stand where a completion lacks one, and ``shown_N`` says so."""
    picked = [views[i] for i in chosen]
    lengths = torch.tensor([len(view.completion_ids) for view in picked])
    target_N = collate(picked, STUDENT).target_N.to(policy.device)
    head_inputs: dict[str, HeadInput] = {}
    shown_N: dict[str, Tensor] = {}
    labels = list(dict.fromkeys(label for view in picked for label in view.prompts))
    found = {}
    for roles in together(dict.fromkeys(labels, "live"), packed=policy.packs):
        found.update(head_inputs_of(policy, picked, roles, packed=policy.packs))
    for label, (head_input, _) in found.items():
        shown = torch.tensor([label in view.prompts for view in picked])
        shown_N[label] = shown.repeat_interleave(lengths).to(policy.device)
        hidden_ND = head_input.hidden_ND.new_zeros(len(target_N), head_input.hidden_ND.shape[1])
        hidden_ND[shown_N[label]] = head_input.hidden_ND
        head_inputs[label] = replace(head_input, hidden_ND=hidden_ND)
    return _Batch(chosen, target_N, head_inputs, shown_N)


def _scores(
    batches: Sequence[_Batch], views: Sequence[View], label: str, max_logits_per_chunk: int
) -> list[Scores | None]:
    """One entry a view, None where the context could not be shown."""
    result: list[Scores | None] = [None] * len(views)
    for batch in batches:
        if label not in batch.head_inputs:
            continue
        scores = score_head_input(batch.head_inputs[label], batch.target_N, max_logits_per_chunk=max_logits_per_chunk)
        lengths = [len(views[i].completion_ids) for i in batch.chosen]
        pairs = zip(batch.chosen, scores.target_N.split(lengths), scores.entropy_N.split(lengths), strict=True)
        for i, target_N, entropy_N in pairs:
            if label in views[i].prompts:
                result[i] = Scores(target_N.cpu(), entropy_N.cpu())
    return result


def _ask(
    method: Method,
    role_contexts: Mapping[str, str],
    groups: Sequence[RolloutGroup],
    views: Sequence[View],
    scores: Mapping[str, list[Scores | None]],
    batches: Sequence[_Batch],
    max_logits_per_chunk: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A method's credit and metrics of every token, in the order of the batches."""
    keep = [method.keep(group) for group in groups]
    beforehand = {role: role_contexts.get(role, STUDENT) for role in method.precompute()}
    compared = {role: label for role, label in role_contexts.items() if role not in beforehand}
    # A method may do without a context whose sampled token it reads, never without one that it compares.
    needed = compared.values() if method.without_context == "keep" else role_contexts.values()
    entered = [keep[view.group][view.index] and all(label in view.prompts for label in needed) for view in views]
    inside = [i for i, enters in enumerate(entered) if enters]
    seen = {role: [scores[label][i] for i in inside] for role, label in beforehand.items()}
    told = method.on_batch(None, BatchScores(seen, [views[i] for i in inside]))
    values = {name: value for name, value in told.items() if not isinstance(value, Tensor)}
    advantage_PG = method.advantages(_rewards(groups))
    per_view = {"advantage": torch.stack([advantage_PG[view.group, view.index] for view in views])}
    for name, value in told.items():
        if isinstance(value, Tensor):
            per_view[name] = torch.full((len(views),), math.nan, dtype=torch.float64)
            per_view[name][inside] = value.double().cpu()
    credits: list[Tensor] = []
    metrics: list[dict[str, Tensor]] = []
    for batch in batches:
        enters_N = _per_token([float(entered[i]) for i in batch.chosen], batch, views) > 0
        if not enters_N.any():
            credits.append(torch.full(enters_N.shape, math.nan))
            metrics.append({})
            continue
        credit_N, found = _ask_batch(
            method, compared, beforehand, batch, views, scores, per_view, values, max_logits_per_chunk
        )
        credits.append(torch.where(enters_N, credit_N, math.nan))
        metrics.append({name: torch.where(enters_N, value_N, math.nan) for name, value_N in found.items()})
    sizes = [len(credit_N) for credit_N in credits]
    return torch.cat(credits), columns(metrics, sizes)


def _ask_batch(
    method: Method,
    compared: Mapping[str, str],
    beforehand: Mapping[str, str],
    batch: _Batch,
    views: Sequence[View],
    scores: Mapping[str, list[Scores | None]],
    per_view: Mapping[str, Tensor],
    values: Mapping[str, float],
    max_logits_per_chunk: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's loss and metrics on the tokens of a batch, slice by slice."""
    device = batch.target_N.device
    inputs = {name: _per_token(column[batch.chosen].tolist(), batch, views) for name, column in per_view.items()}
    known = {**{role: label for role, label in beforehand.items() if role != STUDENT}, "old_logprob": STUDENT}
    for name, label in known.items():
        inputs[name] = _flat_tensor([(scores[label][i], views[i]) for i in batch.chosen])
    inputs = {name: value.to(device, torch.float32) for name, value in inputs.items()}
    student = batch.head_inputs[STUDENT]
    credits: list[Tensor] = []
    metrics: dict[str, list[Tensor]] = {}
    for rows in token_slices(len(batch.target_N), student.weight_VD.shape[0], max_logits_per_chunk):
        roles = {STUDENT: student.logprobs(rows)}
        roles.update({role: batch.head_inputs[label].logprobs(rows) for role, label in compared.items()})
        tokens = TokenSlice(batch.target_N[rows], roles, {name: v[rows] for name, v in inputs.items()}, values)
        credits.append(token_credit(method.loss, tokens).float().cpu())
        for name, value_N in method.metrics(tokens).items():
            metrics.setdefault(name, []).append(value_N.float().cpu())
    return torch.cat(credits), {name: torch.cat(column) for name, column in metrics.items()}


def _rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    """Rewards [P, G], NaN where there is no verdict."""
    rewards_PG = torch.full((len(groups), max((len(group.rollouts) for group in groups), default=0)), math.nan).double()
    for p, group in enumerate(groups):
        for i, verdict in enumerate(group.verdicts):
            rewards_PG[p, i] = math.nan if verdict.reward is None else verdict.reward
    return rewards_PG


def _alternatives(
    batches: Sequence[_Batch], label: str, order: Tensor, max_logits_per_chunk: int
) -> tuple[NDArray[np.int32], Floats]:
    """The likeliest tokens of every position; where the context is missing their log-probability is NaN."""
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
            logprobs.append(best.values.masked_fill(~batch.shown_N[label][rows, None], math.nan).float().cpu())
    return torch.cat(ids)[order].int().numpy(), torch.cat(logprobs)[order].numpy()


def _order(batches: Sequence[_Batch], views: Sequence[View]) -> Tensor:
    """Where each token of the views, one after the other, stands among those of the batches."""
    begins: dict[int, int] = {}
    at = 0
    for batch in batches:
        for i in batch.chosen:
            begins[i] = at
            at += len(views[i].completion_ids)
    return torch.cat([torch.arange(begins[i], begins[i] + len(view.completion_ids)) for i, view in enumerate(views)])


def _per_token(values: Sequence[float], batch: _Batch, views: Sequence[View]) -> Tensor:
    lengths = torch.tensor([len(views[i].completion_ids) for i in batch.chosen])
    return torch.tensor(values).repeat_interleave(lengths)


def _flat_tensor(columns: Sequence[tuple[Scores | None, View]]) -> Tensor:
    return torch.cat(
        [torch.full((len(view.completion_ids),), math.nan) if s is None else s.target_N.float() for s, view in columns]
    )


def _flat(columns: Sequence[Tensor | None], views: Sequence[View]) -> Floats:
    parts = [
        np.full(len(view.completion_ids), math.nan, dtype=np.float32) if one is None else one.float().numpy()
        for one, view in zip(columns, views, strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
