"""Chooses the methods to inspect, each with a label and its own hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfdistill.config.run import KEYS, apply_overrides, load_config
from selfdistill.config.sources import find_source, read_config
from selfdistill.errors import ConfigError, DataError
from selfdistill.methods import METHODS, Method, build_method

DEFAULT_METHODS = ("grpo", "sd", "antisd", "opsd", "sdpo", "credit", "purified")
"""The default methods. All of them learn from the student's own completions."""


def choose_methods(
    named: Sequence[str] | None, configs: Sequence[str], overrides: Sequence[str]
) -> tuple[dict[str, Method], list[str]]:
    """Return the methods by label, and the overrides that set no hyperparameter of a method.

    ``named`` has names and ``label=name``; None means :data:`DEFAULT_METHODS` if there are no ``configs``. Each of
    ``configs``, a config or the folder of a run, adds its method under the name of the file. The override
    ``label.hyperparameter=value`` sets a hyperparameter.

    Raises:
        UserError: a method, a config or an override is unknown, or two methods have the same label.
    """
    tables: dict[str, dict[str, Any]] = {}
    if named is None:
        named = () if configs else DEFAULT_METHODS
    for label, table in [*map(_named, named), *map(_configured, configs)]:
        if label in KEYS:
            raise ConfigError(f"a method cannot be labelled {label!r}: --set would take it for that key of a config")
        if label in tables:
            raise ConfigError(f"two methods are labelled {label!r}: write another label, as in other={table['name']}")
        tables[label] = table
    rest = [override for override in overrides if not _set_hyperparameter(tables, override)]
    methods = {}
    for label, table in tables.items():
        name = table.pop("name")
        try:
            methods[label] = build_method(name, table)
        except ConfigError as error:
            raise ConfigError(str(error) if label == name else f"{label}: {error}") from error
    return methods, rest


def hyperparameters(methods: Mapping[str, Method], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return for each label the method's name and the hyperparameters that are not the default, ready for JSON."""
    table = {}
    for label in names:
        method = methods[label]
        values = method.model_dump(mode="json")
        changed = {key: values[key] for key in method.model_dump(exclude_defaults=True)}
        table[label] = {"method": name_of(type(method)), "hyperparameters": changed}
    return table


def name_of(kind: type[Method]) -> str:
    """Return the name of a method's class in a config: the built-in name, or else its import path."""
    import_path = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, method in METHODS.items() if method is kind), import_path)


def _named(text: str) -> tuple[str, dict[str, Any]]:
    label, equals, name = (word.strip() for word in text.partition("="))
    if equals and not (label and name):
        raise ConfigError(f"--methods {text!r}: write NAME or LABEL=NAME, for example strong=antisd")
    return label, {"name": name or label}


def _configured(name: str) -> tuple[str, dict[str, Any]]:
    source = find_source(name)
    if source.kind == "model":
        raise ConfigError(f"--config {name}: a model names no method; give a config or the folder of a run")
    # A run of an earlier version may have keys that are unknown now, and its method is readable all the same.
    table = load_config(name).method if source.kind == "config" else read_config(name).get("method")
    if not isinstance(table, dict) or "name" not in table:
        raise DataError(f"--config {name}: it names no method")
    return source.label, dict(table)


def _set_hyperparameter(tables: Mapping[str, dict[str, Any]], override: str) -> bool:
    """Apply an override to the table of the method that it names. Returns False if it names none."""
    key, equals, value = override.partition("=")
    # The longest matching label counts, because a label may be the prefix of another: `arm` and `arm.wide`.
    label = max((name for name in tables if equals and key.strip().startswith(f"{name}.")), key=len, default=None)
    if label is not None:
        hyperparameter = key.strip().removeprefix(f"{label}.")
        if hyperparameter == "name":
            raise ConfigError(f"--set {override}: the method of a label is named by --methods, as in {label}={value}")
        apply_overrides(tables[label], [f"{hyperparameter}={value}"])
        return True
    first = key.strip().partition(".")[0]
    if first == "method" or first in METHODS:
        labels = ", ".join(tables) or "none"
        raise ConfigError(
            f"--set {override}: write LABEL.hyperparameter=value, with one of the methods looked at: {labels}"
        )
    return False
