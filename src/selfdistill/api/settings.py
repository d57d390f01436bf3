"""Configs from Python: a name, a path, a :class:`RunConfig` or a dict, with changes as keyword arguments."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from selfdistill.config.run import SHORT, RunConfig, apply_overrides, parse_config
from selfdistill.config.sources import read_config
from selfdistill.errors import ConfigError

ConfigLike: TypeAlias = str | Path | RunConfig | Mapping[str, Any]
"""A shipped config by name, a TOML or JSON file by path, a config object, or its tables as a dict."""

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""``["a.b=value"]`` as ``--set`` takes it, or ``{"a.b": value}``."""


def load_config(source: ConfigLike, overrides: Overrides = (), **settings: Any) -> RunConfig:
    """Load and check the config of a run.

    Args:
        source: a shipped config by name, a TOML or JSON file by path, a :class:`RunConfig`, or a dict of its tables.
        overrides: dotted keys, ``["optimiser.learning_rate=1e-5"]`` or ``{"optimiser.learning_rate": 1e-5}``.
        settings: keys of the config's top level, for example ``steps=20`` or ``sampling={"prompts": 4}``. A table is
            merged into the config's own, unless it names another ``kind`` or ``name``. ``method`` may be a
            :class:`Method` of your own, also one that a notebook defines.

    Returns:
        A :class:`RunConfig`, a frozen pydantic model.

    Raises:
        UserError: a key or value is wrong. The message names it and what would be right.
    """
    return parse_config(raw_config(source, overrides, settings), config_name(source))


def raw_config(source: ConfigLike, overrides: Overrides, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a config with all changes applied, not checked yet. The arguments stay unchanged.

    Raises:
        ConfigError: ``source`` or ``overrides`` have the wrong type, or the file cannot be read.
    """
    if isinstance(source, RunConfig):
        raw = source.model_dump()
    elif isinstance(source, Mapping):
        raw = {key: _copied(value) for key, value in source.items()}
    elif isinstance(source, str | Path):
        raw = read_config(str(source))
    else:
        raise ConfigError(
            f"a config is a shipped name, a path, a RunConfig or a dict; this is of type {type(source).__name__}"
        )
    apply_overrides(raw, overrides if isinstance(overrides, Mapping) else checked_pairs(overrides))
    for key, value in settings.items():
        raw[key] = _merged(key, raw.get(key), _copied(value))
    if "method" in raw and not isinstance(raw["method"], str | Mapping):
        raw["method"] = _method_table(raw["method"])
    return raw


def config_name(source: ConfigLike) -> str:
    """Return the name of a config in messages."""
    return str(source) if isinstance(source, str | Path) else "config"


def as_pairs(overrides: Overrides, settings: Mapping[str, Any] | None = None) -> list[str]:
    """Return the changes as ``a.b=value`` texts, as the commands take them.

    Raises:
        ConfigError: a value cannot be written on a command line.
    """
    given = overrides.items() if isinstance(overrides, Mapping) else ()
    pairs = [] if isinstance(overrides, Mapping) else checked_pairs(overrides)
    for key, value in (*given, *_flat(settings or {})):
        if value is None or isinstance(value, Mapping) or not _is_plain(value):
            raise ConfigError(f"{key}: {value!r} cannot be written as --set takes it: put it into a config file")
        pairs.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return pairs


def as_sweeps(sweep: object) -> list[str]:
    """Return the sweeps as ``a.b=value,value`` texts, as ``compare --sweep`` takes them.

    Raises:
        ConfigError: the argument is no dict of lists, or a value cannot be written on a command line or contains a
            comma.
    """
    if not isinstance(sweep, Mapping) or not all(
        isinstance(values, Sequence) and not isinstance(values, str) for values in sweep.values()
    ):
        raise ConfigError(f"sweep is a dict of keys to lists, such as {{'method.clip': [5, 10]}}; got {sweep!r}")
    texts = []
    for key, values in sweep.items():
        written = [pair.partition("=")[2] for value in values for pair in as_pairs({key: value})]
        for text in written:
            if "," in text:
                raise ConfigError(f"sweep of {key}: {text} contains a comma; write a config for each arm")
        texts.append(f"{key}={','.join(written)}")
    return texts


def checked_pairs(overrides: Sequence[str]) -> list[str]:
    """Check that the overrides are a list of texts and return them.

    Raises:
        ConfigError: they are something else.
    """
    if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"overrides are a list of 'a.b=value' texts or a dict of 'a.b' to values, got {overrides!r}")
    return list(overrides)


def check_counts(**numbers: object) -> None:
    """Refuse counts that are not whole numbers of at least 1. None is unset and allowed.

    Raises:
        ConfigError: a count is invalid; the message names the argument.
    """
    for name, number in numbers.items():
        if number is not None and (type(number) is not int or number < 1):
            raise ConfigError(f"{name} must be a whole number of at least 1, got {number!r}")


def _method_table(method: object) -> dict[str, Any]:
    """Return the table of a method that is an object or a class. The table names its class by import path."""
    from selfdistill.inspection.plan import name_of
    from selfdistill.methods import Method

    if isinstance(method, Method):
        return {**method.model_dump(mode="json"), "name": name_of(type(method))}
    if isinstance(method, type) and issubclass(method, Method):
        return {"name": name_of(method)}
    raise ConfigError(f"method must be a name, a table, or a Method, got {type(method).__name__}")


def _merged(key: str, old: Any, new: Any) -> Any:
    if isinstance(old, str) and key in SHORT:
        old = {SHORT[key]: old}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    same = all(name not in new or new[name] == old.get(name) for name in ("kind", "name"))
    return {**old, **new} if same else new


def _copied(value: Any) -> Any:
    # Objects such as a task or a function are not copied.
    return copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list | tuple) and all(map(_is_plain, value))
    )
