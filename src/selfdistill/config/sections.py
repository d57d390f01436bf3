"""The sections of a config. Each package takes its own section as an argument."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict


class Strict(BaseModel):
    """A table that refuses unknown keys, and infinity and NaN, which TOML knows as numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_json(table: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(table)
    # TOML has dates and times, which JSON has not, and Python callers may give any object.
    except TypeError as error:
        raise ValueError(f"its values go out as JSON: {error}") from error
    return table


JsonTable = Annotated[dict[str, Any], AfterValidator(_check_json)]
"""A table that is sent to another program."""


AlarmName = Literal[
    "entropy_collapse",
    "entropy_explosion",
    "teacher_entropy_collapse",
    "length_explosion",
    "length_shrinkage",
    "deliberation_vanishing",
    "reference_leak",
    "truncated_completions",
    "unended_episodes",
    "tool_errors",
    "turns_shrinking",
    "skipped_completions",
    "no_signal",
    "no_success",
    "importance_ratios",
    "sampler_gap",
    "teacher_worse",
    "gradient_jump",
    "vanishing_updates",
    "validation_falls",
]
"""An alarm of ``tracking/alarms.py``. The config does not import tracking; a test compares the names."""

BestBy = Literal["success", "reward", "loglikelihood", "teacher_gap", "teacher_shift", "last"]
"""A metric of held-out problems by which the best checkpoint is chosen."""

Sink = Literal["tensorboard", "wandb", "trackio"]
"""A tracker of ``tracking/trackers.py``; a test compares the names."""


MAY_CHANGE: JsonDict = {"resume": "may change"}
"""Marks a key, or all keys of a table, that a resume may change, because it changes the steps by rounding at most."""
STAYS: JsonDict = {"resume": "stays"}
"""Marks a key that a resume must not change, in a table marked ``MAY_CHANGE``."""


class LoraConfig(Strict):
    """Train an adapter instead of all weights."""

    rank: int = Field(64, ge=1, description="Rank of the adapter's factors.")
    alpha: float = Field(128, gt=0, description="Scale: the adapter adds alpha / rank · B A.")
    target_modules: str | list[str] = Field("all-linear", description="Layers that get an adapter, as peft names them.")


class ModelConfig(Strict):
    """The student."""

    path: str = Field(
        "countdown-base", description="Model directory, hub id, name of a shipped model, or the folder of a run."
    )
    dtype: Literal["float32", "bfloat16", "float64", "auto"] = Field(
        "auto",
        description="Number type that the model computes in; 'auto': bfloat16 on a GPU that is fast in it, else "
        "float32. Trained and averaged weights have float32 masters if it is bfloat16.",
    )
    device: str = Field(
        "auto",
        description="Torch device, for example 'cpu' or 'cuda'; 'auto': the GPU with most free memory, else cpu.",
    )
    lora: LoraConfig | None = Field(None, description="Adapter to train; unset: full fine-tuning.")
    quantisation: Literal["nf4"] | None = Field(
        None,
        description="'nf4': keep the linear layers of an adapter's base in 4 bits (NormalFloat, double quantisation, "
        "computed in dtype), by bitsandbytes; unset: in dtype.",
    )
    compile: bool = Field(
        False,
        description="Compile the functions of the logits (torch.compile). Results agree to rounding; the first step "
        "takes longer.",
    )


class Model(ModelConfig):
    """The student on a device that is known. The defaults are those of runs that an earlier version wrote."""

    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    device: str = "cpu"

    @field_validator("device")
    @classmethod
    def _is_decided(cls, device: str) -> str:
        if device == "auto":
            raise ValueError("a run's own config names its device")
        return device


class SamplingConfig(Strict):
    """How completions are sampled."""

    prompts: int = Field(16, ge=1, description="Problems per step.")
    completions: int | None = Field(None, ge=1, description="Completions per problem; unset: the method's own.")
    max_tokens: int | None = Field(None, ge=1, description="Longest completion; unset: the method's own.")
    temperature: float | None = Field(None, gt=0, description="Sampling temperature; unset: the method's own.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus; unset: the method's own.")
    top_k: int | None = Field(
        None, ge=0, description="Keep the k likeliest tokens, 0 for all; unset: the method's own."
    )
    thinking: bool | None = Field(
        None, description="Thinking switch of the chat template; unset: the template's own default."
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        description="Completions decoded at once; unset: as many as the device's memory holds, at most 512.",
        json_schema_extra=MAY_CHANGE,
    )


class Sampling(SamplingConfig):
    """How completions are sampled, with all defaults filled in."""

    completions: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    max_batch_size: int = Field(512, json_schema_extra=MAY_CHANGE)


class OptimiserConfig(Strict):
    """AdamW."""

    kind: Literal["adamw", "adamw8bit"] = Field(
        "adamw",
        description="'adamw8bit': AdamW whose moments are kept in 8 bits, by bitsandbytes; those of tensors with fewer "
        "than 4,096 numbers in float32.",
    )
    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; unset: the method's own.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Shape after the warm-up.")
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay.")
    clip_norm: float = Field(1.0, ge=0, description="Gradient norm to clip at; 0 leaves it alone.")
    updates_per_batch: int = Field(1, ge=1, description="Optimiser steps on each batch of completions.")


class Optimiser(OptimiserConfig):
    """AdamW, with all defaults filled in."""

    learning_rate: float


class LimitsConfig(Strict):
    """Bounds on memory. They change how work is split, never its result."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    max_tokens_per_microbatch: int | None = Field(
        None,
        ge=1,
        description="Tokens that one forward pass computes; unset: 4096 on a CPU, whose cache holds no more, "
        "16384 elsewhere, fewer where memory does not suffice.",
    )
    max_logits_per_chunk: int | None = Field(
        None,
        ge=1,
        description="Logits that exist at once, those of all contexts together; unset: 2^26 on a CPU, 2^28 elsewhere, "
        "fewer where memory does not suffice.",
    )


class Limits(LimitsConfig):
    """Bounds on memory, with all defaults filled in."""

    max_tokens_per_microbatch: int
    max_logits_per_chunk: int


def limits_on(device: str, given: LimitsConfig | None = None) -> Limits:
    """The bounds for a device, by its name. Values in ``given`` take precedence.

    On a CPU small micro-batches of similar lengths have little padding and fit the cache (docs/log.md). On a GPU larger
    chunks of logits make up for the accumulation of the head's gradient in slow memory.
    """
    tokens, logits = (4096, 1 << 26) if device.partition(":")[0] == "cpu" else (16384, 1 << 28)
    given = given or LimitsConfig()
    return Limits(
        max_tokens_per_microbatch=given.max_tokens_per_microbatch or tokens,
        max_logits_per_chunk=given.max_logits_per_chunk or logits,
    )


class ParallelConfig(Strict):
    """How several processes share the model. One process needs none of it."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    kind: Literal["none", "ddp", "fsdp2", "hsdp"] = Field(
        "ddp",
        description='"ddp": each process holds the whole model; "fsdp2": a shard of it; "hsdp": shards within groups '
        "of processes, whole copies across them.",
    )
    shards: int | None = Field(
        None, ge=1, description="hsdp: processes that hold one copy together; unset: those of a machine."
    )
    param_dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Number type that sharded weights are computed with, whatever model.dtype is; unset: that.",
        json_schema_extra=STAYS,
    )
    reduce_dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Number type that sharded gradients are summed in; unset: model.dtype, float32 at least.",
        json_schema_extra=STAYS,
    )
    activation_checkpointing: bool | None = Field(
        None,
        description="Compute the layers' activations again in the backward instead of keeping them; unset: where "
        "memory does not hold them.",
    )
    cpu_offload: bool = Field(
        False, description="Keep shards of weights, gradients and optimiser in the machine's memory."
    )
    timeout: float = Field(
        1800.0, gt=0, description="Seconds that a process waits for the others before it gives the run up."
    )

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded: every rank, or under ``"hsdp"`` every group of ranks, holds one copy."""
        return self.kind in ("fsdp2", "hsdp")


class Parallel(ParallelConfig):
    """How several processes share the model, with all defaults filled in."""

    activation_checkpointing: bool = False


class CheckpointConfig(Strict):
    """When to save."""

    model_config = ConfigDict(json_schema_extra=MAY_CHANGE)

    every: int = Field(20, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept; the best by validation is kept besides.")


class AlarmsConfig(Strict):
    """Thresholds of the alarms. "At the start" means the first ``window`` steps, "now" the last."""

    window: int = Field(5, ge=1, description="Steps that are averaged, so that a single outlier raises no alarm.")
    entropy: float = Field(
        0.25, ge=0, lt=1, description="entropy_collapse, teacher_entropy_collapse: share of the entropy at the start."
    )
    entropy_rise: float = Field(
        1.0, gt=0, description="entropy_explosion: nats a token above the first step's entropy."
    )
    length_growth: float = Field(2.0, gt=1, description="length_explosion: multiple of the length at the start.")
    length_fall: float = Field(0.5, gt=0, lt=1, description="length_shrinkage: share of the length at the start.")
    deliberation: float = Field(
        0.5, ge=0, lt=1, description="deliberation_vanishing: share of the deliberation words at the start."
    )
    leak: float = Field(
        0.1, gt=0, le=1, description="reference_leak: share of completions that mention a reference they never saw."
    )
    truncated: float = Field(0.3, gt=0, le=1, description="truncated_completions: share of completions cut.")
    unended: float = Field(
        0.5, gt=0, le=1, description="unended_episodes: share of episodes that their environment did not end."
    )
    tool_errors: float = Field(0.5, gt=0, le=1, description="tool_errors: share of turns answered with an error.")
    turns_fall: float = Field(
        0.1, ge=0, lt=1, description="turns_shrinking: share of the turns after the first that are left of the start's."
    )
    skipped: float = Field(0.5, gt=0, le=1, description="skipped_completions: share left out of the loss.")
    no_signal: float = Field(0.8, gt=0, le=1, description="no_signal: share of groups without a learning signal.")
    no_success: int = Field(
        20, ge=1, description="no_success: steps of graded rewards in which no completion, or every one, is right."
    )
    ratio: float = Field(0.1, gt=0, description="importance_ratios: distance of the mean ratio from 1.")
    clipped: float = Field(0.2, gt=0, le=1, description="importance_ratios: share of tokens outside the clip range.")
    sampler_gap: float = Field(
        0.1, gt=0, description="sampler_gap: nats a token between the learner and another engine that samples."
    )
    u_gap: float = Field(
        0.0, description="teacher_worse: mean u a token of correct completions above that of wrong ones, in nats."
    )
    reward_gap: float = Field(
        0.05, gt=0, description="teacher_worse: reward of the student above that of a teacher that samples completions."
    )
    gradient: float = Field(10.0, gt=1, description="gradient_jump: multiple of the median of the steps before.")
    moved: float = Field(
        0.2, ge=0, lt=1, description="vanishing_updates: share of the weights with a gradient that an update changes."
    )
    validation: float = Field(
        0.03,
        gt=0,
        description="validation_falls: accuracy, or mean reward where that is told, lost since the best evaluation.",
    )
