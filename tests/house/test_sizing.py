"""The sizing model: numbers by hand, and what PyTorch itself keeps and counts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from random_model import random_model
from selfdistill.config.sections import LoraConfig, Optimiser, ParallelConfig
from selfdistill.models import sizing
from selfdistill.models.policy import Policy, load_policy
from selfdistill.models.sizing import BFLOAT16, FLOAT32, Device, Plan, Shape, Work, memory
from selfdistill.models.teachers import Teachers
from selfdistill.training.optimiser import build_optimiser
from selfdistill.types import SequenceBatch, Weights
from sizing import SHAPES, cards_table
from support.tiny import save_tiny_model

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
MOMENTS = ("state1", "state2", "absmax1", "absmax2")
TINY = Shape(layers=2, D=64, H=4, K=2, E=16, F=160, V=500, tied=True)
ROWS, LENGTH = 3, 40


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model(tied: bool) -> None:
    shape = Shape(layers=2, D=64, H=4, K=2, E=16, F=160, V=500, tied=tied)
    assert shape.parameters == sum(p.numel() for p in random_model(shape).parameters())


def test_parameters_of_the_published_models() -> None:
    """As their model cards and weight files have them."""
    assert SHAPES["qwen3-1.7b"].parameters == 1_720_574_976
    assert SHAPES["qwen3-8b"].parameters == 8_190_735_360


@pytest.mark.parametrize(("dtype", "bytes_a_number"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)])
def test_activations_are_what_autograd_keeps(dtype: torch.dtype, bytes_a_number: int) -> None:
    """By the storages that a forward saves: one more layer saves exactly what the formula says."""

    def kept(layers: int) -> int:
        model: Any = random_model(Shape(layers, 64, 4, 2, 16, 160, 500, tied=True))
        model.to(dtype)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        # The tensors are held, or the next one may lie where the last one was.
        storages: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.get_decoder()(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False)
        return sum(t.untyped_storage().nbytes() for place, t in storages.items() if place not in weights)

    assert kept(3) - kept(2) == ROWS * LENGTH * TINY.saved_bytes(bytes_a_number)


def test_operations_of_a_layer_by_hand() -> None:
    """D=2, one head of 2, F=3: four 2×2 products and three 2×3 are 34 weights; attention over 5 positions is 4·2·5."""
    shape = Shape(layers=1, D=2, H=1, K=1, E=2, F=3, V=7, tied=True)
    assert shape.forward_operations(tokens=10, length=5) == 10 * (2 * 34 + 40)
    assert shape.head_operations(tokens=10) == 10 * 2 * 7 * 2


def test_memory_by_hand() -> None:
    """One layer, D=2: 34 weights of products, 4 of two norms of width 2, 4 of q and k norms; table 14, last norm 2."""
    shape = Shape(layers=1, D=2, H=1, K=1, E=2, F=3, V=7, tied=True)
    assert shape.parameters == 34 + 4 + 4 + 14 + 2 == 58
    terms = memory(shape, Plan(gpus=1, copies=2, micro=10, scored=10, roles=2, elements=28, piece=7))
    assert terms["weights"] == terms["gradients"] == 58 * 4
    assert terms["moments"] == terms["teacher copies"] == 2 * 58 * 4
    assert terms["gathered weights"] == 0
    # A token: 6·2 + 4·2 + 4·2 + 4·3 numbers and one of each of two norms, two heads' and one group's: 40 + 5, and the
    # last norm's 3·2.
    assert terms["activations"] == 10 * 4 * (45 + 6)
    # Gradients of a head of 14 and of 10·2 hidden numbers, two roles of two tokens, twenty pieces of one token.
    assert terms["loss"] == 4 * (14 + 20 + 2 * 2 * 7 + 20 * 7)


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_state_of_a_bf16_step_is_what_its_tensors_take(frozen: int) -> None:
    """Weights of both types, gradients, moments and the teacher's, by the bytes of the tensors themselves."""
    model: Any = random_model(TINY)
    policy = Policy(model.to(torch.bfloat16), vocab_size=TINY.V)
    kind: Weights = "frozen" if frozen else "ema"
    teachers = Teachers(policy, needed={kind}, rate=0.5, place=lambda one: one.place(ParallelConfig(), one.device))
    policy.place(ParallelConfig(), policy.device)
    optimiser = torch.optim.AdamW(policy.trainable())
    places = torch.arange(4)
    policy.head_input(SequenceBatch(places[None], 0 * places, places, places)).real_logits(slice(None)).sum().backward()
    optimiser.step()

    def size(tensors: Iterable[torch.Tensor | None]) -> int:
        return sum(one.numel() * one.element_size() for one in tensors if one is not None)

    terms = memory(TINY, Plan(copies=1, frozen=frozen, computed=BFLOAT16))
    copied = teachers.copies[kind]
    moments = [value for state in optimiser.state.values() for key, value in state.items() if key != "step"]
    assert terms["weights"] == size(policy.masters.weights.values())
    assert terms["computed weights"] == size(policy.parameters())
    assert terms["gradients"] == size(p.grad for p in (*policy.trainable(), *policy.parameters()))
    assert terms["moments"] == size(moments)
    assert terms["teacher copies"] == size((*copied.parameters(), *copied.masters.weights.values()))


def test_shards_and_recomputed_activations() -> None:
    shape = Shape(layers=3, D=2, H=1, K=1, E=2, F=3, V=7, tied=True)
    plan = Plan(gpus=2, micro=10, scored=10, computed=BFLOAT16, recompute=True)
    terms = memory(shape, plan)
    assert terms["weights"] == shape.parameters * 4 / 2
    assert terms["gathered weights"] == 2 * (2 * 42 + 14)
    # Three inputs of 10·2 numbers, one layer in full, the last norm with its quotient in float32.
    assert terms["activations"] == 3 * 10 * 2 * 2 + 10 * shape.saved_bytes(2) + 10 * 2 * (2 + 2 + 4)


def test_cache_by_hand() -> None:
    """Keys and values of 2 layers, 2 groups of 16 numbers, for 3 sequences of 5 tokens in bf16."""
    assert sizing.cache(TINY, rows=3, length=5) == 2 * 2 * 2 * 16 * 3 * 5 * 2


def test_seconds_by_hand() -> None:
    shape = Shape(layers=1, D=2, H=1, K=1, E=2, F=3, V=7, tied=True)
    work = Work(prompts=1, completions=2, prompt=1, teacher_prompt=3, completion=4, teachers=1)
    # Sequences of 5 and 7 tokens, two of each; the head reads 8 tokens at 28 operations.
    student, teacher, head = 10 * (68 + 8 * 5), 14 * (68 + 8 * 7), 8 * 28
    assert sizing.training_operations(shape, work) == teacher + head + 3 * student + 3 * head
    assert sizing.training_operations(shape, work, recompute=True) == teacher + head + 4 * student + 3 * head
    device = Device(operations=100, training_share=0.5, bandwidth=10, decoding_share=0.5)
    assert sizing.training_seconds(shape, work, device, 2) == (teacher + 4 * head + 3 * student) / 100
    # Two engines of one GPU, a sequence each: 58 weights and 3 tokens of cache a token drawn, 5 bytes a second.
    assert sizing.sampling_seconds(shape, work, device, 2) == pytest.approx(4 * (58 * 2 + 2 * 3 * 2 * 2) / 5)


def test_a_base_in_4_bits_by_hand() -> None:
    """D=64, two heads of 32, F=65: q, k, v, o and gate, up have 64 inputs, and down's 65 are no blocks of 64."""
    shape = Shape(layers=2, D=64, H=2, K=1, E=32, F=65, V=7, tied=True)
    plan = Plan(adapter=10, computed=BFLOAT16, quantised=True)
    # 4,096 weights have 64 scales, 2,048 have 32, 4,160 have 65; each of these has one scale of its own.
    in_4_bits = 2 * (2048 + 64 + 4) + 2 * (1024 + 32 + 4) + 2 * (2080 + 65 + 4)
    stay = 65 * 64 + 2 * 64 + 2 * 32
    assert sizing.base_bytes(shape, plan) == 2 * (in_4_bits + 2 * stay) + 2 * (7 * 64 + 64)
    terms = memory(shape, plan)
    assert terms["weights"] == sizing.base_bytes(shape, plan) + 10 * FLOAT32
    assert terms["dequantised weights"] == 64 * 65 * BFLOAT16
    assert memory(shape, Plan(adapter=10))["dequantised weights"] == 0
    assert sizing.resting(shape, plan) == terms["weights"] + terms["moments"] + terms["dequantised weights"]


def test_moments_in_8_bits_by_hand() -> None:
    """Tensors of 4,096 numbers have 16 scales each of two moments; smaller ones are kept in float32."""
    shape = Shape(layers=1, D=64, H=2, K=1, E=32, F=64, V=128, tied=True)
    large, small = 2 * 4096 + 3 * 4096 + 128 * 64, 2 * 2048 + 2 * 64 + 2 * 32 + 64
    assert memory(shape, Plan(eight_bit=True))["moments"] == 2 * (large + large // 256 * FLOAT32 + small * FLOAT32)
    # Factors of rank 64: eleven of a side of 64 are large, k's and v's of 32 are small, as all are at rank 1.
    adapter = Plan(adapter=sizing.adapter_parameters(shape, 64), eight_bit=True)
    assert memory(shape, adapter)["moments"] == 12 * 2 * (4096 + 64) + 2 * 2 * 2048 * FLOAT32
    narrow = sizing.adapter_parameters(shape, 1)
    assert memory(shape, Plan(adapter=narrow, eight_bit=True))["moments"] == 2 * narrow * FLOAT32


@needs_bitsandbytes
def test_a_quantised_base_and_8_bit_moments_take_what_they_are_said_to(tmp_path: Path) -> None:
    """By the bytes of the tensors themselves."""
    shape = Shape(layers=2, D=64, H=4, K=2, E=16, F=128, V=96, tied=True)
    path = save_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    policy, _ = load_policy(
        str(path), dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=64), quantisation="nf4"
    )
    optimiser = build_optimiser(policy, Optimiser(kind="adamw8bit", learning_rate=1e-3))
    places = torch.arange(4)
    policy.head_input(SequenceBatch(places[None], 0 * places, places, places)).real_logits(slice(None)).sum().backward()
    optimiser.step()
    base = 0
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            continue
        base += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            base += state.absmax.nbytes + state.state2.absmax.nbytes
    moments = sum(state[key].nbytes for state in optimiser.state.values() for key in MOMENTS if key in state)
    plan = Plan(adapter=sizing.adapter_parameters(shape, 64), quantised=True, eight_bit=True)
    terms = memory(shape, plan)
    assert sizing.base_bytes(shape, plan) == base
    assert terms["weights"] == base + sum(parameter.nbytes for parameter in policy.trainable())
    assert terms["moments"] == moments


def test_the_table_of_small_cards_says_what_a_run_would_choose() -> None:
    """By hand, for one card: the batch that a run chooses fits nine tenths of it, and one more completion would not."""
    lines = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ")[3:] for line in cards_table().splitlines()[2:]}
    shape, length = SHAPES["qwen3-8b"], 2560
    plan = Plan(adapter=sizing.adapter_parameters(shape, 64), computed=BFLOAT16, quantised=True)
    rows = int(lines["| qwen3-8b", "LoRA on 4-bit"][1])
    row = sizing.a_row(shape, length, BFLOAT16)
    assert sizing.resting(shape, plan) + rows * row <= 0.9 * 24e9 < sizing.resting(shape, plan) + (rows + 1) * row
    # Of full fine-tuning with AdamW the state alone is larger.
    assert lines["| qwen3-8b", "full, AdamW"] == ["–"] * 4
    assert sizing.resting(shape, Plan(computed=BFLOAT16)) > 80e9
