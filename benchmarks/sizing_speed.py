"""One process of the sizing check: seconds of small models on this CPU, to hold against the arithmetic.

The arithmetic turns operations and bytes into seconds by one share of a device's rates, whatever the model and the
lengths. So the rates of this machine are measured first (a large matrix product, reading a large tensor), then models
of several shapes at several lengths; the share that each reaches should be about the same.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from random_model import random_model
from selfdistill.models.check import allow_packing
from selfdistill.models.head import LossInputs
from selfdistill.models.policy import Policy
from selfdistill.models.sizing import FLOAT32, Device, Shape, Work, sampling_seconds, training_seconds
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.scoring.batching import collate
from selfdistill.types import STUDENT, View

SHAPES: Mapping[str, Shape] = {
    "6 layers of 512": Shape(layers=6, D=512, H=8, K=4, E=64, F=1536, V=16_000, tied=True),
    "16 layers of 384": Shape(layers=16, D=384, H=6, K=3, E=64, F=1152, V=16_000, tied=True),
    "3 layers of 1,024": Shape(layers=3, D=1024, H=16, K=8, E=64, F=3072, V=16_000, tied=True),
}
WORKS: Mapping[str, Work] = {
    "short": Work(prompts=4, completions=1, prompt=64, teacher_prompt=128, completion=128),
    "long": Work(prompts=1, completions=1, prompt=128, teacher_prompt=512, completion=896),
}
DRAWN = Work(prompts=4, completions=1, prompt=64, completion=32)
"""What is sampled: so few rows that reading the weights takes the time, as on a GPU."""
ROUNDS = 4
ELEMENTS = 1 << 22
PRODUCT = 2048
READ = 1 << 27
"""Numbers of the tensor that is read: 512 MiB, which no cache holds."""


def seconds(action: Callable[[], Any]) -> float:
    """What one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def rates() -> Device:
    """This machine: operations and bytes a second, all of them used."""
    left, right = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    large = torch.ones(READ)
    product = min(seconds(lambda: left @ right) for _ in range(10))
    read = min(seconds(large.sum) for _ in range(10))
    return Device("this CPU", 2 * PRODUCT**3 / product, READ * FLOAT32 / read, training_share=1.0, decoding_share=1.0)


def views_of(shape: Shape, work: Work) -> list[View]:
    """Rows of a step that have nothing in common, each with a teacher's prompt."""
    draw = random.Random(0).choices
    rows = []
    for i in range(work.rows):
        prompts = {STUDENT: work.prompt, "teacher": work.teacher_prompt}
        ids = {role: tuple(draw(range(shape.V), k=tokens)) for role, tokens in prompts.items()}
        completion, none = tuple(draw(range(shape.V), k=work.completion)), (0.0,) * work.completion
        rows.append(View(ids, completion, none, none, 0.0, i, 0))
    return rows


def update(policy: Policy, views: list[View]) -> None:
    """The teacher's scores, and the student's forward and backward."""
    policy.zero_grad(set_to_none=True)
    policy.score(collate(views, "teacher", packed=True), max_logits_per_chunk=ELEMENTS)
    batch = collate(views, STUDENT, packed=True)
    weight_N = torch.full((len(batch.target_N),), 1.0 / len(batch.target_N))
    job = LossInputs(batch.target_N, weight_N, lambda tokens: -tokens.target(STUDENT), max_logits_per_chunk=ELEMENTS)
    policy(batch, job).loss.backward()


def draw(policy: Policy, views: list[View]) -> None:
    """Completions that never stop."""
    sampler = HFSampler(policy, stop_ids=(), max_batch_size=len(views))
    sampler.sample([view.prompts[STUDENT] for view in views], SamplingParams(count=1, max_tokens=DRAWN.completion))


def measure() -> dict[str, Any]:
    """The machine's rates, and measured and computed seconds of every case."""
    actions: dict[str, Callable[[], None]] = {}
    computed: dict[str, float] = {}
    device = rates()
    for name, shape in SHAPES.items():
        policy = Policy(random_model(shape), vocab_size=shape.V).eval()
        allow_packing(policy)
        for length, work in WORKS.items():
            views = views_of(shape, work)
            actions[f"update, {length}: {name}"] = partial(update, policy, views)
            computed[f"update, {length}: {name}"] = training_seconds(shape, work, device, 1)
        drawn = views_of(shape, DRAWN)
        actions[f"sampling: {name}"] = partial(draw, policy, drawn)
        computed[f"sampling: {name}"] = sampling_seconds(shape, DRAWN, device, 1, bytes_a_number=FLOAT32)
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(ROUNDS + 1):
        for name, action in actions.items():
            taken = seconds(action)
            if number:
                found[name].append(taken)
    return {
        "operations_a_second": device.operations,
        "bytes_a_second": device.bandwidth,
        "seconds": {
            name: {"measured": median(taken), "computed": computed[name]} for name, taken in sorted(found.items())
        },
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    Path(sys.argv[2]).write_text(json.dumps(measure()), encoding="utf-8")
