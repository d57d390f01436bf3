"""What each role is shown in the groups of ``support.engine``, and completions scored by whole-sequence forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import methods_by_hand as hand
from selfdistill.contexts.chat import Chat
from selfdistill.types import RolloutGroup
from support.engine import QUESTIONS, SAID, SOLUTIONS

Shown = Callable[[int, int], str | None]


def sibling(g: int, i: int) -> str | None:
    """The first other completion of reward 1, thinking stripped."""
    for j, (text, reward, _) in enumerate(SAID[g]):
        if j != i and reward == 1.0:
            return text.rpartition("</think>")[2].strip()
    return None


def rendered(content: str) -> str:
    return f"<|user|> {content} <|end|> <|assistant|> <think> "


def reference_only(g: int, i: int) -> str | None:
    return rendered(f"a correct solution is {SOLUTIONS[g]} . now solve the problem")


def other_question(other: Mapping[int, int]) -> Shown:
    """The completion's own sibling or feedback under another question, that of group ``other[g]``."""

    def shown(g: int, i: int) -> str | None:
        text = sibling_or_feedback(g, i)
        return text and text.replace(QUESTIONS[g], QUESTIONS[other[g]])

    return shown


def question_alone(g: int, i: int) -> str | None:
    return rendered(QUESTIONS[g])


def solution(g: int, i: int) -> str | None:
    return rendered(f"{QUESTIONS[g]} a correct solution is {SOLUTIONS[g]} . now solve the problem")


def sibling_or_feedback(g: int, i: int) -> str | None:
    shown, feedback = sibling(g, i), SAID[g][i][2]
    if shown:
        return rendered(f"{QUESTIONS[g]} another attempt was correct : {shown} . now solve the problem")
    return rendered(f"{QUESTIONS[g]} feedback on an earlier attempt : {feedback} .") if feedback else None


def sibling_or_solution_verdict(g: int, i: int) -> str | None:
    shown, reward = sibling(g, i), SAID[g][i][1]
    if reward is None:
        return None
    head = f"another attempt was : {shown}" if shown else f"a correct solution is {SOLUTIONS[g]}"
    return rendered(f"{QUESTIONS[g]} {head} . the attempt below is {'correct' if reward == 1.0 else 'wrong'} .")


def sibling_verdict(g: int, i: int) -> str | None:
    return sibling_or_solution_verdict(g, i) if sibling(g, i) else None


def scored(
    student: Any,
    teacher: Any,
    groups: Sequence[RolloutGroup],
    chat: Chat,
    real: int,
    *,
    shown: Shown | None,
    temperature: float = 1.0,
    drop: bool = False,
    others: Mapping[str, Shown] | None = None,
) -> list[hand.Scored]:
    """Every completion under both models, by whole-sequence forwards; ``others`` are further roles of the teacher."""
    result = []

    def under(model: Any, text: str, ids: Sequence[int]) -> list[hand.Row]:
        prompt = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        return hand.rows(model, prompt, ids, real, temperature)

    for g, group in enumerate(groups):
        given = hand.advantages([verdict.reward for verdict in group.verdicts])
        for i, rollout in enumerate(group.rollouts):
            ids = rollout.completion_ids
            texts = {name: show(g, i) for name, show in (others or {}).items()}
            text = shown(g, i) if shown else None
            if drop and None in (text, *texts.values()):
                continue
            result.append(
                hand.Scored(
                    under(student, rendered(QUESTIONS[g]), ids),
                    hand.frozen(under(teacher, text, ids)) if text is not None else None,
                    ids,
                    rollout.logprobs,
                    given[i],
                    {name: hand.frozen(under(teacher, t, ids)) for name, t in texts.items() if t is not None},
                    g,
                    rollout.source,
                    group.verdicts[i].reward,
                )
            )
    return result
