"""Groups of rollouts to views: every completion under the prompts that a method wants to score it with."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfdistill.chat import Chat, strip_thinking
from selfdistill.contexts import Template, apply
from selfdistill.head import STUDENT
from selfdistill.methods.base import Method, Role
from selfdistill.seeds import derive
from selfdistill.types import Example, RolloutGroup, Skipped, View


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

    ``seed`` orders what contrasts are drawn from.
    """
    result = ViewSet()
    roles = method.roles()
    for g, group in enumerate(groups):
        keep = method.keep(group)
        for i, rollout in enumerate(group.rollouts):
            if not keep[i]:
                result.skipped["left out by the method"] += 1
                result.dropped += 1
                continue
            prompts: dict[str, tuple[int, ...]] = {STUDENT: rollout.prompt_ids}
            fields = fields_of(group, i)
            for name, role in roles.items():
                shown = {**fields, **contrast_fields(groups, g, i, role.contrast, seed=seed)}
                ids = role_prompt(
                    role, group.example, shown, templates, chat, thinking=thinking, room=len(rollout.completion_ids)
                )
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


def fields_of(mine: RolloutGroup, index: int) -> dict[str, str]:
    """Every text of a group that a template may show beside its completion ``index``."""
    verdict = mine.verdicts[index]
    fields = dict(mine.example.fields)
    if verdict.reward is not None:
        fields["verdict"] = "correct" if verdict.correct else "wrong"
    if verdict.feedback:
        fields["feedback"] = verdict.feedback
    sibling = _sibling(mine, index)
    if sibling:
        fields["sibling"] = sibling
    return fields


def contrast_fields(
    groups: Sequence[RolloutGroup], group: int, index: int, contrast: int, *, seed: int
) -> dict[str, str]:
    """The ``contrast``-th other question and wrong sibling, in an order that depends on the seed and the example alone.

    A question is never the group's own, a wrong sibling never says what the completion says, and no two contrasts show
    the same; where there are too few, a field is missing, and so is the context. Completions of a group share a
    question, so that one prompt serves them all.
    """
    mine = groups[group]
    questions = {other.example.prompt[-1].content for other in groups} - {mine.example.prompt[-1].content}
    pairs = zip(mine.rollouts, mine.verdicts, strict=True)
    wrong = {strip_thinking(r.text) for r, v in pairs if v.reward is not None and not v.correct}
    wrong -= {"", strip_thinking(mine.rollouts[index].text)}
    fields = {}
    for name, choices in (("other_question", sorted(questions)), ("wrong_sibling", sorted(wrong))):
        random.Random(derive(seed, name, mine.example.id)).shuffle(choices)
        if contrast < len(choices):
            fields[name] = choices[contrast]
    return fields


def _weights(method: Method, tokens: int) -> tuple[float, ...]:
    return (1.0 if method.weighting == "token" else 1.0 / tokens,) * tokens


def _sibling(group: RolloutGroup, index: int) -> str | None:
    # The first correct one, so that most completions of a group share one teacher prompt.
    for i, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
        text = strip_thinking(rollout.text)
        if i != index and verdict.correct and text:
            return text
    return None


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
