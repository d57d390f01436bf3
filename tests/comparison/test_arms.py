"""The arms that ``compare --methods`` makes of one config, and what is said of them before they are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfdistill.cli.app import main
from selfdistill.comparison.arms import ArmPlan, plan_arms
from selfdistill.comparison.compare import Comparison, plan
from selfdistill.comparison.options import parse_seeds, parse_sweep
from selfdistill.comparison.runs import last_line
from selfdistill.errors import ConfigError
from selfdistill.methods import build_method
from support.runs import as_toml

OWN = {
    "method": {"name": "opsd", "teacher_rate": 0.1},
    "model": {"path": "countdown-base"},
    "steps": 2,
    "sampling": {"prompts": 2, "max_tokens": 16, "temperature": 0.7},
    "evaluation": {"problems": 2, "samples": 1, "every": 1},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(as_toml(OWN), encoding="utf-8")
    return tmp_path


def arms(*methods: str, source: str = "mine.toml", overrides: tuple[str, ...] = ()) -> Comparison:
    return plan([source], overrides, seeds=[0, 1], baseline=None, folder=Path("out"), methods=methods)


def test_each_method_has_its_own_defaults_and_everything_else_is_shared(here: Path) -> None:
    comparison = arms("grpo", "antisd", "opsd")
    assert [arm.name for arm in comparison.arms] == ["mine-grpo", "mine-antisd", "mine-opsd"]
    assert comparison.baseline == "mine-grpo"
    grpo, antisd, opsd = (arm.config for arm in comparison.arms)
    assert antisd.method == {"name": "antisd", **build_method("antisd", {}).model_dump()}
    assert opsd.method["teacher_rate"] == 0.1, "the config's own method keeps its settings"
    # OPSD's own number of completions, because mine.toml leaves it open; its temperature is the file's for all.
    assert grpo.sampling == antisd.sampling == opsd.sampling
    assert (grpo.sampling.completions, grpo.sampling.temperature) == (
        build_method("opsd", {}).recommended.completions,
        0.7,
    )
    assert grpo.optimiser.learning_rate == build_method("grpo", {}).recommended.learning_rate
    assert opsd.optimiser.learning_rate == build_method("opsd", {}).recommended.learning_rate


def test_a_learning_rate_of_the_config_is_that_of_all_arms(here: Path) -> None:
    rates = {
        arm.config.optimiser.learning_rate
        for arm in arms("grpo", "opsd", overrides=("optimiser.learning_rate=3e-5",)).arms
    }
    assert rates == {3e-5}


def test_a_model_and_several_configs_make_arms_too(here: Path) -> None:
    comparison = arms("grpo", "opsd", source="countdown-base", overrides=("task.kind=countdown",))
    assert [arm.name for arm in comparison.arms] == ["countdown-base-grpo", "countdown-base-opsd"]
    named = plan_arms(["mine.toml", "countdown-sd"], ["grpo", "tests.own:Mine"], [])
    assert [arm.name for arm in named] == ["mine-grpo", "mine-Mine", "countdown-sd-grpo", "countdown-sd-Mine"]
    assert [arm.name for arm in plan_arms(["mine.toml", "countdown-sd"], [], [])] == ["mine", "countdown-sd"]
    with pytest.raises(ConfigError, match="names a method twice"):
        arms("grpo", "grpo")
    with pytest.raises(ConfigError, match="unknown method 'antsd'; did you mean 'antisd'"):
        arms("grpo", "antsd")


def test_a_sweep_makes_an_arm_of_each_value(here: Path) -> None:
    made = plan_arms(["mine.toml"], ["antisd"], ["sampling.completions=2"], ["method.gate_ratio=0.90, 0.95"])
    assert [(arm.name, arm.settings[-1]) for arm in made] == [
        ("mine-antisd-gate_ratio-0.90", "method.gate_ratio=0.90"),
        ("mine-antisd-gate_ratio-0.95", "method.gate_ratio=0.95"),
    ]
    assert made[0].settings[0] == 'method="antisd"'
    two = plan_arms(["mine.toml"], [], [], ["signal.equal=keep,drop", "optimiser.learning_rate=1e-5,1e-4"])
    assert two[1] == ArmPlan(
        "mine-equal-keep-learning_rate-1e-4", "mine.toml", ("signal.equal=keep", "optimiser.learning_rate=1e-4")
    )
    assert len(two) == 4
    # What the arms are trained with, and what a folder may be named.
    comparison = plan(
        ["mine.toml"],
        [],
        seeds=[0],
        baseline=None,
        folder=Path("out"),
        methods=["antisd"],
        sweeps=["method.gate_ratio=0.9,1"],
    )
    assert [arm.config.method["gate_ratio"] for arm in comparison.arms] == [0.9, 1.0]
    [slash, _] = plan_arms(["mine.toml"], [], [], ["method.context=a/b,c"])
    assert slash.name == "mine-context-a_b"


@pytest.mark.parametrize("text", ["method.gate_ratio", "=1,2", "method.gate_ratio=0.9", "method.gate_ratio=0.9,,1"])
def test_a_sweep_without_two_values_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write a key and two values or more"):
        parse_sweep(text)


def test_a_sweep_that_makes_no_arms_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="names a value twice"):
        parse_sweep("method.gate_ratio=0.9, 0.9")
    with pytest.raises(ConfigError, match="--set gives the same key to all arms"):
        plan_arms(["mine.toml"], [], ["steps = 3", "method.teacher_rate=1"], ["method.teacher_rate=0.1,0.2"])
    with pytest.raises(ConfigError, match=r"not on equal terms: sampling\.temperature is 0\.5"):
        plan(["mine.toml"], [], seeds=[0], baseline=None, folder=Path("out"), sweeps=["sampling.temperature=0.5,1"])
    with pytest.raises(ConfigError, match="a value cannot contain a comma"):
        parse_sweep("optimiser.betas=[0.9,0.99],[0.9,0.95]")


@pytest.mark.parametrize(
    ("sweeps", "overrides", "methods"),
    [
        (["optimiser.learning_rate=1e-5,0.00001"], [], []),  # one number, written in two ways
        (["optimiser.learning_rate=1e-5,1e-4", "optimiser.learning_rate=2e-5,2e-4"], [], []),
        (["seed=0,1"], [], []),
        (["method.strength=0.1,0.2"], ["method={name='sd'}"], ["sd"]),
        (["method=sd,opsd"], [], ["grpo", "sd"]),
    ],
)
def test_a_sweep_whose_key_something_else_sets_too_is_refused(
    here: Path, sweeps: list[str], overrides: list[str], methods: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"--sweep makes the same arm twice, mine\S+ and mine\S+: "):
        plan(["mine.toml"], overrides, seeds=[0], baseline=None, folder=Path("out"), methods=methods, sweeps=sweeps)


def test_two_configs_alike_may_be_swept(here: Path) -> None:
    Path("twin.toml").write_text(Path("mine.toml").read_text(encoding="utf-8"), encoding="utf-8")
    sweeps = ["optimiser.learning_rate=1e-5,1e-4"]
    planned = plan(["mine.toml", "twin.toml"], [], seeds=[0], baseline=None, folder=Path("out"), sweeps=sweeps)
    assert len(planned.arms) == 4


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("1", [0]), ("0,5,7", [0, 5, 7]), ("5,", [5]), (" 2 , 1 ", [2, 1])]
)
def test_seeds_are_a_number_or_a_list(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0", "no seed at all"),
        ("1,1", "names a seed twice"),
        ("a", "write whole"),
        ("", "how many"),
        ("-1", "how"),
    ],
)
def test_seeds_that_cannot_be_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_seeds(text)


def test_a_dry_run_lists_the_arms_with_what_differs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "mine.toml", "--methods", "grpo,opsd", "--seeds", "3", "--out", "out", "--dry-run"]
    with pytest.raises(SystemExit) as end:
        main(command)
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert lines[0] == "2 arms × 3 seeds (0, 1, 2) = 6 runs of 2 steps in out; baseline: mine-grpo"
    assert lines[1].startswith('mine-grpo (from mine.toml): method.name = "grpo", ')
    assert lines[2].startswith('mine-opsd (from mine.toml): method.name = "opsd", method.teacher_rate = 0.1, ')
    # Values as a config writes them, and a key that a config leaves out.
    assert "method.dual_clip = unset" in lines[1] and "method.weight_drift = false" in lines[2]
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["seeds"], report["steps"], report["baseline"]) == ([0, 1, 2], 2, "mine-grpo")
    grpo, opsd = (arm["differs"] for arm in report["arms"])
    assert (grpo["method.clip_low"], opsd["method.context"]) == (0.2, "solution")
    assert not {key.partition(".")[0] for key in grpo | opsd} - {"method", "optimiser"}
    with pytest.raises(SystemExit):
        main([*command, "--sweep", "optimiser.learning_rate=1e-5,1e-4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines[1:5]] == [
        f"mine-{method}-learning_rate-{rate}" for method in ("grpo", "opsd") for rate in ("1e-5", "1e-4")
    ]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [(",", "--methods ',' names no method"), ("grpo, grpo", "--methods grpo,grpo names a method twice")],
)
def test_methods_that_make_no_comparison_are_refused(
    methods: str, sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "mine.toml", "--methods", methods, "--out", "out"])
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.long
def test_made_arms_train_and_are_compared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "mine.toml", "--methods", "grpo,opsd", "--out", "out", "--jobs", "2", "--json"]
    with pytest.raises(SystemExit) as end:
        main(command)
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    result = json.loads(said.out)
    assert [arm["name"] for arm in result["arms"]] == ["mine-grpo", "mine-opsd"]
    assert "mine-opsd seed 0: done" in said.err
    stored = json.loads(Path("out/runs/mine-opsd/seed-0/config.json").read_text(encoding="utf-8"))
    assert (stored["method"]["name"], stored["method"]["teacher_rate"]) == ("opsd", 0.1)
    assert last_line(Path("out/runs/mine-grpo/seed-0/evaluations.jsonl")) is not None
