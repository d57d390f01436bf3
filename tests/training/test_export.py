"""An export with its model card, in a folder and on a stand-in of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from selfdistill.cli.app import main
from selfdistill.files.jsonl import JsonLines
from selfdistill.report.numbers import percent, percent_range
from selfdistill.training.model_card import write_card
from support.fake_hub import TOKEN, FakeHub, serving_hub
from support.runs import lines, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a checkpoint at the second."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    train(tiny_run(model, "opsd", "steps=4"), folder)
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with serving_hub(hub):
        yield hub


def settings(hub: FakeHub) -> dict[str, str]:
    """What a user sets to push to a hub of one's own."""
    return {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def pushed(hub: FakeHub, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where the hub's client reads the environment."""
    command = [sys.executable, "-m", "selfdistill", "export", str(run), "--push", "lab/mine", *options]
    return subprocess.run(command, env={**os.environ, **settings(hub)}, capture_output=True, text=True, check=False)


Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def export(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """The command in this process: exit status, output and errors. The hub's client read its settings long ago."""

    def ended(run: Path, *options: str, **environment: str) -> tuple[int, str, str]:
        given = {**settings(hub), **environment}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", given["HF_ENDPOINT"])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", given["HF_HUB_OFFLINE"] == "1")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["export", str(run), *options])
        return int(end.value.code or 0), *capsys.readouterr()

    return ended


def test_a_card_says_method_data_accuracy_alarms_and_config(run: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", str(run), "--out", str(tmp_path / "out"), "--step", "2"])
    assert end.value.code == 0
    loaded = ModelCard.load(tmp_path / "out" / "README.md")
    assert loaded.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["selfdistill", "on-policy-self-distillation", "opsd"],
    }
    text = loaded.text
    assert f"All weights of `{model}` trained with the method `opsd`" in text
    assert ": step 2 of 4." in text
    assert "| difficulty | easy |" in text
    evaluations = {line["step"]: line for line in lines(run / "evaluations.jsonl")}
    assert evaluations.keys() == {0, 2, 4}
    for step in (0, 2):
        value, low, high = (evaluations[step]["avg"][key] for key in ("value", "low", "high"))
        assert f"| held out | {step} | 3 × 2 | {percent(value)} [{percent_range(low, high)}] |" in text
    assert "| held out | 4 |" not in text, "step 4 is another checkpoint's"
    assert '"learning_rate": 0.01' in text


def test_a_card_names_the_alarms_until_its_step_and_keeps_its_tables_whole(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    copied.mkdir()
    for name in ("config.json", "evaluations.jsonl", "metrics.jsonl"):
        (copied / name).write_bytes((run / name).read_bytes())
    alarms = JsonLines(copied / "alarms.jsonl")
    alarms.append({"step": 2, "name": "no_signal", "evidence": "a | b\nc\x1b[2J"}, {"step": 3, "name": "no_success"})
    text = write_card(copied, 2, tmp_path, name="me/mine").read_text(encoding="utf-8")
    assert "\n# me/mine\n" in text
    assert "| 2 | no_signal | a \\| b c␛[2J |" in text
    assert "| 3 | no_success |" not in text


def test_a_card_says_whether_an_adapter_was_merged(run: Path, tmp_path: Path) -> None:
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["model"]["lora"] = {"rank": 2, "alpha": 4.0, "target_modules": "all-linear"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def written(folder: Path) -> tuple[str, str]:
        loaded = ModelCard.load(write_card(tmp_path / "run", 2, folder))
        return loaded.data.library_name, next(line for line in loaded.text.splitlines() if "trained with" in line)

    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    path = config["model"]["path"]
    library, said = written(tmp_path / "adapter")
    assert (library, said.startswith(f"An adapter of `{path}` trained with")) == ("peft", True)
    library, said = written(tmp_path)
    assert (library, said.startswith(f"An adapter of `{path}`, merged into it, trained with")) == ("transformers", True)


def test_a_pushed_model_is_the_exported_one(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    done = pushed(hub, run, "--private", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert done.stdout.splitlines() == [
        f"step-000004 of {run} is in {tmp_path / 'out'}",
        f"step-000004 of {run} is at {hub.url}/lab/mine/commit/1",
    ]
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.repositories["lab/mine"] == files
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert b"\n# lab/mine\n" in files["README.md"]
    assert (hub.commits, hub.private) == (["Step 4 of mine"], {"lab/mine": True})
    again = pushed(hub, run, "--step", "2")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"step-000002 of {run} is at {hub.url}/lab/mine/commit/1\n"
    assert hub.commits[1:] == ["Step 2 of mine"], "a repository that exists gets a further commit"


def test_what_the_hub_refuses_is_one_sentence_before_anything_is_exported(
    hub: FakeHub, export: Export, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for environment, name, sentence in (
        ({"HF_TOKEN": "hf_wrong"}, "lab/mine", f"{hub.url} refuses (403): log in with hf auth login, or set HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "lab/mine", "is not asked, because HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "lab/mine", "http://127.0.0.1:9 does not answer ("),
        ({}, "lab/mine/deep", "is no repository: write OWNER/NAME"),
    ):
        status, _, errors = export(run, "--push", name, "--out", str(out), **environment)
        assert status == 2
        last = errors.splitlines()[-1]
        assert last.startswith("selfdistill: --push ")
        assert sentence in last
        assert "Traceback" not in errors
        assert not out.exists()
    assert hub.repositories == {}


def test_nothing_is_made_on_the_hub_for_a_run_that_cannot_be_exported(
    hub: FakeHub, export: Export, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for given, sentence in (
        ((tmp_path / "nothing",), f"{tmp_path / 'nothing'} holds no checkpoint: give the folder of a run that has"),
        ((run, "--step", "3"), f"{run} has no checkpoint of step 3; it keeps: "),
        ((run, "--out", str(tmp_path / "full")), f"{tmp_path / 'full'} is not empty: choose another --out"),
        ((run, "--dtype", "f8"), "--dtype 'f8' is no number type"),
    ):
        status, _, errors = export(given[0], "--push", "lab/mine", *given[1:])
        assert (status, errors.splitlines()[-1].startswith(f"selfdistill: {sentence}")) == (2, True)
    assert hub.repositories == {}


def test_an_export_to_nowhere_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", str(run)])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "selfdistill: export has no --out: name a folder, or a repository with --push OWNER/NAME\n"
    )
