"""Scoring a group under one long teacher prompt: its prompt computed once, against one forward pass a row.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --prompt 300 --completion 60 --rounds 1 --out bench-out/scoring.json

A random Qwen3 big enough that computing dominates, everything in one process and by turns: one forward a row, one
padded batch, and packed with the prompt shared; once without gradient, as teachers are scored, and once with the
student's backward pass. All give the same log-probabilities and gradients within rounding, which is checked.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from processes import log, origin, write
from selfdistill.models.check import allow_packing
from selfdistill.models.head import LossInputs
from selfdistill.models.policy import Policy
from selfdistill.scoring.batching import collate
from selfdistill.types import STUDENT, View

FASTER = 2.5
"""How many times as fast as one forward a row scoring without gradient is to be."""
TOLERANCE = 1e-5
"""float32 sums in another order."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--group", type=int, default=8, help="completions under the prompt (default: %(default)s)")
    add("--prompt", type=int, default=1500, help="its tokens (default: %(default)s)")
    add("--completion", type=int, default=300, help="tokens of each completion (default: %(default)s)")
    add("--hidden", type=int, default=512, help="width of the model (default: %(default)s)")
    add("--layers", type=int, default=4, help="its layers (default: %(default)s)")
    add("--vocabulary", type=int, default=8192, help="rows of its head (default: %(default)s)")
    add("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and tokens (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/scoring.json)")
    return parser.parse_args(arguments)


def random_policy(options: argparse.Namespace) -> Policy:
    """A Qwen3 with weights that no one trained."""
    torch.manual_seed(options.seed)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        head_dim=64,
        max_position_embeddings=options.prompt + options.completion,
        tie_word_embeddings=True,
    )
    policy = Policy(Qwen3ForCausalLM(config), vocab_size=options.vocabulary).eval()
    allow_packing(policy)
    if not policy.packs:
        raise SystemExit("the model's tokens cannot be packed with the installed transformers")
    return policy


def random_group(options: argparse.Namespace) -> list[View]:
    """Completions of one prompt."""
    draw = random.Random(options.seed).choices
    prompt = tuple(draw(range(options.vocabulary), k=options.prompt))
    completions = [tuple(draw(range(options.vocabulary), k=options.completion)) for _ in range(options.group)]
    none = (0.0,) * options.completion
    return [View({STUDENT: prompt}, ids, none, none, 0.0, 0, i) for i, ids in enumerate(completions)]


def ways(policy: Policy, group: Sequence[View]) -> dict[str, Callable[[bool], Tensor]]:
    """Log-probabilities [N] of all completions, in three ways; with or without gradients left in the policy."""

    def forward(views: Sequence[View], *, packed: bool, gradient: bool) -> Tensor:
        batch = collate(views, STUDENT, packed=packed)
        if not gradient:
            return policy.score(batch, max_logits_per_chunk=1 << 22).target_N
        weight_N = torch.full((len(batch.target_N),), 1.0 / sum(len(view.completion_ids) for view in group))
        job = LossInputs(batch.target_N, weight_N, lambda tokens: -tokens.target(STUDENT), max_logits_per_chunk=1 << 22)
        result = policy(batch, job)
        result.loss.backward()
        scored: Tensor = result.scores[STUDENT].target_N
        return scored

    return {
        "one forward a row": lambda g: torch.cat([forward([view], packed=False, gradient=g) for view in group]),
        "one padded batch": lambda g: forward(group, packed=False, gradient=g),
        "packed, prompt shared": lambda g: forward(group, packed=True, gradient=g),
    }


def measure(policy: Policy, group: Sequence[View], rounds: int, *, gradient: bool) -> dict[str, Any]:
    """Median seconds of each way, by turns after one round that is not counted, and how far the ways are apart."""
    made = ways(policy, group)
    wall: dict[str, list[float]] = {name: [] for name in made}
    processor: dict[str, list[float]] = {name: [] for name in made}
    scored: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for name, way in made.items():
            policy.zero_grad(set_to_none=True)
            began, began_cpu = time.perf_counter(), time.process_time()
            scored[name] = way(gradient)
            if number:
                wall[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - began_cpu)
            if gradient:
                gradients[name] = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        log(f"{'with' if gradient else 'without'} gradient: round {number} of {rounds}")
    first, *_, last = made
    apart = [float((scored[first] - scored[last]).abs().max())]
    if gradient:
        apart.append(float((gradients[first] - gradients[last]).norm() / gradients[first].norm()))
    return {
        "seconds": {name: median(values) for name, values in wall.items()},
        "processor_seconds": {name: median(values) for name, values in processor.items()},
        "ratio": median(a / b for a, b in zip(wall[first], wall[last], strict=True)),
        "ratio_of_processor_seconds": median(a / b for a, b in zip(processor[first], processor[last], strict=True)),
        "apart": max(apart),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for the terminal."""
    lines = []
    for kind in ("without gradient", "with gradient"):
        found = result[kind]
        lines += [f"{kind}:", *(f"  {name:24}{seconds:9.3f} s" for name, seconds in found["seconds"].items())]
        lines.append(
            f"  {found['ratio']:.2f} times as fast as one forward a row "
            f"(processor seconds: {found['ratio_of_processor_seconds']:.2f}), apart by {found['apart']:.1e}"
        )
    lines += ["", *(f"{'yes' if held else 'NO ':4}{name}" for name, held in result["checks"].items())]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    policy, group = random_policy(options), random_group(options)
    found = {
        f"{'with' if gradient else 'without'} gradient": measure(policy, group, options.rounds, gradient=gradient)
        for gradient in (False, True)
    }
    checks = {
        f"at least {FASTER} times as fast without gradient": found["without gradient"]["ratio"] >= FASTER,
        f"the same within {TOLERANCE:g}": all(one["apart"] <= TOLERANCE for one in found.values()),
    }
    names = ("group", "prompt", "completion", "hidden", "layers", "vocabulary", "rounds", "seed")
    settings = {name: getattr(options, name) for name in names}
    result = {**origin(options.threads), "workload": settings, **found, "checks": checks}
    write(result, "scoring", options.out)
    print(table(result))


if __name__ == "__main__":
    main()
