"""How much memory and time a step takes, term by term, from the shape of a model.

    python benchmarks/sizing.py                       # the table of docs/scaling.md
    python benchmarks/sizing.py --model qwen3-8b --gpus 16 --copies 1
    python benchmarks/sizing.py --check               # small models' memory and seconds, measured and computed

Pure arithmetic. The terms of memory are checked against measured peaks on a CPU, the operations against PyTorch's own
counter, and that one share of a machine's rates tells the seconds of models of any shape, on a CPU too; which share a
GPU gives is an assumption (:class:`Device`), since none was at hand.

Axis letters: T tokens, V vocabulary, D hidden, H heads, K key and value heads, E numbers in a head, F feed-forward.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from processes import origin, run_child, write

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2
"""Bytes a number."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder with grouped attention, gated feed-forward and norms of queries and keys, as Qwen3 is."""

    layers: int
    D: int
    H: int
    K: int
    E: int
    F: int
    V: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: four projections, three of the feed-forward, four norms."""
        attention = 2 * self.D * self.H * self.E + 2 * self.D * self.K * self.E + 2 * self.E
        return attention + 3 * self.D * self.F + 2 * self.D

    @property
    def table_parameters(self) -> int:
        """Embedding and head; one matrix where they are tied."""
        return (1 if self.tied else 2) * self.V * self.D

    @property
    def parameters(self) -> int:
        """All weights, the last norm included."""
        return self.layers * self.layer_parameters + self.table_parameters + self.D

    def saved_bytes(self, computed: int) -> int:
        """Bytes that autograd keeps for one token of one layer, as transformers writes the layer.

        In the type that is computed with: three times D for each of two norms; queries and keys before, inside and
        after their norm and after rotation; values; what attention returns; four F (gate, its activation, up, their
        product). Norms work in float32 and keep their quotient so; float32 are also one number a norm and a head.
        """
        heads, groups = self.H * self.E, self.K * self.E
        numbers = 6 * self.D + 4 * heads + 4 * groups + 4 * self.F
        in_float32 = 2 * self.D + heads + groups
        return computed * numbers + (FLOAT32 - computed) * in_float32 + FLOAT32 * (2 + 2 * self.H + self.K)

    def forward_operations(self, tokens: int, length: int) -> int:
        """Floating-point operations of one forward over ``tokens`` tokens in sequences of ``length``, head apart.

        Two a weight and token, and four a number of a query for every position it is compared with; nothing is spared
        for positions that a causal mask hides, as PyTorch counts.
        """
        products = self.layer_parameters - 2 * self.E - 2 * self.D
        return tokens * self.layers * (2 * products + 4 * self.H * self.E * length)

    def head_operations(self, tokens: int) -> int:
        """Operations of the head over ``tokens`` scored tokens, forward."""
        return 2 * tokens * self.V * self.D


SHAPES: Mapping[str, Shape] = {
    "qwen3-1.7b": Shape(28, 2048, 16, 8, 128, 6144, 151_936, tied=True),
    "qwen3-4b": Shape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True),
    "qwen3-8b": Shape(36, 4096, 32, 8, 128, 12_288, 151_936, tied=False),
    "qwen3-32b": Shape(64, 5120, 64, 8, 128, 25_600, 151_936, tied=False),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is trained. ``copies`` are teachers with weights of their own: 0 live or LoRA, 1 frozen or averaged;
    ``frozen`` of them do not move and are kept as they are computed with.

    ``stored`` bytes a trained or averaged weight, gradient and moment; ``computed`` bytes an activation, and a weight
    that computes: whole weights in a narrower type than the stored ones are copies of them. ``micro`` tokens go through
    the model at once, ``scored`` of them are completion. ``roles`` take part in a loss on distributions, the student
    included; ``elements`` and ``piece`` are those of ``selfdistill.models.head``.
    """

    gpus: int = 1
    copies: int = 0
    frozen: int = 0
    stored: int = FLOAT32
    computed: int = FLOAT32
    micro: int = 16_384
    scored: int = 16_384
    recompute: bool = False
    roles: int = 2
    elements: int = 1 << 28
    piece: int = 1 << 25


@dataclass(frozen=True, slots=True)
class Work:
    """One step: prompts, completions of each, and mean lengths in tokens; ``teachers`` contexts beside the student."""

    prompts: int = 32
    completions: int = 8
    prompt: int = 512
    teacher_prompt: int = 2048
    completion: int = 2048
    teachers: int = 1

    @property
    def rows(self) -> int:
        """Completions of a step."""
        return self.prompts * self.completions


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, and what share of it is used: assumptions, not measurements. FLOP/s in bf16, bytes/s, bytes."""

    name: str = "H100 SXM, 80 GB"
    operations: float = 989e12
    bandwidth: float = 3.35e12
    training_share: float = 0.4
    """Of the operations, in forwards and backwards."""
    decoding_share: float = 0.6
    """Of the bandwidth, while tokens are drawn one by one."""


PIECES_IN_A_LOSS = 20
"""Tensors of one piece that a divergence and its backward need room for, what the allocator keeps back included:
measured on a CPU with vocabularies of 16,000 and 151,936."""


def memory(shape: Shape, plan: Plan) -> dict[str, float]:
    """Bytes on each GPU by term; weights and all that has their shape are cut over the GPUs (FSDP2)."""
    shard = shape.parameters * plan.stored / plan.gpus
    frozen_shard = shape.parameters * plan.computed / plan.gpus
    sharded = plan.gpus > 1
    # Shards are made narrow as they are gathered; whole weights lie there in both types.
    narrow = shape.parameters * plan.computed if plan.computed < plan.stored and not sharded else 0.0
    averaged = plan.copies - plan.frozen
    # Two layers are whole at a time (one computes, the next arrives), the tables of student and teachers until the
    # loss has read them.
    tables = (1 + plan.copies) * shape.table_parameters
    whole = (2 * shape.layer_parameters + tables) * plan.computed if sharded else 0.0
    return {
        "weights": shard,
        "computed weights": narrow,
        "gradients": shard,
        "moments": 2 * shard,
        "teacher copies": averaged * (shard + narrow) + plan.frozen * frozen_shard,
        "gathered weights": whole,
        "activations": activations(shape, plan),
        "loss": loss_path(shape, plan),
    }


def activations(shape: Shape, plan: Plan) -> float:
    """Bytes that one micro-batch keeps for its backward; recomputed, each layer's input and one layer in full."""
    in_full = plan.micro * shape.saved_bytes(plan.computed)
    last_norm = plan.micro * shape.D * (2 * plan.computed + FLOAT32)
    if not plan.recompute:
        return shape.layers * in_full + last_norm
    return kept_inputs(shape, plan) + in_full + last_norm


def kept_inputs(shape: Shape, plan: Plan) -> float:
    """Bytes of the layers' inputs, all that is kept of them where the rest is computed again."""
    return float(shape.layers * plan.micro * shape.D * plan.computed)


def loss_path(shape: Shape, plan: Plan) -> float:
    """Bytes of the sliced loss: gradients of head (in float32) and hidden states, a block of logits, its pieces."""
    rows = max(1, min(plan.scored, plan.elements // (plan.roles * shape.V)))
    block = plan.roles * rows * shape.V * plan.computed
    piece = max(1, min(rows, plan.piece // shape.V)) * shape.V * FLOAT32
    # Where the head is not float32 its gradient is cast at the end: both lie there for a moment.
    gradient = shape.V * shape.D * (FLOAT32 + (plan.computed if plan.computed != FLOAT32 else 0))
    hidden = plan.scored * shape.D * plan.computed
    return gradient + hidden + block + PIECES_IN_A_LOSS * piece


def cache(shape: Shape, rows: int, length: int, bytes_a_number: int = BFLOAT16) -> float:
    """Bytes of keys and values of ``rows`` sequences of ``length`` tokens."""
    return 2.0 * rows * length * shape.layers * shape.K * shape.E * bytes_a_number


def training_operations(shape: Shape, work: Work, *, recompute: bool = False) -> float:
    """Operations of one step without sampling: each teacher forward, the student forward and twice that backward."""
    student, teacher = (
        shape.forward_operations(work.rows * length, length)
        for length in (work.prompt + work.completion, work.teacher_prompt + work.completion)
    )
    head = shape.head_operations(work.rows * work.completion)
    # The head's gradient is taken in the forward pass, from the logits: it is never recomputed.
    return work.teachers * (teacher + head) + (4 if recompute else 3) * student + 3 * head


def training_seconds(shape: Shape, work: Work, device: Device, gpus: int, *, recompute: bool = False) -> float:
    """Seconds of scoring, forward and backward, if the assumed share of all GPUs is used."""
    operations = training_operations(shape, work, recompute=recompute)
    return operations / (device.operations * device.training_share * gpus)


def sampling_seconds(
    shape: Shape, work: Work, device: Device, gpus: int, *, engine: int = 1, bytes_a_number: int = BFLOAT16
) -> float:
    """Seconds to draw the completions with engines of ``engine`` GPUs each, ``bytes_a_number`` in weights and cache.

    Every token of a sequence costs one reading of the weights and of the cache of the engine's sequences.
    """
    rows = -(-work.rows * engine // gpus)
    held = cache(shape, rows, work.prompt + work.completion // 2, bytes_a_number)
    a_token = (shape.parameters * bytes_a_number + held) / (engine * device.bandwidth * device.decoding_share)
    return work.completion * a_token


ENGINE_GPUS = {"qwen3-32b": 2}
"""GPUs of a sampling engine where one does not hold weights and cache; 1 for the others."""


def plan_on(gpus: int, *, copies: int, frozen: int, recompute: bool) -> Plan:
    """float32 weights, bf16 computation, one micro-batch of 16,384 tokens."""
    return Plan(gpus=gpus, copies=copies, frozen=frozen, computed=BFLOAT16, recompute=recompute)


STATE = ("weights", "computed weights", "gradients", "moments", "teacher copies")
"""The terms that lie there from the first step to the last."""


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
