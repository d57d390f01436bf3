"""docs/extend.md is true: its method runs as printed, from a folder outside the package, and does what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from selfdistill.cli.app import main
from selfdistill.methods import METHODS, build_method
from support.engine import distance, invent_groups, load_exact, make_bench, own_templates
from support.runs import lines
from support.tiny import save_tiny_model

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text(encoding="utf-8")
CODE, CONFIG = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0] for language in ("python", "toml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's two files."""
    (tmp_path / "my_method.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    return tmp_path


def test_it_is_short_and_names_nothing_in_the_package() -> None:
    assert len(CODE.splitlines()) < 60
    assert "contrast" not in METHODS


def test_it_runs_from_its_folder(folder: Path) -> None:
    changes = ["steps=1", "sampling.prompts=4", "evaluation.every=1", "evaluation.problems=2", "evaluation.samples=1"]
    with pytest.raises(SystemExit) as end:
        main(["train", "mine.toml", "--out", "run", *(x for change in changes for x in ("--set", change))])
    assert not end.value.code
    (line,) = lines(folder / "run" / "metrics.jsonl")
    assert line["evidence"] > 0
    assert (folder / "run" / "report.html").is_file()


def test_a_misspelt_knob_of_it_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "mine.toml", "--set", "method.strenght=2"])
    assert end.value.code == 2
    assert "did you mean 'strength'?" in capsys.readouterr().err


def test_without_strength_it_is_grpo(folder: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", seed=3)
    templates = own_templates(tmp_path)
    gradients = []
    for name, hyperparameters in (("grpo", {}), ("my_method:Contrast", {"strength": 0.0, "right": "solution"})):
        policy, chat = load_exact(model)
        bench = make_bench(policy, chat, templates, name, hyperparameters)
        bench.step(invent_groups(policy, chat))
        gradients.append(bench.gradient())
    assert distance(gradients[1], gradients[0]) < 1e-13


def test_praise_goes_where_the_evidence_is(folder: Path) -> None:
    from selfdistill.types import TokenSlice

    method = build_method("my_method:Contrast", {"strength": 0.5})
    inputs = {
        "advantage": torch.tensor([2.0, -2.0, 2.0]),
        "teacher": torch.tensor([-1.0, -1.0, float("nan")]),
        "wrong": torch.tensor([-2.0, -2.0, -1.0]),
    }
    found = method.token_advantage(TokenSlice(torch.zeros(3, dtype=torch.long), {}, inputs))  # type: ignore[attr-defined]
    spread = torch.exp(0.5 * torch.tanh(torch.tensor(1.0)))
    torch.testing.assert_close(found, torch.tensor([2.0 * spread, -2.0 / spread, 2.0]))
