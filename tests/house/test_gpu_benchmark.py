"""The benchmark for GPUs, at toy size on this machine: it must run where one is lent for minutes.

What is compiled is only traced here. `make test-vllm` runs all of it, with a compiler and with vLLM.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

import gpu
import gpu_sampling
from sizing import TINY
from support.compiler import OWN_WARNING

MEASURED = ("ours", "naive", "compiled")
METHODS = ("grpo", "credit")
ENGINES = ["vllm", "2 vllm servers", "vllm with an adapter"]


@pytest.mark.long
@OWN_WARNING
def test_the_toy_run_measures_every_path_and_engine_and_says_what_it_ran_on(
    traced: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_sampling, "find_spec", lambda name: None)
    gpu.main(["--tiny", "--device", "cpu", "--methods", *METHODS, "--out", str(tmp_path / "gpu.json")])
    assert capsys.readouterr().out.startswith("Run on a CPU (no GPU: seconds and memory say nothing about one).")
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    parts = found["shapes"]["tiny"]
    assert [case["method"] for case in parts["steps"]] == list(METHODS)
    assert {case["outcome"] for case in parts["steps"]} == {"measured"}
    # Four completions, of which those with a context are scored; CREDIT has two teachers, GRPO none.
    by_method = {case["method"]: case for case in parts["steps"]}
    assert (by_method["grpo"]["teachers"], by_method["credit"]["teachers"]) == (0, 2)
    assert by_method["grpo"]["completions"] == 4 and by_method["grpo"]["completion_tokens"] == 24
    for contexts in (1, 4):
        by_path = {case["path"]: case for case in parts["loss"] if case["contexts"] == contexts}
        assert {path for path, case in by_path.items() if case["outcome"] == "measured"} >= set(MEASURED)
        for path in MEASURED:
            assert by_path[path]["loss"] == pytest.approx(by_path["naive"]["loss"], rel=1e-5)
            assert by_path[path]["gradient_norm"] == pytest.approx(by_path["naive"]["gradient_norm"], rel=1e-5)
    # A rate is that of all rows together.
    own = [case for case in parts["sampling"] if case["engine"] == "hf"]
    assert [(case["rows"], case["tokens"]) for case in own] == [(1, 8), (3, 8)]
    for case in own:
        assert case["tokens_a_second"] * case["seconds"] == pytest.approx(case["rows"] * 8)
    others = [case for case in parts["sampling"] if case["engine"] != "hf"]
    assert others == [{"engine": engine, "outcome": "not installed"} for engine in ENGINES]


@pytest.mark.long
@OWN_WARNING
def test_a_compiled_step_gives_the_same_loss(traced: None) -> None:
    arguments = ["--tiny", "--device", "cpu", "--methods", "sdpo", "--completions", "4", "--tokens", "24"]
    counters.clear()
    options = [gpu.parse([*arguments, "--repeats", "1", *switch]) for switch in ([], ["--compile"])]
    (plain,) = gpu.step_cases(TINY, options[0], torch.float32)
    assert not counters["stats"]["unique_graphs"]
    (fast,) = gpu.step_cases(TINY, options[1], torch.float32)
    assert counters["stats"]["unique_graphs"]
    assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-4)


def test_two_servers_need_two_gpus_and_share_one_with_the_model_if_there_are_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_sampling, "find_spec", lambda name: name)
    work = gpu_sampling.Work(rows=[1, 8], prompt=512, tokens=256, vocabulary=1000)
    for gpus, servers, devices in [(0, None, None), (1, "one GPU", None), (2, None, [0, 1]), (3, None, None)]:
        cases = gpu_sampling.engine_cases(work, tiny=False, gpus=gpus)
        assert [case.name for case in cases] == ENGINES
        assert [gpu_sampling.missing(case, gpus=gpus) for case in cases] == [None, servers, None]
        assert [case.config.devices for case in cases] == [None, devices, None]
        assert {(case.config.max_model_len, case.config.max_num_seqs) for case in cases} == {(768, 8)}


def test_real_sizes_are_refused_without_a_gpu() -> None:
    with pytest.raises(SystemExit, match="no GPU was found"):
        gpu.main(["--device", "cpu"])
