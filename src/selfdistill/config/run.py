"""The configuration of a run: loading, overrides, validation.

Only the builder, comparisons and the command line use ``RunConfig``; every other package takes its own section.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from selfdistill.config.bits import check_quantisation
from selfdistill.config.evaluation import EvaluationConfig
from selfdistill.config.hyperparameters import METHOD_KEYS, check_hyperparameters, check_method_name
from selfdistill.config.reward import Reward
from selfdistill.config.sampler import HFConfig, SamplerConfig, engine_overrides
from selfdistill.config.sections import (
    MAY_CHANGE,
    AlarmName,
    AlarmsConfig,
    CheckpointConfig,
    Limits,
    LimitsConfig,
    Model,
    ModelConfig,
    Optimiser,
    OptimiserConfig,
    Parallel,
    ParallelConfig,
    Sampling,
    SamplingConfig,
    Sink,
    Strict,
)
from selfdistill.config.signal import SignalConfig
from selfdistill.config.sources import (
    FILE_ENDINGS,
    NEITHER,
    Source,
    check_model_name,
    config_path,
    find_source,
    nearest_config,
    read_config,
    shipped_configs,
    shipped_models,
)
from selfdistill.config.suggest import near, suggest
from selfdistill.config.tasks import CountdownConfig, TaskConfig, fill_from_preset
from selfdistill.errors import ConfigError

SHORT = {"method": "name", "parallel": "kind", "reward": "function"}
"""Tables that may be written as a single value → the key that gets the value."""


class RunConfig(Strict):
    """The config of a whole run: every key is checked when it is built, and none can be changed afterwards."""

    seed: int = Field(0, ge=0, description="Everything random follows from it.")
    steps: int = Field(100, ge=1, description="Optimiser steps.", json_schema_extra=MAY_CHANGE)
    max_completions: int | None = Field(
        None,
        ge=1,
        description="The run also ends once the next step could draw more than this many completions in all, those of "
        "every role. What a role draws on demand, or signal.equal = 'resample', is known only afterwards: the last "
        "step may exceed it by that. Unset: no limit.",
        json_schema_extra=MAY_CHANGE,
    )
    model: ModelConfig = ModelConfig()
    task: TaskConfig = Field(CountdownConfig(kind="countdown"), description="Task: its data and its verifier.")
    contexts: str | None = Field(None, description="Context file: a shipped name or a path; unset: the task's own.")
    reward: Reward | None = Field(
        None,
        description="Reward functions of one's own, or one as 'package.module:function', and what counts as right.",
    )
    # Unchecked here: a method may be the user's code. ``parse_config`` checks those of the package.
    method: dict[str, Any] = Field(description="name, and the method's hyperparameters.")
    sampling: SamplingConfig = SamplingConfig()
    sampler: SamplerConfig = HFConfig()
    signal: SignalConfig = SignalConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    limits: LimitsConfig = LimitsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    sinks: list[Sink] = Field(
        [],
        description="Where numbers and completions also go: 'tensorboard', 'wandb', 'trackio', each with its package.",
        json_schema_extra=MAY_CHANGE,
    )
    stop_on: list[AlarmName] = Field(
        [], description="Alarms that end the run, for example ['entropy_collapse'].", json_schema_extra=MAY_CHANGE
    )


class ResolvedConfig(RunConfig):
    """The config of a run with all defaults of the method and the device filled in, as in ``config.json``."""

    model: Model
    sampling: Sampling
    optimiser: Optimiser
    limits: Limits
    parallel: Parallel = Parallel()


KEYS = frozenset(RunConfig.model_fields)
"""The keys at a config's top level."""


def lasting(config: BaseModel) -> dict[str, Any]:
    """The keys that a resume must not change: all that are not marked ``MAY_CHANGE``."""
    table = type(config).model_config.get("json_schema_extra")
    # Extra keys belong to a task class of the user.
    lasting_keys: dict[str, Any] = dict(config.model_extra or {})
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if (field.json_schema_extra or table) != MAY_CHANGE:
            lasting_keys[key] = _lasting_value(value)
    return lasting_keys


def _lasting_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_lasting_value(one) for one in value]
    return lasting(value) if isinstance(value, BaseModel) else value


def load_config(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config to train with: a shipped one by name, a TOML file by path, or that of a run folder.

    ``overrides`` are ``a.b=value`` pairs with values in TOML syntax. A model needs its method and task from them.

    Raises:
        ConfigError: the message says what is wrong, where, and what would be right.
    """
    source = find_source(name)
    if source.checkpoint is not None:
        raise ConfigError(
            f"{name} is a checkpoint: continue its run with train {source.path} --resume, or begin a run from its "
            f"weights with train {source.path} --set model.path={name} --out DIR"
        )
    raw = read_config(name)
    apply_overrides(raw, overrides)
    if source.kind == "model" and not {"method", "task"} <= raw.keys():
        raise ConfigError(
            f"{name} is a model, which names no method and no task: add --set method=opsd --set task.kind=math --set "
            f"task.path=rows.jsonl, or write a config with selfdistill init --model {name} --data rows.jsonl"
        )
    return parse_config(raw, name)


def config_for(
    name: str,
    task: str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    command: str,
    with_method: bool = False,
    engine: str | None = None,
) -> RunConfig:
    """The config of a command that trains nothing, for a config, a run folder, a checkpoint or a model.

    ``task`` is a kind or a table, and replaces the task of the source unless it is of the same kind. ``with_method``
    says whether the command uses the method; otherwise an override of the method is refused. ``engine`` replaces the
    sampler of the source, and the overrides come after it. The weights of a run are found separately.

    Raises:
        ConfigError: the source does not exist, no task is named, or an override is invalid.
    """
    for override in () if with_method else overrides:
        if override.partition("=")[0].strip().partition(".")[0] == "method":
            raise ConfigError(f"--set {override}: {command} trains nothing, so it has no method to set")
    source = find_source(name)
    # If a task is given, the name is a model's, and an unknown folder is left to its loader, whose message is better.
    if source.kind == "nothing" and with_method:
        # Commands with a method mostly take configs, so the message names the nearest config.
        config_path(source)
    if source.kind == "nothing" and task is None:
        raise ConfigError(_not_found(source))
    if source.kind == "nothing":
        check_model_name(name)
    raw = read_config(name) if source.kind in ("config", "run") else {"model": {"path": name}}
    if not with_method:
        raw["method"] = {"name": "grpo"}
        # The adapter of a run's checkpoint is loaded merged, and a new adapter would change nothing.
        raw["model"] = {key: value for key, value in raw.get("model", {}).items() if key != "lora"}
    source_task = raw.get("task") if source.kind == "model" else raw.get("task", "countdown")
    kind = source_task.get("kind") if isinstance(source_task, Mapping) else source_task
    table = {"kind": task} if isinstance(task, str) else task
    if table is not None and table != {"kind": kind}:
        # The reward function and the contexts belong to the task that is replaced.
        raw = {key: value for key, value in raw.items() if key not in ("reward", "contexts")} | {"task": dict(table)}
    if engine is not None:
        apply_overrides(raw, engine_overrides(engine, raw.get("sampler")))
    apply_overrides(raw, overrides)
    if "task" not in raw and source.kind == "model":
        raise ConfigError(f"{name} is a model, which names no task: add --task, for example --task countdown")
    if "method" not in raw:
        raise ConfigError(f"{name} names no method: add --set method=opsd, for example")
    config = parse_config(raw, command if source.kind == "model" or table is not None else name)
    check_quantisation(config.model)
    return config


def _not_found(source: Source) -> str:
    if source.path is not None:
        return f"{source.name} {NEITHER}"
    # For a path the nearest file is the better hint.
    if source.name.endswith(FILE_ENDINGS):
        return f"{source.name!r} not found; {nearest_config(source.name)}"
    hint = near(source.name, [*shipped_configs(), *shipped_models()])
    ways = (
        "give a config, a run folder, a checkpoint, a model directory, a hub id (org/name) or a shipped name "
        f"({', '.join(shipped_models())}, and those of selfdistill configs)"
    )
    return f"{source.name!r} not found; {f'{hint} else ' if hint else ''}{ways}"


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> None:
    """Write ``a.b=value`` pairs, or a mapping of ``a.b`` to values, into a nested table.

    Raises:
        ConfigError: a pair has no ``=``, or a key goes through a value that is not a table.
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
    try:
        config = RunConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {suggest(error, RunConfig)}") from error
    # A class of the user's own needs torch: its hyperparameters are checked where the method is built.
    name = config.method["name"]
    if isinstance(name, str):
        check_method_name(name)
        if name in METHOD_KEYS:
            check_hyperparameters(name, {key: value for key, value in config.method.items() if key != "name"})
    return config


def _set(raw: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Write one value at a dotted key; ``override`` names it in messages."""
    *path, last = key.split(".")
    table = raw
    for part in path:
        # `method = "name"` is shorthand for a table and may be extended like one.
        if part in SHORT and isinstance(table.get(part), str | list):
            table[part] = {SHORT[part]: table[part]}
        subtable = table.setdefault(part, {})
        if not isinstance(subtable, dict):
            raise ConfigError(f"{override}: {part} is a value, not a table")
        table = subtable
    table[last] = value


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        # A bare word is a string: --set method.name=grpo needs no quotes.
        return text
    # ValueError: an integer with too many digits. RecursionError: too many nested brackets.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set: {text[:40]!r} is not valid TOML: {error}") from error
    if len(table) > 1:
        second = next(key for key in table if key != "value")
        raise ConfigError(f"--set takes one key, and a second line sets {second!r} too: write a --set for each")
    return table["value"]
