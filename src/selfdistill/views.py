"""Groups of rollouts to views: every completion under the prompts that a method wants to score it with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfdistill.chat import Chat
from selfdistill.contexts import Template, apply
from selfdistill.methods.base import Method
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Example, Role, RolloutGroup, Skipped, View


@dataclass(slots=True)
class ViewSet:
    """Views of one step, and what was left out, by reason.

    ``skipped`` counts contexts that could not be shown; ``dropped`` completions that left the loss for it.
    """

    views: list[View] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    dropped: int = 0


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
    """Render every role of every completion. A context that is missing or does not fit is counted, never cut.

    A role that draws has one prompt a group: that which drew its completions, or, where none is known, what it would
    draw from. ``seed`` orders what contrasts are drawn from.
    """
    result = ViewSet()
    roles, sources = method.roles(), method.sources()
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
                    if name not in sources:
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


def hindsight(
    groups: Sequence[RolloutGroup], group: int, index: int, chat: Chat, *, contrast: int, seed: int
) -> dict[str, str]:
    """Every text that a template may show beside completion ``index`` of a group, once the whole step is drawn.

    ``contrast`` chooses the other question and the wrong sibling: they are the ``contrast``-th in an order that depends
    on the seed and the example alone. A question is never the group's own, a wrong sibling never says what the
    completion says, and no two contrasts show the same; where there are too few, a field is missing, and so is the
    context. Completions of a group share a question, so that one prompt serves them all.
    """
    mine = groups[group]
    verdict = mine.verdicts[index]
    fields = dict(mine.example.fields)
    if verdict.reward is not None:
        fields["verdict"] = "correct" if verdict.correct else "wrong"
    if verdict.feedback:
        fields["feedback"] = verdict.feedback
    said = [chat.answer_part(rollout) for rollout in mine.rollouts]
    # The first correct sibling, so that most completions of a group share one teacher prompt.
    right = (i for i, one in enumerate(mine.verdicts) if i != index and one.correct and said[i])
    if (sibling := next(right, None)) is not None:
        fields["sibling"] = said[sibling]
    questions = {other.example.prompt[-1].content for other in groups} - {mine.example.prompt[-1].content}
    wrong = {text for text, v in zip(said, mine.verdicts, strict=True) if v.reward is not None and not v.correct}
    wrong -= {"", said[index]}
    for name, choices in (("other_question", sorted(questions)), ("wrong_sibling", sorted(wrong))):
        random.Random(derive(seed, name, mine.example.id)).shuffle(choices)
        if contrast < len(choices):
            fields[name] = choices[contrast]
    return fields


def _weights(method: Method, tokens: int) -> tuple[float, ...]:
    return (1.0 if method.weighting == "token" else 1.0 / tokens,) * tokens


def role_prompt(
    role: Role,
    example: Example,
    fields: Mapping[str, str],
    templates: Mapping[str, Template],
    chat: Chat,
    *,
    thinking: bool | None,
    room: int,
) -> tuple[int, ...] | Skipped:
    """Prompt ids of a role with ``room`` tokens left for a completion, or why there is none."""
    name = role.context or STUDENT
    messages = apply(templates, role.context, example.prompt, fields) if role.context else example.prompt
    if isinstance(messages, Skipped):
        return messages
    ids = chat.encode(messages, thinking=thinking if role.thinking is None else role.thinking)
    if len(ids) + room > chat.window:
        return Skipped(f"context {name}: prompt and completion do not fit the window")
    return ids
