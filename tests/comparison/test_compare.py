"""The compare command: equal terms or one sentence, runs that go on where they stopped, and what it leaves."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.app import main
from selfdistill.comparison.compare import plan
from selfdistill.config.run import load_config
from selfdistill.config.sources import shipped_configs
from selfdistill.errors import ConfigError
from support.runs import as_toml, lines, open_run, tiny_run, train

SOURCE = Path(__file__).parents[2] / "src"
STEPS = 4


@pytest.fixture
def here(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config for each of four methods; children find the package and the test's rewards."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1])]))
    monkeypatch.chdir(tmp_path)
    for method in ("grpo", "antisd", "opsd", "sft"):
        table = tiny_run(model, method, f"steps={STEPS}").model_dump(exclude_none=True)
        (tmp_path / f"my-{method}.toml").write_text(as_toml(table), encoding="utf-8")
    return tmp_path


def refusal(*sources: str, overrides: Sequence[str] = (), **more: Any) -> str:
    """The one sentence that a plan is refused with."""
    options: dict[str, Any] = {"seeds": [0], "baseline": None, "folder": Path("out"), **more}
    with pytest.raises(ConfigError) as caught:
        plan(sources, overrides, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(*arguments: object) -> int:
    """The exit code of a command."""
    try:
        main(["compare", *map(str, arguments)])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def untimed(value: Any) -> Any:
    """A comparison without what the clock says."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in ("seconds", "cost", "machine")}
    return [untimed(item) for item in value] if isinstance(value, list) else value


# --- equal terms -----------------------------------------------------------------------------------------------------


def test_the_refusal_names_overrides_under_which_the_arms_can_be_compared(here: Path) -> None:
    names = ("my-grpo.toml", "my-opsd.toml", "my-antisd.toml")
    said = refusal(*names)
    assert said.startswith("not on equal terms: sampling.temperature is 1.0 for my-grpo and 1.1 for my-opsd; ")
    assert "arms may differ in method, optimiser, signal and limits only" in said
    remedy = said.partition("for example ")[2].removeprefix("--set ").split(" --set ")
    assert remedy == ["sampling.temperature=1.0", "sampling.top_p=1.0", "sampling.top_k=0"]
    arms = plan(names, remedy, seeds=[0, 1], baseline=None, folder=Path("out")).arms
    assert [(arm.name, arm.config.sampling.temperature) for arm in arms] == [
        ("my-grpo", 1.0),
        ("my-opsd", 1.0),
        ("my-antisd", 1.0),
    ]


@pytest.mark.parametrize("task", ["countdown", "toolbox"])
def test_shipped_configs_of_a_task_can_be_compared_on_equal_terms(task: str) -> None:
    equal = ["temperature=1", "top_p=1", "top_k=0", "prompts=16", "completions=8"]
    names = [name for name in shipped_configs() if load_config(name).task.kind == task]
    overrides = [f"sampling.{setting}" for setting in equal]
    comparison = plan(names, overrides, seeds=[0], baseline=None, folder=Path("out"))
    assert [arm.name for arm in comparison.arms] == names
    assert comparison.baseline == f"{task}-grpo"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("steps = 9", "steps is 4 for my-grpo and 9 for other; "),
        ("sampling.max_tokens = 9", "sampling.max_tokens is 10 for my-grpo and 9 for other; "),
        ("evaluation.samples = 5", "evaluation.samples is 2 for my-grpo and 5 for other; "),
        ('task.difficulty = "default"', "task.difficulty is easy for my-grpo and default for other; "),
        ("model.lora.rank = 4", "model.lora.rank is unset for my-grpo and 4 for other; "),
        (
            'reward.function = "support.rewards:never"',
            "reward.function is support.rewards:even for my-grpo and support.rewards:never",
        ),
    ],
)
def test_whatever_differs_is_named(here: Path, change: str, sentence: str) -> None:
    key = change.partition(" =")[0]
    kept = [line for line in (here / "my-grpo.toml").read_text().splitlines() if not line.startswith(f"{key} =")]
    (here / "other.toml").write_text("\n".join([*kept, change, ""]))
    said = refusal("my-grpo.toml", "other.toml")
    assert f"not on equal terms: {sentence}" in said
    assert f"for example --set {key}=" in said


def test_what_belongs_to_an_arm_may_differ(here: Path) -> None:
    own = {"optimiser.learning_rate": "0.002", "limits.max_tokens_per_microbatch": "512", "checkpoint.every": "1"}
    own["signal.weight"] = '"deviation"'
    text = (here / "my-grpo.toml").read_text()
    kept = [line for line in text.splitlines() if line.partition(" =")[0] not in own]
    (here / "other.toml").write_text("\n".join([*kept, *(f"{key} = {value}" for key, value in own.items()), ""]))
    comparison = plan(["other.toml", "my-grpo.toml"], [], seeds=[0], baseline=None, folder=Path("out"))
    assert [arm.config.optimiser.learning_rate for arm in comparison.arms] == [0.002, 0.01]
    assert comparison.arms[0].config.limits.max_tokens_per_microbatch == 512
    assert [arm.config.signal.weight for arm in comparison.arms] == ["deviation", "none"]


def test_a_method_that_samples_nothing_needs_no_sampling_settings(here: Path) -> None:
    text = (here / "my-sft.toml").read_text()
    (here / "my-sft.toml").write_text(text.replace("sampling.completions = 3", "sampling.completions = 1"))
    plan(["my-sft.toml", "my-grpo.toml"], [], seeds=[0], baseline=None, folder=Path("out"))
    text = (here / "my-sft.toml").read_text()
    (here / "my-sft.toml").write_text(text.replace("sampling.prompts = 3", "sampling.prompts = 2"))
    assert "sampling.prompts is 3 for my-grpo and 2 for my-sft" in refusal("my-grpo.toml", "my-sft.toml")


def test_the_baseline_is_the_first_grpo(here: Path) -> None:
    def baseline(*sources: str, chosen: str | None = None) -> str:
        return plan(sources, [], seeds=[0], baseline=chosen, folder=Path("out")).baseline

    assert baseline("my-antisd.toml", "my-grpo.toml") == "my-grpo"
    assert baseline("my-antisd.toml", "my-sft.toml") == "my-antisd"
    assert baseline("my-antisd.toml", "my-grpo.toml", chosen="my-antisd") == "my-antisd"
    said = refusal("my-antisd.toml", "my-grpo.toml", baseline="grpo")
    assert said == "--baseline 'grpo' is no arm; did you mean 'my-grpo'? arms: my-antisd, my-grpo"


def test_a_run_folder_is_an_arm_of_its_whole_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, method in (("rate.1", "grpo"), ("rate.2", "antisd")):
        (here / name).mkdir()
        table = load_config(f"my-{method}.toml").model_dump(mode="json")
        (here / name / "config.json").write_text(json.dumps(table), encoding="utf-8")
    monkeypatch.chdir(here / "rate.1")
    comparison = plan([".", "../rate.2"], [], seeds=[0], baseline=None, folder=here / "out")
    assert [arm.name for arm in comparison.arms] == ["rate.1", "rate.2"]


def test_arms_and_seeds_are_told_apart(here: Path) -> None:
    (here / "below").mkdir()
    (here / "below" / "my-grpo.toml").write_text((here / "my-grpo.toml").read_text())
    said = refusal("my-grpo.toml", "below/my-grpo.toml")
    assert said == "two arms are named 'my-grpo': give one of the configs another file name"
    said = refusal("my-grpo.toml", overrides=["seed=3"])
    assert said == "--set seed=3: a comparison takes its seeds from --seeds, for example --seeds 0,1,2"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("my-grpo.toml", "--seeds", "0,one"),
            "--seeds '0,one': write whole numbers and commas, for example --seeds 0,1",
        ),
        (("my-grpo.toml", "--seeds", ""), "--seeds '': write whole numbers"),
        (("my-grpo.toml", "--seeds=-1"), "--seeds '-1': write whole numbers"),
        (("my-grpo.toml", "--seeds", "0,1,0"), "--seeds '0,1,0' names a seed twice"),
        (("my-grpo.toml", "--main", "grpo"), "--main 'grpo' is no arm; did you mean 'my-grpo'? arms: my-grpo"),
        (("my-gropo.toml",), "config 'my-gropo.toml' not found; did you mean 'my-grpo.toml'?"),
        (("my-grpo.toml", "--set", "steps"), "--set 'steps': write key=value"),
        (("my-grpo.toml", "--set", "method.strength=1"), "unknown key method.strength for method 'grpo'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], sentence: str
) -> None:
    assert command(*arguments, "--out", here / "out") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"selfdistill: {sentence}")
    assert said.err.count("\n") == 1
    assert not (here / "out").exists()


# --- runs ------------------------------------------------------------------------------------------------------------


def make_runs(here: Path, out: Path, *, stop_after: int | None = None) -> None:
    """The runs of grpo and antisd, made in this process; the second is stopped after a step, if one is given."""
    for arm, stop in (("my-grpo", None), ("my-antisd", stop_after)):
        for seed in (0, 1):
            config = load_config(str(here / f"{arm}.toml"), [f"seed={seed}"])
            train(config, out / "runs" / arm / f"seed-{seed}", stop_after=stop if seed else None)


def test_a_comparison_that_was_stopped_goes_on_to_the_same_numbers(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("my-grpo.toml", "my-antisd.toml", "--seeds", "0,1", "--jobs", 2, "--main", "my-antisd")
    make_runs(here, here / "whole")
    assert command(*arguments, "--out", here / "whole") == 0
    assert "started" not in capsys.readouterr().out, "finished runs are not made again"
    make_runs(here, here / "stopped", stop_after=3)
    untouched = (here / "stopped" / "runs" / "my-grpo" / "seed-1" / "summary.json").stat().st_mtime_ns
    assert command(*arguments, "--out", here / "stopped") == 0
    said = capsys.readouterr().out
    assert "3 of 4 runs are over; the others run 1 at a time" in said
    assert [line for line in said.splitlines() if line.startswith("my-antisd seed 1: ")] == [
        "my-antisd seed 1: started",
        "my-antisd seed 1: done",
    ]
    assert (here / "stopped" / "runs" / "my-grpo" / "seed-1" / "summary.json").stat().st_mtime_ns == untouched
    whole, stopped = (json.loads((here / name / "compare.json").read_text()) for name in ("whole", "stopped"))
    assert untimed(stopped) == untimed(whole)
    assert whole["same_start"] is True
    assert (whole["baseline"], whole["seeds"], whole["machine"]) == ("my-grpo", [0, 1], [])
    assert [start["jobs"] for start in stopped["machine"]] == [1]
    own = here / "stopped" / "runs" / "my-antisd" / "seed-0"
    for name in ("summary.json", "report.html"):
        assert (here / "stopped" / name).read_bytes() == (own / name).read_bytes()
    assert "my-antisd, seed-0" in (own / "report.html").read_text()
    assert (here / "whole" / "compare.md").read_text().startswith("# whole\n")
    assert "compare.html" in said


def test_before_its_gate_opens_antisd_is_grpo_to_the_last_bit(here: Path) -> None:
    make_runs(here, here / "out")
    assert command("my-grpo.toml", "my-antisd.toml", "--seeds", "0,1", "--out", here / "out") == 0
    found = json.loads((here / "out" / "compare.json").read_text())["arms"][1]
    assert found["gate"] == 0.0, "a warm-up as long as the run"
    for measure in ("accuracy", "deliberation", "length"):
        difference = found[measure]["against_baseline"]
        assert (difference["value"], difference["low"], difference["high"]) == (0.0, 0.0, 0.0)


def test_a_run_that_fails_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("my-grpo.toml", "my-antisd.toml", "--jobs", 1, "--set", "reward=support.rewards:wordy")
    assert command(*arguments, "--out", "out") == 2
    said = capsys.readouterr()
    assert said.err.startswith("selfdistill: my-grpo seed 0: ")
    assert "wordy" in said.err
    assert said.err.endswith("(log: out/runs/my-grpo/seed-0.log)\n")
    assert said.err.count("\n") == 1
    assert not (here / "out" / "runs" / "my-antisd").exists()


def test_a_run_that_an_alarm_ends_is_over_and_is_compared_as_far_as_it_went(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tiny model is cut at once; sft samples nothing, so nothing of it is cut.
    alarms = ["alarms.window=1", "alarms.truncated=0.1", "stop_on=['truncated_completions']"]
    arguments = ["my-sft.toml", "my-grpo.toml", "--out", "out", *(part for one in alarms for part in ("--set", one))]
    runs, untrained = here / "out" / "runs", here / "out" / "untrained"
    open_run(load_config("my-sft.toml", [*alarms, "seed=0"]), runs / "my-sft" / "seed-0", untrained=untrained).train()
    assert command(*arguments) == 0
    log = (runs / "my-grpo" / "seed-0.log").read_text()
    assert "the untrained model was evaluated by out/runs/my-sft/seed-0: these are its figures" in log
    said = capsys.readouterr().out
    assert "1 of 2 runs is over; the others run 1 at a time" in said
    assert "my-grpo seed 0: ended after step 1 by truncated_completions" in said
    assert "; ended: seed 0 after step 1 by truncated completions; alarms: truncated completions (1 of 1 run)" in said
    found = json.loads((here / "out" / "compare.json").read_text())
    [run] = found["arms"][1]["runs"]
    assert (run["steps"], run["evaluated"], run["ended_by"]) == (1, 0, ["truncated_completions"])
    assert run["alarms"][0]["evidence"].endswith("over the last step (limit 10%)")
    assert found["arms"][0]["accuracy"]["compared_at"] == [0]
    assert command(*arguments) == 0
    assert "started" not in capsys.readouterr().out, "what an alarm has ended is not taken up again"


def test_a_folder_of_another_comparison_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_config("my-grpo.toml"), here / "out" / "runs" / "my-grpo" / "seed-0", stop_after=2)
    assert command("my-grpo.toml", "--out", "out", "--set", "steps=6") == 2
    said = capsys.readouterr()
    assert "seed-0 was made with another config: steps was 4 and is now 6; " in said.err
    assert said.out == ""


def test_a_place_that_would_be_spoilt_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("x")
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text("{}")
    (here / "letters" / "configs").mkdir(parents=True)
    (here / "letters" / "mother.txt").write_text("x")
    (here / "trained" / "runs" / "mine").mkdir(parents=True)
    for place, sentence in (
        ("file", "file is a file"),
        ("run", "run holds a run"),
        ("letters", "letters is not empty and holds no comparison"),
        ("trained", "trained is not empty and holds no comparison"),
    ):
        assert command("my-grpo.toml", "--out", place) == 2
        assert capsys.readouterr().err == f"selfdistill: {sentence}: choose another --out\n"


def test_a_folder_in_use_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "out").mkdir()
    descriptor = os.open(here / "out", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert command("my-grpo.toml", "--out", "out") == 2
    finally:
        os.close(descriptor)
    assert "another comparison still runs in out: " in capsys.readouterr().err
    assert not (here / "out" / "runs").exists()


def test_ctrl_c_saves_what_runs_and_says_how_to_go_on(here: Path) -> None:
    log = here / "out" / "runs" / "my-grpo" / "seed-0" / "metrics.jsonl"
    arguments = ["my-grpo.toml", "my-antisd.toml", "--out", "out", "--jobs", "1", "--set", "steps=100000"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", "compare", *arguments], stdout=subprocess.PIPE, text=True
    )
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    out, _ = parent.communicate()
    assert parent.returncode == 128 + signal.SIGINT
    assert out.splitlines()[-1] == "stopped; the same command goes on where the runs in out are"
    saved = max((log.parent / "checkpoints").glob("step-*"))
    assert int(saved.name.removeprefix("step-")) == lines(log)[-1]["step"]
    assert not (here / "out" / "runs" / "my-antisd").exists()
    assert not (here / "out" / "compare.json").exists()
