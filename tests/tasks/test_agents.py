"""Agents: programs that ask the model over an address are played, trained on, and refused in one sentence."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.config.tasks import OwnTaskConfig
from selfdistill.errors import DataError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.environments import LATE, RAISED
from selfdistill.sampling.episodes import play
from selfdistill.tasks.agents.messages import read_messages, read_turn
from selfdistill.tasks.own import build_own_task
from selfdistill.types import Completion, Example, Message, Reply
from support.bytewise import save_bytewise_model
from support.episodes import Episode
from support.runs import lines, outcome, train
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "turns.md").read_text(encoding="utf-8")
GUESSER = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Guesser" in code)
QUESTION = {"role": "user", "content": "Guess my number from 1 to 9."}
PRICE = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of an item.",
        "parameters": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]},
    },
}


def answered(model: Any, messages: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
    """The model's message, asked as any client asks."""
    answer = requests.post(f"{model.url}/chat/completions", json={"messages": messages, **keys}, timeout=30)
    answer.raise_for_status()
    message: dict[str, Any] = answer.json()["choices"][0]["message"]
    return message


def guessed(example: Example, model: Any) -> float:
    """An agent of two turns, which asks over the address and blocks meanwhile."""
    messages = [QUESTION]
    for _ in range(2):
        said = answered(model, messages)
        if said["content"] == example.fields["answer"]:
            return 1.0
        messages += [said, {"role": "user", "content": f"It is not {said['content']}."}]
    return 0.25


class Guess(sd.AgentTask):
    """An agent given as a function."""

    name = "guess"
    max_turns = 4

    def __init__(self, agent: Callable[[Example, Any], Any] = guessed, seconds: float = 30.0) -> None:
        self.agent, self.seconds = agent, seconds

    def examples(self, split: str) -> list[Example]:
        prompt = (Message("user", "Guess my number from 1 to 9."),)
        return [Example(f"{split}{n}", prompt, {"answer": str(n)}) for n in range(1, 7)]

    def play(self, example: Example, model: sd.AskedModel) -> Any:
        return self.agent(example, model)


def episode_of(agent: Callable[[Example, Any], Any]) -> Episode:
    """An episode of an agent, with the number 3."""
    task = Guess(agent)
    return Episode(task, task.examples("train")[2])


@pytest.fixture
def begin() -> Iterator[Callable[..., Episode]]:
    """Start episodes; all are ended after the test."""
    episodes: list[Episode] = []

    def begun(*given: Any) -> Episode:
        episodes.append(episode_of(*given))
        return episodes[-1]

    yield begun
    for episode in episodes:
        episode.end()


def test_the_pages_agent_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([line for line in GUESSER.splitlines() if line.strip()]) < 30
    (tmp_path / "my_agent.py").write_text(GUESSER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    task: Any = build_own_task(OwnTaskConfig(kind="my_agent:Guesser"), seed=0)
    assert [len(task.examples(split)) for split in ("train", "validation", "test")] == [9, 3, 3]
    episode = Episode(task, task.examples("train")[4])
    assert episode.begun.messages == (Message("user", "Guess my number from 1 to 9."),)
    assert episode.says("7") == Reply((Message("user", "It is not 7."),), reward=0.0)
    assert episode.says("5") == Reply(done=True, reward=1.0)
    episode.end()


def test_an_agent_that_blocks_is_played_turn_by_turn(begin: Callable[..., Episode]) -> None:
    episode = begin(guessed)
    assert episode.begun.messages == (Message("user", QUESTION["content"]),)
    assert episode.says("<think> so </think> 5") == Reply((Message("user", "It is not 5."),), reward=0.0)
    assert episode.says("3") == Reply(done=True, reward=1.0)
    wrong = begin(guessed)
    wrong.says("7")
    assert wrong.says("7") == Reply(done=True, reward=0.25)


def test_a_coroutine_asks_without_the_address_and_returns_a_whole_reply(begin: Callable[..., Episode]) -> None:
    async def agent(example: Example, model: sd.AskedModel) -> Reply:
        first = await model.complete([QUESTION])
        assert first == {"role": "assistant", "content": "5", "reasoning_content": "so"}
        await model.complete([QUESTION, first, {"role": "user", "content": "Again."}])
        return Reply(reward=0.5, success=True, feedback="it was 3")

    episode = begin(agent)
    assert episode.says("<think> so </think> 5").messages == (Message("user", "Again."),)
    assert episode.says("6") == Reply(done=True, reward=0.5, success=True, feedback="it was 3")


def test_an_agent_with_an_event_loop_of_its_own_is_answered_there(begin: Callable[..., Episode]) -> None:
    def agent(example: Example, model: sd.AskedModel) -> int:
        said = asyncio.run(model.complete([QUESTION]))
        return len(said["content"])

    assert begin(agent).says("123").reward == 3.0


def test_tools_are_shown_and_calls_come_back_in_their_fields(begin: Callable[..., Episode]) -> None:
    def agent(example: Example, model: sd.AskedModel) -> float:
        said = answered(model, [QUESTION], tools=[PRICE])
        [call] = said["tool_calls"]
        assert call["type"] == "function" and call["function"]["name"] == "price"
        assert json.loads(call["function"]["arguments"]) == {"item": "bread"} and said["content"].startswith("<tool")
        messages = [QUESTION, {**said, "content": None}, {"role": "tool", "tool_call_id": call["id"], "content": "5"}]
        more = answered(model, messages, tools=[PRICE])
        ids = [call["id"], *(each["id"] for each in more["tool_calls"])]
        assert len(set(ids)) == 3, "a result is found by the id of its call"
        messages += [more, *({"role": "tool", "tool_call_id": one, "content": "6"} for one in ids[1:])]
        return float("tool_calls" not in answered(model, messages, tools=[PRICE]))

    episode = begin(agent)
    shown, asked = episode.begun.messages
    assert (shown.role, json.loads(shown.content), asked.content) == ("tools", [PRICE], QUESTION["content"])
    call = '<tool_call>\n{"name": "price", "arguments": {"item": "bread"}}\n</tool_call>'
    assert episode.says(call).messages == (Message("tool", "5"),)
    assert episode.says(call + call).messages == (Message("tool", "6"), Message("tool", "6"))
    assert episode.says("it costs 5") == Reply(done=True, reward=1.0)


def test_a_stream_has_the_whole_turn(begin: Callable[..., Episode]) -> None:
    def agent(example: Example, model: sd.AskedModel) -> float:
        body: Any = {"messages": [QUESTION], "tools": [PRICE], "stream": True}
        answer = requests.post(f"{model.url}/chat/completions", json=body, timeout=30)
        assert answer.headers["Content-Type"] == "text/event-stream"
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        (first,), (last,) = (json.loads(event)["choices"] for event in events)
        assert (first["delta"]["content"], first["finish_reason"]) == ("so", None)
        assert (last["delta"], last["finish_reason"]) == ({}, "stop")
        return 1.0

    assert begin(agent).says("so").reward == 1.0


def test_a_request_that_is_sent_again_gets_the_same_turn(begin: Callable[..., Episode]) -> None:
    def agent(example: Example, model: sd.AskedModel) -> float:
        url, body = f"{model.url}/chat/completions", {"messages": [QUESTION]}
        first = requests.post(url, json=body, timeout=30).json()["choices"]
        again = requests.post(url, json=body, headers={"x-stainless-retry-count": "1"}, timeout=30).json()["choices"]
        return float(first == again)

    assert begin(agent).says("4") == Reply(done=True, reward=1.0)


def test_the_model_is_listed_and_nothing_else_is_answered(begin: Callable[..., Episode]) -> None:
    def agent(example: Example, model: sd.AskedModel) -> float:
        [listed] = requests.get(f"{model.url}/models", timeout=30).json()["data"]
        assert listed["id"] == model.name == "student"
        refused: list[tuple[int, str, Any, str]] = [
            (404, "responses", {"input": "so"}, "/responses is not answered here, only chat/completions and models"),
            (400, "chat/completions", {"messages": []}, "messages must be a list of messages"),
            (400, "chat/completions", {"messages": [{"content": "so"}]}, "message 1 has no role"),
            (400, "chat/completions", {"messages": [QUESTION], "n": 2}, "n is not 1"),
            (400, "chat/completions", {"messages": [QUESTION], "tools": [{}]}, "tools must be a list of functions"),
        ]
        for status, path, body, sentence in refused:
            answer = requests.post(f"{model.url}/{path}", json=body, timeout=30)
            assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (status, True), sentence
        assert requests.post(f"{model.url}/chat/completions", data="{", timeout=30).status_code == 400
        return float(answered(model, [QUESTION])["content"])

    assert begin(agent).says("1") == Reply(done=True, reward=1.0)


def changed(messages: list[dict[str, Any]], said: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Another."}, said, QUESTION]


@pytest.mark.parametrize(
    ("following", "keys", "sentence"),
    [
        (changed, {}, "does not continue the conversation: its message 1 is another one"),
        (lambda messages, said: [*messages, QUESTION], {}, "it lacks the model's turn"),
        (lambda messages, said: [said], {}, "does not continue the conversation: its message 1 is another one"),
        (lambda messages, said: [*messages, said, QUESTION], {"tools": [PRICE]}, "has other tools"),
    ],
)
def test_an_agent_whose_requests_are_no_conversation_is_told_apart(
    following: Any, keys: dict[str, Any], sentence: str, begin: Callable[..., Episode]
) -> None:
    def agent(example: Example, model: sd.AskedModel) -> float:
        messages = [QUESTION]
        answered(model, following(messages, answered(model, messages)), **keys)
        return 1.0

    with pytest.raises(DataError, match=sentence):
        begin(agent).says("so")


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [(None, "play returned a NoneType: it returns a number, or a Reply"), ("1", "play returned a str")],
)
def test_what_an_agent_returns_is_a_number_or_a_reply(
    returned: Any, sentence: str, begin: Callable[..., Episode]
) -> None:
    async def agent(example: Example, model: sd.AskedModel) -> Any:
        await model.complete([QUESTION])
        return returned

    with pytest.raises(TypeError, match=sentence):
        begin(agent).says("so")


def test_an_agent_that_never_asks_or_raises_says_so() -> None:
    def lost(example: Example, model: sd.AskedModel) -> float:
        raise LookupError("no such place")

    with pytest.raises(LookupError, match="no such place"):
        episode_of(lost)
    with pytest.raises(RuntimeError, match="the agent ended before it asked the model"):
        episode_of(lambda example, model: 1.0)


def test_an_agent_that_is_not_finished_is_cancelled_and_refused_from_then_on() -> None:
    ended = threading.Event()
    statuses = []

    def agent(example: Example, model: sd.AskedModel) -> float:
        url = f"{model.url}/chat/completions"
        statuses.append(requests.post(url, json={"messages": [QUESTION]}, timeout=30).status_code)
        statuses.append(requests.post(url, json={"messages": [QUESTION]}, timeout=30).status_code)
        ended.set()
        return 1.0

    episode_of(agent).end()
    assert ended.wait(30)
    assert statuses == [410, 410]


def test_turns_and_messages_of_the_api() -> None:
    assert read_turn("<think>a</think> b", ()).message() == {
        "role": "assistant",
        "content": "b",
        "reasoning_content": "a",
    }
    # A call that cannot be read is text, as a server has it.
    unread = read_turn('<tool_call>{"name": </tool_call>', [PRICE])
    assert unread.calls == () and unread.finish_reason == "stop"
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert read_messages([{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]) == (
        Message("system", "a\nb"),
        Message("assistant", ""),
    )
    with pytest.raises(DataError, match="message 1 holds something else than texts"):
        read_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])


def test_a_fault_of_an_agent_ends_its_own_episode(tmp_path: Path) -> None:
    _, chat = sd.load_policy(str(save_bytewise_model(tmp_path / "model")))
    late = threading.Event()

    def agent(example: Example, model: sd.AskedModel) -> float:
        said = answered(model, [QUESTION])
        if example.fields["answer"] == "1":
            raise OSError("gone")
        if example.fields["answer"] == "2":
            late.wait(30)
        return float(said["content"] == example.fields["answer"])

    def sample(conversations: Any, params: SamplingParams) -> list[list[Completion]]:
        ids = chat.response("3")
        return [[Completion(ids, (0.0,) * len(ids), True)] for _ in conversations]

    task: Any = Guess(agent, seconds=3.0)
    groups = play(task.examples("train")[:3], task, sample, chat, SamplingParams(count=1, max_tokens=40), thinking=None)
    late.set()
    episodes = [group.rollouts[0].episode for group in groups]
    assert [episode and episode.ended for episode in episodes][:2] == [RAISED, LATE]
    assert [group.verdicts[0].reward for group in groups] == [None, None, 1.0]


@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_of_an_agent_ends_where_one_without_a_break_does(tmp_path: Path) -> None:
    model = save_brief_model(tmp_path / "model", positions=512)
    raw: dict[str, Any] = {
        "steps": 3,
        "model": {"path": str(model)},
        "task": {"kind": f"{__name__}:Guess"},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 3, "problems": 2, "samples": 2},
        "checkpoint": {"every": 1},
    }
    config = parse_config(raw, "a test")
    whole = train(config, tmp_path / "whole")
    assert whole["finished"] and whole["after"]["judged"] == 4
    assert not train(config, tmp_path / "stopped", stop_after=2)["finished"]
    assert train(config, tmp_path / "stopped", resume=True)["finished"]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    rollouts = list(read_rollouts(tmp_path / "whole" / "rollouts.jsonl"))
    assert {len(r.episode.turns) for r in rollouts if r.episode} >= {2}
    assert RAISED not in {r.episode.ended for r in rollouts if r.episode}
    assert all(line["environment_tokens"] >= 0 for line in lines(tmp_path / "whole" / "metrics.jsonl"))
