"""The base model of the toolbox in turns: the texts that teach it, and what the shipped one can do."""

from __future__ import annotations

import pytest

from base_models.subject import MODELS, Subject
from selfdistill.contexts.templates import load_templates
from selfdistill.tasks.toolbox.task import ToolboxTask, final_call
from toolbox_turns_base.properties import MODEL_DIR, episodes, properties
from toolbox_turns_base.traces import TurnWriter


def test_traces_are_episodes_by_the_rules_of_the_task() -> None:
    """A refused call is made anew and differently, a call is right by the conventions, and the report ends it."""
    writer = TurnWriter(load_templates("toolbox"), seed=3)
    vocabulary = Subject(MODELS / "toolbox-base", ToolboxTask()).tokenizer.get_vocab()
    reports = 0
    for trace in (trace for trace in writer.traces(300) if trace.context.startswith("turns/")):
        turns = [(trace.messages, trace.completion), *trace.further]
        said = [messages[-1].content.split(" .\nnow answer")[0] for messages, _ in turns]
        assert {word for messages, text in turns for word in (messages[-1].content + " " + text).split()} <= set(
            vocabulary
        )
        for (_, one), (_, other), answer in zip(turns, turns[1:], said[1:], strict=False):
            assert final_call(one) is not None
            if answer.startswith("call wrong"):
                assert final_call(one) != final_call(other)
        numbers = [text.split("number ")[1].split()[0] for text in said[1:] if text.startswith("call correct")]
        if final_call(turns[-1][1]) is None:
            assert turns[-1][1].endswith(f"answer : {' and '.join(numbers)} . done")
            reports += 1
    assert reports > 100


def test_the_model_directory_is_small_and_has_the_toolboxs_tokenizer() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8_000_000
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (MODEL_DIR / name).read_bytes() == (MODELS / "toolbox-base" / name).read_bytes()


def test_hindsight_shows_it_the_conventions() -> None:
    """24 episodes; of 128 a solution in sight makes 0.69 succeed, 0.97 with the first call, and 0.21 do alone."""
    shown = properties(episodes(MODEL_DIR, "solution", count=6))
    assert shown["success"] >= 0.4
    assert shown["first_call_right"] >= 0.8


@pytest.mark.long
def test_alone_it_guesses_conventions_again_after_a_refusal_and_hindsight_of_any_kind_helps() -> None:
    alone, solution, feedback = (
        properties(episodes(MODEL_DIR, context, count=32)) for context in ("student", "solution", "feedback")
    )
    assert 0.12 < alone["success"] < 0.4
    assert 0.15 < alone["first_call_right"] < 0.5
    assert alone["same_call_after_refusal"] < 0.5
    assert feedback["success"] > alone["success"] + 0.08
    assert solution["success"] > feedback["success"] + 0.15
    assert solution["first_call_right"] > 0.9
