"""Measures how far a model is from Bayes' rule when it is shown an answer: CREDIT's posterior compatibility.

If showing c acted as conditioning in one joint model, then log p(y|x,c) − log p(y|x) would be the pointwise mutual
information of y and c, which is symmetric: showing y would change c as much as showing c changes y. Both sides can be
measured where the context shows an answer, with the two in each other's place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import hindsight
from selfdistill.contexts.templates import Template, apply
from selfdistill.models.policy import Policy
from selfdistill.scoring.score import score_views
from selfdistill.types import STUDENT, Role, RolloutGroup, Skipped, View

TEACHER = "teacher"
ANSWERS = ("sibling", "solution")
"""Fields that hold an answer, which can change places with the completion."""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Sums of u over completions in nats: of y with c in sight, and of c with y in sight, with their difference.

    ``rms`` is the root mean square of the difference, and ``violation`` that over √2 times the one of both sums: 0 for
    a model that obeys Bayes' rule, 1 if only one side moves, √2 if they move against each other; None if none moves.
    """

    completions: int
    pmi: float
    reverse: float
    difference: float
    rms: float
    violation: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """Return the numbers as plain JSON."""
        return asdict(self)


def measure_compatibility(
    policy: Policy,
    chat: Chat,
    groups: Sequence[RolloutGroup],
    role: Role,
    templates: Mapping[str, Template],
    *,
    thinking: bool | None,
    seed: int,
    max_tokens: int,
) -> Compatibility | None:
    """Measure a context with the model's own weights on both sides. None if it shows no answer, or none differs.

    Completions are taken without their thinking, because an answer is shown without it.
    """
    views: list[View] = []
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            fields = hindsight(groups, g, i, chat, contrast=role.contrast, seed=seed)
            template = _answering(templates, role, fields)
            answer_text = chat.answer_part(rollout)
            if (
                template is None
                or not answer_text
                or (context_answer := fields[template.needs[0]].strip()) in ("", answer_text)
            ):
                continue
            pair = [
                _view(
                    template,
                    group,
                    chat,
                    answer,
                    context_text,
                    thinking if role.thinking is None else role.thinking,
                    thinking,
                )
                for answer, context_text in ((answer_text, context_answer), (context_answer, answer_text))
            ]
            if all(
                len(ids) + len(view.completion_ids) <= chat.window for view in pair for ids in view.prompts.values()
            ):
                views += pair
    if not views:
        return None
    with torch.no_grad():
        student, teacher = (
            score_views(policy, views, name, max_tokens=max_tokens, max_logits_per_chunk=1 << 24)
            for name in (STUDENT, TEACHER)
        )
    pairs = zip(student, teacher, strict=True)
    sums = [math.fsum((t.target_N.double() - s.target_N.double()).tolist()) for s, t in pairs]
    forward, reverse = sums[::2], sums[1::2]
    differences = [f - r for f, r in zip(forward, reverse, strict=True)]
    count = len(forward)
    rms, size = (math.sqrt(math.fsum(x * x for x in values) / len(values)) for values in (differences, sums))
    pmi, reverse_pmi, difference = (math.fsum(values) / count for values in (forward, reverse, differences))
    violation = rms / (math.sqrt(2.0) * size) if size else None
    return Compatibility(count, pmi, reverse_pmi, difference, rms, violation)


def _answering(templates: Mapping[str, Template], role: Role, fields: Mapping[str, str]) -> Template | None:
    """The plain template that a context is rendered with here, if all that it shows is one answer."""
    template = templates.get(role.context or "")
    for name in template.first_of if template else ():
        if set(templates[name].needs) <= set(fields):
            template = templates[name]
            break
    fits = template is not None and len(template.needs) == 1 and template.needs[0] in ANSWERS
    return template if template is not None and fits and template.needs[0] in fields else None


def _view(
    template: Template,
    group: RolloutGroup,
    chat: Chat,
    answer: str,
    context_text: str,
    teacher_thinking: bool | None,
    thinking: bool | None,
) -> View:
    messages = apply({template.name: template}, template.name, group.example.prompt, {template.needs[0]: context_text})
    assert not isinstance(messages, Skipped)
    prompts = {
        STUDENT: chat.encode(group.example.prompt, thinking=thinking),
        TEACHER: chat.encode(messages, thinking=teacher_thinking),
    }
    return View(prompts, chat.response(answer), (), (), 0.0, 0, 0)
