"""Two processes with a base in 4 bits and moments in 8 make the run of one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.ranks import WholeRun, run_cases
from support.runs import metrics
from support.tiny import save_tiny_model

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")

SETTINGS = (
    *("model.quantisation=nf4", "model.lora.rank=64", "model.lora.alpha=64", "optimiser.kind=adamw8bit"),
    *("steps=2", "parallel=ddp"),
)


def test_two_processes_make_the_run_of_one(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    run_cases(
        [WholeRun(name, ranks, "model", "sdpo", SETTINGS) for name, ranks in (("alone", 1), ("shared", 2))], tmp_path
    )
    for alone, shared in zip(metrics(tmp_path / "alone"), metrics(tmp_path / "shared"), strict=True):
        for name in ("loss", "grad_norm", "student_entropy"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-4)
    one, two = (
        load_file(tmp_path / name / "checkpoints" / "step-000002" / "model" / "adapter_model.safetensors")
        for name in ("alone", "shared")
    )
    # A moment near the border of two of its 256 values falls to either side.
    apart = sum(float((one[name] - weight).norm() ** 2) for name, weight in two.items()) ** 0.5
    whole = sum(float(weight.norm() ** 2) for weight in one.values()) ** 0.5
    assert apart < 1e-3 * whole
