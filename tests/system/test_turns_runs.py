"""docs/turns.md is true: its environment runs as printed in every command, and runs resume exactly or are refused."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import selfdistill as sd
from selfdistill.api.tasks import Chosen
from selfdistill.cli.app import main
from selfdistill.cli.contexts import audit, describe_audit
from selfdistill.config.run import RunConfig, apply_overrides, parse_config
from selfdistill.contexts.marks import CLOSE, OPEN
from selfdistill.errors import CheckpointError, ConfigError, UserError
from selfdistill.files.records import read_rollouts
from selfdistill.report.files import read_run
from selfdistill.report.page import render_run
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.tasks.judging import verify_all
from selfdistill.tasks.turns import environment_of
from support.runs import lines, open_run, outcome, recorder, train, train_and_die
from support.tiny import save_brief_model

PAGE = (Path(__file__).parents[2] / "docs" / "turns.md").read_text(encoding="utf-8")
CODE, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MORE = """
import dataclasses, os, signal


class Moody(Guess):
    name = "moody"
    replayable = False


class Dying(Guess):
    name = "guess"
    calls = 0

    def reply(self, state, text):
        Dying.calls += 1
        if Dying.calls == 40 and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return dataclasses.replace(super().reply(state, text), note=f"heard {len(text)}")
"""
pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "my_game.py").write_text(CODE + MORE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_game", None)


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brief_model(tmp_path_factory.mktemp("model"), positions=512)


def config(model: Path, *overrides: str, **task: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "steps": 4,
        "model": {"path": str(model)},
        "task": {"kind": "countdown-turns", "difficulty": "easy", "train": 8, "validation": 4, "test": 4, **task},
        "method": {"name": "sdpo"},
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 2, "problems": 2, "samples": 2},
        "checkpoint": {"every": 2},
    }
    if ":" in task.get("kind", ""):
        raw["task"] = {"size": 8, **task}
    apply_overrides(raw, overrides)
    return parse_config(raw, "a test")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(str(ended.value.code or 0))


def test_contexts_prints_a_conversation_turn_by_turn_and_marks_what_a_role_reads(brief: Path) -> None:
    settings = config(brief, "method.context=reply_each_turn")
    report = audit(settings, examples=2, completions=2)
    text = "\n".join(describe_audit(report))
    played = [completion for completion in report["completions"] if len(completion["turns"]) > 1]
    assert played
    for completion in played:
        turns = completion["turns"]
        # Turns and what the environment says alternate, and together they are the text that was sampled and read.
        assert [part["turn"] for part in turns] == [k for n in range(1, len(turns) // 2 + 1) for k in (n, 0)] + [
            1 + len(turns) // 2
        ]
        whole = "".join(part["text"] for part in turns)
        assert whole.startswith(completion["text"]), "the text is without the last turn's end"
        assert len(whole.split()) - len(completion["text"].split()) <= 1
        student, teacher = completion["prompts"]
        assert (student["marked"], student["turns"]) == (student["text"], [])
        # The teacher is told before every turn what the environment says after it.
        assert [part["turn"] for part in teacher["turns"]] == [part["turn"] for part in turns]
        assert OPEN in teacher["marked"]
        whole = teacher["marked"] + "".join(part["text"] for part in teacher["turns"])
        assert whole.replace(OPEN, "").replace(CLOSE, "") == teacher["text"]
        assert f"     turn 1 │ {turns[0]['text'].strip()}\nenvironment │ {turns[1]['text'].strip()}\n" in text


def test_a_run_of_episodes_counts_turns_and_why_they_ended(brief: Path, tmp_path: Path) -> None:
    summary = train(config(brief), tmp_path / "run")
    stored = lines(tmp_path / "run" / "metrics.jsonl")
    rollouts = list(read_rollouts(tmp_path / "run" / "rollouts.jsonl"))
    assert len(rollouts) == 4 * 6 and {line.episode is None for line in rollouts} == {False}
    for line in stored:
        episodes = [r for r in rollouts if r.step == line["step"]]
        turns = [len(r.episode.turns) for r in episodes if r.episode]
        assert line["turns"] == sum(turns) / 6 and sum(line["ended"].values()) == 6
        assert line["generated"] == sum(len(r.ids) for r in episodes) == sum(line["budget"]["drawn"].values())
        assert line["environment_tokens"] > 0
    assert max(line["turns"] for line in stored) > 1.5
    # The page draws the turns, and counts why the episodes ended.
    page = render_run(read_run(tmp_path / "run"))
    ended = sum((Counter(line["ended"]) for line in stored), Counter())
    assert "of an episode, mean of a step" in page and f"{ended['done']:.0f} × done" in page
    assert 'data-said="user: feedback on an earlier attempt' in page
    assert summary["after"]["turns"]["n"] == 2 and sum(summary["after"]["ended"].values()) == 4


def test_a_stopped_run_of_episodes_ends_where_an_uninterrupted_one_does(brief: Path, tmp_path: Path) -> None:
    assert train(config(brief), tmp_path / "whole")["finished"]
    assert not train(config(brief), tmp_path / "stopped", stop_after=3)["finished"]
    assert train(config(brief), tmp_path / "stopped", resume=True)["finished"]
    stopped, whole = outcome(tmp_path / "stopped"), outcome(tmp_path / "whole")
    # The stop wrote a checkpoint of its own.
    assert (stopped.pop("checkpoints"), whole.pop("checkpoints")) == (
        ["best", "step-000003", "step-000004"],
        ["best", "step-000002", "step-000004"],
    )
    assert stopped == whole


@pytest.mark.parametrize("method", ["sdpo", "skill_sd"])
def test_kill_9_in_the_middle_of_an_episode_loses_nothing(method: str, folder: Path, brief: Path) -> None:
    turns = ("method.turn_advantage.kind=group_in_group", "method.weights=live") if method == "skill_sd" else ()
    own = config(brief, f"method.name={method}", "checkpoint.every=1", *turns, kind="my_game:Dying")
    train_and_die(own, folder)
    assert 0 < len(lines(folder / "run" / "metrics.jsonl")) < 4
    assert list((folder / "run" / "checkpoints").glob("step-*"))
    assert train(own, folder / "run", resume=True)["finished"]
    assert train(own, folder / "whole")["finished"]
    assert outcome(folder / "run") == outcome(folder / "whole")
    # The notes of the steps before the kill are those of a run without one, in their order.
    kept = [
        json.loads((folder / name / "checkpoints" / "step-000004" / "state.json").read_text(encoding="utf-8"))["notes"]
        for name in ("run", "whole")
    ]
    assert kept[0] == kept[1] and bool(kept[0]["kept"]) == (method == "skill_sd")
    if method == "skill_sd":
        assert all("skill_kl" in line for line in lines(folder / "run" / "metrics.jsonl")[1:])


def test_an_environment_that_says_it_cannot_be_replayed_is_not_resumed(folder: Path, brief: Path) -> None:
    own = config(brief, kind="my_game:Moody")
    train(own, folder / "run", stop_after=2)
    with pytest.raises(CheckpointError, match="task 'moody' says replayable = False"):
        train(own, folder / "run", resume=True)


def test_the_environment_of_the_page_runs_in_every_command(
    folder: Path, brief: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(CODE.strip().splitlines()) <= 37
    train(config(brief, kind="my_game:Guess"), folder / "run")
    task = ["--task", "my_game:Guess"]
    assert run("data", "check", *task, "--set", "task.size=3") == 0
    assert "nothing to verify" in capsys.readouterr().out
    sizes = ["--samples", "2", "--max-tokens", "6"]
    assert run("evaluate", str(brief), *task, "--limit", "2", *sizes, "--json") == 0
    assert json.loads(capsys.readouterr().out)["turns"]["k"] == 2
    assert run("contexts", "run", "--examples", "1", "--completions", "2") == 0
    # The whole conversation is printed: what the environment said, and the start of the next turn.
    assert re.search(r"\nenvironment │ .*<\|user\|> .*<\|end\|> <\|assistant\|> <think>\n", capsys.readouterr().out)
    assert run("inspect", str(brief), *task, "--methods", "opsd", "--problems", "2", *sizes, "--out", "look") == 0
    rows = pq.read_table(folder / "look" / "tokens.parquet").to_pandas()
    assert rows["turn"].max() > 1 and rows["turn"].min() == 1
    looked = json.loads((folder / "look" / "summary.json").read_text(encoding="utf-8"))
    [by_turn] = [signal["by_turn"] for name, signal in looked["signals"].items() if name.startswith("credit")]
    assert [row["tokens"] for row in by_turn] == [int(n) for n in rows["turn"].value_counts().sort_index()]
    assert "Mean by turn of the episode" in (folder / "look" / "index.html").read_text(encoding="utf-8")
    # What a run has stored is scored as it was sampled.
    stored = ["--rollouts", "run/rollouts.jsonl", "--problems", "2", "--samples", "2"]
    assert run("inspect", "run", *stored, "--checkpoint", "last", "--out", "again") == 0
    again = pq.read_table(folder / "again" / "tokens.parquet").to_pandas()
    assert again["turn"].max() > 1


def test_replies_are_those_of_the_page(folder: Path) -> None:
    task: Any = sd.load_task("my_game:Guess", size=2)
    example = sd.Example("x", (sd.Message("user", "?"),), {"solution": "5"})
    state = task.start(example).state
    assert task.reply(state, "3").messages == "My number is higher."
    assert task.reply(state, "it is 5") == sd.Reply(done=True, reward=1.0, answer="5")
    with pytest.raises(UserError, match="'guess' is played in turns and judges no single text"):
        verify_all(task, [(example, "5", True)])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("method.name=pbsd",), "method 'pbsd' lets another role sample"),
        (("signal.overlong=punish",), "signal.overlong = 'punish' is for single answers"),
        (("reward=support.rewards:even",), "its environment gives the rewards"),
        (
            ("sampler.kind=server", "sampler.urls=['http://127.0.0.1:9']", "sampler.overlap=true"),
            "sampler.overlap samples single answers ahead: set it to false",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(
    overrides: tuple[str, ...], sentence: str, brief: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        open_run(config(brief, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_renders_turns_otherwise_is_told_once(brief: Path, tmp_path: Path) -> None:
    opened = open_run(config(brief, "steps=1"), tmp_path / "run")
    opened.train(recorder(opened).stop)
    told = [sentence for sentence in recorder(opened).said if "renders earlier turns otherwise" in sentence]
    assert len(told) == 1


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("max_turns", 0), ("max_turns", 2.5), ("seconds", -1), ("seconds", "ten"), ("at_once", True)],
)
def test_a_limit_that_is_none_is_refused(
    attribute: str, value: Any, brief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        CountdownTurnsTask, attribute, property(lambda self: value, lambda self, given: None), raising=False
    )
    with pytest.raises(ConfigError, match=f"{attribute} of task 'countdown-turns' is {value!r}"):
        open_run(config(brief), tmp_path / "run")


def test_every_command_refuses_such_a_limit(folder: Path) -> None:
    with (folder / "my_game.py").open("a", encoding="utf-8") as file:
        file.write("\n\nclass Hasty(Guess):\n    seconds = -1\n")
    with pytest.raises(ConfigError, match="seconds of task 'guess' is -1: it is a number of more than 0"):
        sd.load_task("my_game:Hasty")


def test_rewards_and_chosen_problems_see_through_to_the_environment(folder: Path) -> None:
    task: Any = sd.load_task("my_game:Guess", size=2)
    found: Any = environment_of(Chosen(task, task.examples("train")))
    assert found is task
    with pytest.raises(ConfigError, match="its environment gives the rewards"):
        sd.rollout(*sd.load_policy("countdown-base"), task, task.examples("train"), reward=len, completions=1)
