"""Rollout groups to views: each completion with the prompt of every role of the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import hindsight, role_prompt
from selfdistill.contexts.templates import Template
from selfdistill.methods.base import Method
from selfdistill.types import STUDENT, RolloutGroup, Skipped, View


@dataclass(slots=True)
class ViewSet:
    """Views of one step, with counts of what was left out."""

    views: list[View] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Contexts that could not be rendered, by reason."""
    dropped: int = 0
    """Completions that are left out of the loss."""


def build_views(
    groups: Sequence[RolloutGroup],
    method: Method,
    templates: Mapping[str, Template],
    chat: Chat,
    advantages_PG: Tensor,
    *,
    thinking: bool | None,
    seed: int = 0,
) -> ViewSet:
    """Render the prompt of every role for every completion. A context that is missing or too long is counted, not cut.

    A sampling role has one prompt per group: the prompt that its completions were sampled from, or else the prompt that
    it would sample from. ``seed`` orders the texts of contrast contexts.
    """
    result = ViewSet()
    roles, sampling_roles = method.roles(), method.sampling_roles()
    for g, group in enumerate(groups):
        keep = method.keep(group)
        drew = {r.source: r.role_prompt_ids for r in group.rollouts if r.role_prompt_ids is not None}
        for i, rollout in enumerate(group.rollouts):
            if not keep[i]:
                result.skipped["left out by the method"] += 1
                result.dropped += 1
                continue
            prompts: dict[str, tuple[int, ...]] = {STUDENT: rollout.prompt_ids}
            for name, role in roles.items():
                ids: tuple[int, ...] | Skipped
                if name in drew:
                    ids = drew[name]
                else:
                    known = group.example.fields
                    if name not in sampling_roles:
                        known = hindsight(groups, g, i, chat, contrast=role.contrast, seed=seed)
                    room = len(rollout.completion_ids)
                    ids = role_prompt(role, group.example, known, templates, chat, thinking=thinking, room=room)
                if isinstance(ids, Skipped):
                    result.skipped[ids.reason] += 1
                else:
                    prompts[name] = ids
            if len(prompts) <= len(roles) and method.without_context == "drop":
                result.dropped += 1
                continue
            result.views.append(
                View(
                    prompts=prompts,
                    completion_ids=rollout.completion_ids,
                    weights=_weights(method, len(rollout.completion_ids)),
                    old_logprobs=rollout.logprobs,
                    advantage=float(advantages_PG[g, i]),
                    group=g,
                    index=i,
                    source=rollout.source,
                    reward=group.verdicts[i].reward,
                )
            )
    return result


def _weights(method: Method, tokens: int) -> tuple[float, ...]:
    return (1.0 if method.weighting == "token" else 1.0 / tokens,) * tokens
