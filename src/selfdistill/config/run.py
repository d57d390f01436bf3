"""The configuration of a run: what may be written, and one sentence for everything that may not.

Only ``run``, ``compare`` and ``cli`` know this module; all else takes plain arguments.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from selfdistill.config.renamed import RENAMED
from selfdistill.config.sampler import SAMPLER_KINDS, HFConfig, SamplerConfig
from selfdistill.config.sections import (
    AlarmsConfig,
    CheckpointConfig,
    EvaluationConfig,
    LimitsConfig,
    ModelConfig,
    OptimiserConfig,
    ParallelConfig,
    SamplingConfig,
    Strict,
)
from selfdistill.config.sources import read_config
from selfdistill.config.tasks import CountdownConfig, TaskConfig, fill_from_preset, task_configs
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
