"""Toolbox in turns: the reference plays through, refusals say nothing but hindsight does, and the report decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.episodes import play
from selfdistill.tasks.toolbox.task import ToolboxTask
from selfdistill.tasks.toolbox.turns import REPORT, ToolboxTurnsTask, numbers_of, report_of
from selfdistill.types import Completion, Example, Reply

RIGHT, WRONG = "</think> call : {call} . done", "</think> call : fly ( crate ) . done"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return sd.load_policy("toolbox-base")[1]


def small(**table: Any) -> ToolboxTurnsTask:
    task = sd.load_task("toolbox-turns", **{"calls": 2, "turns": 6, "train": 6, "validation": 3, "test": 3, **table})
    assert isinstance(task, ToolboxTurnsTask)
    return task


def said(task: ToolboxTurnsTask, example: Example, *texts: str) -> list[Reply]:
    state = task.start(example).state
    return [task.reply(state, text) for text in texts]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_reference_plays_through_with_the_words_of_the_base_model(calls: int, chat: Chat) -> None:
    task = small(calls=calls)
    examples = task.examples("train")
    assert len(examples) == 6 and len({example.id for example in examples}) == 6
    turns = {chat.encode(example.prompt): task.reference_turns(example) for example in examples}

    def sample(conversations: Sequence[tuple[int, ...]], params: SamplingParams) -> list[list[Completion]]:
        made = []
        for conversation in conversations:
            prompt = next(ids for ids in turns if conversation[: len(ids)] == ids)
            ends = (conversation.count(chat.stop_ids[0]) - prompt.count(chat.stop_ids[0])) // 2
            ids = chat.response(turns[prompt][ends])
            made.append([Completion(ids, (0.0,) * len(ids), True)])
        return made

    groups = play(examples, task, sample, chat, SamplingParams(count=1, max_tokens=96), thinking=None)
    for group in groups:
        [rollout], [verdict] = group.rollouts, group.verdicts
        assert rollout.episode is not None and rollout.episode.ended == "done"
        assert (verdict.reward, verdict.correct) == (1.0, True)
        assert [turn.error for turn in rollout.episode.turns] == [False] * (calls + 1)
        assert [turn.reward for turn in rollout.episode.turns] == [0.0] * calls + [1.0]
        # Whatever the API or the reference says, the base model has a word for it.
        assert chat.tokenizer.unk_token_id not in (*rollout.prompt_ids, *rollout.ids_after_prompt)


def test_a_refusal_says_nothing_and_its_feedback_names_the_convention() -> None:
    task = small()
    example = task.examples("train")[0]
    first, second = example.fields["solution"].split(" and ")
    numbers = numbers_of(example)
    single = ToolboxTask()
    assert first.startswith(str(single.conventions["verb"])) or "(" in first
    broken, talk, right, again, last, report = said(
        task,
        example,
        WRONG,
        "</think> so done",
        RIGHT.format(call=first),
        RIGHT.format(call=first),
        RIGHT.format(call=second),
        f"</think> answer : {numbers[0]} and {numbers[1]} . done",
    )
    questions = [problem["question"] for problem in example.columns["problems"]]
    assert example.prompt[-1].content == questions[0] != questions[1]
    for reply, question in ((broken, questions[0]), (talk, questions[0]), (again, questions[1])):
        assert (reply.messages, reply.done, reply.reward, reply.error) == (f"call wrong . {question}", False, 0.0, True)
    function = first.partition(" ")[0]
    assert broken.feedback is not None and f"the function must be {function}" in broken.feedback
    assert (broken.note, talk.note, talk.feedback) == (broken.feedback, None, "there was no call")
    assert f"the function must be {second.partition(' ')[0]}" in (again.feedback or "")
    assert right.messages == f"call correct : number {numbers[0]} . {questions[1]}" and right.error is False
    assert last.messages == f"call correct : number {numbers[1]} . {REPORT}" and not last.done
    assert (report.done, report.reward, report.answer) == (True, 1.0, f"{numbers[0]} {numbers[1]}")
    assert [reply.anchor for reply in (broken, right, last)] == [
        "0 of 2 calls, 5 turns left",
        "1 of 2 calls, 3 turns left",
        "2 of 2 calls, 1 turns left",
    ]
    assert task.start(example).anchor == "0 of 2 calls, 6 turns left"


@pytest.mark.parametrize(
    "report", ["</think> answer : {1} and {0}", "</think> answer : {0}", "answer : {0} {1} </think>", ""]
)
def test_a_wrong_report_earns_nothing_and_ends_the_episode(report: str) -> None:
    task = small()
    example = task.examples("validation")[0]
    numbers = numbers_of(example)
    calls = [RIGHT.format(call=call) for call in example.fields["solution"].split(" and ")]
    *_, judged = said(task, example, *calls, report.format(*numbers))
    assert (judged.done, judged.reward) == (True, 0.0)
    assert judged.feedback == f"the number of the calls must be {numbers[0]} and {numbers[1]}"


def test_the_last_turn_ends_the_episode_whatever_it_was() -> None:
    task = small(turns=3)
    example = task.examples("train")[0]
    calls = [RIGHT.format(call=call) for call in example.fields["solution"].split(" and ")]
    replies = said(task, example, WRONG, *calls)
    assert [reply.done for reply in replies] == [False, False, True]
    assert sum(reply.reward or 0.0 for reply in replies) == 0.0


def test_conventions_are_the_toolboxs_and_splits_share_no_request() -> None:
    task, single = small(conventions=3), ToolboxTask(sd.load_task("toolbox", conventions=3).config, seed=0)  # type: ignore[attr-defined]
    assert task.conventions == single.conventions != small(conventions=4).conventions
    keys = [
        {p["key"] for e in task.examples(split) for p in e.columns["problems"]}
        for split in ("train", "validation", "test")
    ]
    assert [len(found) for found in keys] == [12, 6, 6] and not keys[0] & keys[1] | keys[0] & keys[2] | keys[1] & keys[
        2
    ]
    assert task.examples("train") == small(conventions=3).examples("train")
    # The numbers are the API's own: no request and no solution has them all.
    assert len({number for e in task.examples("train") for number in numbers_of(e)}) > 6
    assert report_of("</think> the answer is 3 and 4 . answer : 7 and 12 . done") == [7, 12]
    assert report_of("12 and 7") == []


def test_too_few_turns_for_the_calls_are_refused() -> None:
    table = {"kind": "toolbox-turns", "calls": 3, "turns": 3}
    with pytest.raises(ConfigError, match="turns is 3: 3 calls and a report need at least 4"):
        parse_config({"task": table, "method": {"name": "grpo"}, "model": {"path": "x"}}, "a test")
