"""AdamW whose moments are kept in 8 bits: which are, where it ends, and exact resumes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config.sections import Optimiser
from selfdistill.models.policy import load_policy
from selfdistill.models.sizing import SMALLEST_IN_8_BITS
from selfdistill.training.optimiser import build_optimiser
from support.runs import METHODS, outcome, tiny_run, train
from support.tiny import save_tiny_model

pytestmark = [
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
    pytest.mark.usefixtures("no_page"),
]

EIGHT = ("optimiser.kind=adamw8bit", "checkpoint.every=1", "steps=4")
IDS = torch.arange(8, 40)[None]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 most of whose matrices have 4,096 weights or more."""
    return save_tiny_model(
        tmp_path_factory.mktemp("wide") / "qwen3", hidden_size=64, intermediate_size=128, head_dim=16
    )


def trained(model: Path, kind: Any, steps: int = 60) -> tuple[torch.optim.Optimizer, dict[str, torch.Tensor], float]:
    """The optimiser, weights and loss after a model has learnt to continue one sequence."""
    policy, _ = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    optimiser = build_optimiser(policy, Optimiser(kind=kind, learning_rate=1e-3, weight_decay=0.01))
    for _ in range(steps):
        logits = policy.model(IDS).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, IDS[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = {name: parameter.detach().clone() for name, parameter in policy.trained().items()}
    return optimiser, weights, loss.item()


def test_moments_are_bytes_and_runs_end_near_each_other(wide: Path) -> None:
    start, _ = load_policy(str(wide), dtype=torch.float32, device=torch.device("cpu"))
    narrow, bytewise, loss_8 = trained(wide, "adamw8bit")
    _, exact, loss_32 = trained(wide, "adamw")
    sizes = {torch.uint8: 0, torch.float32: 0}
    for group in narrow.param_groups:
        for parameter in group["params"]:
            state = narrow.state[parameter]
            expected = torch.uint8 if parameter.numel() >= SMALLEST_IN_8_BITS else torch.float32
            assert state["state1"].dtype == state["state2"].dtype == expected
            sizes[expected] += parameter.numel()
    # Two layers with q and o of 64 × 64 and three of 128 × 64, and the table of 96 × 64; k, v and norms are smaller.
    assert sizes[torch.uint8] == 2 * (2 * 64 * 64 + 3 * 128 * 64) + 96 * 64
    assert loss_32 < 0.5
    assert loss_8 == pytest.approx(loss_32, abs=0.05)
    moved = sum((exact[name] - weight).norm() ** 2 for name, weight in start.trained().items()) ** 0.5
    apart = sum((exact[name] - weight).norm() ** 2 for name, weight in bytewise.items()) ** 0.5
    assert 0 < apart < 0.2 * moved


@pytest.mark.parametrize(
    "settings",
    [(), ("model.dtype=bfloat16",), ("model.lora.rank=64", "model.lora.alpha=64")],
    ids=["float32", "bf16", "lora"],
)
def test_a_resumed_run_is_the_whole_run(settings: tuple[str, ...], wide: Path, tmp_path: Path) -> None:
    config = tiny_run(wide, METHODS["sdpo"], *EIGHT, *settings)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=2)
    train(config, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    stored = torch.load(tmp_path / "cut" / "checkpoints" / "step-000004" / "training.pt", weights_only=True)
    dtypes = {value.dtype for state in stored["optimiser"]["state"].values() for value in tensors(state)}
    assert torch.uint8 in dtypes


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in nested tables."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value.values() for tensor in tensors(one)] if isinstance(value, dict) else []
