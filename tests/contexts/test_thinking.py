"""One meaning of what stands after the thinking, for verdicts and for what a teacher is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.contexts.fields import hindsight
from selfdistill.contexts.thinking import after_thinking
from selfdistill.tasks.countdown.task import final_answer
from selfdistill.tasks.toolbox.task import final_call
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.engine import load_exact

OPEN = "<|assistant|> <think>"
SHUT = "<|assistant|> <think> </think>"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("answer 5", "answer 5"),
        ("<think> let me </think> answer 5", " answer 5"),
        ("let me </think> answer 5", " answer 5"),
        ("<think> let me answer 5", ""),
        ("wait <think> let me", ""),
        ("<think> try </think> wait <think> no </think> answer 5", " answer 5"),
        ("<think> try </think> answer 5 <think> no , let me", ""),
        ("", ""),
    ],
)
def test_an_unfinished_thought_is_no_answer(text: str, answer: str) -> None:
    assert after_thinking(text) == answer
    assert final_answer(text) == ("5" if "answer" in answer else None)
    assert final_call(text.replace("answer 5", "call : f ( 5 )")) == ("f ( 5 )" if "answer" in answer else None)


@pytest.mark.parametrize(
    ("prompt", "source", "text", "finished", "shown"),
    [
        (OPEN, "student", "<think> let me", False, None),
        (SHUT, "student", "<think> let me", True, None),
        (SHUT, "student", "answer 5", False, "answer 5"),
        (OPEN, "student", "answer 5", True, "answer 5"),
        (OPEN, "student", "let me answer 5", False, None),
        (OPEN, "student", "let me </think> answer 5", False, "answer 5"),
        # The teacher's sample began where the teacher's own prompt left it.
        (OPEN, "teacher", "answer 5", False, "answer 5"),
        (SHUT, "teacher", "let me answer 5", False, None),
    ],
)
@pytest.mark.parametrize(("reward", "field"), [(1.0, "sibling"), (0.0, "wrong_sibling")])
def test_a_sibling_is_shown_without_its_thinking_or_not_at_all(
    prompt: str, source: str, text: str, finished: bool, shown: str | None, reward: float, field: str, folder: Path
) -> None:
    _, chat = load_exact(folder)
    ids = tuple(chat.tokenizer(prompt)["input_ids"])
    other = tuple(chat.tokenizer(SHUT if prompt == OPEN else OPEN)["input_ids"]) if source == "teacher" else None
    mine = Rollout(ids, (8, 2), (0.0, 0.0), True, "not me", 0)
    theirs = Rollout(ids, (9, 2), (0.0, 0.0), finished, text, 0, source, other)
    example = Example("one", (Message("user", "make 9 ."),))
    group = RolloutGroup(example, (mine, theirs), (Verdict(None), Verdict(reward)))
    fields = hindsight([group], 0, 0, chat, contrast=0, seed=0)
    assert fields.get(field) == shown
    assert not {"sibling", "wrong_sibling"} - {field} & fields.keys()
