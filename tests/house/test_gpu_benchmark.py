"""The benchmark for GPUs, at toy size on this machine: it must run where one is lent for minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import gpu
from support.compiler import FOUND, OWN_WARNING, compiles

MEASURED = {"ours", "naive", "compiled"} if FOUND else {"ours", "naive"}


@OWN_WARNING
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
        by_path = {case["path"]: case for case in parts["loss"] if case["contexts"] == contexts}
        assert {path for path, case in by_path.items() if case["outcome"] == "measured"} >= MEASURED
        for path in MEASURED:
            assert by_path[path]["loss"] == pytest.approx(by_path["naive"]["loss"], rel=1e-5)
            assert by_path[path]["gradient_norm"] == pytest.approx(by_path["naive"]["gradient_norm"], rel=1e-5)


@compiles
def test_a_compiled_step_gives_the_same_loss() -> None:
    arguments = ["--tiny", "--device", "cpu", "--methods", "sdpo", "--completions", "4", "--tokens", "24"]
    counters.clear()
    options = [gpu.parse([*arguments, "--repeats", "1", *switch]) for switch in ([], ["--compile"])]
    (plain,) = gpu.step_cases(gpu.TINY, options[0], torch.float32)
    assert not counters["stats"]["unique_graphs"]
    (fast,) = gpu.step_cases(gpu.TINY, options[1], torch.float32)
    assert counters["stats"]["unique_graphs"]
    assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-4)


def test_real_sizes_are_refused_without_a_gpu() -> None:
    with pytest.raises(SystemExit, match="no GPU was found"):
        gpu.main(["--device", "cpu"])
