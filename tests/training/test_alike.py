"""Runs of a comparison that begin alike: the untrained model is evaluated once, and every figure is as without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from selfdistill.config.run import RunConfig, parse_config
from support.runs import lines, open_run, outcome, recorder, tiny_run

FINAL = ("steps=2", "evaluation.final=test")


def trained(config: RunConfig, folder: Path, untrained: Path | None = None) -> list[str]:
    """Train a run to its end; what it said of its start."""
    run = open_run(config, folder, untrained=untrained)
    run.train()
    return [sentence for sentence in recorder(run).said if "untrained model" in sentence]


def test_a_run_that_takes_its_start_from_another_is_the_same_bit_for_bit(model: Path, tmp_path: Path) -> None:
    grpo, antisd = (tiny_run(model, method, *FINAL) for method in ("grpo", "antisd"))
    untrained = tmp_path / "untrained"
    assert trained(grpo, tmp_path / "runs" / "grpo", untrained) == []
    said = trained(antisd, tmp_path / "runs" / "antisd", untrained)
    assert said == [f"the untrained model was evaluated by {tmp_path / 'runs' / 'grpo'}: these are its figures"]
    assert trained(antisd, tmp_path / "alone") == []
    assert outcome(tmp_path / "runs" / "antisd") == outcome(tmp_path / "alone")
    assert lines(tmp_path / "runs" / "antisd" / "test.jsonl") == lines(tmp_path / "alone" / "test.jsonl")
    seconds = [
        json.loads((tmp_path / "runs" / name / "checkpoints" / "step-000002" / "state.json").read_text())["counters"]
        for name in ("grpo", "antisd")
    ]
    assert all(counters["seconds"]["evaluation"] > 0 for counters in seconds)


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=1",),
        ("evaluation.samples=3",),
        ("evaluation.temperature=0.5",),
        ("task.difficulty=default",),
        ("reward=support.rewards:never",),
        ("model.lora.rank=2",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_decides_an_evaluation_is_evaluated_anew(model: Path, tmp_path: Path, overrides: Sequence[str]) -> None:
    untrained = tmp_path / "untrained"
    trained(tiny_run(model, "grpo", *FINAL), tmp_path / "one", untrained)
    assert trained(tiny_run(model, "grpo", *FINAL, *overrides), tmp_path / "two", untrained) == []
    assert len(list(untrained.iterdir())) == 2


def test_other_weights_are_evaluated_anew(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", *FINAL)
    trained(config, tmp_path / "one", tmp_path / "untrained")
    trained(tiny_run(tmp_path / "one", "grpo", *FINAL), tmp_path / "two", tmp_path / "untrained")
    assert len(list((tmp_path / "untrained").iterdir())) == 2


def test_rows_with_other_answers_are_evaluated_anew(model: Path, tmp_path: Path) -> None:
    rows, untrained = tmp_path / "rows.jsonl", tmp_path / "untrained"
    for name, more in (("one", 0), ("two", 0), ("three", 1)):
        written = [{"question": f"What is {n} + 1?", "answer": str(n + 1 + more)} for n in range(8)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
        task = {"kind": "math", "path": str(rows), "prompt": "question", "answer": "answer", "validation_share": 0.5}
        raw = {**tiny_run(model, "grpo", "steps=1").model_dump(exclude_unset=True), "task": task}
        raw.pop("reward")
        said = trained(parse_config(raw, "a test"), tmp_path / name, untrained)
        assert len(said) == (name == "two")


def test_a_run_that_is_deleted_takes_its_figures_with_it(model: Path, tmp_path: Path) -> None:
    config, untrained = tiny_run(model, "grpo", *FINAL), tmp_path / "untrained"
    trained(config, tmp_path / "one", untrained)
    shutil.rmtree(tmp_path / "one")
    assert trained(config, tmp_path / "two", untrained) == [], "nothing is left to take"
    assert len(trained(config, tmp_path / "three", untrained)) == 1


def test_figures_of_the_methods_own_teacher_are_not_shared(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "sdpo", *FINAL, "evaluation.best=teacher_shift")
    for name in ("one", "two"):
        assert trained(config, tmp_path / name, tmp_path / "untrained") == []
    assert not (tmp_path / "untrained").exists()


def test_a_folder_that_moves_keeps_what_it_knows(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", *FINAL)
    trained(config, tmp_path / "old" / "runs" / "one", tmp_path / "old" / "untrained")
    (tmp_path / "old").rename(tmp_path / "new")
    said = trained(config, tmp_path / "new" / "runs" / "two", tmp_path / "new" / "untrained")
    assert said == [f"the untrained model was evaluated by {tmp_path / 'new' / 'runs' / 'one'}: these are its figures"]
