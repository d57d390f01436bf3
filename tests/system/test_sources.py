"""Every command takes a config, a run folder, a checkpoint or a model, and one function decides what an argument is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import selfdistill as sd
from selfdistill.cli.app import app, main
from selfdistill.config.run import config_for, load_config
from selfdistill.config.sources import collision, find_source
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.training.atomic import write_folder
from selfdistill.training.checkpoint import save_best
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import find_weights, load_models
from support.runs import as_toml, tiny_run, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps that keeps the last two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "mine.v2"
    overrides = ("steps=3", "checkpoint.every=1", "evaluation.every=1", "seed=4", "sampling.max_tokens=7")
    train(tiny_run(Path("countdown-base"), "sdpo", *overrides), folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> Path:
    """A working folder with one of each that an argument may name."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(as_toml({"method": {"name": "opsd"}}), encoding="utf-8")
    Path("rows.jsonl").write_text('{"question": "1"}\n', encoding="utf-8")
    Path("empty").mkdir()
    Path("run").symlink_to(finished)
    Path("copied").mkdir()
    Path("copied/model").symlink_to(finished / "checkpoints" / "best")
    Path("model").symlink_to(finished / "checkpoints" / "best")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "checkpoint", "label"),
    [
        ("countdown-grpo", "config", None, "countdown-grpo"),
        ("mine.toml", "config", None, "mine"),
        ("./mine.toml", "config", None, "mine"),
        ("run/config.json", "config", None, "config"),
        ("run", "run", None, "mine.v2"),
        ("run/", "run", None, "mine.v2"),
        ("run/checkpoints/best", "run", "best", "best"),
        ("run/checkpoints/step-000003", "run", "3", "step-000003"),
        ("run/checkpoints/step-000003/model", "run", "3", "model"),
        ("model", "model", None, "best"),
        ("copied", "model", None, "copied"),
        ("countdown-base", "model", None, "countdown-base"),
        ("Qwen/Qwen3-0.6B", "model", None, "Qwen3-0.6B"),
        ("empty", "nothing", None, "empty"),
        ("nowhere.toml", "nothing", None, "nowhere.toml"),
        ("configs/nowhere.toml", "nothing", None, "nowhere.toml"),
        ("./nowhere", "nothing", None, "nowhere"),
        ("../nowhere", "nothing", None, "nowhere"),
        ("a/b/c", "nothing", None, "c"),
    ],
)
def test_one_function_decides_what_an_argument_is(
    name: str, kind: str, checkpoint: str | None, label: str, folders: Path
) -> None:
    source = find_source(name)
    assert (source.kind, source.checkpoint, source.label) == (kind, checkpoint, label)


def test_a_folder_that_is_a_run_and_a_model_is_refused_by_every_command(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = folders / "both"
    (both / "checkpoints").mkdir(parents=True)
    (both / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    for command in ("train", "evaluate", "contexts", "teachers", "inspect", "compare", "data check"):
        with pytest.raises(SystemExit):
            main([*command.split(), "both", *(["--out", "look"] if command in ("inspect", "compare") else [])])
        said = capsys.readouterr()
        assert "both is both a run folder and a model directory" in said.err, command
        assert said.err.count("\n") == 1


def test_a_misspelt_config_is_named_even_beside_a_task() -> None:
    with pytest.raises(ConfigError, match="did you mean 'countdown-grpo'"):
        config_for("countdwn-grpo", "countdown", command="contexts", with_method=True)


def test_a_shipped_name_that_hides_a_folder_is_said(folders: Path) -> None:
    (folders / "countdown-grpo").mkdir()
    assert collision("countdown-grpo") is not None
    assert collision("./countdown-grpo") is None
    assert collision("countdown-opsd") is None


@pytest.mark.parametrize(
    ("arguments", "checkpoint", "step"),
    [
        (["run"], "last", 3),
        (["run", "--checkpoint", "last"], "last", 3),
        (["run", "--checkpoint", "2"], "step", 2),
        (["run/checkpoints/step-000002"], "step", 2),
        (["run/checkpoints/step-000003"], "last", 3),
    ],
)
def test_evaluate_says_which_checkpoint_it_took(
    arguments: list[str], checkpoint: str, step: int, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--limit", "2", "--samples", "1"]
    main_quietly(["evaluate", *arguments, *few, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["checkpoint"], result["step"], result["max_tokens"]) == (checkpoint, step, 7)
    assert result["weights"].endswith(f"checkpoints/step-{step:06d}/model")
    main_quietly(["evaluate", *arguments, *few])
    which = "checkpoint" if checkpoint == "step" else "last checkpoint"
    assert f"({which}, step {step})\n" in capsys.readouterr().out


def test_the_best_checkpoint_names_its_own_step(folders: Path) -> None:
    """Not the step of the highest accuracy: ``evaluation.best`` may name another metric."""
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    weights = find_weights("run", load_config("run"), "best")
    assert weights.step == summary["best_step"]
    assert weights.describe() == f"run/checkpoints/best (best checkpoint, step {weights.step})"
    weights_file = Path("model/model.safetensors")
    save_best(Path("other/checkpoints"), 7, lambda folder: shutil.copy(weights_file, folder))
    for name in ("config.json", "evaluations.jsonl"):
        shutil.copy(f"run/{name}", f"other/{name}")
    assert find_weights("other", load_config("run"), "best").step == 7
    # An earlier version did not write the step down.
    write_folder(Path("other/checkpoints/best"), lambda folder: (folder / "model.safetensors").touch())
    assert find_weights("other", load_config("run"), "best").describe() == "other/checkpoints/best (best checkpoint)"


def test_a_run_of_a_device_that_is_not_here_is_looked_at_on_the_one_that_is(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("run", "far", symlinks=False)
    config = json.loads(Path("far/config.json").read_text(encoding="utf-8"))
    config["model"]["device"] = "cuda:99"
    config["sampling"]["max_batch_size"] = 4096
    Path("far/config.json").write_text(json.dumps(config), encoding="utf-8")
    there = sd.evaluate("far", limit=1, samples=1, max_tokens=5, temperature=0.0)
    here = sd.evaluate("run", limit=1, samples=1, max_tokens=5, temperature=0.0)
    said = [one for one in there["warnings"] if one not in here["warnings"]]
    assert len(said) == 1 and said[0].startswith("the run trained on cuda:99, which is not here: ")
    assert there["avg"] == here["avg"]
    main_quietly(["contexts", "far", "--examples", "1", "--completions", "1"])
    assert "the run trained on cuda:99" in capsys.readouterr().out
    # A device that the user names must be there.
    with pytest.raises(ConfigError, match=r"model.device 'cuda:98' cannot be used here"):
        sd.evaluate("far", limit=1, overrides=["model.device=cuda:98"])


@pytest.mark.parametrize(
    ("name", "checkpoint", "sentence"),
    [
        ("run", "1", "run has no checkpoint '1': write best, last or a step; it keeps those of steps 2, 3"),
        ("run", "newest", "run has no checkpoint 'newest'"),
        ("run/checkpoints/best", "2", "run/checkpoints/best is a checkpoint already"),
        ("countdown-grpo", "best", "countdown-grpo is no run folder"),
        ("countdown-base", "last", "countdown-base is no run folder"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_one_sentence(name: str, checkpoint: str, sentence: str, folders: Path) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=sentence):
        find_weights(name, load_config("countdown-grpo"), checkpoint)


def test_options_and_settings_override_a_config(folders: Path) -> None:
    Path("mine.toml").write_text(
        'method = "opsd"\nmodel.path = "countdown-base"\nevaluation = { samples = 3, temperature = 0.5 }\n'
        'sampling.max_tokens = 9\n[task]\nkind = "countdown"\ndifficulty = "easy"\n',
        encoding="utf-8",
    )
    own = sd.evaluate("mine.toml", limit=1)
    assert (own["weights"], own["samples"], own["temperature"], own["max_tokens"]) == ("countdown-base", 3, 0.5, 9)
    given = sd.evaluate("mine.toml", limit=1, samples=1, temperature=0.0, max_tokens=5)
    assert (given["samples"], given["temperature"], given["max_tokens"]) == (1, 0.0, 5)
    assert config_for("mine.toml", None, ["task.difficulty=hard"], command="evaluate").task.difficulty == "hard"  # type: ignore[union-attr]
    # The same kind of task keeps its keys, another one has none of them, and no reward that was meant for the first.
    assert config_for("mine.toml", "countdown", [], command="evaluate").task.difficulty == "easy"  # type: ignore[union-attr]
    assert config_for("mine.toml", "toolbox", ["reward=a:b"], command="evaluate").task.kind == "toolbox"


def test_a_command_that_needs_a_method_says_so_of_a_model() -> None:
    with pytest.raises(ConfigError, match="countdown-base is a model, which names no task: add --task"):
        config_for("countdown-base", None, [], command="teachers", with_method=True)
    with pytest.raises(ConfigError, match="countdown-base names no method: add --set method=opsd"):
        config_for("countdown-base", "countdown", [], command="teachers", with_method=True)
    config = config_for("countdown-base", "countdown", ["method=opsd"], command="teachers", with_method=True)
    assert (config.model.path, config.method) == ("countdown-base", {"name": "opsd"})


def test_a_model_is_trained_once_its_method_and_task_are_named(folders: Path) -> None:
    with pytest.raises(ConfigError, match="is a model, which names no method and no task: add --set"):
        load_config("countdown-base", ["method=opsd"])
    assert load_config("countdown-base", ["method=opsd", "task.kind=countdown"]).model.path == "countdown-base"
    with pytest.raises(ConfigError, match="holds rows and is no config: selfdistill init --model MODEL --data rows"):
        load_config("rows.jsonl")
    with pytest.raises(ConfigError, match=r"is a checkpoint: continue its run with train .*run --resume"):
        load_config("run/checkpoints/best")


def test_teachers_of_a_run_are_those_of_its_checkpoint(folders: Path) -> None:
    """The student has the weights of the checkpoint, the averaged teacher its own, and both differ from the base."""
    problem = build_problem(load_config("run"))
    start, _ = load_models(problem)
    now, weights = load_models(problem, "run")
    assert weights.step == 3
    stored = sd.load_policy("run")[0].model.state_dict()
    name = next(name for name in stored if name.endswith("q_proj.weight"))
    student, average = now.policy.model.state_dict()[name], now.teachers.copies["ema"].model.state_dict()[name]
    base = start.policy.model.state_dict()[name]
    assert student.equal(stored[name])
    assert not student.equal(base)
    assert 0 < (average - base).norm() < (student - base).norm()
    with pytest.raises(CheckpointError, match="the method's teacher follows the student: choose a step"):
        load_models(problem, "run", checkpoint="best")


def test_inspect_shows_the_method_of_a_config_or_run(folders: Path) -> None:
    few = {"problems": 1, "samples": 1, "max_tokens": 5}
    assert sd.inspect("countdown-opsd", **few).summary["hyperparameters"].keys() == {"countdown-opsd"}  # type: ignore[arg-type]
    of_run = sd.inspect("run", **few).summary  # type: ignore[arg-type]
    assert (of_run["hyperparameters"].keys(), of_run["checkpoint"], of_run["step"]) == ({"mine.v2"}, "last", 3)
    named = sd.inspect("run", methods=["grpo"], checkpoint=2, **few).summary  # type: ignore[arg-type]
    assert (named["hyperparameters"].keys(), named["step"]) == ({"grpo"}, 2)


def test_data_check_reads_the_rows_of_a_config(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": "1 + 1?", "a": "2"}, {"q": "2 + 2?"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("rows.json").write_text(json.dumps(rows), encoding="utf-8")
    task = 'kind = "math"\nprompt = "q"\nanswer = "a"\nsuffix = " Box it."\npath = "rows.jsonl"\n'
    Path("mine.toml").write_text(f'method = "grpo"\n[task]\n{task}', encoding="utf-8")
    columns = ["--set", "task.prompt=q", "--set", "task.answer=a"]
    for arguments in (
        ["mine.toml"],
        ["rows.jsonl", "--task", "math", *columns],
        ["rows.json", "--task", "math", *columns],
    ):
        with pytest.raises(SystemExit) as end:
            main(["data", "check", *arguments])
        said = capsys.readouterr().out
        assert end.value.code == 1, "a row is rejected"
        assert said.startswith("2 rows, 1 rejected, 1 checked, 100.0% verified\nrejected: ")
        assert "rows:1 as the task maps it:\n  user: 1 + 1?" in said
        assert said.endswith("  answer: 2\n")
    assert "user: 1 + 1? Box it.\n" in _checked("mine.toml", capsys)
    for arguments, sentence in (
        (["countdown-grpo"], "task 'countdown' makes its own problems, so there are no rows to check"),
        ([], "name the rows to check with --path, as in"),
        (["rows.jsonl", "--path", "rows.json"], "leave one of them out"),
        (["nowhere.toml"], "'nowhere.toml' not found; there is no such file in "),
        (["mine.toml", "--split", "train"], "choose among the rows of --path"),
    ):
        with pytest.raises(SystemExit):
            main(["data", "check", *arguments])
        assert sentence in capsys.readouterr().err


def _checked(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["data", "check", name])
    return capsys.readouterr().out


def main_quietly(arguments: list[str]) -> None:
    app(arguments, standalone_mode=False)
