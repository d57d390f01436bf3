"""The benchmark for GPUs, at toy size on this machine: it must run where one is lent for minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpu


def test_the_toy_run_measures_every_path_and_method_and_says_what_it_ran_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.main(["--tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert capsys.readouterr().out.startswith("Run on a CPU (no GPU: seconds and memory say nothing about one).")
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    parts = found["shapes"]["tiny"]
    assert [case["method"] for case in parts["steps"]] == list(gpu.METHODS)
    assert {case["outcome"] for case in parts["steps"]} == {"measured"}
    # Four completions, of which those with a context are scored; CREDIT has two teachers, GRPO none.
    by_method = {case["method"]: case for case in parts["steps"]}
    assert (by_method["grpo"]["teachers"], by_method["credit"]["teachers"]) == (0, 2)
    assert by_method["grpo"]["completions"] == 4 and by_method["grpo"]["completion_tokens"] == 24
    for contexts in (1, 4):
        ours, naive = (
            next(c for c in parts["loss"] if (c["path"], c["contexts"]) == (path, contexts))
            for path in ("ours", "naive")
        )
        assert ours["loss"] == pytest.approx(naive["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(naive["gradient_norm"], rel=1e-5)


def test_real_sizes_are_refused_without_a_gpu() -> None:
    with pytest.raises(SystemExit, match="no GPU was found"):
        gpu.main(["--device", "cpu"])
