"""Python functions as tools: schemas from signatures, calls that run or err, and the page's example in a whole run."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.episodes import play
from selfdistill.tasks.tools.loop import schema_of
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Completion, Example, Message, Reply
from support.bytewise import save_bytewise_model
from support.runs import lines, train

PAGE = (Path(__file__).parents[2] / "docs" / "turns.md").read_text(encoding="utf-8")
SHOP = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ToolLoop" in code)
APPLE, BREAD = (
    '<tool_call>\n{"name": "price", "arguments": {"item": "ITEM"}}\n</tool_call>'.replace("ITEM", item)
    for item in ("apple", "bread")
)
QUESTION = Example("q", (Message("system", "be brief"), Message("user", "how much ?")), {})


class Bench(sd.ToolLoop):
    """Tools that do what tools may do; ``form`` is set by the tests."""

    name = "bench"
    form: ClassVar[Literal["template", "react"]] = "template"

    def examples(self, split: str) -> Sequence[Example]:
        return [QUESTION]

    def tools(self, example: Example) -> Sequence[Callable[..., Any]]:
        said: list[str] = []

        def say(word: str, times: int = 1) -> list[str]:
            """Say a word."""
            said.extend([word] * times)
            return said

        def fail(why: str) -> str:
            """Raise."""
            raise LookupError(why)

        async def wait() -> str:
            """Answer later."""
            await asyncio.sleep(0)
            return "late"

        return [say, fail, wait]

    def judge(self, example: Example, report: str) -> float | Reply:
        return Reply(reward=2.0, feedback="well", success=True) if report == "whole" else 0.5


class Text(Bench):
    form: ClassVar[Literal["template", "react"]] = "react"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_shop.py").write_text(SHOP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_shop", None)


def test_a_schema_is_the_signature_and_the_docstring() -> None:
    start = Bench().start(QUESTION)
    tools, *rest = list(start.messages)
    assert isinstance(tools, Message) and tools.role == "tools" and tuple(rest) == QUESTION.prompt
    assert json.loads(tools.content)[0] == {
        "type": "function",
        "function": {
            "name": "say",
            "description": "Say a word.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}, "times": {"type": "integer", "default": 1}},
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    }

    def positional(a: int, /) -> int:
        return a

    def strange(a: threading_lock) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    def anything(*given: int, **named: int) -> int:
        return 1

    for function in (positional, anything, strange):
        with pytest.raises(ConfigError, match=f"tool {function.__name__}: "):
            schema_of(function)


class Given(Bench):
    """Has the tools that a test gives."""

    def __init__(self, *given: Any) -> None:
        self.given = given

    def tools(self, example: Example) -> Sequence[Callable[..., Any]]:
        return self.given


def test_two_tools_of_one_name_and_one_without_a_name_are_refused() -> None:
    def price(item: str) -> int:
        return 1

    other = Bench().tools(QUESTION)[0]
    other.__name__ = "price"
    with pytest.raises(ConfigError, match="two tools are called 'price': a call could mean either"):
        Given(price, other).start(QUESTION)
    with pytest.raises(ConfigError, match=r"a tool of type partial has no name to call it by: write it as a function"):
        Given(functools.partial(price, "apple")).start(QUESTION)


def test_the_coroutines_of_an_episodes_tools_share_an_event_loop() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def wait() -> str:
        loops.append(asyncio.get_running_loop())
        return "late"

    task = Given(wait)
    first, other = task.start(QUESTION).state, task.start(QUESTION).state
    for state in (first, first, other):
        assert task.reply(state, call("wait")).messages == (Message("tool", "late"),)
    assert loops[0] is loops[1] is not loops[2] and not loops[0].is_closed()
    task.end(first)
    assert loops[0].is_closed() and not loops[2].is_closed()
    task.end(other)


def test_calls_run_in_order_and_each_episode_has_tools_of_its_own() -> None:
    task = Bench()
    first, other = task.start(QUESTION).state, task.start(QUESTION).state
    reply = task.reply(first, f"<think> so </think> {call('say', word='a', times='2')}\n{call('wait')}")
    assert reply.messages == (Message("tool", '["a", "a"]'), Message("tool", "late"))
    assert (reply.done, reply.reward, reply.error, reply.feedback) == (False, 0.0, False, None)
    assert task.reply(first, call("say", word="b")).messages == (Message("tool", '["a", "a", "b"]'),)
    assert task.reply(other, call("say", word="c")).messages == (Message("tool", '["c"]'),)
    for state in (first, other):
        task.end(state)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (call("shout"), "error: there is no tool shout; the tools are say, fail, wait"),
        (call("say"), "error: say: word: Missing required argument"),
        (call("say", word="a", times="x"), "error: say: times: Input should be a valid integer"),
        (call("say", word="a", loud=True), "error: say: loud: Unexpected keyword argument"),
        (call("fail", why="gone"), "error: fail: LookupError: gone"),
        (call("fail", why="a" * 290), f"error: fail: LookupError: {'a' * 274} … 16 more characters"),
        ("<tool_call>\n{", "error: the call behind <tool_call> is not closed"),
    ],
)
def test_an_error_is_told_counted_and_ends_nothing(text: str, told: str) -> None:
    task = Bench()
    reply = task.reply(task.start(QUESTION).state, text)
    (message,) = list(reply.messages)
    assert isinstance(message, Message) and message.role == "tool" and message.content.startswith(told)
    assert (reply.done, reply.error, reply.feedback) == (False, True, message.content)


def test_a_turn_without_a_call_is_the_report() -> None:
    task = Bench()
    state = task.start(QUESTION).state
    assert task.reply(state, "<think> " + call("say", word="a") + " </think> half") == Reply(
        done=True, reward=0.5, error=False
    )
    assert task.reply(state, "whole") == Reply(done=True, reward=2.0, feedback="well", success=True)


def test_tools_as_text_for_templates_that_take_none() -> None:
    task = Text()
    start = task.start(QUESTION)
    head, asked = list(start.messages)
    assert isinstance(asked, Message) and head == QUESTION.prompt[0] and asked.role == "user"
    assert asked.content.startswith("how much ?\n") and "\nsay: Say a word.\nParameters: {" in asked.content
    reply = task.reply(start.state, 'Action: say\nAction Input: {"word": "a"}\nAction: shout\nAction Input: {}')
    (message,) = list(reply.messages)
    assert isinstance(message, Message) and reply.error is True
    assert message == Message(
        "user", 'Observation: ["a"]\nObservation: error: there is no tool shout; the tools are say, fail, wait'
    )


def test_the_pages_shop_is_played_through_a_chat_template(folder: Path) -> None:
    assert len([line for line in SHOP.splitlines() if line.strip()]) < 30
    _, chat = sd.load_policy(str(save_bytewise_model(folder / "model")))
    task: Any = sd.load_task("my_shop:Shop")
    found: Any = environment_of(task)
    assert found is task
    said = iter([APPLE, BREAD + "\n" + APPLE.replace("apple", "gold"), "they cost 8 coins"])

    def sample(conversations: Sequence[tuple[int, ...]], params: SamplingParams) -> list[list[Completion]]:
        ids = chat.response(next(said))
        return [[Completion(ids, (0.0,) * len(ids), True)] for _ in conversations]

    example = task.examples("train")[0]
    [group] = play([example], task, sample, chat, SamplingParams(count=1, max_tokens=200), thinking=None)
    [rollout], [verdict] = group.rollouts, group.verdicts
    assert verdict.reward == 1.0 and rollout.episode is not None
    assert [[m.content for m in turn.messages] for turn in rollout.episode.turns] == [
        ["3"],
        ["5", "error: price: KeyError: 'gold'"],
        [],
    ]
    assert [turn.error for turn in rollout.episode.turns] == [False, True, False]
    read = chat.decode(rollout.prompt_ids) + chat.decode(rollout.ids_after_prompt)
    assert "price" in read and "tool\n3" in read


@pytest.mark.usefixtures("no_page")
def test_the_pages_shop_trains(folder: Path) -> None:
    raw = {
        "steps": 1,
        "model": {"path": str(save_bytewise_model(folder / "model"))},
        "task": {"kind": "my_shop:Shop"},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 2, "completions": 2, "max_tokens": 8},
        "evaluation": {"every": 1, "problems": 1, "samples": 1},
    }
    assert train(parse_config(raw, "a test"), folder / "run")["finished"]
    [line] = lines(folder / "run" / "metrics.jsonl")
    [first, *_] = read_rollouts(folder / "run" / "rollouts.jsonl")
    assert line["turns"] >= 1 and first.episode is not None
    assert first.episode.opening[0].role == "tools" and '"price"' in first.episode.opening[0].content


def test_a_tool_that_waits_for_ever_ends_with_its_episode() -> None:
    waits = threading.Event()

    async def wait() -> str:
        waits.set()
        await asyncio.Event().wait()
        return "never"

    bench = Given(wait)
    state = bench.start(QUESTION).state

    def reply() -> None:
        with suppress(asyncio.CancelledError):
            bench.reply(state, call("wait"))

    # The time limit of a call leaves its thread behind.
    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    assert waits.wait(60)
    bench.end(state)
    thread.join(60)
    assert not thread.is_alive()
