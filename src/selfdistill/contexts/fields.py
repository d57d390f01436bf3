"""The fields that a context may show beside a completion, and the prompt that comes of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, apply
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Example, Role, RolloutGroup, Skipped


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
        return Skipped(name)
    return ids
