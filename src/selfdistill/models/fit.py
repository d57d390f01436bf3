"""Choose batch sizes and recomputed activations such that a step fits a device's memory, by the sizing model."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from selfdistill.config.bits import MOMENTS_IN_8_BITS
from selfdistill.config.sections import Model, OptimiserConfig, ParallelConfig, limits_on
from selfdistill.models.devices import read_device
from selfdistill.models.head import PIECE, PIECE_ON_CPU
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.models.sizing import BFLOAT16, FLOAT32, Plan, Shape, a_row, adapter_parameters, memory, resting
from selfdistill.types import External, Snapshot, Weights

MOST_ROWS = 512
"""Largest number of completions decoded at once. A larger batch is not faster."""
FEWEST_TOKENS = 1024
"""Tokens of the smallest micro-batch that is chosen. A longer completion is its own micro-batch."""
KEPT_FROM = 4096
"""Tokens of a micro-batch above which it is halved before activations are recomputed: half the micro-batch costs
little time, recomputing costs a third more operations."""
BYTES = {"bfloat16": BFLOAT16, "float32": FLOAT32, "float64": 8}
KEPT_BACK = 0.1
"""Share of a device's memory that is not planned for: fragments, kernels, libraries."""


@dataclass(frozen=True, slots=True)
class GivenSizes:
    """The sizes that the user set; None if unset."""

    max_tokens_per_microbatch: int | None = None
    max_logits_per_chunk: int | None = None
    activation_checkpointing: bool | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that bound the memory of a step."""

    max_tokens_per_microbatch: int
    max_logits_per_chunk: int
    activation_checkpointing: bool
    max_batch_size: int


def choose_sizes(
    device: str, free: int | None, shape: Shape | None, plan: Plan, given: GivenSizes, *, length: int
) -> Sizes:
    """Sizes with which a step fits ``free`` bytes of a device, all decided. Sizes in ``given`` take precedence.

    ``device`` is a name, ``length`` the tokens of the longest prompt and completion. Without the memory or the shape,
    and where nothing fits, the sizes are the device's usual ones and the smallest ones. ``plan`` says what else lies in
    the memory; its micro-batch, its chunk and whether it recomputes are not read.
    """
    defaults = limits_on(device)
    tokens = given.max_tokens_per_microbatch or defaults.max_tokens_per_microbatch
    logits = given.max_logits_per_chunk or defaults.max_logits_per_chunk
    recompute, rows = given.activation_checkpointing, given.max_batch_size
    if free is None or shape is None:
        return Sizes(tokens, logits, bool(recompute), rows or MOST_ROWS)
    budget = free * (1 - KEPT_BACK)
    # The ways to split a step, the fastest first.
    options = [False, True] if recompute is None else [recompute]
    candidates: list[tuple[int, int, bool]] = []
    for recomputing in options:
        micro, chunk = tokens, logits
        while True:
            candidates.append((micro, chunk, recomputing))
            smallest = KEPT_FROM if recompute is None and not recomputing else FEWEST_TOKENS
            if given.max_tokens_per_microbatch or micro // 2 < smallest:
                break
            micro //= 2
            chunk = chunk if given.max_logits_per_chunk else max(chunk // 2, 1 << 22)
    tokens, logits, recompute = next(
        (way for way in candidates if peak(shape, planned(device, plan, *way, length)) <= budget), candidates[-1]
    )
    if rows is None:
        rows = min(max(int((budget - resting(shape, plan)) // a_row(shape, length, plan.computed)), 1), MOST_ROWS)
    return Sizes(tokens, logits, recompute, rows)


def planned(device: str, plan: Plan, tokens: int, logits: int, recompute: bool, length: int) -> Plan:
    """The plan of a step with these sizes. A sequence longer than the micro-batch is one by itself."""
    micro = max(tokens, length)
    piece = PIECE_ON_CPU if device.partition(":")[0] == "cpu" else PIECE
    return replace(plan, micro=micro, scored=micro, elements=logits, recompute=recompute, piece=piece)


def peak(shape: Shape, plan: Plan) -> float:
    """Bytes on each device at the peak of an update."""
    return sum(memory(shape, plan).values())


def expected_bytes(shape: Shape, plan: Plan, *, rows: int, length: int) -> float:
    """Bytes on each device at the peak of a step, whose sampling decodes ``rows`` completions of ``length`` at once."""
    return max(peak(shape, plan), resting(shape, plan) + rows * a_row(shape, length, plan.computed))


def read_shape(path: str) -> Shape | None:
    """The shape of the model at a path, from its ``config.json`` alone. None if it cannot be read or describes no dense
    decoder with attention: the sizing model knows no other."""
    source = Path(resolve_model(path))
    adapter = _json(source / "adapter_config.json")
    if adapter is not None:
        base = adapter.get("base_model_name_or_path")
        return read_shape(base) if isinstance(base, str) and base.strip() and Path(base) != source else None
    config = _json(source / "config.json")
    if config is None and not source.is_dir() and "/" in path and not source.is_absolute():
        from transformers.utils.hub import cached_file

        try:
            config_file = cached_file(path, "config.json")
        except (OSError, ValueError):
            return None
        config = None if config_file is None else _json(Path(config_file))
    return None if config is None else shape_in(_with_defaults(config))


def _with_defaults(config: dict[str, Any]) -> Mapping[str, Any]:
    """A config as transformers reads it: files leave out what is a family's default, such as Gemma's tied head."""
    from transformers import CONFIG_MAPPING

    kind, own = config.get("model_type"), config.get("text_config") or {}
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return config
    try:
        text: Mapping[str, Any] = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config)).get_text_config().to_dict()
        stated = {**config, **own}
    # Whoever loads the model says what is wrong with its config.
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, StrictDataclassError):
        return config
    # What a checkpoint with a tower says of its head may stand outside of the part for texts.
    return {**text, "tie_word_embeddings": stated.get("tie_word_embeddings", text.get("tie_word_embeddings", False))}


def shape_in(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a model's config describes; None as for :func:`read_shape`."""
    text = config.get("text_config", config)

    def number(*names: str) -> int | None:
        return next((text[name] for name in names if isinstance(text.get(name), int) and text[name] > 0), None)

    layers, width = number("num_hidden_layers", "n_layer"), number("hidden_size", "n_embd")
    heads, vocabulary = number("num_attention_heads", "n_head"), number("vocab_size")
    experts = any((number(name) or 0) > 1 for name in text if "experts" in name)
    if layers is None or width is None or heads is None or vocabulary is None or experts:
        return None
    other_layers = set(text.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    return Shape(
        layers=layers,
        D=width,
        H=heads,
        K=number("num_key_value_heads") or heads,
        E=number("head_dim") or width // heads,
        F=number("intermediate_size", "n_inner") or 4 * width,
        V=vocabulary,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        # Gemma's smaller models have a table of embeddings for each layer.
        approximate=bool(other_layers or number("hidden_size_per_layer_input")),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decodable_rows(policy: Policy, *, length: int) -> int:
    """Completions of ``length`` tokens, prompt included, that a loaded model can decode at once on its device."""
    shape, device = shape_in(policy.causal_lm.config.to_dict()), read_device(str(policy.device))
    if shape is None or device is None:
        return MOST_ROWS
    # A GPU's free memory excludes the weights; a CPU's memory is everything that the process may use.
    size = next(policy.parameters()).element_size()
    weights = sum(p.numel() * p.element_size() for p in policy.parameters()) if device.kind == "cpu" else 0
    rows = (device.free * (1 - KEPT_BACK) - weights) // a_row(shape, length, size)
    return min(max(int(rows), 1), MOST_ROWS)


def plan_of(
    shape: Shape | None,
    model: Model,
    parallel: ParallelConfig,
    teachers: Collection[Weights],
    *,
    roles: int,
    ranks: int,
    optimiser: OptimiserConfig | None = None,
) -> Plan:
    """The plan of a run whose method needs ``teachers``, the weights of its roles, and has ``roles`` in its loss on
    distributions, the student included."""
    external = [read_shape(kind.path) for kind in teachers if isinstance(kind, External)]
    averaged, frozen = int("ema" in teachers), int("frozen" in teachers)
    # A snapshot is constant between two renewals. With LoRA it is a second adapter, as an average is.
    snapshots = sum(isinstance(kind, Snapshot) for kind in teachers)
    averaged, frozen = (averaged + snapshots, frozen) if model.lora else (averaged, frozen + snapshots)
    shards = parallel.shards if parallel.kind == "hsdp" and parallel.shards else ranks
    adapter = adapter_parameters(shape, model.lora.rank) if model.lora is not None and shape is not None else 0
    return Plan(
        gpus=shards if parallel.sharded else 1,
        copies=averaged + frozen,
        frozen=frozen,
        external=sum(shape_of_teacher.parameters for shape_of_teacher in external if shape_of_teacher is not None),
        adapter=adapter,
        stored=BYTES[model.dtype] if model.dtype == "float64" else FLOAT32,
        computed=BYTES[model.dtype],
        roles=roles,
        quantised=model.quantisation is not None,
        eight_bit=optimiser is not None and optimiser.kind == MOMENTS_IN_8_BITS,
    )
