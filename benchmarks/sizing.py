"""How much memory and time a step takes, term by term, from the shape of a model.

    python benchmarks/sizing.py                       # the table of docs/scaling.md
    python benchmarks/sizing.py --model qwen3-8b --gpus 16 --copies 1
    python benchmarks/sizing.py --check               # small models' memory and seconds, measured and computed

The arithmetic is ``selfdistill.models.sizing``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from processes import origin, run_child, write
from selfdistill.models.fit import KEPT_BACK, GivenSizes, choose_sizes, expected_bytes, planned
from selfdistill.models.sizing import (
    BFLOAT16,
    FLOAT32,
    GIB,
    STATE,
    Device,
    Plan,
    Shape,
    Work,
    a_row,
    adapter_parameters,
    memory,
    resting,
    sampling_seconds,
    training_seconds,
)

SHAPES: Mapping[str, Shape] = {
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 128, 6144, 151_936, tied=True),
    "qwen3-4b": Shape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True),
    "qwen3-8b": Shape(36, 4096, 32, 8, 128, 12_288, 151_936, tied=False),
    "qwen3-32b": Shape(64, 5120, 64, 8, 128, 25_600, 151_936, tied=False),
}
TINY = Shape(layers=2, D=64, H=2, K=1, E=32, F=160, V=1000, tied=True)
"""To see that a benchmark runs. vLLM has attention on CPUs for heads of 32 numbers, and for no smaller ones."""


ENGINE_GPUS = {"qwen3-32b": 2}
"""GPUs of a sampling engine where one does not hold weights and cache; 1 for the others."""


def plan_on(gpus: int, *, copies: int, frozen: int, recompute: bool) -> Plan:
    """float32 weights, bf16 computation, one micro-batch of 16,384 tokens."""
    return Plan(gpus=gpus, copies=copies, frozen=frozen, computed=BFLOAT16, recompute=recompute)


def bytes_a_weight(plan: Plan) -> float:
    """Bytes for each weight of the model that :data:`STATE` takes on one GPU, or on all together where it is cut."""
    shape = SHAPES["qwen3-1.7b"]
    terms = memory(shape, plan)
    return plan.gpus * sum(terms[name] for name in STATE) / shape.parameters


def state_table() -> str:
    """Bytes a weight by how the model is kept and by its teacher, in Markdown."""
    lines = ["| weights | live teacher | frozen | averaged |", "|---|---|---|---|"]
    for words, gpus, computed in (
        ('bf16, whole on each device (one process, `"ddp"`)', 1, BFLOAT16),
        ('bf16, cut over the devices (`"fsdp2"`)', 8, BFLOAT16),
        ("float32, either way", 1, FLOAT32),
    ):
        plans = (Plan(gpus, copies, frozen, computed=computed) for copies, frozen in ((0, 0), (1, 1), (1, 0)))
        lines.append(f"| {words} | {' | '.join(f'{bytes_a_weight(plan):.0f}' for plan in plans)} |")
    return "\n".join(lines)


CARDS = (24, 48, 80, 141)
"""Memory of a GPU in GB, as cards are sold."""
MICRO = 4096
"""Tokens of a micro-batch that small cards hold."""


def hardware_table() -> str:
    """The fewest GPUs (a power of two) that hold a model, by method and card, in Markdown."""
    ways = {
        "full, no or a live teacher (`grpo`, `sd`, `antisd`)": (0, 0, 0),
        "full, a frozen teacher (`opsd`, `purified`, `pbsd`)": (1, 1, 0),
        "full, an averaged teacher (`sdpo`, `sdft`, `credit`)": (1, 0, 0),
        "LoRA of rank 64, any of them": (0, 0, 64),
    }
    lines = [f"| model | trained | {' | '.join(f'{card} GB' for card in CARDS)} |", f"|---|---|{'---|' * len(CARDS)}"]
    for model, shape in SHAPES.items():
        for words, (copies, frozen, rank) in ways.items():
            fewest = [_fewest(shape, copies, frozen, rank, card * 1e9) for card in CARDS]
            lines.append(f"| {model} | {words} | {' | '.join(fewest)} |")
    return "\n".join(lines)


def _fewest(shape: Shape, copies: int, frozen: int, rank: int, card: float) -> str:
    """The fewest of 1, 2, 4 … 64 GPUs on which training and sampling take nine tenths of a card at most."""
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        plan = Plan(
            gpus=gpus,
            copies=copies,
            frozen=frozen,
            adapter=adapter_parameters(shape, rank),
            computed=BFLOAT16,
            micro=MICRO,
            scored=MICRO,
            recompute=True,
            elements=1 << 26,
        )
        work = Work()
        # While completions are sampled the whole model lies beside the shards, with room for 16 completions.
        whole = shape.parameters * BFLOAT16 if gpus > 1 else 0.0
        sampling = resting(shape, plan) + whole + 16 * a_row(shape, work.prompt + work.completion, BFLOAT16)
        if max(sum(memory(shape, plan).values()), sampling) <= 0.9 * card:
            return str(gpus)
    return "more than 64"


CARD_SHAPES: Mapping[str, Shape] = {
    "qwen3-0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151_936, tied=True),
    **{name: SHAPES[name] for name in ("qwen3-1.7b", "qwen3-4b", "qwen3-8b")},
    "qwen3-14b": Shape(40, 5120, 40, 8, 128, 17_408, 151_936, tied=False),
    "qwen3-32b": SHAPES["qwen3-32b"],
}
SMALL_CARDS = (16, 24, 48, 80)
"""Memory of a single GPU in GB."""
RANK = 64


def cards_table() -> str:
    """What a single card holds by model and by what is trained, in Markdown: completions that are decoded at once."""
    lines = [
        f"| model | trained | at least | {' | '.join(f'{card} GB' for card in SMALL_CARDS)} |",
        f"|---|---|---|{'---|' * len(SMALL_CARDS)}",
    ]
    work = Work()
    length = work.prompt + work.completion
    for model, shape in CARD_SHAPES.items():
        adapter = Plan(adapter=adapter_parameters(shape, RANK), computed=BFLOAT16)
        ways = {
            "full, AdamW": Plan(computed=BFLOAT16),
            "full, 8-bit AdamW": Plan(computed=BFLOAT16, eight_bit=True),
            "LoRA": adapter,
            "LoRA on 4-bit": replace(adapter, quantised=True),
        }
        for words, plan in ways.items():
            # On the smallest card nothing larger than the smallest sizes is chosen.
            _, least = _on_card(shape, plan, 0.0, length)
            found = [_on_card(shape, plan, card * 1e9, length) for card in SMALL_CARDS]
            cells = [
                f"{rows}" if needed <= card * 1e9 * (1 - KEPT_BACK) else "–"
                for card, (rows, needed) in zip(SMALL_CARDS, found, strict=True)
            ]
            lines.append(f"| {model} | {words} | {least / 1e9:.1f} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def _on_card(shape: Shape, plan: Plan, card: float, length: int) -> tuple[int, float]:
    """Completions that a run decodes at once on a card of so many bytes, and the bytes at the peak of its step."""
    sizes = choose_sizes("cuda", int(card), shape, plan, GivenSizes(), length=length)
    micro, chunk = sizes.max_tokens_per_microbatch, sizes.max_logits_per_chunk
    step = planned("cuda", plan, micro, chunk, sizes.activation_checkpointing, length)
    return sizes.max_batch_size, expected_bytes(shape, step, rows=sizes.max_batch_size, length=length)


def table(
    models: Sequence[str], gpus: Sequence[int], *, copies: int, frozen: int = 0, work: Work, device: Device
) -> str:
    """The sizing table in Markdown: GiB a GPU with activations kept and recomputed, seconds of a step."""
    lines = [
        "| model | GPUs | weights, gradients, moments, teacher | kept activations: all | recomputed: all "
        "| scoring and update | sampling |",
        "|---|---|---|---|---|---|---|",
    ]
    for model in models:
        shape = SHAPES[model]
        for count in gpus:
            kept, again = (
                memory(shape, plan_on(count, copies=copies, frozen=frozen, recompute=r)) for r in (False, True)
            )
            state = sum(kept[name] for name in STATE)
            update = training_seconds(shape, work, device, count, recompute=True)
            drawn = sampling_seconds(shape, work, device, count, engine=ENGINE_GPUS.get(model, 1))
            sizes = [f"{number / GIB:.0f} GiB" for number in (state, sum(kept.values()), sum(again.values()))]
            lines.append(f"| {model} | {count} | {' | '.join(sizes)} | {update:.0f} s | {drawn:.0f} s |")
    return "\n".join(lines)


CHECKED = Shape(layers=6, D=512, H=8, K=4, E=64, F=1536, V=16_000, tied=False)
"""The model whose memory is measured: large enough that its terms stand out, small enough for any machine."""


def main() -> None:
    """Print the table, or measure the small model and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", nargs="+", choices=sorted(SHAPES), default=list(SHAPES), help="shapes (default: all)")
    add("--gpus", type=int, nargs="+", default=[8, 16, 64], help="GPUs (default: %(default)s)")
    add("--copies", type=int, default=1, help="teachers with weights of their own (default: %(default)s)")
    add("--frozen", type=int, default=0, help="those of them that do not move, kept in bf16 (default: %(default)s)")
    add("--check", action="store_true", help="measure a small model's memory on this CPU (Linux) and write it down")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/sizing.json)")
    options = parser.parse_args()
    if not options.check:
        copies, frozen = options.copies, options.frozen
        if not 0 <= frozen <= copies:
            raise SystemExit(f"--frozen {frozen} is not among the {copies} teachers of --copies")
        print(table(options.model, options.gpus, copies=copies, frozen=frozen, work=Work(), device=Device()))
        return
    terms = json.loads(run_child("sizing_side.py", asdict(CHECKED), threads=1))
    speed = json.loads(run_child("sizing_speed.py", {}, threads=1))
    write({**origin(1), "shape": asdict(CHECKED), "terms": terms, "speed": speed}, "sizing", options.out)
    for name, term in terms.items():
        print(f"{name:20}{term['measured_mib']:9.1f} MiB measured{term['computed_mib']:9.1f} computed")
    for name, one in speed["seconds"].items():
        share = one["computed"] / one["measured"]
        print(f"{name:40}{one['measured']:9.3f} s measured, {share:.0%} of the machine's rate")


if __name__ == "__main__":
    main()
