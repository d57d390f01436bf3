"""Groups of rollouts to views: every completion under the prompts that a method wants to score it with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from selfdistill.chat import Chat, strip_thinking
from selfdistill.contexts import Template, apply
from selfdistill.head import STUDENT
from selfdistill.methods.base import Method, Role
from selfdistill.types import RolloutGroup, Skipped, View


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
) -> ViewSet:
    """Render every role of every completion. A context that is missing or does not fit is counted, never cut."""
    result = ViewSet()
    roles = method.roles()
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            prompts: dict[str, tuple[int, ...]] = {STUDENT: rollout.prompt_ids}
            fields = fields_of(groups, g, i)
            for name, role in roles.items():
                ids = _prompt(role, group, fields, templates, chat, thinking, len(rollout.completion_ids))
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
                    weights=(1.0,) * len(rollout.completion_ids),
                    old_logprobs=rollout.logprobs,
                    advantage=float(advantages_PG[g, i]),
                    group=g,
                    index=i,
                )
            )
    return result


def fields_of(groups: Sequence[RolloutGroup], group: int, index: int) -> dict[str, str]:
    """Every text that a template may show beside completion ``index`` of a group."""
    mine = groups[group]
    verdict = mine.verdicts[index]
    fields = dict(mine.example.fields)
    if verdict.reward is not None:
        fields["verdict"] = "correct" if verdict.correct else "wrong"
    if verdict.feedback:
        fields["feedback"] = verdict.feedback
    sibling = _sibling(mine, index)
    if sibling:
        fields["sibling"] = sibling
    other = _other_question(groups, group)
    if other:
        fields["other_question"] = other
    return fields


def _sibling(group: RolloutGroup, index: int) -> str | None:
    # The first correct one, so that most completions of a group share one teacher prompt.
    for i, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
        text = strip_thinking(rollout.text)
        if i != index and verdict.correct and text:
            return text
    return None


def _other_question(groups: Sequence[RolloutGroup], group: int) -> str | None:
    mine = groups[group].example.prompt[-1].content
    for shift in range(1, len(groups)):
        question = groups[(group + shift) % len(groups)].example.prompt[-1].content
        if question != mine:
            return question
    return None


def _prompt(
    role: Role,
    group: RolloutGroup,
    fields: Mapping[str, str],
    templates: Mapping[str, Template],
    chat: Chat,
    thinking: bool | None,
    completion: int,
) -> tuple[int, ...] | Skipped:
    messages = apply(templates, role.context, group.example.prompt, fields)
    if isinstance(messages, Skipped):
        return messages
    ids = chat.encode(messages, thinking=thinking if role.thinking is None else role.thinking)
    if len(ids) + completion > chat.window:
        return Skipped(f"context {role.context}: prompt and completion do not fit the window")
    return ids
