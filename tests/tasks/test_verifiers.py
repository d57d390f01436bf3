"""Environments of verifiers: its own rollout plays them, its rubric judges, and whole runs resume exactly."""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import ConfigError, DataError, UserError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.environments import RAISED
from selfdistill.sampling.episodes import play
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Completion, Message, Reply
from support.bytewise import save_bytewise_model
from support.episodes import Episode
from support.runs import lines, outcome, train
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
GUESS = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "import verifiers as vf" in code)
OTHERS = '''
import asyncio

import verifiers as vf
from datasets import Dataset

CLEANED = []
LOOPS = []
ROWS = [{"question": f"How much is {n} + 1 ?", "answer": str(n + 1)} for n in range(6)]


def price(item: str) -> int:
    """The price of an item."""
    if item == "gold":
        raise KeyError(item)
    return len(item)


class Strange(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["kind"] = state["answer"]

    async def env_response(self, messages, state, **options):
        if state["kind"] == "1":
            raise vf.ToolError("the world has gone")
        if state["kind"] == "2":
            raise LookupError("no such place")
        return [{"role": "user", "content": "go on"}]

    async def get_prompt_messages(self, state):
        prompt = await super().get_prompt_messages(state)
        return prompt[1:] if state["kind"] == "3" and state["trajectory"] else prompt

    @vf.cleanup
    async def count(self, state):
        CLEANED.append(state["kind"])


class Shared(vf.MultiTurnEnv):
    """Has one client for all episodes, which belongs to the event loop that used it first."""

    async def env_response(self, messages, state, **options):
        LOOPS.append(asyncio.get_running_loop())
        if messages[-1].content == "leave":
            raise SystemExit(3)
        return [{"role": "user", "content": "go on"}]


async def judged(completion, **options):
    LOOPS.append(asyncio.get_running_loop())
    assert not LOOPS[0].is_closed()
    return 0.5


async def together(completions, **options) -> list:
    return [1.0] * len(completions)


def load_environment(kind="tools"):
    rows = Dataset.from_list(ROWS)
    rubric = vf.Rubric(funcs=[lambda completion, **options: 0.25 * len(completion)])
    if kind == "tools":
        return vf.ToolEnv(tools=[price], dataset=rows, eval_dataset=rows, system_prompt="be brief", rubric=rubric)
    if kind == "group":
        return Strange(dataset=rows, rubric=vf.Rubric(funcs=[together]))
    if kind == "shared":
        return Shared(dataset=rows, rubric=vf.Rubric(funcs=[judged]))
    if kind == "late":
        return Shared(dataset=lambda: Dataset.from_dict(ROWS[9]), rubric=rubric)
    if kind == "none":
        return object()
    if kind == "raises":
        raise OSError("no such file")
    return Strange(dataset=rows, rubric=rubric)
'''
INSTALLED = importlib.util.find_spec("verifiers") is not None and importlib.util.find_spec("verifiers.envs") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="verifiers before 0.4 is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_rubric.py").write_text(GUESS, encoding="utf-8")
    (tmp_path / "my_others.py").write_text(OTHERS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_rubric", None)
    sys.modules.pop("my_others", None)


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brief_model(tmp_path_factory.mktemp("model"), positions=512)


def task_of(env: str, **keys: Any) -> Any:
    task: Any = sd.load_task("verifiers", env=env, **keys)
    found: Any = environment_of(task)
    assert found is task
    return task


def config(model: Path, **task: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "steps": 3,
        "model": {"path": str(model)},
        "task": {"kind": "verifiers", **task},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 3, "problems": 2, "samples": 2},
        "checkpoint": {"every": 1},
    }
    return parse_config(raw, "a test")


def test_the_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = r"task.kind 'verifiers' needs the package verifiers: pip install 'selfdistill\[verifiers\]'"
    with pytest.raises(ConfigError, match=sentence):
        task_of("my_rubric")


@needs_package
def test_the_pages_environment_is_played_and_judged_by_its_rubric(folder: Path) -> None:
    assert len([line for line in GUESS.splitlines() if line.strip()]) < 30
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    task = task_of("my-rubric", arguments={"size": 20})
    # An environment of verifiers takes the signals for itself; the run keeps them.
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    sizes = {split: len(task.examples(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 16, "validation": 2, "test": 2} and task.max_turns == 4
    ids = {example.id for split in sizes for example in task.examples(split)}
    assert len(ids) == 20
    example = task.examples("train")[0]
    # The rows 0 and 1 are held out.
    assert example.fields == {"answer": "3", "solution": "3"}
    right, wrong = Episode(task, example), Episode(task, example)
    assert right.begun.messages == example.prompt == (Message("user", "Guess my number from 1 to 9."),)
    assert right.says("<think> so </think> 5") == Reply((Message("user", "It is not 5."),), reward=0.0)
    assert wrong.says("7").messages == (Message("user", "It is not 7."),)
    assert right.says("3") == Reply((Message("user", "Right."),), done=True, reward=1.0, success=True)
    assert [wrong.says("7").done for _ in range(3)] == [False, False, True]
    for episode in (right, wrong):
        episode.end()
    assert task_of("my_rubric", turns=2).max_turns == 2


@needs_package
def test_tools_are_shown_by_the_chat_template_and_their_results_come_back(folder: Path) -> None:
    _, chat = sd.load_policy(str(save_bytewise_model(folder / "model")))
    task = task_of("my_others", success=1.5)
    call = '<tool_call>\n{"name": "price", "arguments": {"item": "ITEM"}}\n</tool_call>'
    said = iter([call.replace("ITEM", "bread") + call.replace("ITEM", "gold"), "it costs 5"])

    def sample(conversations: Any, params: SamplingParams) -> list[list[Completion]]:
        ids = chat.response(next(said))
        return [[Completion(ids, (0.0,) * len(ids), True)] for _ in conversations]

    # The rows of evaluation in halves.
    train_rows, validation, test = (task.examples(split) for split in ("train", "validation", "test"))
    assert [len(train_rows), len(validation), len(test)] == [6, 3, 3]
    assert [example.fields["answer"] for example in test] == ["2", "4", "6"]
    assert not {example.id for example in train_rows} & {example.id for example in validation}
    [group] = play(validation[:1], task, sample, chat, SamplingParams(count=1, max_tokens=400), thinking=None)
    episode, verdict = group.rollouts[0].episode, group.verdicts[0]
    assert episode is not None and [message.role for message in episode.opening] == ["tools", "system", "user"]
    assert '"price"' in episode.opening[0].content and "The price of an item." in episode.opening[0].content
    assert [(m.role, m.content) for m in episode.turns[0].messages] == [("tool", "5"), ("tool", "'gold'")]
    # Four messages: the call, two results, the report.
    assert (verdict.reward, verdict.correct) == (1.0, False)


@needs_package
def test_what_an_environment_does_wrong_ends_its_own_episode(folder: Path) -> None:
    task = task_of("my_others", arguments={"kind": "strange"}, turns=2)
    rows = {example.fields["answer"]: example for example in task.examples("train")}
    held = {example.fields["answer"]: example for split in ("validation", "test") for example in task.examples(split)}
    import verifiers

    cleaned = sys.modules["my_others"].CLEANED
    gone, lost = Episode(task, held["1"]), Episode(task, held["2"])
    with pytest.raises(verifiers.ToolError, match="the world has gone"):
        gone.says("so")
    with pytest.raises(LookupError, match="no such place"):
        lost.says("so")
    other = Episode(task, rows["3"])
    with pytest.raises(DataError, match="next request does not continue the conversation"):
        other.says("so")
    # One that is left in the middle is cleaned up by the environment.
    left = Episode(task, rows["4"])
    assert left.says("so").messages == (Message("user", "go on"),)
    assert sorted(cleaned) == ["1", "2"]
    for episode in (gone, lost, other, left):
        episode.end()
    assert sorted(cleaned) == ["1", "2", "3", "4"]


@needs_package
def test_all_episodes_share_an_event_loop_as_their_clients_do(folder: Path) -> None:
    task = task_of("my_others", arguments={"kind": "shared"}, turns=2)
    first, second, third = (Episode(task, example) for example in task.examples("train")[:3])
    assert first.says("so").messages == (Message("user", "go on"),)
    assert first.says("so").reward == 0.5
    first.end()
    # What leaves a process leaves no other episode behind.
    with pytest.raises(SystemExit):
        second.says("leave")
    second.end()
    assert third.says("so").messages == (Message("user", "go on"),)
    assert third.says("so").reward == 0.5
    third.end()
    loops = sys.modules["my_others"].LOOPS
    assert len(loops) == 5 and len({id(loop) for loop in loops}) == 1


@needs_package
def test_rows_that_cannot_be_made_are_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^task.env 'my_others' raised IndexError: "):
        task_of("my_others", arguments={"kind": "late"}).examples("train")


@needs_package
@pytest.mark.parametrize(
    ("env", "arguments", "sentence"),
    [
        ("my_others", {"kind": "group"}, "task.env 'my_others' judges the completions of a group together"),
        ("my_others", {"kind": "none"}, "task.env 'my_others' makes a 'object', which is no MultiTurnEnv of verifiers"),
        ("my_others", {"kind": "raises"}, "task.env 'my_others' raised OSError: no such file"),
        ("nowhere", {}, "task.env 'nowhere:load_environment': module 'nowhere' cannot be imported"),
        ("json", {}, "module 'json' has no function 'load_environment'"),
    ],
)
def test_what_is_no_such_environment_is_one_sentence(
    env: str, arguments: dict[str, Any], sentence: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        task_of(env, arguments=arguments)


@needs_package
def test_pictures_are_refused(folder: Path) -> None:
    from selfdistill.tasks.worlds.verifiers_env import messages_of

    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(DataError, match="holds something else than texts"):
        messages_of([{"role": "user", "content": [{"type": "text", "text": "so"}, picture]}])
    assert messages_of([{"role": "user", "content": [{"type": "text", "text": "so"}] * 2}]) == (
        Message("user", "so\nso"),
    )


@needs_package
@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_of_an_environment_ends_where_one_without_a_break_does(folder: Path, brief: Path) -> None:
    own = config(brief, env="my_rubric")
    whole = train(own, folder / "whole")
    assert whole["finished"] and whole["after"]["judged"] == 4
    assert not train(own, folder / "stopped", stop_after=2)["finished"]
    assert train(own, folder / "stopped", resume=True)["finished"]
    assert outcome(folder / "stopped") == outcome(folder / "whole")
    rollouts = list(read_rollouts(folder / "whole" / "rollouts.jsonl"))
    assert len(rollouts) == 18 and max(len(r.episode.turns) for r in rollouts if r.episode) > 1
    assert RAISED not in {r.episode.ended for r in rollouts if r.episode}
    assert all(line["environment_tokens"] >= 0 for line in lines(folder / "whole" / "metrics.jsonl"))
