"""The sizing model: numbers by hand, and what PyTorch itself keeps and counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from random_model import random_model
from selfdistill.config.sections import ParallelConfig
from selfdistill.models import sizing
from selfdistill.models.policy import Policy
from selfdistill.models.sizing import BFLOAT16, FLOAT32, Device, Plan, Shape, Work, memory
from selfdistill.models.teachers import Teachers
from selfdistill.types import SequenceBatch, Weights
from sizing import SHAPES

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
