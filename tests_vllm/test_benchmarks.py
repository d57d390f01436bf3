"""The benchmarks that measure vLLM, at toy size: all that the one for GPUs does, and sampling beside its peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu
import sampling
from gpu_sampling import LORA
from selfdistill.models.sizing import FLOAT32, adapter_parameters
from sizing import TINY
from support.compiler import FOUND


def test_the_whole_toy_run_of_the_benchmark_for_gpus(tmp_path: Path) -> None:
    gpu.main(["--tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["shapes"]["tiny"]
    assert [(case["method"], case["outcome"]) for case in parts["steps"]] == [
        (name, "measured") for name in gpu.METHODS
    ]
    compiled = [case["outcome"] for case in parts["loss"] if case["path"] == "compiled"]
    assert compiled == ["measured" if FOUND else "not installed"] * 2
    speeds = [(case["engine"], case["rows"]) for case in parts["sampling"] if "rows" in case]
    assert speeds == [(engine, rows) for engine in ("hf", "vllm", "2 vllm servers") for rows in (1, 3)]
    assert {case["outcome"] for case in parts["sampling"]} == {"measured"}
    sent = {case["engine"]: case["sync_bytes"] for case in parts["sampling"] if "sync_bytes" in case}
    assert list(sent) == ["vllm", "2 vllm servers", "vllm with an adapter"]
    # One engine is sent the weights alone, the others files with a tokenizer.
    assert sent["vllm"] == TINY.parameters * FLOAT32 < sent["2 vllm servers"]
    assert sent["vllm with an adapter"] > adapter_parameters(TINY, LORA.rank) * FLOAT32


def test_sampling_beside_its_peers(tmp_path: Path) -> None:
    sizes = ["--models", "tiny", "--rows", "1", "4", "--group", "2", "--prompt", "16", "--tokens", "8", "--rounds", "1"]
    engine = ["--eager", "--cache-gib", "1", "--threads", "1", "--vllm-python", sys.executable]
    sampling.main([*sizes, *engine, "--out", str(tmp_path / "sampling.json")])
    found = json.loads((tmp_path / "sampling.json").read_text(encoding="utf-8"))
    assert {side: one["outcome"] for side, one in found["sides"].items()} == dict.fromkeys(
        ("ours", "generate", "vllm"), "measured"
    )
    assert [(case["model"], case["rows"], list(case["over"])) for case in found["cases"]] == [
        ("tiny", rows, ["generate", "vllm"]) for rows in (1, 4)
    ]
