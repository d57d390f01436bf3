"""Environments of Gymnasium and TextArena: real ones, by hand, in whole runs that die, and what is refused."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import selfdistill as sd
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import CheckpointError, ConfigError, UserError
from selfdistill.files.records import read_rollouts
from selfdistill.sampling.environments import RAISED
from selfdistill.tasks.turns import environment_of
from selfdistill.tasks.worlds.base import NO_ACTION, NOT_THE_SAME, World
from selfdistill.types import Example, Message, Reply
from support.runs import lines, outcome, train, train_and_die
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
LAKE, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MORE = """
import os, signal
from gymnasium.envs.registration import register


class Drifts(Lake):
    \"\"\"Moves by the length of whatever is said.\"\"\"

    seen = 0

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.action_space = Anything(10_000)

    def step(self, action):
        Drifts.seen += 1
        if os.path.exists("to die") and Drifts.seen == 12:
            os.remove("to die")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(MOVES[len(action) % 4])


class Anything(Text):
    def contains(self, x):
        return isinstance(x, str)


class Moody(Drifts):
    openings = 0

    def told(self, square):
        Moody.openings += 1
        return f"{super().told(square)} It is {Moody.openings} o'clock."


class Broken(Lake):
    def close(self):
        raise AttributeError("no window")


class Mute(Lake):
    def reset(self, **options):
        return 0, {}


class Unready(Lake):
    closed = 0

    def reset(self, **options):
        raise OSError("no map")

    def close(self):
        Unready.closed += 1


register(id="Lake-v0", entry_point=Lake, kwargs={"map_name": "4x4"}, max_episode_steps=2)
"""


def needs(package: str) -> pytest.MarkDecorator:
    here = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not here, reason=f"{package} is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_lake.py").write_text(LAKE + MORE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if sys.modules.pop("my_lake", None):
        # Gymnasium warns of an id that is registered twice.
        sys.modules["gymnasium"].envs.registry.pop("Lake-v0")


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brief_model(tmp_path_factory.mktemp("model"), positions=512)


def task_of(kind: str, env: str, **keys: Any) -> Any:
    task: Any = sd.load_task(kind, env=env, train=3, validation=2, test=2, **keys)
    found: Any = environment_of(task)
    assert found is task
    return task


def said(reply: Reply) -> str:
    return "\n".join(message.content for message in reply.messages if isinstance(message, Message))


def config(model: Path, **task: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "steps": 4,
        "model": {"path": str(model)},
        "task": {"train": 8, "validation": 4, "test": 4, "turns": 4, **task},
        "method": {"name": "grpo", "turn_advantage": {"kind": "group_in_group"}},
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 2, "problems": 2, "samples": 2},
        "checkpoint": {"every": 1},
    }
    return parse_config(raw, "a test")


# --- without the packages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gymnasium", "textarena"])
def test_a_package_that_is_missing_is_named_with_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=rf"task.kind '{kind}' needs the package {kind}: pip install 'selfdistill\[{kind}\]'"
    ):
        task_of(kind, "Lake-v0")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"action_pattern": "(a"}, "action_pattern is no regular expression"),
        ({"action_pattern": "a"}, "action_pattern has 0 groups: it needs one"),
        ({"action_pattern": "(a)(b)"}, "action_pattern has 2 groups: it needs one"),
        ({"turns": 0}, "task.turns"),
        ({"arguments": {"map": object()}}, "task.arguments"),
    ],
)
def test_keys_are_checked_before_anything_is_imported(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        task_of("gymnasium", "my_lake:Lake", **keys)


# --- gymnasium -------------------------------------------------------------------------------------------------------


@needs("gymnasium")
def test_an_episode_is_gymnasiums_own_step_by_step(folder: Path) -> None:
    import gymnasium

    assert len([line for line in LAKE.splitlines() if line.strip()]) < 30
    task = task_of("gymnasium", "my_lake:Lake", arguments={"map_name": "4x4"}, system="be brief", turns=20)
    splits = {split: task.examples(split) for split in ("train", "validation", "test")}
    assert [len(examples) for examples in splits.values()] == [3, 2, 2]
    seeds = [example.columns["seed"] for examples in splits.values() for example in examples]
    assert len(set(seeds)) == 7 and splits["train"] == task_of(
        "gymnasium", "my_lake:Lake", arguments={"map_name": "4x4"}, system="be brief"
    ).examples("train")
    moves = ("left", "down", "right", "up")
    for example in splits["train"]:
        assert example.prompt[0] == Message("system", "be brief")
        assert example.prompt[1].content.endswith("You are on square 0. Move left, down, right or up.")
        start = task.start(example)
        assert start.messages == example.prompt
        real = gymnasium.make("FrozenLake-v1", map_name="4x4")
        real.reset(seed=example.columns["seed"])
        earned = 0.0
        for n in range(20):
            move = (n * 7 + 1) % 4
            square, reward, terminated, truncated, _ = real.step(move)
            reply = task.reply(start.state, f"so </think> {moves[move]} ")
            earned += float(reward)
            assert said(reply) == f"You are on square {square}. Move left, down, right or up."
            assert (reply.done, reply.reward, reply.error) == (terminated or truncated, float(reward), False)
            assert reply.success == (earned >= 1)
            if reply.done:
                break
        task.end(start.state)
        real.close()


@needs("gymnasium")
def test_a_registered_id_is_imported_from_the_working_folder_and_its_truncation_ends_the_episode(folder: Path) -> None:
    task = task_of("gymnasium", "my_lake:Lake-v0", success=0.0, action_pattern=r"<move>(.*?)</move>")
    state = task.start(task.examples("test")[0]).state
    assert task.reply(state, "left") == Reply((Message("user", NO_ACTION),), reward=0.0, success=True, error=True)
    # Outside of the action space no step is taken; an unknown move within it is the environment's own affair.
    outside = task.reply(state, "<move>left</move> <move>somewhere</move>")
    assert outside.error is True and said(outside).startswith(
        "This is no action here: 'somewhere'. Text(1, 5, charset="
    )
    assert said(task.reply(state, "<move>fly</move>")).startswith("There is no such move. You are on square 0.")
    assert task.reply(state, "<move> left </move>").done
    task.end(state)


@needs("gymnasium")
@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ("FrozenLake-v1", "task.env 'FrozenLake-v1' has observations of Discrete(16), and a language model reads"),
        ("Nowhere-v0", "task.env 'Nowhere-v0' raised NameNotFound: Environment `Nowhere` doesn't exist"),
        ("my_lake:Nowhere", "task.env 'my_lake:Nowhere': module 'my_lake' has no class 'Nowhere'"),
        ("no_such_module:Lake-v0", "task.env 'no_such_module:Lake-v0': module 'no_such_module' cannot be imported"),
    ],
)
def test_what_is_no_text_environment_is_one_sentence(env: str, sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        task_of("gymnasium", env)


@needs("gymnasium")
def test_what_an_environment_does_wrong_before_its_first_episode_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^task.env 'my_lake:Broken' raised AttributeError: no window \(my_lake.py:"):
        task_of("gymnasium", "my_lake:Broken")
    with pytest.raises(ConfigError, match=r"^task.env 'my_lake:Mute' begins with a value of type int"):
        task_of("gymnasium", "my_lake:Mute").examples("train")
    with pytest.raises(UserError, match=r"^task.env 'my_lake:Unready' raised OSError: no map"):
        task_of("gymnasium", "my_lake:Unready")
    # What could not begin is closed all the same.
    assert sys.modules["my_lake"].Unready.closed == 1


@needs("gymnasium")
def test_an_environment_that_is_no_function_of_its_seed_is_noticed(
    folder: Path, brief: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("gymnasium", "my_lake:Moody")
    with pytest.raises(UserError, match=re.escape(NOT_THE_SAME)):
        task.start(task.examples("train")[0])
    summary = train(config(brief, kind="gymnasium", env="my_lake:Moody"), folder / "kept")
    assert summary["after"]["ended"] == {RAISED: 4} and summary["after"]["judged"] == 0
    # One that says so is played, and not resumed.
    said_so = config(brief, kind="gymnasium", env="my_lake:Moody", replayable=False)
    train(said_so, folder / "run", stop_after=2)
    assert lines(folder / "run" / "metrics.jsonl")[0]["turns"] > 1
    with pytest.raises(CheckpointError, match="task 'gymnasium' says replayable = False"):
        train(said_so, folder / "run", resume=True)


@needs("gymnasium")
@pytest.mark.usefixtures("no_page")
def test_a_run_in_gymnasium_that_dies_in_an_episode_ends_where_one_without_a_break_does(
    folder: Path, brief: Path
) -> None:
    own = config(brief, kind="gymnasium", env="my_lake:Drifts")
    whole = train(own, folder / "whole")
    assert whole["finished"] and whole["after"]["turns"]["value"] > 1
    (folder / "to die").touch()
    train_and_die(own, folder)
    assert train(own, folder / "run", resume=True)["finished"]
    assert outcome(folder / "run") == outcome(folder / "whole")
    [first, *_] = read_rollouts(folder / "run" / "rollouts.jsonl")
    assert first.episode is not None and "You are on square" in first.episode.opening[0].content


# --- textarena -------------------------------------------------------------------------------------------------------


def game(env: str = "GuessTheNumber-v0", **keys: Any) -> Any:
    return task_of("textarena", env, **keys)


@needs("textarena")
def test_a_game_is_played_to_its_end_and_says_why(folder: Path) -> None:
    task = game(arguments={"min_number": 1, "max_number": 9}, turns=10)
    example = task.examples("train")[0]
    assert "You have to guess the number between 1 and 9" in example.prompt[0].content
    won = task.start(example).state
    replies = [task.reply(won, f"<think> so </think> [{n}]") for n in range(1, 10) if not won.earned]
    right = len(replies)
    assert [said(reply) for reply in replies[:-1]] == ["The target number is higher."] * (right - 1)
    assert (replies[-1].done, replies[-1].reward, replies[-1].success, replies[-1].error) == (True, 1.0, True, False)
    assert replies[-1].messages == () and "guessed the correct number" in (replies[-1].feedback or "")
    # A move that is none is refused once, and then ends the game.
    lost = task.start(example).state
    first, second = (task.reply(lost, "so") for _ in range(2))
    assert (first.done, first.error, first.reward) == (False, True, 0.0) and "invalid move" in said(first)
    assert (
        second.done and second.error and second.success is False and (second.feedback or "").startswith("Invalid Move")
    )


def drawn(task: Any, example: Example, moves: Sequence[str]) -> list[str]:
    start = task.start(example)
    texts = [message.content for message in start.messages]
    for move in moves:
        reply = task.reply(start.state, move)
        texts.append(said(reply))
        if reply.done:
            break
    return texts


@needs("textarena")
@pytest.mark.parametrize("env", ["Bandit-v0", "Blackjack-v0", "2048-v0"])
def test_games_at_once_draw_as_they_do_alone_and_change_nobody_elses_draws(env: str, folder: Path) -> None:
    task = game(env, turns=30)
    moves = {
        "Bandit-v0": ["[red]", "[blue]"] * 8,
        "Blackjack-v0": ["[Hit]", "[Stand]"] * 8,
        "2048-v0": ["[Up]", "[Left]", "[Down]"] * 6,
    }[env]
    examples = task.examples("train")
    alone = [drawn(task, example, moves) for example in examples]
    assert len({tuple(texts) for texts in alone}) > 1 and min(map(len, alone)) > 3
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.random()
    random.seed(5)
    np.random.seed(5)
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda n: drawn(task, examples[n % 3], moves), range(18)))
    assert found == alone * 6
    assert (random.random(), np.random.random()) == expected


@needs("textarena")
@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ("GuessTheNumer-v0", "unknown task.env 'GuessTheNumer-v0': did you mean 'GuessTheNumber-v0'?"),
        ("Nim-v0", "task.env 'Nim-v0' is no game for one player: The number of players has to be 2"),
        ("QuantumTicTacToe-v0", "task.env 'QuantumTicTacToe-v0' is no game for one player"),
        ("Hangman-v0", "task.env 'Hangman-v0' needs word lists that NLTK downloads, and they are not on this machine"),
    ],
)
def test_a_game_that_cannot_be_played_is_one_sentence(
    env: str, sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NLTK_DATA", str(folder))
    with pytest.raises(UserError, match=re.escape(sentence)):
        game(env)


@needs("textarena")
@pytest.mark.usefixtures("no_page")
def test_a_stopped_run_of_games_ends_where_one_without_a_break_does(folder: Path, brief: Path) -> None:
    own = config(brief, kind="textarena", env="Bandit-v0", action_pattern="(.)")
    assert train(own, folder / "whole")["finished"]
    assert not train(own, folder / "stopped", stop_after=2)["finished"]
    assert train(own, folder / "stopped", resume=True)["finished"]
    assert outcome(folder / "stopped") == outcome(folder / "whole")
    rollouts = list(read_rollouts(folder / "whole" / "rollouts.jsonl"))
    assert all(r.episode is not None and "button" in r.episode.opening[0].content for r in rollouts)
    assert lines(folder / "whole" / "metrics.jsonl")[0]["tool_errors"] > 0


@needs("textarena")
def test_the_state_of_a_game_is_its_own(folder: Path) -> None:
    task = game()
    example = task.examples("validation")[0]
    first, second = task.start(example).state, task.start(example).state
    assert isinstance(first, World) and first.env.env is not second.env.env
