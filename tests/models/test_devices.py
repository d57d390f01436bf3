"""The device, the number type and the sizes that a run takes where its config leaves them open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from random_model import random_model
from selfdistill.config.run import ResolvedConfig, parse_config
from selfdistill.config.sections import LoraConfig, Model, ModelConfig, OptimiserConfig, ParallelConfig
from selfdistill.errors import ConfigError
from selfdistill.models import devices
from selfdistill.models.devices import Device, choose_device, choose_dtype, parse_device, resolve_device
from selfdistill.models.fit import (
    FEWEST_TOKENS,
    KEPT_BACK,
    MOST_ROWS,
    GivenSizes,
    Sizes,
    choose_sizes,
    peak,
    plan_of,
    planned,
    read_shape,
    shape_in,
)
from selfdistill.models.lora import add_lora
from selfdistill.models.sizing import GIB, Plan, Shape, a_row, adapter_parameters, memory, resting
from selfdistill.training.problem import resolve
from selfdistill.types import External, Snapshot, Weights
from sizing import SHAPES
from support.tiny import save_tiny_model

QWEN = SHAPES["qwen3-1.7b"]
TINY = Shape(layers=2, D=64, H=4, K=2, E=16, F=160, V=500, tied=True)
OPEN = GivenSizes()


def gpu(free: int, capability: tuple[int, int] = (9, 0)) -> Device:
    return Device("cuda", "a GPU", free, 80 * GIB, capability)


@pytest.mark.parametrize(
    ("gpus", "mps", "ranks", "name", "warning"),
    [
        ([], None, 1, "cpu", ""),
        ([gpu(5)], None, 1, "cuda", ""),
        ([gpu(5), gpu(9), gpu(7)], None, 1, "cuda:1", ""),
        ([gpu(5), gpu(9)], None, 2, "cuda", ""),
        ([gpu(5)], "", 1, "cuda", ""),
        ([], "", 1, "mps", ""),
        ([], "it has no float64", 1, "cpu", "mps is left out: it has no float64"),
    ],
)
def test_the_device_by_what_there_is(gpus: list[Device], mps: str | None, ranks: int, name: str, warning: str) -> None:
    assert choose_device(gpus, mps, ranks=ranks) == (name, warning)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cuda", (7, 5), "float32"),
        ("cuda", (8, 0), "bfloat16"),
        ("cuda", (12, 0), "bfloat16"),
        ("cuda", None, "float32"),
        ("cpu", None, "float32"),
        ("mps", None, "float32"),
    ],
)
def test_the_number_type_by_the_device(kind: str, capability: tuple[int, int] | None, dtype: str) -> None:
    assert choose_dtype(kind, capability) == dtype


def test_a_sequence_longer_than_the_micro_batch_is_one_by_itself() -> None:
    assert planned("cpu", Plan(), 100, 50, False, 300).micro == 300
    assert planned("cpu", Plan(), 400, 50, False, 300).micro == 400


def test_a_machine_with_two_gpus_trains_in_bfloat16_on_the_emptier(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cuda:0": gpu(5, (8, 6)), "cuda:1": gpu(9, (8, 6))}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "read_device", found.get)
    assert resolve_device(ModelConfig()) == (Model(device="cuda:1", dtype="bfloat16"), "")
    # What the user set is left as it is.
    assert resolve_device(ModelConfig(dtype="float32"))[0].dtype == "float32"
    assert resolve_device(ModelConfig(device="cuda:0"))[0] == Model(device="cuda:0", dtype="bfloat16")


def test_apples_gpu_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without such a device stands in for one by what its parts answer."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    # On this machine the device does not exist, which torch says by the RuntimeError that is caught.
    _, warning = resolve_device(ModelConfig())
    assert warning.startswith("mps is left out: it has no float64")


@pytest.mark.parametrize(
    ("free", "shape", "plan", "given", "sizes"),
    [
        # Neither the memory nor the shape is known: the device's usual sizes.
        (None, QWEN, Plan(), OPEN, Sizes(16_384, 1 << 28, False, MOST_ROWS)),
        (80 * GIB, None, Plan(), OPEN, Sizes(16_384, 1 << 28, False, MOST_ROWS)),
        # More than enough.
        (500 * GIB, QWEN, Plan(computed=2), OPEN, Sizes(16_384, 1 << 28, False, MOST_ROWS)),
        # What is set stays, whatever the memory.
        (1 * GIB, QWEN, Plan(), GivenSizes(7, 8, False, 9), Sizes(7, 8, False, 9)),
        (500 * GIB, QWEN, Plan(), GivenSizes(7, 8, True, 9), Sizes(7, 8, True, 9)),
    ],
)
def test_sizes_by_table(free: int | None, shape: Shape | None, plan: Plan, given: GivenSizes, sizes: Sizes) -> None:
    assert choose_sizes("cuda", free, shape, plan, given, length=2048) == sizes


def test_a_smaller_memory_halves_the_micro_batch_before_it_recomputes() -> None:
    """The first way that fits is taken: kept activations down to 4,096 tokens, then recomputed ones."""
    plan, length = Plan(computed=2, copies=1), 2048
    kept = [(16_384, 1 << 28, False), (8192, 1 << 27, False), (4096, 1 << 26, False)]
    again = [(16_384, 1 << 28, True), (8192, 1 << 27, True), (4096, 1 << 26, True), (2048, 1 << 25, True)]
    for way in (*kept, *again):
        needed = peak(QWEN, planned("cuda", plan, *way, length))
        free = int(needed / (1 - KEPT_BACK)) + 2
        chosen = choose_sizes("cuda", free, QWEN, plan, OPEN, length=length)
        taken = (chosen.max_tokens_per_microbatch, chosen.max_logits_per_chunk, chosen.activation_checkpointing)
        fitting = [
            w for w in (*kept, *again) if peak(QWEN, planned("cuda", plan, *w, length)) <= free * (1 - KEPT_BACK)
        ]
        assert taken == fitting[0]
    smallest = choose_sizes("cuda", 1, QWEN, plan, OPEN, length=length)
    assert smallest == Sizes(FEWEST_TOKENS, 1 << 24, True, 1)


def test_the_batch_of_sampling_fills_what_rests() -> None:
    plan = Plan(computed=2)
    free = int((resting(QWEN, plan) + 100.5 * a_row(QWEN, 2048, 2)) / (1 - KEPT_BACK))
    assert choose_sizes("cuda", free, QWEN, plan, OPEN, length=2048).max_batch_size == 100


def test_a_cpu_keeps_its_small_micro_batches() -> None:
    assert choose_sizes("cpu", 64 * GIB, TINY, Plan(), OPEN, length=256) == Sizes(4096, 1 << 26, False, MOST_ROWS)


def test_between_updates_the_gradients_are_gone() -> None:
    terms = memory(TINY, Plan(copies=1))
    assert resting(TINY, Plan(copies=1)) == terms["weights"] + terms["moments"] + terms["teacher copies"]


def test_an_adapter_has_a_state_of_its_own_size() -> None:
    """The base is kept once, as it computes; gradients, moments and average are the adapter's; the head has none."""
    terms = memory(
        TINY, Plan(copies=2, frozen=1, adapter=100, computed=2, micro=8, scored=8, roles=1, elements=500, piece=500)
    )
    assert terms["weights"] == TINY.parameters * 2 + 100 * 4
    assert (terms["gradients"], terms["moments"], terms["teacher copies"]) == (400, 800, 400)
    assert terms["computed weights"] == 0
    assert terms["loss"] == 8 * 64 * 2 + 500 * 2 + 20 * 500 * 4


def test_the_weights_of_an_adapter_are_peft_s(tmp_path: Path) -> None:
    model = add_lora(random_model(TINY), LoraConfig(rank=3), "x", 0)
    assert adapter_parameters(TINY, 3) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_plan_of_a_method(tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher")
    shape = read_shape(str(teacher))
    assert shape is not None
    weights: set[Weights] = {"live", "frozen", "ema", External(kind="external", path=str(teacher))}
    plan = plan_of(TINY, Model(dtype="bfloat16"), ParallelConfig(kind="fsdp2"), weights, roles=3, ranks=4)
    assert plan == Plan(gpus=4, copies=2, frozen=1, external=shape.parameters, stored=4, computed=2, roles=3)
    assert plan_of(TINY, Model(), ParallelConfig(), {"live"}, roles=1, ranks=4).gpus == 1
    small = Model(lora=LoraConfig(rank=3), quantisation="nf4")
    in_bytes = OptimiserConfig(kind="adamw8bit")
    plan = plan_of(TINY, small, ParallelConfig(), {"live"}, roles=1, ranks=1, optimiser=in_bytes)
    assert (plan.quantised, plan.eight_bit) == (True, True)
    # A snapshot is a copy that does not move, or a second adapter.
    snapshots: set[Weights] = {Snapshot(5), "frozen"}
    whole = plan_of(TINY, Model(), ParallelConfig(), snapshots, roles=1, ranks=1)
    adapter = plan_of(TINY, Model(lora=LoraConfig(rank=3)), ParallelConfig(), snapshots, roles=1, ranks=1)
    assert [(plan.copies, plan.frozen) for plan in (whole, adapter)] == [(2, 2), (2, 1)]


def test_the_shape_is_read_from_the_model_s_own_config(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    assert read_shape(str(folder)) == Shape(layers=2, D=32, H=4, K=2, E=8, F=48, V=96, tied=True)
    (tmp_path / "adapter").mkdir()
    described = {"base_model_name_or_path": str(folder)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    assert read_shape(str(tmp_path / "adapter")) == read_shape(str(folder))
    assert read_shape("countdown-base") is not None
    assert read_shape(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        # As the hub has Gemma-3 with 270M weights: its head is tied, which is the family's default.
        (
            {
                "model_type": "gemma3_text",
                "head_dim": 256,
                "hidden_size": 640,
                "intermediate_size": 2048,
                "num_attention_heads": 4,
                "num_hidden_layers": 18,
                "num_key_value_heads": 1,
                "vocab_size": 262_144,
            },
            Shape(18, 640, 4, 1, 256, 2048, 262_144, tied=True),
        ),
        # And with 4B, whose file names neither heads nor vocabulary.
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "model_type": "gemma3_text",
                    "hidden_size": 2560,
                    "intermediate_size": 10_240,
                    "num_hidden_layers": 34,
                },
            },
            Shape(34, 2560, 8, 4, 256, 10_240, 262_208, tied=True),
        ),
        # What stands in the file comes first: outside of the part for texts, where that does not say it.
        (
            {
                "model_type": "qwen3_5",
                "tie_word_embeddings": True,
                "text_config": {
                    "model_type": "qwen3_5_text",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 16,
                    "vocab_size": 96,
                },
            },
            Shape(4, 64, 4, 2, 16, 128, 96, tied=True, approximate=True),
        ),
        # transformers refuses it, and this reads what it can.
        (
            {
                "model_type": "llama",
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "vocab_size": 5,
                "hidden_size": 8,
                "intermediate_size": 16,
            },
            Shape(2, 8, 3, 3, 2, 16, 5, tied=False),
        ),
    ],
    ids=["gemma-3 270m", "gemma-3 4b", "a tower's", "refused"],
)
def test_what_a_config_leaves_out_is_its_family_s_default(
    config: dict[str, object], shape: Shape, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert read_shape(str(tmp_path)) == shape


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": None}, {"hidden_size": "8"}, {"vocab_size": 0}, {"num_experts": 4}, {"moe_num_experts": 64}],
)
def test_a_shape_that_the_sizing_model_does_not_know_is_none(changes: dict[str, object]) -> None:
    whole = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 5, "hidden_size": 8}
    assert shape_in(whole) == Shape(layers=2, D=8, H=2, K=2, E=4, F=32, V=5, tied=False)
    assert shape_in({**whole, **changes}) is None
    assert shape_in({"text_config": whole, "tie_word_embeddings": True}) is not None


@pytest.mark.parametrize(
    ("changes", "approximate"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}, False),
        ({"layer_types": ["conv", "full_attention"]}, True),
        ({"hidden_size_per_layer_input": 256}, True),
    ],
)
def test_a_shape_with_other_layers_or_tables_is_approximate(changes: dict[str, object], approximate: bool) -> None:
    whole = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 5, "hidden_size": 8}
    assert shape_in({**whole, **changes}) == Shape(2, 8, 2, 2, 4, 32, 5, tied=False, approximate=approximate)


def test_a_resolved_config_leaves_nothing_open(tmp_path: Path) -> None:
    config = resolve(parse_config({"method": "grpo"}, "here"))
    assert (config.model.device, config.model.dtype) == ("cpu", "float32")
    assert config.sampling.max_batch_size == 512 and config.parallel.activation_checkpointing is False
    # A run that an earlier version wrote had the values that were the defaults then.
    table = json.loads(config.model_dump_json())
    del table["model"]["device"], table["model"]["dtype"], table["sampling"]["max_batch_size"]
    del table["parallel"]["activation_checkpointing"]
    assert ResolvedConfig.model_validate(table) == config
    table["model"]["device"] = "auto"
    with pytest.raises(ValueError, match="names its device"):
        ResolvedConfig.model_validate(table)


def test_the_limit_of_a_container_is_the_machine_s_memory(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/jobs/größe\n", encoding="utf-8")
    for place, limit in ((".", "max"), ("jobs", "4000"), ("jobs/größe", "max")):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "memory.max").write_text(limit + "\n", encoding="ascii")
    assert devices._cgroup_limits(tmp_path, own) == [4000]
    own.write_text("3:cpu,memory:/jobs\n2:cpuset:/jobs\n", encoding="ascii")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("3000\n", encoding="ascii")
    assert devices._cgroup_limits(tmp_path, own) == [3000]
    assert devices._cgroup_limits(tmp_path, tmp_path / "none") == []


def test_a_device_that_is_not_there_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"'abacus' cannot be used here: .*; model\.device=auto takes what there is"):
        parse_device("abacus")
