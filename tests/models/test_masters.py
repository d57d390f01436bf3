"""Training in bfloat16: what is trained is kept in float32, moves as it does in float32, and is saved as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfdistill.distributed.world import ALONE
from selfdistill.errors import ConfigError
from selfdistill.models import policy as policy_module
from selfdistill.models.masters import Masters
from selfdistill.models.policy import fingerprint
from selfdistill.models.teachers import Teachers
from selfdistill.training.loop import Run
from selfdistill.training.movement import SAMPLE, Movement
from selfdistill.training.run_folder import export_model
from support.runs import LORA, lines, metrics, open_run, recorder, tiny_run, train
from support.tiny import save_tiny_model

pytestmark = pytest.mark.usefixtures("no_page")

BF16 = "model.dtype=bfloat16"
AVERAGED = {"name": "sdpo", "teacher_rate": 0.05}
RATES: dict[str, tuple[Any, float]] = {"grpo": ("grpo", 1e-6), "sdpo": (AVERAGED, 1e-5)}
"""Methods at the learning rates of their papers."""
PAPER = (
    "optimiser.schedule=constant",
    "optimiser.warmup=0",
    "steps=6",
    "sampling={ prompts = 4, completions = 4, max_tokens = 20 }",
    "evaluation.every=6",
    "checkpoint.every=6",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=0)


def trained(run: Run) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in run.parts.policy.trained().items()}


def averaged(run: Run) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in run.parts.teachers.state_dict().items()}


def path_of(run: Run) -> dict[str, float]:
    """Train; the distance that the student and its average have gone."""
    before = trained(run), averaged(run)
    run.train(recorder(run).stop)
    after = trained(run), averaged(run)
    return {who: distance(*pair) for who, *pair in zip(("student", "average"), before, after, strict=True)}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


# --- the same distance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RATES)
def test_a_run_in_bf16_goes_as_far_as_one_in_float32(method: str, model: Path, tmp_path: Path) -> None:
    how, rate = RATES[method]
    runs = [
        open_run(
            tiny_run(model, how, f"model.dtype={dtype}", f"optimiser.learning_rate={rate}", *PAPER), tmp_path / dtype
        )
        for dtype in ("float32", "bfloat16")
    ]
    full, mixed = (path_of(run) for run in runs)
    # The noise of bf16 in gradients and draws is left.
    assert mixed == pytest.approx(full, rel=0.06)
    assert full["student"] > 0
    assert (full["average"] > 0) == (method == "sdpo")
    for run in runs:
        found = metrics(run.folder)
        assert min(line["moved"] for line in found) > 0.98
        assert all(("average_moved" in line) == (method == "sdpo") for line in found)
        assert min(line.get("average_moved", 1.0) for line in found) > 0.98
        assert "vanishing_updates" not in {alarm["name"] for alarm in lines(run.folder / "alarms.jsonl")}


@pytest.mark.parametrize("method", RATES)
def test_weights_kept_in_bf16_do_not_move_and_an_alarm_says_so(
    method: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without masters, as a loop of one's own has it that trains what it has loaded."""
    monkeypatch.setattr(policy_module, "Masters", lambda module=None: Masters())
    how, rate = RATES[method]
    run = open_run(tiny_run(model, how, BF16, f"optimiser.learning_rate={rate}", *PAPER), tmp_path / "narrow")
    start = trained(run)
    assert {weight.dtype for weight in start.values()} == {torch.bfloat16}
    run.train(recorder(run).stop)
    found = metrics(run.folder)
    now = trained(run)
    share = sum(int((now[name] != start[name]).sum()) for name in now) / sum(weight.numel() for weight in now.values())
    assert 0 < share < 0.03
    assert max(line["moved"] for line in found) < 0.03
    [alarm] = [one for one in lines(run.folder / "alarms.jsonl") if one["name"] == "vanishing_updates"]
    assert alarm["step"] == 5
    assert "(limit 20%)" in alarm["evidence"]


# --- what is kept how ------------------------------------------------------------------------------------------------


def test_a_model_computes_with_what_its_float32_weights_round_to(model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model, AVERAGED, BF16), tmp_path)
    run.train(recorder(run).stop)
    policy, average = run.parts.policy, run.parts.teachers.copies["ema"]
    for one in (policy, average):
        kept = one.kept()
        assert {weight.dtype for weight in kept.values()} == {torch.float32}
        for name, weight in one.model.named_parameters():
            assert torch.equal(weight, kept[name].to(torch.bfloat16)), name
        assert any(not torch.equal(w.float(), kept[name]) for name, w in one.model.named_parameters())
    assert {value.dtype for state in run.parts.trainer.optimiser.state.values() for value in state.values()} == {
        torch.float32
    }
    assert not any(weight.requires_grad for weight in average.kept().values())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_what_does_not_move_stays_in_bf16(kind: str, model: Path, tmp_path: Path) -> None:
    frozen = open_run(
        tiny_run(model, {"name": "opsd", "weights": "frozen"}, BF16, f"parallel={kind}"), tmp_path / "full"
    )
    (copied,) = frozen.parts.teachers.copies.values()
    assert {weight.dtype for weight in copied.kept().values()} == {torch.bfloat16}
    adapted = open_run(tiny_run(model, AVERAGED, BF16, f"parallel={kind}", *LORA), tmp_path / "lora")
    types = {(".lora_" in name, weight.dtype) for name, weight in adapted.parts.policy.kept().items()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_teachers_of_a_student_that_has_its_place_are_kept_alike(model: Path, tmp_path: Path) -> None:
    policy = open_run(tiny_run(model, "grpo", BF16), tmp_path).parts.policy
    copies = Teachers(policy, needed={"frozen", "ema"}, rate=0.5).copies
    assert {weight.dtype for weight in copies["frozen"].kept().values()} == {torch.bfloat16}
    assert {weight.dtype for weight in copies["ema"].kept().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wide_weights_are_trained_themselves(dtype: str, model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model, AVERAGED, f"model.dtype={dtype}"), tmp_path)
    policy = run.parts.policy
    assert policy.masters.weights == {}
    assert [id(weight) for weight in policy.trainable()] == [id(weight) for weight in policy.model.parameters()]


def test_gradients_of_micro_batches_are_added_up_in_float32() -> None:
    """300 gradients of 1: bf16 cannot count beyond 256, float32 can."""
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    masters = Masters(layer)
    for _ in range(300):
        layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    (weight,) = masters.weights.values()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert float(weight.grad) == 300
    assert layer.weight.grad is None, "it would lie beside the float32 one"


# --- on disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_shards_and_whole_weights_make_the_same_run_and_go_on_from_each_other(
    kind: str, model: Path, tmp_path: Path
) -> None:
    """Bit for bit: one process adds up nothing in another order."""
    more = LORA if kind == "lora" else ()

    def run(folder: str, parallel: str, stop_after: int | None = None) -> dict[str, Tensor]:
        config = tiny_run(model, AVERAGED, BF16, f"parallel={parallel}", "steps=4", *more)
        path = tmp_path / folder
        one = open_run(config, path, resume=path.exists(), stop_after=stop_after)
        one.train(recorder(one).stop)
        weights = {**trained(one), **{f"average {name}": weight for name, weight in averaged(one).items()}}
        return {n: w.full_tensor() if hasattr(w, "full_tensor") else w for n, w in weights.items()}

    whole, sharded = run("whole", "ddp"), run("sharded", "fsdp2")
    run("changed", "fsdp2", stop_after=1)
    run("changed", "ddp", stop_after=3)
    changed = run("changed", "fsdp2")
    assert {weight.dtype for weight in whole.values()} == {torch.float32}
    for other in (sharded, changed):
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[name], whole[name]) for name in whole)
    assert metrics(tmp_path / "sharded") == metrics(tmp_path / "changed") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_model_directory_is_in_bf16_and_export_writes_the_trained_weights_on_request(
    kind: str, model: Path, tmp_path: Path
) -> None:
    config = tiny_run(model, "grpo", BF16, f"parallel={kind}", "steps=4")
    train(config, tmp_path / "run")
    last = open_run(config, tmp_path / "run", resume=True)
    kept = {n: w.full_tensor() if hasattr(w, "full_tensor") else w for n, w in trained(last).items()}
    # The checkpoint of step 2 has no model directory where weights are sharded, that of step 4 has one.
    for step, dtype, written in (
        (4, None, torch.bfloat16),
        (2, None, torch.bfloat16),
        (4, "bfloat16", torch.bfloat16),
        (4, "float32", torch.float32),
        (2, "float32", torch.float32),
    ):
        out = tmp_path / f"{step} {dtype}"
        export_model(tmp_path / "run", out, step=step, dtype=dtype)
        found = load_file(out / "model.safetensors")
        assert {weight.dtype for weight in found.values()} == {written}
        assert f'"dtype": "{str(written).removeprefix("torch.")}"' in (out / "config.json").read_text(encoding="utf-8")
        for name, weight in found.items() if step == 4 else ():
            assert torch.equal(weight, kept[name].to(written)), name
    with pytest.raises(
        ConfigError, match="--dtype 'float8' is no number type: write one of float32, bfloat16, float64"
    ):
        export_model(tmp_path / "run", tmp_path / "none", step=None, dtype="float8")


def test_a_run_may_change_between_shards_and_whole_weights(model: Path, tmp_path: Path) -> None:
    """It begins from the same weights, by their fingerprint, whatever they are kept in."""
    origins = {
        open_run(tiny_run(model, "grpo", BF16, f"parallel={kind}"), tmp_path / kind).parts.origin
        for kind in ("ddp", "fsdp2")
    }
    run = open_run(tiny_run(model, "grpo", BF16), tmp_path / "other")
    assert origins == {fingerprint(run.parts.policy)}


# --- the share that moves --------------------------------------------------------------------------------------------


def test_the_share_that_moves_is_of_those_that_are_pulled() -> None:
    """Of five weights four are pulled, and three of these change; a weight without any pull does not count."""
    weight, other = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([1.0])
    movement = Movement([weight, other])
    weight += torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    other += 1
    pulls = movement.sample([torch.tensor([1.0, -1e-30, 1.0, 0.0, 1.0]), None])
    assert movement.share(pulls, ALONE) == 3 / 4
    assert movement.share(movement.sample([None, None]), ALONE) is None
    assert Movement([]).share([], ALONE) is None


def test_of_many_weights_every_so_many_th_is_looked_at() -> None:
    weight = torch.zeros(2 * SAMPLE + 6, 1)
    movement = Movement([weight])
    assert movement.stride == 3
    weight[::6] = 1  # every second one of those
    found = movement.share(movement.sample([torch.ones_like(weight)]), ALONE)
    assert found == pytest.approx(0.5, abs=1e-5)
