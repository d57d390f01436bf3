"""A model whose weights were quantised before: its name says so on every page."""

from __future__ import annotations

import shutil
from pathlib import Path

from selfdistill.api.inspection import inspect
from selfdistill.comparison.compare import plan, write_results
from support.pages import Page
from support.runs import as_toml, lines, tiny_run, train


def test_a_quantised_start_is_named_on_every_page(model: Path, tmp_path: Path) -> None:
    start, arm, folder = tmp_path / "model", tmp_path / "arm.toml", tmp_path / "compare"
    shutil.copytree(model, start)
    (start / "gguf.json").write_text('{"file": "a.gguf", "tensors": {"F32": 9, "Q4_1": 5}}', encoding="utf-8")
    config = tiny_run(start, "grpo", "steps=1")
    arm.write_text(as_toml(config.model_dump(exclude_none=True)), encoding="utf-8")
    compared = plan([str(arm)], [], seeds=[0], baseline=None, folder=folder)
    [(_, _, run)] = compared.runs()
    train(compared.arms[0].config, run)
    assert lines(run / "starts.jsonl")[0]["quantised"] == "Q4_1"
    write_results(compared)
    for page in (run / "report.html", folder / "compare.html"):
        assert "Model model (quantised, Q4_1)" in Page(page).text
    assert f"Model {start}".replace("_", "\\_") + " (quantised, Q4\\_1), task" in (folder / "compare.md").read_text(
        "utf-8"
    )

    inspect(str(start), task="countdown", out=tmp_path / "look", methods=["grpo"], problems=2, samples=1, max_tokens=4)
    assert f"{start} (quantised, Q4_1)" in Page(tmp_path / "look" / "index.html").text
