"""One process of the sizing check: a small model's memory, term by term as it appears, to hold against the arithmetic.

Every term is what one action adds: the resident set after it less before, or the peak where the action's memory is
given back at its end.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from random_model import random_model
from selfdistill.distributed.fsdp import checkpoint_activations
from selfdistill.models.head import PIECE_ON_CPU, HeadInput, LossInputs, sliced_loss
from selfdistill.models.sizing import FLOAT32, Plan, Shape, cache, memory
from selfdistill.objectives import jensen_shannon
from selfdistill.types import TokenSlice
from workload import resident

ROWS, LENGTH = 8, 512
CACHE_ROWS, CACHE_LENGTH = 256, 512


class Watch:
    """MiB that actions add."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def adds(self, name: str, action: Callable[[], Any]) -> Any:
        """Run, and note what stays."""
        before = _settled()
        result = action()
        self.found[name] = self.found.get(name, 0.0) + _settled() - before
        return result

    def peak(self, name: str, action: Callable[[], Any]) -> Any:
        """Run, and note the highest point above the beginning."""
        before = _settled()
        # Linux: the high-water mark begins anew.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        result = action()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        highest = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        self.found[name] = highest / 2**10 - before
        return result


def _settled() -> float:
    gc.collect()
    # Freed pages that the allocator keeps for later are nobody's memory.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident()


def measure(shape: Shape) -> dict[str, dict[str, float]]:
    """Measured and computed MiB of every term."""
    watch = Watch()
    ids_BL = torch.randint(shape.V, (ROWS, LENGTH))
    with torch.no_grad():  # whatever a first call leaves behind is no term
        tiny = random_model(Shape(1, 64, 2, 1, 32, 64, 100, tied=True))
        tiny.get_decoder()(input_ids=torch.zeros(2, 8, dtype=torch.long))
    model = watch.adds("weights", lambda: random_model(shape))
    teacher = watch.adds("teacher copies", lambda: copy.deepcopy(model).requires_grad_(False))
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.no_grad():
        theirs_ND = teacher.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state.flatten(0, 1)
    decoder = model.get_decoder()
    hidden_BLD = watch.adds("activations", lambda: decoder(input_ids=ids_BL, use_cache=False).last_hidden_state)
    leaf_ND = hidden_BLD.flatten(0, 1).detach().requires_grad_()
    watch.peak("loss", lambda: loss_of(leaf_ND, model.lm_head.weight.detach().requires_grad_(), theirs_ND, ids_BL))
    hidden_BLD.sum().backward()
    del hidden_BLD
    model.zero_grad(set_to_none=True)
    watch.adds("gradients", lambda: fill_gradients(model))
    watch.adds("moments", optimiser.step)
    plan = Plan(copies=1, micro=ROWS * LENGTH, scored=ROWS * LENGTH, elements=1 << 22, piece=PIECE_ON_CPU)
    terms = memory(shape, plan)
    model.zero_grad(set_to_none=True)
    checkpoint_activations(decoder.layers, lambda layer: nullcontext())
    again = watch.adds("recomputed: kept", lambda: decoder(input_ids=ids_BL, use_cache=False).last_hidden_state)
    in_full = ROWS * LENGTH * shape.saved_bytes(FLOAT32)
    terms["recomputed: kept"] = memory(shape, replace(plan, recompute=True))["activations"] - in_full
    del again
    watch.adds("cache", lambda: filled_cache(teacher))
    terms["cache"] = cache(shape, CACHE_ROWS, CACHE_LENGTH, FLOAT32)
    return {name: {"measured_mib": found, "computed_mib": terms[name] / 2**20} for name, found in watch.found.items()}


def loss_of(hidden_ND: Tensor, weight_VD: Tensor, theirs_ND: Tensor, ids_BL: Tensor) -> None:
    """Loss and gradients of hidden states and head."""
    target_N = ids_BL.flatten()
    rows = weight_VD.shape[0]

    def loss(tokens: TokenSlice) -> Tensor:
        return jensen_shannon(tokens.student, tokens.roles["teacher"])

    job = LossInputs(
        target_N,
        torch.full((len(target_N),), 1 / len(target_N)),
        loss,
        head_inputs={"teacher": HeadInput(theirs_ND, weight_VD.detach(), None, rows)},
        max_logits_per_chunk=1 << 22,
    )
    sliced_loss(HeadInput(hidden_ND, weight_VD, None, rows), job).loss.backward()


def fill_gradients(model: Any) -> None:
    """A gradient for every weight."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def filled_cache(model: Any) -> Any:
    """Keys and values of many short sequences, row by row of the batch so that nothing else is large."""
    from transformers import DynamicCache

    config = model.config
    held = DynamicCache()
    size = (CACHE_ROWS, config.num_key_value_heads, CACHE_LENGTH, config.head_dim)
    for layer in range(config.num_hidden_layers):
        held.update(torch.ones(size), torch.ones(size), layer)
    return held


def main(spec: dict[str, Any], target: Path) -> None:
    """Measure and write."""
    target.write_text(json.dumps(measure(Shape(**spec))), encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
