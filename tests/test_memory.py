"""Memory that does not suffice: one sentence says where and what to lower, and the run goes on with that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.cli import main
from selfdistill.errors import OutOfMemory
from selfdistill.memory import is_full, out_of_memory
from selfdistill.policy import Policy
from selfdistill.samplers.hf import HFSampler
from support.runs import lines, metrics, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has …\nmore")
ON_A_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried …")


def failing(call: Callable[..., Any], error: Exception, *, at: int) -> Callable[..., Any]:
    """A function whose call number ``at`` finds no memory."""
    calls = iter(range(1, 1000))

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error
        return call(*args, **kwargs)

    return called


@pytest.mark.parametrize("error", [ON_A_GPU, ON_A_CPU, MemoryError()])
def test_what_says_that_memory_is_full_is_told_from_other_errors(error: Exception) -> None:
    assert is_full(error)
    assert not is_full(RuntimeError("shapes differ"))
    assert "\n" not in str(out_of_memory(error))
    assert "model.lora" in str(out_of_memory(error, "update"))


@pytest.mark.parametrize(
    ("owner", "name", "at", "phase", "remedy"),
    [
        # Drawn are: an evaluation, steps 1 and 2, an evaluation, step 3.
        (Policy, "forward", 4, "student", "limits.tokens"),
        (HFSampler, "sample", 5, "generation", "sampling.max_rows"),
        (HFSampler, "sample", 4, "evaluation", "sampling.max_rows"),
    ],
)
def test_a_run_without_memory_says_what_to_lower_and_goes_on_with_it(
    owner: type,
    name: str,
    at: int,
    phase: str,
    remedy: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), ON_A_GPU, at=at))
        with pytest.raises(OutOfMemory) as caught:
            train(tiny_run(model, "grpo", "checkpoint.every=1"), tmp_path / "run")
    said = str(caught.value)
    done = len(lines(tmp_path / "run" / "metrics.jsonl"))
    found = "CUDA out of memory. Tried to allocate 8.00 GiB"
    assert f"not enough memory in the phase {phase!r} of a step ({found}): " in said
    assert remedy in said
    assert done > 0
    assert f"step {done} is kept, and --resume goes on from it" in said
    assert not list((tmp_path / "run").glob("bad-batch*"))
    lower = ("checkpoint.every=1", "limits.tokens=64", "limits.elements=2048", "sampling.max_rows=6")
    train(tiny_run(model, "grpo", *lower), tmp_path / "run", resume=True)
    train(tiny_run(model, "grpo", "checkpoint.every=1"), tmp_path / "whole")
    for mine, whole in zip(metrics(tmp_path / "run"), metrics(tmp_path / "whole"), strict=True):
        assert mine["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    drawn = [[line["ids"] for line in lines(tmp_path / folder / "rollouts.jsonl")] for folder in ("run", "whole")]
    assert drawn[0] == drawn[1]


def test_the_command_line_says_it_in_one_sentence_wherever_it_happens(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise ON_A_GPU

    monkeypatch.setattr(torch.nn.Module, "to", full)
    config = tmp_path / "own.toml"
    path = json.dumps(str(model))
    config.write_text(
        f'steps = 1\ntask.kind = "countdown"\nmodel.path = {path}\nmethod.name = "grpo"\n', encoding="utf-8"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("selfdistill: not enough memory (CUDA out of memory.")
    assert "smaller model" in said
    monkeypatch.setattr(torch.nn.Module, "to", failing(full, RuntimeError("shapes differ"), at=1))
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["train", str(config), "--out", str(tmp_path / "other")])
