"""What runs on a CPU runs on a device apart from it: nothing meets that a GPU would keep from meeting.

No GPU is needed: support/apart.py says what stands in for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.training.atomic import checkpoints
from selfdistill.training.clock import Clock
from support.apart import NAME, cases
from support.quick import quick_first
from support.runs import lines, metrics
from support.tiny import save_tiny_model

QUICK_CASES = ("grpo", "purified", "pbsd", "skill_sd", "lora", "recomputed", "resumed", "bf16", "inspected")
TRAINED = [name for name in cases() if name not in ("inspected", "bf16")]


def make(folder: Path, names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The folder with these cases on both devices, and what failed apart from the CPU."""
    save_tiny_model(folder / "model", seed=0, num_hidden_layers=1)
    tests = Path(__file__).parents[1]
    path = f"{tests.parent / 'src'}{os.pathsep}{tests}"
    command = [sys.executable, "-W", "ignore", "-m", "support.apart", str(folder), *names]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "failed.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The quick cases."""
    return make(tmp_path_factory.mktemp("devices"), QUICK_CASES)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The other methods."""
    return make(tmp_path_factory.mktemp("others"), [name for name in cases() if name not in QUICK_CASES])


def close(one: Any, other: Any) -> bool:
    """The same up to rounding: of a shared prompt attention adds up in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == pytest.approx(other, rel=1e-3, abs=1e-4)) if isinstance(one, float) else bool(one == other)


@pytest.mark.parametrize("name", quick_first(TRAINED, QUICK_CASES))
def test_a_run_apart_from_the_cpu_is_the_run_on_it(name: str, request: pytest.FixtureRequest) -> None:
    folder, failed = request.getfixturevalue("made" if name in QUICK_CASES else "others")
    assert name not in failed, failed[name]
    here, there = folder / f"{name} cpu", folder / f"{name} {NAME}"
    drawn = [[line["ids"] for line in lines(run / "rollouts.jsonl")] for run in (here, there)]
    assert drawn[0] == drawn[1]
    assert len(metrics(there)) == 2
    for one, other in zip(metrics(here), metrics(there), strict=True):
        assert close(one, other), (one, other)
    weights = [load_file(_weights(checkpoints(run / "checkpoints")[-1] / "model")) for run in (here, there)]
    for key, value in weights[0].items():
        assert (value - weights[1][key]).abs().max() < 1e-3


def test_float32_weights_behind_bf16_ones_lie_on_the_device_too(made: tuple[Path, dict[str, str]]) -> None:
    """Rounding draws other tokens in bf16; what is kept how and how far it goes is the same."""
    folder, failed = made
    assert "bf16" not in failed, failed["bf16"]
    for place in ("cpu", NAME):
        newest = checkpoints(folder / f"bf16 {place}" / "checkpoints")[-1]
        stored = torch.load(newest / "training.pt", map_location="cpu", weights_only=True)
        for kept in (stored["masters"], stored["teachers"]):
            assert {weight.dtype for weight in kept.values()} == {torch.float32}
        assert {weight.dtype for weight in load_file(_weights(newest / "model")).values()} == {torch.bfloat16}
        assert min(line["moved"] for line in metrics(folder / f"bf16 {place}")) > 0.9


def test_every_phase_waits_for_the_device_and_for_nothing_else(
    made: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    # Seven phases a step at least, in every run.
    assert json.loads((folder / "waits.json").read_text(encoding="utf-8")) > 7 * 2 * (len(QUICK_CASES) - 1)
    waits: list[torch.device] = []
    monkeypatch.setattr("torch.accelerator.synchronize", waits.append)
    for device, waited in ((None, 0), ("cpu", 0), ("cuda:1", 2)):
        clock = Clock(None if device is None else torch.device(device))
        with clock.phase("teacher"):
            pass
        with pytest.raises(ZeroDivisionError), clock.phase("student"):
            _ = 1 / 0
        assert len(waits) == waited
        assert set(clock.seconds) == {"teacher", "student"}
    assert waits == [torch.device("cuda:1")] * 2


def test_the_microscope_sees_the_same_apart_from_the_cpu(made: tuple[Path, dict[str, str]]) -> None:
    folder, failed = made
    assert "inspected" not in failed, failed["inspected"]
    seen = [json.loads((folder / f"inspected {place}" / "summary.json").read_text()) for place in ("cpu", NAME)]
    assert close(*seen)


def _weights(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))
