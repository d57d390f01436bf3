"""u of a run splits into pMI and drift under the weights that its teacher really has, per token and completion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from selfdistill.inspection.command import InspectOptions, inspect
from selfdistill.inspection.files import arrow_table, page_data_of
from selfdistill.inspection.page import render_microscope
from support.engine import load_exact, token_logprobs
from support.runs import LORA, tiny_run, train
from support.tiny import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


def inspected(run: Path, **options: object) -> tuple[object, list[str]]:
    told: list[str] = []
    chosen = InspectOptions(None, problems=3, samples=2, max_tokens=10, **options)  # type: ignore[arg-type]
    return inspect(str(run), None, chosen, overrides=[], log=told.append), told


@pytest.mark.parametrize("weights", ["frozen", "ema"])
def test_pmi_and_drift_are_those_of_plain_forwards(weights: str, folder: Path, tmp_path: Path) -> None:
    method = {"name": "opsd", "weights": weights, "teacher_rate": 0.5 if weights == "ema" else 0.0}
    train(tiny_run(folder, method, "steps=2", "optimiser.warmup=0"), tmp_path / "run")
    found, _ = inspected(tmp_path / "run")
    findings, summary = found.table.findings, found.summary  # type: ignore[attr-defined]
    name = f"solution ({weights})"
    student, _ = load_exact(tmp_path / "run" / "checkpoints" / "step-000002" / "model")
    teacher, _ = load_exact(folder)
    if weights == "ema":
        state = torch.load(tmp_path / "run" / "checkpoints" / "step-000002" / "training.pt", weights_only=True)
        teacher.model.load_state_dict({key: value.double() for key, value in state["teachers"].items()}, strict=False)
    sums: dict[str, list[float]] = {"pmi": [], "weight_drift": [], "u": []}
    begin = 0
    for (g, i), prompts in zip(findings.places, findings.prompts, strict=True):
        ids = findings.groups[g].rollouts[i].completion_ids
        shown, bare = (
            token_logprobs(teacher.model, prompts[one], ids, teacher.vocab_size) for one in ("solution", "student")
        )
        own = token_logprobs(student.model, prompts["student"], ids, student.vocab_size)
        rows = slice(begin, begin + len(ids))
        assert findings.pmi[name][rows] == pytest.approx((shown - bare).numpy(), abs=2e-4)
        assert findings.weight_drift[name][rows] == pytest.approx((bare - own).numpy(), abs=2e-4)
        begin += len(ids)
        for part, values in (("pmi", shown - bare), ("weight_drift", bare - own), ("u", shown - own)):
            sums[part].append(float(values.sum()))
    assert max(map(abs, sums["weight_drift"])) > 1e-2, "the weights have moved"
    for part, totals in sums.items():
        assert summary["drift"][name][part]["mean"] == pytest.approx(np.mean(totals), abs=1e-3)
    # The same columns stand in the file and, with their sums over each completion, on the page.
    columns = arrow_table(found.table).column_names  # type: ignore[attr-defined]
    assert {f"pmi {name}", f"drift {name}"} <= set(columns)
    page = render_microscope(page_data_of(found.table, summary, found.chat))  # type: ignore[attr-defined]
    assert "Σu of a completion is pMI and drift of the weights" in page
    assert "but for pmi and drift" in page


@pytest.mark.parametrize("weights", ["frozen", "ema"])
def test_the_teacher_of_an_adapter_is_split_too(weights: str, folder: Path, tmp_path: Path) -> None:
    method = {"name": "opsd", "weights": weights, "teacher_rate": 0.0}
    train(tiny_run(folder, method, "steps=2", "optimiser.warmup=0", *LORA), tmp_path / "run")
    found, _ = inspected(tmp_path / "run")
    findings, name = found.table.findings, f"solution ({weights})"  # type: ignore[attr-defined]
    # A frozen teacher is the model without its adapter, and an average of rate 0 stays at the adapter of step 0.
    teacher, _ = load_exact(folder)
    begin = 0
    for (g, i), prompts in zip(findings.places, findings.prompts, strict=True):
        ids = findings.groups[g].rollouts[i].completion_ids
        rows = slice(begin, begin + len(ids))
        shown, bare = (
            token_logprobs(teacher.model, prompts[one], ids, teacher.vocab_size).numpy()
            for one in ("solution", "student")
        )
        assert findings.pmi[name][rows] == pytest.approx(shown - bare, abs=2e-4)
        assert findings.weight_drift[name][rows] == pytest.approx(bare - findings.logprobs["student"][rows], abs=2e-4)
        begin += len(ids)
    assert np.abs(findings.weight_drift[name]).max() > 1e-3, "the adapter has moved"


def test_a_teacher_that_has_not_moved_reads_what_the_environment_said(tmp_path: Path) -> None:
    # A random model whose turns end soon: every second id is one that ends a turn.
    model = save_tiny_model(tmp_path / "model", seed=3, max_position_embeddings=512)
    path = model / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {"eos_token_id": [2, *range(9, 90, 2)]}), encoding="utf-8")
    unmoved = ("optimiser.learning_rate=1e-30", "sampling.prompts=2", "task.kind=countdown-turns")
    config = tiny_run(model, {"name": "opsd", "weights": "frozen"}, "steps=1", *unmoved)
    train(config.model_copy(update={"reward": None}), tmp_path / "run")
    found, _ = inspected(tmp_path / "run")
    findings = found.table.findings  # type: ignore[attr-defined]
    assert any(gaps["solution"] for gaps in findings.gaps), "some episode has a second turn"
    # Its u is all pMI, at every token of every turn.
    assert findings.pmi["solution (frozen)"] == pytest.approx(findings.gains()["solution"], abs=1e-5)
    assert findings.weight_drift["solution (frozen)"] == pytest.approx(0.0, abs=1e-5)


def test_a_live_teacher_has_no_drift_and_the_best_checkpoint_no_average(folder: Path, tmp_path: Path) -> None:
    live = {"name": "opsd", "weights": "live"}
    train(tiny_run(folder, live, "steps=1", "checkpoint.every=1", "evaluation.every=1"), tmp_path / "live")
    found, _ = inspected(tmp_path / "live")
    assert found.summary["drift"] == {}  # type: ignore[attr-defined]
    train(tiny_run(folder, "sdpo", "steps=1", "checkpoint.every=1", "evaluation.every=1"), tmp_path / "run")
    found, told = inspected(tmp_path / "run", checkpoint="best")
    assert found.summary["drift"] == {}  # type: ignore[attr-defined]
    [warning] = found.warnings  # type: ignore[attr-defined]
    assert "name a step to see the drift" in warning and warning in told


def test_a_run_of_an_earlier_version_is_inspected_by_other_methods_as_before(folder: Path, tmp_path: Path) -> None:
    config = tiny_run(folder, {"name": "opsd", "weights": "frozen"}, "steps=1", "checkpoint.every=1")
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    for method in ({**recorded["method"], "unknown": 1}, None):
        path.write_text(json.dumps(recorded | {"method": method}), encoding="utf-8")
        chosen = InspectOptions(["opsd"], problems=1, samples=2, max_tokens=4)
        assert inspect(str(tmp_path / "run"), None, chosen, overrides=[]).summary["drift"] == {}
