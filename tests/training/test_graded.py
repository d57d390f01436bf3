"""Runs on graded rewards: what counts as right, the mean reward beside it, and the best checkpoint by name."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfdistill.cli.app import main
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import ConfigError
from selfdistill.evaluation.evaluate import summarise
from selfdistill.report import numbers
from selfdistill.report.index import write_index
from selfdistill.tracking.progress import Progress
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.bytewise import save_bytewise_model
from support.pages import Page
from support.runs import lines, open_run, recorder, train

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def config(folder: Path, model: Path, method: str, reward: Any, **changes: Any) -> RunConfig:
    rows = [{"question": f"{n} + 1?", "solution": f"It is {n + 1}."} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw = {
        "steps": 2,
        "model": {"path": str(model)},
        "task": {"kind": "math", "answer": "", "solution": "solution", "path": str(folder / "rows.jsonl")},
        "method": {"name": method},
        "reward": reward,
        "optimiser": {"learning_rate": 0.01, "warmup": 0},
        "sampling": {"prompts": 2, "completions": 4, "max_tokens": 6},
        "evaluation": {"every": 1, "problems": 1, "samples": 3},
    }
    return parse_config({**raw, **changes}, "a test")


def test_a_reward_that_judges_nothing_is_said_and_the_newest_weights_are_the_best(
    tmp_path: Path, bytewise: Path
) -> None:
    run = open_run(config(tmp_path, bytewise, "grpo", "support.rewards:unsure"), tmp_path / "run")
    summary = run.train()
    said = "reward: no held-out completion is judged, and the method needs rewards"
    assert recorder(run).said.count(said) == 3
    assert (summary["best"], summary["best_by"]) == (None, "reward")
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").read_bytes() == weights(tmp_path / "run")
    text = io.StringIO()
    Progress(Console(file=text, width=120)).closing(summary, "page")
    assert "\nbest: the newest evaluation, because none has the metric reward\n" in text.getvalue()
    # What judges is not told so.
    run = open_run(config(tmp_path, bytewise, "grpo", "support.rewards:never"), tmp_path / "other")
    run.train()
    assert said not in recorder(run).said


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step-000002" / "model" / "model.safetensors").read_bytes()


def test_graded_rewards_are_shown_as_rewards_and_the_best_is_chosen_by_them(tmp_path: Path, bytewise: Path) -> None:
    task = config(tmp_path, bytewise, "grpo", "support.rewards:graded", alarms={"no_success": 2})
    summary = train(task, tmp_path / "run")
    evaluations = lines(tmp_path / "run" / "evaluations.jsonl")
    rewards = [row["reward"]["value"] for row in evaluations]
    assert [row["avg"]["value"] for row in evaluations] == [0.0, 0.0, 0.0]
    assert all(0 < reward < 1 for reward in rewards)
    assert (summary["best_by"], summary["best_step"]) == ("reward", rewards.index(max(rewards)))
    assert summary["right"] == "from a reward of 1 on (reward.success)"
    [alarm] = [alarm for alarm in summary["alarms"] if alarm["name"] == "no_success"]
    assert alarm["step"] == 2
    assert "no completion is right, which it is from a reward of 1 on (reward.success)" in alarm["evidence"]
    for line in lines(tmp_path / "run" / "metrics.jsonl"):
        assert line["success"] == 0
        assert line["reward_low"] <= line["reward"] <= line["reward_high"] < 1

    said = io.StringIO()
    progress = Progress(Console(file=said, width=140))
    progress.evaluation(2, evaluations[-1], by=summary["best_by"])
    progress.closing(summary, "page")
    assert re.match(rf"step    2  reward {rewards[-1]:.3f} \[.+?\]  avg@\d 0\.000 \[no spread\]  ", said.getvalue())
    # No completion has an answer to vote with, and the page and the index speak of the reward too.
    assert "maj@" not in said.getvalue()
    index, page = Page(write_index(tmp_path)), Page(tmp_path / "run" / "report.html")
    assert f"Mean reward on held-out problems {numbers.plain(rewards[0])} → {numbers.plain(rewards[-1])}" in page.text
    assert "Held-out mean reward" in page.text
    assert "Held-out accuracy" not in page.text
    assert "maj@" not in page.text
    assert numbers.NO_SPREAD_NOTE in page.text
    assert f"Mean reward {numbers.plain(rewards[0])} {numbers.plain(rewards[-1])} " in index.text
    assert numbers.NO_SPREAD_NOTE in index.text
    assert "best: by reward on held-out problems" in said.getvalue()

    # With a threshold that is met, the same completions are right.
    lower = train(
        config(tmp_path, bytewise, "grpo", {"function": "support.rewards:graded", "success": 0.01}), tmp_path / "lower"
    )
    assert lower["before"]["avg"]["value"] == 1.0
    assert lower["before"]["reward"] == summary["before"]["reward"]
    assert {line["correct"] for line in lines(tmp_path / "lower" / "rollouts.jsonl")} == {True}


def test_two_graded_rewards_make_two_runs_and_for_sdpo_the_threshold_does(tmp_path: Path, bytewise: Path) -> None:
    made = {}
    for name, method, reward in (
        ("a", "grpo", "support.rewards:graded"),
        ("b", "grpo", "support.rewards:even"),
        ("c", "sdpo", {"function": "support.rewards:graded", "success": 0.01}),
        ("d", "sdpo", {"function": "support.rewards:graded", "success": 0.05}),
    ):
        train(config(tmp_path, bytewise, method, reward), tmp_path / name)
        made[name] = weights(tmp_path / name)
    assert len(set(made.values())) == 4


def test_a_run_says_what_counts_as_right(tmp_path: Path, bytewise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path, bytewise, "sdpo", {"function": "support.rewards:graded", "success": 0.01}, steps=1)
    path = tmp_path / "own.json"
    path.write_text(settings.model_dump_json(), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["train", str(path), "--out", str(tmp_path / "run")])
    said = " ".join(capsys.readouterr().out.split())
    assert "reward: a completion is right from a reward of 0.01 on (reward.success); the reward is graded" in said
    assert "reward: $sibling of the contexts depend on which completions are right, not on how large" in said


def test_the_best_checkpoint_is_that_of_the_named_metric(tmp_path: Path, bytewise: Path) -> None:
    for metric, column in (("success", "avg"), ("last", None), ("loglikelihood", "loglikelihood")):
        settings = config(
            tmp_path, bytewise, "grpo", "support.rewards:even", evaluation={"every": 1, "problems": 1, "best": metric}
        )
        summary = train(settings, tmp_path / metric)
        rows = lines(tmp_path / metric / "evaluations.jsonl")
        values = [row[column]["value"] for row in rows] if column else [0, 1, 2]
        assert (summary["best_by"], summary["best_step"]) == (metric, values.index(max(values)))
    with pytest.raises(ConfigError, match=r"evaluation\.best = 'reward', but nothing is judged in this task"):
        train(config(tmp_path, bytewise, "sft", None, evaluation={"best": "reward"}), tmp_path / "none")


def test_mean_rewards_leave_out_what_is_not_judged() -> None:
    def group(*rewards: float | None) -> RolloutGroup:
        rollout = Rollout((1,), (5, 2), (-0.5, -1.5), True, "", 0)
        verdicts = tuple(
            Verdict(r, details={} if r is None else {"reward/a": r / 2, "reward/b": r / 2}) for r in rewards
        )
        return RolloutGroup(Example("a", (Message("user", "?"),)), (rollout,) * len(rewards), verdicts)

    result = summarise([group(0.5, 5.4), group(None, 0.25), group(None, None)], samples=2, plain=True).to_json()
    assert result["reward"]["value"] == (2.95 + 0.25) / 2
    assert result["reward"]["n"] == 2
    assert result["rewards"] == {"a": (0.5 + 5.4 + 0.25) / 6, "b": (0.5 + 5.4 + 0.25) / 6}
    assert result["avg"]["value"] == 1 / 6
