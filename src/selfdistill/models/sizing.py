"""How much memory and time a step takes, term by term, from the shape of a model.

Pure arithmetic. ``benchmarks/sizing.py`` makes the tables of docs/scaling.md from it and checks its terms: memory
against measured peaks on a CPU, operations against PyTorch's own counter, and seconds of models of several shapes
against one share of a machine's rates. Which share a GPU gives is an assumption (:class:`Device`).

Axis letters: T tokens, V vocabulary, D hidden, H heads, K key and value heads, E numbers in a head, F feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
FLOAT32, BFLOAT16 = 4, 2
"""Bytes a number."""
BLOCK_4_BITS, BLOCK_8_BITS = 64, 256
"""Numbers of a quantised weight, and of a moment or a scale in 8 bits, that share a scale."""
SMALLEST_IN_8_BITS = 4096
"""Numbers of the smallest tensor whose moments are kept in 8 bits; bitsandbytes' own default."""


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
    approximate: bool = False
    """Whether the model has layers or tables of other kinds, which are counted as those here or not at all: good enough
    to choose sizes by, and no number to be told."""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: four projections, three of the feed-forward, four norms."""
        attention = 2 * self.D * self.H * self.E + 2 * self.D * self.K * self.E + 2 * self.E
        return attention + 3 * self.D * self.F + 2 * self.D

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's linear maps: queries, keys, values, output; gate, up, down."""
        heads, groups, gate = self.H * self.E, self.K * self.E, (self.D, self.F)
        return (self.D, heads), (self.D, groups), (self.D, groups), (heads, self.D), gate, gate, (self.F, self.D)

    @property
    def norms(self) -> tuple[int, ...]:
        """Weights of a layer's norms: two of its inputs, one of queries and of keys."""
        return self.D, self.D, self.E, self.E

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


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is trained. ``copies`` are teachers with weights of their own: 0 live or LoRA, 1 frozen or averaged;
    ``frozen`` of them do not move and are kept as they are computed with. ``external`` is the number of weights of
    other models that teach. ``adapter`` is the number of trained weights where not all are: the others are kept as they
    are computed with, a frozen teacher is the model without its adapter, and the head has no gradient.

    ``stored`` bytes a trained or averaged weight, gradient and moment; ``computed`` bytes an activation, and a weight
    that computes: whole weights in a narrower type than the stored ones are copies of them. ``micro`` tokens go through
    the model at once, ``scored`` of them are completion. ``roles`` take part in a loss on distributions, the student
    included; ``elements`` and ``piece`` are those of ``selfdistill.models.head``. ``quantised`` says that the linear
    maps below the adapter are kept in 4 bits, ``eight_bit`` that AdamW's moments are kept in 8.
    """

    gpus: int = 1
    copies: int = 0
    frozen: int = 0
    external: int = 0
    adapter: int = 0
    stored: int = FLOAT32
    computed: int = FLOAT32
    micro: int = 16_384
    scored: int = 16_384
    recompute: bool = False
    roles: int = 2
    elements: int = 1 << 28
    piece: int = 1 << 25
    quantised: bool = False
    eight_bit: bool = False


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
    shard = (plan.adapter or shape.parameters) * plan.stored / plan.gpus
    base = base_bytes(shape, plan) / plan.gpus if plan.adapter else 0.0
    frozen_shard = shape.parameters * plan.computed / plan.gpus
    sharded = plan.gpus > 1
    # Shards are cast when they are gathered; unsharded weights exist in both types.
    both_types = plan.computed < plan.stored and not sharded and not plan.adapter
    narrow = shape.parameters * plan.computed if both_types else 0.0
    averaged = plan.copies - plan.frozen
    # Two layers are unsharded at a time (one computes, the next is gathered). The tables of student and teachers stay
    # unsharded until the loss has read them.
    tables = (1 + plan.copies) * shape.table_parameters
    gathered = (2 * shape.layer_parameters + tables) * plan.computed if sharded else 0.0
    return {
        "weights": base + shard,
        "computed weights": narrow,
        "gradients": shard,
        "moments": moments_in_8_bits(shape, plan) if plan.eight_bit else 2 * shard,
        "teacher copies": averaged * (shard + narrow)
        + (0.0 if plan.adapter else plan.frozen * frozen_shard)
        + plan.external * plan.computed / plan.gpus,
        "gathered weights": gathered,
        "dequantised weights": dequantised(shape, plan),
        "activations": activations(shape, plan),
        "loss": loss_path(shape, plan),
    }


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Weights of an adapter on every linear layer: two factors of a rank for each of seven products."""
    return shape.layers * rank * sum(inputs + outputs for inputs, outputs in shape.products)


def base_bytes(shape: Shape, plan: Plan) -> float:
    """Bytes of the weights below an adapter, in the type that is computed with or with linear maps in 4 bits."""
    maps = [inputs * outputs for inputs, outputs in _quantisable(shape)] if plan.quantised else []
    return (shape.parameters - shape.layers * sum(maps)) * plan.computed + shape.layers * sum(map(four_bits, maps))


def four_bits(weights: int) -> int:
    """Bytes of a matrix in 4 bits: two weights in a byte, and scales in 8 bits, which have scales in float32."""
    scales = -(-weights // BLOCK_4_BITS)
    return -(-weights // 2) + scales + FLOAT32 * -(-scales // BLOCK_8_BITS)


def dequantised(shape: Shape, plan: Plan) -> float:
    """Bytes of the largest linear map in 4 bits as it is computed with: one at a time is dequantised."""
    maps = [inputs * outputs for inputs, outputs in _quantisable(shape)] if plan.adapter and plan.quantised else []
    return float(max(maps, default=0) * plan.computed)


def _quantisable(shape: Shape) -> list[tuple[int, int]]:
    """A layer's linear maps that can be kept in 4 bits: their inputs are blocks without a rest."""
    return [(inputs, outputs) for inputs, outputs in shape.products if inputs % BLOCK_4_BITS == 0]


def moments_in_8_bits(shape: Shape, plan: Plan) -> float:
    """Bytes of both moments: 8 bits a number and a scale in float32 for a block, or float32 in small tensors."""
    if plan.adapter:
        rank = plan.adapter // adapter_parameters(shape, 1)
        layer = [rank * side for sides in shape.products for side in sides]
        others = []
    else:
        layer = [*(inputs * outputs for inputs, outputs in shape.products), *shape.norms]
        others = [shape.V * shape.D] * (1 if shape.tied else 2) + [shape.D]

    def size(numbers: int) -> int:
        blocks = -(-numbers // BLOCK_8_BITS)
        return 2 * (numbers + FLOAT32 * blocks if numbers >= SMALLEST_IN_8_BITS else FLOAT32 * numbers)

    return float(shape.layers * sum(map(size, layer)) + sum(map(size, others)))


def activations(shape: Shape, plan: Plan) -> float:
    """Bytes that one micro-batch keeps for its backward; recomputed, each layer's input and one layer in full."""
    in_full = plan.micro * shape.saved_bytes(plan.computed)
    last_norm = plan.micro * shape.D * (2 * plan.computed + FLOAT32)
    if not plan.recompute:
        return shape.layers * in_full + last_norm
    return kept_inputs(shape, plan) + in_full + last_norm


def kept_inputs(shape: Shape, plan: Plan) -> float:
    """Bytes of the layers' inputs, the only activations that recomputation keeps."""
    return float(shape.layers * plan.micro * shape.D * plan.computed)


def loss_path(shape: Shape, plan: Plan) -> float:
    """Bytes of the sliced loss: gradients of head (in float32) and hidden states, a block of logits, its pieces."""
    rows = max(1, min(plan.scored, plan.elements // (plan.roles * shape.V)))
    block = plan.roles * rows * shape.V * plan.computed
    piece = max(1, min(rows, plan.piece // shape.V)) * shape.V * FLOAT32
    # If the head is not float32, its gradient is cast at the end, so both copies exist at once.
    gradient = shape.V * shape.D * (FLOAT32 + (plan.computed if plan.computed != FLOAT32 else 0))
    if plan.adapter:
        gradient = 0
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


STATE = ("weights", "computed weights", "gradients", "moments", "teacher copies")
"""The terms that exist from the first step to the last."""


DECODING_TENSORS = 6
"""float32 tensors of the vocabulary's size for every row that is decoded: logits, log-probabilities, the same at the
sampling temperature, probabilities, their sums and one that an operation makes besides."""
SPARE_CACHE = 1.5
"""Size of the cache's buffers beside what they hold: they grow by half (``models/prefill.py``)."""


def resting(shape: Shape, plan: Plan) -> float:
    """Bytes on each GPU between two updates, while completions are sampled: all but gradients and activations."""
    terms = memory(shape, plan)
    return sum(terms[name] for name in STATE) - terms["gradients"] + terms["dequantised weights"]


def a_row(shape: Shape, length: int, bytes_a_number: int) -> float:
    """Bytes that one more completion of ``length`` tokens, prompt included, takes while it is decoded."""
    return SPARE_CACHE * cache(shape, 1, length, bytes_a_number) + DECODING_TENSORS * FLOAT32 * shape.V
