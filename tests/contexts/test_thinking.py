"""One meaning of what stands after the thinking, for verdicts and for what a teacher is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import hindsight
from selfdistill.contexts.thinking import MARKS, Marks, after_thinking, thought_of
from selfdistill.tasks.countdown.task import final_answer
from selfdistill.tasks.toolbox.task import final_call
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.engine import load_exact
from support.tiny import STOP

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
        ("[THINK] let me [/THINK] answer 5", " answer 5"),
        ("<seed:think> let me </seed:think> answer 5", " answer 5"),
        ("◁think▷ let me ◁/think▷ answer 5", " answer 5"),
        ("<reasoning> let me answer 5", ""),
        ("[THINK] try answer 5", ""),
        ("try answer 7 </seed:think> answer 5", " answer 5"),
        ("<|channel|>analysis<|message|> try answer 7", ""),
        (
            "<|channel|>analysis<|message|> answer 7 <|end|> <|start|>assistant<|channel|>final<|message|> answer 5",
            " answer 5",
        ),
        ("<|channel|>final<|message|> answer 5", " answer 5"),
        ("<|channel>thought\n let me <channel|> answer 5", " answer 5"),
    ],
)
def test_an_unfinished_thought_is_no_answer(text: str, answer: str) -> None:
    assert after_thinking(text) == answer
    assert final_answer(text) == ("5" if "answer" in answer else None)
    assert final_call(text.replace("answer 5", "call : f ( 5 )")) == ("f ( 5 )" if "answer" in answer else None)


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.begin)
def test_every_kind_of_marks_opens_and_closes_a_thought(marks: Marks, folder: Path) -> None:
    """Through a tokenizer that spells the marks in whole words, as prompts end with them."""
    tokenizer = load_exact(folder)[1].tokenizer
    tokenizer.add_tokens([marks.begin, *marks.ends])
    chat = Chat(tokenizer, stop_ids=[STOP], window=256, name="marked")
    opened = tuple(tokenizer(f"<|assistant|> {marks.begin}")["input_ids"])
    assert chat.opens_thinking(opened)
    assert not chat.opens_thinking((*opened, *tokenizer(f"wait {marks.ends[0]}")["input_ids"]))
    cut = Rollout(opened, (8,), (0.0,), False, "let me answer 5", 0)
    assert chat.answer_part(cut) == ""
    for end in marks.ends:
        assert chat.answer_part(replace(cut, text=f"let me answer 7 {end} answer 5")) == "answer 5"


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


@pytest.mark.parametrize(("begin", "end"), [(marks.begin, end) for marks in MARKS for end in marks.ends])
def test_the_thinking_is_told_without_its_marks(begin: str, end: str) -> None:
    assert (
        thought_of(f"{begin} it is 4 {end} 4")
        == thought_of(f"it is 4{end}4")
        == thought_of(f"{begin}it is 4")
        == "it is 4"
    )
    assert thought_of("4") == ""
