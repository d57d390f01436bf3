"""The configuration of a run: what may be written, and one sentence for everything that may not.

Only ``run``, ``compare`` and ``cli`` know this module; all else takes plain arguments.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from selfdistill.config.renamed import RENAMED
from selfdistill.config.sampler import SAMPLER_KINDS, HFConfig, SamplerConfig
from selfdistill.config.sources import read_config
from selfdistill.config.tasks import CountdownConfig, Strict, TaskConfig, fill_from_preset, task_configs
from selfdistill.errors import ConfigError

ALARM_NAMES = (
    "entropy_collapse",
    "teacher_entropy_collapse",
    "length_explosion",
    "length_shrinkage",
    "deliberation_vanishing",
    "truncated_completions",
    "skipped_completions",
    "no_signal",
    "importance_ratios",
    "sampler_gap",
    "teacher_worse",
    "gradient_jump",
    "vanishing_updates",
    "validation_falls",
)
"""What ``stop_on`` may name: the alarms of ``tracking/alarms.py``, which a test holds to be the same."""


class LoraConfig(Strict):
    """Train an adapter instead of all weights."""

    rank: int = Field(64, ge=1, description="Rank of the adapter's factors.")
    alpha: float = Field(128, gt=0, description="Scale: the adapter adds alpha / rank · B A.")
    target_modules: str | list[str] = Field("all-linear", description="Layers that get an adapter, as peft names them.")


class ModelConfig(Strict):
    """The student."""

    path: str = Field("countdown-base", description="Model directory, hub id, or the name of a shipped model.")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32",
        description="Number type that the model computes in. Weights that are trained or averaged are kept in float32 "
        "behind bfloat16 ones.",
    )
    device: str = Field("cpu", description="Torch device, for example 'cpu' or 'cuda'.")
    lora: LoraConfig | None = Field(None, description="Adapter to train; unset: full fine-tuning.")
    compile: bool = Field(
        False,
        description="Compile what is done with logits (torch.compile). Results agree to rounding; the first step takes "
        "longer.",
    )


class SamplingConfig(Strict):
    """How completions are drawn."""

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
    max_batch_size: int = Field(512, ge=1, description="Completions decoded at once.")


class OptimiserConfig(Strict):
    """AdamW."""

    learning_rate: float | None = Field(None, gt=0, description="Peak learning rate; unset: the method's own.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Shape after the warm-up.")
    warmup: int = Field(0, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay.")
    clip_norm: float = Field(1.0, ge=0, description="Gradient norm to clip at; 0 leaves it alone.")
    updates: int = Field(1, ge=1, description="Optimiser steps on each batch of completions.")


class LimitsConfig(Strict):
    """Bounds on memory. They change how the work is cut, never its result."""

    tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that one forward pass computes; unset: 4096 on a CPU, whose cache holds no more, "
        "16384 elsewhere.",
    )
    elements: int | None = Field(
        None,
        ge=1,
        description="Logits that exist at once, those of all contexts together; unset: 2^26 on a CPU, 2^28 elsewhere.",
    )


class EvaluationConfig(Strict):
    """Accuracy on held-out problems, before, during and after training."""

    every: int = Field(20, ge=1, description="Steps between evaluations.")
    problems: int = Field(128, ge=1, description="Held-out problems, the first of the split.")
    samples: int = Field(8, ge=1, description="Completions per problem.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    split: Literal["validation", "test"] = Field("validation", description="Split that is evaluated.")


class ParallelConfig(Strict):
    """How several processes share the model. One process needs none of it."""

    kind: Literal["none", "ddp", "fsdp2", "hsdp"] = Field(
        "ddp",
        description='"ddp": each process holds the whole model; "fsdp2": a shard of it; "hsdp": shards within groups '
        "of processes, whole copies across them.",
    )
    shards: int | None = Field(
        None, ge=1, description="hsdp: processes that hold one copy together; unset: those of a machine."
    )
    param_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="Number type that sharded weights are computed with, whatever model.dtype is; unset: that."
    )
    reduce_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="Number type that sharded gradients are summed in; unset: model.dtype, float32 at least."
    )
    activation_checkpointing: bool = Field(
        False, description="Compute the layers' activations again in the backward instead of keeping them."
    )
    cpu_offload: bool = Field(
        False, description="Keep shards of weights, gradients and optimiser in the machine's memory."
    )
    timeout: float = Field(
        1800.0, gt=0, description="Seconds that a process waits for the others before it gives the run up."
    )


class CheckpointConfig(Strict):
    """When to save."""

    every: int = Field(20, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept; the best by validation is kept besides.")


class AlarmsConfig(Strict):
    """Where the alarms sound. "At the start" are the first ``window`` steps, "now" the last."""

    window: int = Field(5, ge=1, description="Steps that are averaged, so that one odd step rings no alarm.")
    entropy: float = Field(
        0.25, ge=0, lt=1, description="entropy_collapse, teacher_entropy_collapse: share of the entropy at the start."
    )
    length_growth: float = Field(2.0, gt=1, description="length_explosion: multiple of the length at the start.")
    length_fall: float = Field(0.5, gt=0, lt=1, description="length_shrinkage: share of the length at the start.")
    deliberation: float = Field(
        0.5, ge=0, lt=1, description="deliberation_vanishing: share of the deliberation words at the start."
    )
    truncated: float = Field(0.3, gt=0, le=1, description="truncated_completions: share of completions cut.")
    skipped: float = Field(0.5, gt=0, le=1, description="skipped_completions: share left out of the loss.")
    no_signal: float = Field(0.8, gt=0, le=1, description="no_signal: share of groups that teach nothing.")
    ratio: float = Field(0.1, gt=0, description="importance_ratios: distance of the mean ratio from 1.")
    clipped: float = Field(0.2, gt=0, le=1, description="importance_ratios: share of tokens outside the clip range.")
    sampler_gap: float = Field(
        0.1, gt=0, description="sampler_gap: nats a token between the learner and another engine that samples."
    )
    u_gap: float = Field(
        0.0, description="teacher_worse: mean u a token of correct completions above that of wrong ones, in nats."
    )
    reward_gap: float = Field(
        0.05, gt=0, description="teacher_worse: reward of the student above that of a teacher that draws completions."
    )
    gradient: float = Field(10.0, gt=1, description="gradient_jump: multiple of the median of the steps before.")
    moved: float = Field(
        0.2, ge=0, lt=1, description="vanishing_updates: share of the weights with a gradient that an update changes."
    )
    validation: float = Field(
        0.03, gt=0, le=1, description="validation_falls: accuracy lost since the best evaluation, reward rising."
    )


SHORT = {"method": "name", "parallel": "kind"}
"""Tables that may be written as one word, and the key that it is then the value of."""

SINKS = ("tensorboard", "wandb", "trackio")


class RunConfig(Strict):
    """The config of a whole run: every key is checked when it is built, and none can be changed afterwards."""

    seed: int = Field(0, ge=0, description="Everything random follows from it.")
    steps: int = Field(100, ge=1, description="Optimiser steps.")
    model: ModelConfig = ModelConfig()
    task: TaskConfig = Field(
        CountdownConfig(kind="countdown"), description="What is learnt, from which data, and who judges."
    )
    contexts: str | None = Field(None, description="Context file: a shipped name or a path; unset: the task's own.")
    reward: str | None = Field(None, description="Reward function of one's own, as 'package.module:function'.")
    method: dict[str, Any] = Field(description="name, and the method's knobs.")
    sampling: SamplingConfig = SamplingConfig()
    sampler: SamplerConfig = HFConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    limits: LimitsConfig = LimitsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    sinks: list[str] = Field(
        [],
        description="Where numbers and completions also go: 'tensorboard', 'wandb', 'trackio', each with its package.",
    )
    stop_on: list[str] = Field([], description="Alarms that end the run, for example ['entropy_collapse'].")


def load_config(source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A shipped config by name or a TOML file by path, with ``a.b=value`` overrides (values in TOML syntax).

    Raises:
        ConfigError: one sentence: what, where, what would be right.
    """
    raw = read_config(source)
    apply_overrides(raw, overrides)
    return parse_config(raw, source)


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> None:
    """Write ``a.b=value`` pairs, or a mapping of ``a.b`` to values, into a nested table.

    Raises:
        ConfigError: a pair without ``=``, or a path through something that is no table.
    """
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(raw, key, value, f"override {key!r}")
        return
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override!r}: write key=value, for example --set optimiser.learning_rate=1e-5")
        _set(raw, key.strip(), _value(text.strip()), f"--set {override!r}")


def parse_config(raw: Mapping[str, Any], source: str) -> RunConfig:
    """Check a nested table.

    Raises:
        ConfigError: as for :func:`load_config`.
    """
    table = dict(raw)
    for key, name in SHORT.items():
        if isinstance(table.get(key), str):
            table[key] = {name: table[key]}
    if "method" not in table or not isinstance(table["method"], Mapping) or "name" not in table["method"]:
        raise ConfigError(f'{source}: no method: write for example method.name = "antisd"')
    if isinstance(table.get("task"), Mapping):
        table["task"] = fill_from_preset(table["task"])
    _refuse_unknown(RunConfig, table, (), source)
    _refuse_unknown_names("stop_on", table.get("stop_on"), ALARM_NAMES, source)
    _refuse_unknown_names("sinks", table.get("sinks"), SINKS, source)
    try:
        return RunConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from error


def _set(raw: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Write one value at a dotted key; ``said`` is the override in the user's words."""
    *path, last = key.split(".")
    table = raw
    for part in path:
        # `method = "name"` is shorthand for a table and may be extended like one.
        if part in SHORT and isinstance(table.get(part), str):
            table[part] = {SHORT[part]: table[part]}
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{said}: {part} is a value, not a table")
        table = below
    table[last] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is a string: --set method.name=grpo needs no quotes.
        return text


def _refuse_unknown(model: type[BaseModel], table: Mapping[str, Any], where: tuple[str, ...], source: str) -> None:
    """Name the nearest known key, which pydantic's own message does not."""
    for key, value in table.items():
        name = ".".join([*where, str(key)])
        if name in RENAMED:
            raise ConfigError(f"{source}: {name!r} is now called {RENAMED[name]!r}")
        if key not in model.model_fields:
            close = difflib.get_close_matches(str(key), model.model_fields, n=1)
            hint = (
                f"did you mean {'.'.join([*where, close[0]])!r}?"
                if close
                else f"known there: {', '.join(model.model_fields)}"
            )
            raise ConfigError(f"{source}: unknown key {name!r}; {hint}")
        if isinstance(value, Mapping):
            below = _table_type(model.model_fields[key].annotation, value)
            if below is not None:
                _refuse_unknown(below, value, (*where, key), source)


def _refuse_unknown_names(key: str, names: object, known: Collection[str], source: str) -> None:
    """Name the nearest known word of a list; what is no list of words is left to pydantic."""
    for name in names if isinstance(names, list | tuple) else ():
        if isinstance(name, str) and name not in known:
            close = difflib.get_close_matches(name, [*known], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{source}: {key}: unknown name {name!r}; {hint}")


def _table_type(annotation: Any, value: Mapping[str, Any]) -> type[BaseModel] | None:
    """The model class that a table will be checked against, unions decided by their ``kind``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return _table_type(get_args(annotation)[0], value)
    members = get_args(annotation) if _is_union(annotation) else ()
    members = tuple(get_args(one)[0] if get_origin(one) is Annotated else one for one in members)
    if any(_is_union(one) for one in members):  # a source is a union of its own, and may be unset
        return next((_table_type(one, value) for one in members if _is_union(one)), None)
    choices = [one for one in members if isinstance(one, type) and issubclass(one, BaseModel)]
    if len(choices) > 1:
        choices = [c for c in choices if value.get("kind") in get_args(c.model_fields["kind"].annotation)]
    return choices[0] if choices else None


def _is_union(annotation: Any) -> bool:
    import types

    return get_origin(annotation) in (Union, types.UnionType)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    kinds = {*task_configs(), "text", "source", *SAMPLER_KINDS}
    where = ".".join(str(part) for part in first["loc"] if part not in kinds)
    if first["type"] == "union_tag_not_found":
        example = "vllm" if where == "sampler" else "countdown"
        return f'{where}: no kind; write for example {where}.kind = "{example}"'
    if first["type"] == "union_tag_invalid":
        return f"{where}: unknown kind {first['ctx']['tag']!r}; known: {first['ctx']['expected_tags']}"
    got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {message}{got}"
