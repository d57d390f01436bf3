"""A server of OpenEnv that the test starts: its sessions, whole runs against it, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import ConfigError, SamplerError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.environments import RAISED
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Message
from support.runs import outcome, train
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
SERVER = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "create_fastapi_app" in code)
MORE = """
class Two(Heard):
    board: str = "5 x 5"


class Careful(Guess):
    def step(self, action, timeout_s=None, **options):
        if action.message == "break":
            raise LookupError("no such move")
        return Two(text="so", reward=None)

    def reset(self, seed=None, episode_id=None, **options):
        return Two(text=f"so {options.get('level', 0)}")


careful = create_fastapi_app(Careful, Said, Two, max_concurrent_envs=2)
"""
needs_package = pytest.mark.skipif(importlib.util.find_spec("openenv") is None, reason="openenv-core is not installed")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "my_server.py").write_text(SERVER + MORE, encoding="utf-8")
    started: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    def url(app: str) -> str:
        if app not in started:
            port = free_port()
            command = [sys.executable, "-m", "uvicorn", f"my_server:{app}", "--port", str(port)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
            with (folder / f"{app}.log").open("wb") as file:
                process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            started[app] = (f"http://127.0.0.1:{port}", process)
            while not answers(port):
                assert process.poll() is None, (folder / f"{app}.log").read_text(encoding="utf-8")
                time.sleep(0.05)
        return started[app][0]

    yield url
    for _, process in started.values():
        process.terminate()
        process.wait()


def task_of(url: str, **keys: Any) -> Any:
    task: Any = sd.load_task("openenv", url=url, train=3, validation=2, test=2, **keys)
    found: Any = environment_of(task)
    assert found is task
    return task


def config(model: Path, url: str, **task: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "steps": 3,
        "model": {"path": str(model)},
        "task": {"kind": "openenv", "url": url, "train": 6, "validation": 2, "test": 2, "turns": 3, **task},
        "method": {"name": "grpo"},
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 3, "problems": 1, "samples": 1},
        "checkpoint": {"every": 1},
    }
    return parse_config(raw, "a test")


def test_the_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = r"task.kind 'openenv' needs the package openenv: pip install 'selfdistill\[openenv\]'"
    with pytest.raises(ConfigError, match=sentence):
        task_of("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"url is an http:// or https:// address, not '127.0.0.1:8000'"):
        task_of("127.0.0.1:8000")


@needs_package
def test_a_session_is_an_episode_of_the_server(serve: Any) -> None:
    assert len([line for line in SERVER.splitlines() if line.strip()]) < 30
    task = task_of(serve("app"))
    example = task.examples("train")[0]
    assert example.prompt == (Message("user", "Guess my number from 1 to 9."),)
    number = random.Random(example.columns["seed"]).randint(1, 9)
    # Two sessions at once have states of their own.
    first, other = task.start(example).state, task.start(task.examples("train")[1]).state
    wrong = str(number % 9 + 1)
    reply = task.reply(first, f"<think> so </think> {wrong}")
    assert reply.messages == (Message("user", f"It is not {wrong}."),)
    assert (reply.done, reply.reward, reply.success) == (False, 0.0, False)
    assert task.reply(other, "0").messages == (Message("user", "It is not 0."),)
    reply = task.reply(first, str(number))
    assert reply.messages == (Message("user", "Right."),) and (reply.done, reply.reward, reply.success) == (
        True,
        1.0,
        True,
    )
    for state in (first, other):
        task.end(state)


@needs_package
def test_an_observation_is_read_as_the_table_says(serve: Any) -> None:
    url = serve("careful")
    whole, text = task_of(url, arguments={"level": 3}), task_of(url, observation="board")
    assert whole.examples("test")[0].prompt[0].content == '{"text": "so 3", "board": "5 x 5"}'
    assert text.examples("test")[0].prompt[0].content == "5 x 5"
    with pytest.raises(ConfigError, match=r"has no .word.; its fields are text, board: name one as task\.observation"):
        task_of(url, observation="word")
    state = text.start(text.examples("test")[0]).state
    assert text.reply(state, "so").reward is None
    with pytest.raises(RuntimeError, match="no such move"):
        text.reply(state, "break")
    text.end(state)


@needs_package
def test_no_server_is_one_sentence() -> None:
    with pytest.raises(
        SamplerError, match=r"task.url 'http://127.0.0.1:\d+': no OpenEnv server answers there .* first"
    ):
        task_of(f"http://127.0.0.1:{free_port()}")


@needs_package
def test_more_episodes_than_sessions_end_with_a_counted_reason(serve: Any, brief: Path, tmp_path: Path) -> None:
    train(config(brief, serve("careful"), observation="board"), tmp_path / "run")
    rollouts = list(read_rollouts(tmp_path / "run" / "rollouts.jsonl"))
    ends = [r.episode.ended for r in rollouts if r.step == 1 and r.episode]
    assert len(ends) == 6 and 0 < ends.count(RAISED) <= 4


@needs_package
def test_a_stopped_run_against_a_server_ends_where_one_without_a_break_does(
    serve: Any, brief: Path, tmp_path: Path
) -> None:
    own = config(brief, serve("app"))
    assert train(own, tmp_path / "whole")["finished"]
    assert not train(own, tmp_path / "stopped", stop_after=2)["finished"]
    assert train(own, tmp_path / "stopped", resume=True)["finished"]
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
    rollouts = list(read_rollouts(tmp_path / "whole" / "rollouts.jsonl"))
    assert len(rollouts) == 18 and max(len(r.episode.turns) for r in rollouts if r.episode) == 3


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brief_model(tmp_path_factory.mktemp("model"), positions=512)
