"""Score views under a role's prompt and weights. Training, inspection and evaluation all score here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from selfdistill.distributed.world import ALONE, World
from selfdistill.models.head import HeadInput
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.batching import collate, micro_batches
from selfdistill.scoring.served import served_head, served_scores
from selfdistill.tracking.progress import advance
from selfdistill.types import STUDENT, Scores, Server, View, Weights


def score_views(
    policy: Policy,
    views: Sequence[View],
    role: str,
    *,
    max_tokens: int,
    max_logits_per_chunk: int,
    world: World = ALONE,
) -> list[Scores]:
    """Log-probability and entropy of every completion token under one role's prompts; one entry per view.

    The work is split over the ranks of ``world``, and every rank gets all scores.
    """
    return _score(
        policy,
        [_alone(view, role) for view in views],
        max_tokens=max_tokens,
        max_logits_per_chunk=max_logits_per_chunk,
        world=world,
    )


def _alone(view: View, role: str) -> View:
    """A view with only this role's prompt, as the student's."""
    gaps = {STUDENT: view.gaps[role]} if role in view.gaps else {}
    return View({STUDENT: view.prompts[role]}, view.completion_ids, (), (), 0.0, 0, 0, gaps=gaps)


def _score(
    policy: Policy,
    alone: Sequence[View],
    *,
    max_tokens: int,
    max_logits_per_chunk: int,
    world: World,
    temperature: float = 1.0,
) -> list[Scores]:
    results: dict[int, Scores] = {}
    own = micro_batches(alone, max_tokens=max_tokens, packed=policy.packs, world=world)
    advance(of=len(own))
    for micro_batch in own:
        advance(1)
        picked = [alone[i] for i in micro_batch.indices]
        batch = collate(picked, STUDENT, packed=policy.packs)
        scores = policy.score(batch, max_logits_per_chunk=max_logits_per_chunk, temperature=temperature)
        if not micro_batch.is_dummy:
            results.update(zip(micro_batch.indices, split(scores, picked), strict=True))
    if world.size > 1:
        results = {i: scores_of_view.alone() for i, scores_of_view in results.items()}
    return world.all_gather_by_index(results, len(alone))


def score_roles(
    teachers: Teachers,
    views: Sequence[View],
    weights: Mapping[str, Weights],
    *,
    max_tokens: int,
    max_logits_per_chunk: int,
    world: World = ALONE,
    temperatures: Mapping[str, float] | None = None,
) -> dict[str, list[Scores | None]]:
    """Scores by role, each a list with one entry per view; None where the view lacks the role's prompt.

    Roles with the same weights and temperature (1 where none is given) share forward passes, so a common prefix of
    their prompts is computed once.
    """
    columns: dict[str, list[Scores | None]] = {role: [None] * len(views) for role in weights}
    passes = {role: (kind, (temperatures or {}).get(role, 1.0)) for role, kind in weights.items()}
    for kind, temperature in dict.fromkeys(passes.values()):
        pairs = [(role, i) for role in weights if passes[role] == (kind, temperature) for i in range(len(views))]
        with_prompt = [(role, i) for role, i in pairs if role in views[i].prompts]
        if isinstance(kind, Server):
            for role in dict.fromkeys(role for role, _ in with_prompt):
                places = [i for one, i in with_prompt if one == role]
                found = served_scores(teachers.served, kind, [views[i] for i in places], role, world)
                for i, score in zip(places, found, strict=True):
                    columns[role][i] = score
            continue
        single_role_views = [_alone(views[i], role) for role, i in with_prompt]
        with teachers.weights(kind) as policy:
            scores = _score(
                policy,
                single_role_views,
                max_tokens=max_tokens,
                max_logits_per_chunk=max_logits_per_chunk,
                world=world,
                temperature=temperature,
            )
        for (role, i), score in zip(with_prompt, scores, strict=True):
            columns[role][i] = score
    return columns


def split(scores: Scores, views: Sequence[View]) -> list[Scores]:
    """Split the scores of a batch into one entry per view."""
    lengths = [len(view.completion_ids) for view in views]
    pairs = zip(scores.target_N.split(lengths), scores.entropy_N.split(lengths), strict=True)
    return [Scores(target, entropy) for target, entropy in pairs]


def together(weights: Mapping[str, Weights], *, packed: bool) -> list[list[str]]:
    """Roles grouped by forward pass: roles with the same weights when packed, one role each when padded."""
    if not packed:
        return [[role] for role in weights]
    return [[role for role in weights if weights[role] == kind] for kind in dict.fromkeys(weights.values())]


def head_inputs(
    teachers: Teachers,
    views: Sequence[View],
    weights: Mapping[str, Weights],
    target_N: Tensor,
    temperatures: Mapping[str, float] | None = None,
    likeliest: Callable[[str], int | None] = lambda role: None,
) -> dict[str, HeadInput]:
    """Hidden states and LM head of every role of a micro-batch, without gradient. Losses over distributions use them.

    Of a teacher behind a server the ``likeliest`` tokens of each role are asked for.

    Raises:
        RuntimeError: a role's target ids differ from the student's, so scores would not be comparable.
    """
    result: dict[str, HeadInput] = {}
    for roles in together(weights, packed=teachers.pack):
        kind = weights[roles[0]]
        if isinstance(kind, Server):
            result.update(
                {
                    role: served_head(teachers.served, kind, views, role, likeliest(role) or 0, teachers.policy)
                    for role in roles
                }
            )
            continue
        scored = views
        if not any(role in view.prompts for role in roles for view in views):
            # Every rank makes the same passes over sharded weights, so that one without these roles makes one too.
            scored = [View({roles[0]: views[0].prompts[STUDENT]}, views[0].completion_ids, (), (), 0.0, 0, 0)]
        with teachers.weights(weights[roles[0]]) as policy:
            by_role = head_inputs_of(policy, scored, roles, packed=teachers.pack)
        for role, (head_input, targets) in by_role.items():
            present_N = with_role(views, role)
            if scored is views and not torch.equal(targets, target_N[present_N]):
                raise RuntimeError(f"role {role!r} scores other tokens than the student")
            temperature = (temperatures or {}).get(role, 1.0)
            result[role] = replace(spread(head_input, present_N), temperature=temperature)
    return result


def with_role(views: Sequence[View], role: str) -> Tensor:
    """Mask [N] of the completion tokens whose view has the role's prompt."""
    lengths = torch.tensor([len(view.completion_ids) for view in views])
    return torch.tensor([role in view.prompts for view in views]).repeat_interleave(lengths)


def spread(head_input: HeadInput, present_N: Tensor) -> HeadInput:
    """The hidden states of the tokens marked in ``present_N``, with zeros at the others, so that roles align."""
    if present_N.all():
        return head_input
    hidden_ND = head_input.hidden_ND.new_zeros(len(present_N), head_input.hidden_ND.shape[1])
    if present_N.any():
        hidden_ND[present_N.to(hidden_ND.device)] = head_input.hidden_ND
    return replace(head_input, hidden_ND=hidden_ND)


def head_inputs_of(
    policy: Policy, views: Sequence[View], roles: Sequence[str], *, packed: bool
) -> dict[str, tuple[HeadInput, Tensor]]:
    """Hidden states and target ids by role, from one forward pass. A view that lacks a role has no tokens there."""
    batch = collate(views, *roles, packed=packed)
    whole = policy.head_input(batch)
    sizes = [sum(len(view.completion_ids) for view in views if role in view.prompts) for role in roles]
    parts = zip(whole.hidden_ND.split(sizes), batch.target_N.split(sizes), strict=True)
    return {
        role: (replace(whole, hidden_ND=hidden), target) for role, (hidden, target) in zip(roles, parts, strict=True)
    }
