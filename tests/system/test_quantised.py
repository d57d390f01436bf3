"""A model whose weights were quantised, in a file or here: its name says so on every page."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from selfdistill.api.inspection import inspect
from selfdistill.comparison.compare import plan, write_results
from selfdistill.training.banner import warnings
from selfdistill.training.build import assemble
from support.pages import Page
from support.runs import as_toml, lines, tiny_run, train
from support.tiny import save_tiny_model

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize("kind", ["Q4_1", pytest.param("nf4", marks=needs_bitsandbytes)])
def test_a_quantised_start_is_named_on_every_page(kind: str, tmp_path: Path) -> None:
    start, arm, folder = tmp_path / "model", tmp_path / "arm.toml", tmp_path / "compare"
    save_tiny_model(start, hidden_size=64)
    settings = ["steps=1"]
    if kind == "nf4":
        settings += ["model.quantisation=nf4", "model.lora.rank=2"]
    else:
        record = {"file": "a.gguf", "tensors": {"F32": 9, kind: 5}}
        (start / "gguf.json").write_text(json.dumps(record), encoding="utf-8")
    config = tiny_run(start, "grpo", *settings)
    arm.write_text(as_toml(config.model_dump(exclude_none=True)), encoding="utf-8")
    compared = plan([str(arm)], [], seeds=[0], baseline=None, folder=folder)
    [(_, _, run)] = compared.runs()
    train(compared.arms[0].config, run)
    assert lines(run / "starts.jsonl")[0]["quantised"] == kind
    write_results(compared)
    for page in (run / "report.html", folder / "compare.html"):
        assert f"Model model (quantised, {kind})" in Page(page).text
    table = (folder / "compare.md").read_text("utf-8")
    assert f"Model {start} (quantised, {kind}), task".replace("_", "\\_") in table

    looked = str(run) if kind == "nf4" else str(start)
    task = None if kind == "nf4" else "countdown"
    inspect(looked, task=task, out=tmp_path / "look", methods=["grpo"], problems=2, samples=1, max_tokens=4)
    assert f" (quantised, {kind})" in Page(tmp_path / "look" / "index.html").text


@needs_bitsandbytes
def test_a_quantised_gguf_names_both(tmp_path: Path) -> None:
    start = save_tiny_model(tmp_path / "model", hidden_size=64)
    (start / "gguf.json").write_text('{"file": "a.gguf", "tensors": {"F32": 9, "Q4_1": 5}}', encoding="utf-8")
    config = tiny_run(start, "grpo", "steps=1", "model.quantisation=nf4", "model.lora.rank=2")
    train(config, tmp_path / "run")
    assert lines(tmp_path / "run" / "starts.jsonl")[0]["quantised"] == "Q4_1, then nf4"
    stored, kept = [told for told in warnings(assemble(config)) if told.startswith("model:")]
    assert stored.startswith("model: its weights were quantised (Q4_1) before they were converted from GGUF")
    assert kept == "model: its linear layers are kept in nf4, so it is not the original model"
