"""The texts that teach a base model the toolbox in turns."""

from __future__ import annotations

from base_models.subject import MODELS, Subject
from selfdistill.contexts.templates import load_templates
from selfdistill.tasks.toolbox.task import ToolboxTask, final_call
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
