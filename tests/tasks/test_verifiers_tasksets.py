"""Tasksets of verifiers from 0.4 on: the package's own episodes are played, and whole runs resume exactly."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError, UserError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.environments import RAISED
from selfdistill.tasks.worlds.verifiers_tasksets import has_tasksets
from selfdistill.types import Message, Reply
from support.episodes import Episode
from support.runs import outcome, train
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
GUESS = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "import verifiers.v1" in code)
OTHERS = '''
import verifiers.v1 as vf


class Priced(vf.TaskData):
    answer: int


class Asked(vf.Task[Priced, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, trace):
        if self.data.answer == 4:
            raise LookupError("no such price")
        return 0.5 * (str(self.data.answer) in trace.last_reply)

    @classmethod
    def toolsets(cls, config):
        return [Prices(vf.ToolsetConfig())]


class Prices(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    async def price(self, item: str) -> int:
        """The price of an item."""
        return len(item)


class Endless(vf.Taskset[Asked, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        number = 0
        while True:
            number += 1
            prompt = [{"role": "user", "content": f"How much is item {number}?"}]
            yield Asked(Priced(prompt=prompt, system_prompt="Be brief.", answer=number), self.config.task)


__all__ = ["Endless"]

if __name__ == "__main__":
    Prices.run()
'''
TWO = OTHERS.replace(
    '__all__ = ["Endless"]',
    """
class Pair(vf.EnvConfig):
    one: vf.AgentConfig = vf.AgentConfig()
    two: vf.AgentConfig = vf.AgentConfig()


class Both(vf.Env[Pair]):
    async def run(self, task, agents):
        await agents.one.run(task)


__all__ = ["Both", "Endless"]
""",
)
INSTALLED = importlib.util.find_spec("verifiers") is not None and has_tasksets()
pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="verifiers from 0.4 on is not installed"),
    # The package's own call of tenacity.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    modules = {"my_guess": GUESS, "my_prices": OTHERS, "my_pair": TWO, "my_old": "def load_environment(): ..."}
    for name, code in modules.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # The package starts servers of tools by the name of the module.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # It starts its programs with uv, which lies beside this Python.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    yield tmp_path
    for name in modules:
        sys.modules.pop(name, None)


def task_of(env: str, **keys: Any) -> Any:
    return sd.load_task("verifiers", env=env, **keys)


def test_the_pages_taskset_is_played_and_judged_by_its_rewards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    task = task_of("my-guess", arguments={"taskset": {"size": 20}}, turns=3)
    sizes = {split: len(task.examples(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 16, "validation": 2, "test": 2} and task.max_turns == 3
    example = task.examples("train")[0]
    # The tasks 0 and 1 are held out.
    assert (example.id, example.fields) == ("verifiers-my-guess-2", {"answer": "3", "solution": "3"})
    right, wrong = Episode(task, example), Episode(task, example)
    assert right.begun.messages == example.prompt == (Message("user", "Guess my number from 1 to 9."),)
    assert right.says("<think> so </think> 5") == Reply((Message("user", "It is not 5."),), reward=0.0)
    assert wrong.says("7").messages == (Message("user", "It is not 7."),)
    assert right.says("3") == Reply(done=True, reward=1.0, success=True)
    # The package's own limit of turns ends an episode, which is judged.
    assert [wrong.says("7").done, wrong.says("7").done] == [False, True]
    for episode in (right, wrong):
        episode.end()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_tools_and_rewards_are_the_packages_and_a_taskset_may_have_no_end() -> None:
    task = task_of("my_prices", success=0.5, train=6, validation=2, test=1)
    assert [len(task.examples(split)) for split in ("train", "validation", "test")] == [6, 2, 1]
    examples = task.examples("train")
    episode = Episode(task, examples[0])
    tools, system, asked = episode.begun.messages
    assert tools.role == "tools" and "The price of an item." in tools.content
    assert (system, asked) == (Message("system", "Be brief."), Message("user", "How much is item 3?"))
    name = json.loads(tools.content)[0]["function"]["name"]
    called = episode.says(f'<tool_call>\n{{"name": "{name}", "arguments": {{"item": "tea"}}}}\n</tool_call>')
    assert [message.role for message in called.messages] == ["tool"] and "3" in called.messages[0].content
    assert episode.says("It costs 3.") == Reply(done=True, reward=0.5, success=True)
    failing = Episode(task, examples[1])
    with pytest.raises(RuntimeError, match="no such price"):
        failing.says("so")
    # One that is left in the middle is cancelled.
    left = Episode(task, examples[2])
    for one in (episode, failing, left):
        one.end()


@pytest.mark.parametrize(
    ("env", "arguments", "sentence"),
    [
        ("nowhere", {}, "task.env 'nowhere' raised ModuleNotFoundError: taskset 'nowhere' not found"),
        ("my_guess", {"taskset": {"sise": 3}}, "task.env 'my_guess': task.arguments.taskset.sise: "),
        ("my_guess", {"agent": {"harness": {"id": "bash"}}}, "its harness 'bash' lets the model run commands"),
        ("my_old", {}, "task.env 'my_old' has load_environment(), which releases of verifiers from 0.4 on do not call"),
        ("my_pair", {}, "has 2 agents that the model would play (one, two), and an episode is one conversation"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(env: str, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        task_of(env, arguments=arguments)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown split 'tset'"):
        task_of("my_guess").examples("tset")


@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_of_a_taskset_ends_where_one_without_a_break_does(folder: Path) -> None:
    raw: dict[str, Any] = {
        "steps": 2,
        "model": {"path": str(save_brief_model(folder / "model", positions=512))},
        "task": {"kind": "verifiers", "env": "my_guess", "turns": 2},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 2, "completions": 2, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 2, "problems": 2, "samples": 1},
        "checkpoint": {"every": 1},
    }
    config = parse_config(raw, "a test")
    whole = train(config, folder / "whole")
    assert whole["finished"] and whole["after"]["judged"] == 2
    assert not train(config, folder / "stopped", stop_after=1)["finished"]
    assert train(config, folder / "stopped", resume=True)["finished"]
    assert outcome(folder / "stopped") == outcome(folder / "whole")
    rollouts = list(read_rollouts(folder / "whole" / "rollouts.jsonl"))
    assert len(rollouts) == 8 and RAISED not in {r.episode.ended for r in rollouts if r.episode}
