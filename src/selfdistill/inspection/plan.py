"""Which methods to look at, each under a label and with hyperparameters of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.config.run import KEYS, apply_overrides, load_config
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.jsonl import read_object
from selfdistill.methods import METHODS, Method, build_method

LOOKED_AT = ("grpo", "sd", "antisd", "opsd", "sdpo", "credit", "purified")
"""What is looked at unless told otherwise: methods that learn from the student's own completions."""


def choose_methods(
    named: Sequence[str] | None, configs: Sequence[str], overrides: Sequence[str]
) -> tuple[dict[str, Method], list[str]]:
    """Methods by label, and the overrides that speak of something else.

    ``named`` holds names and ``label=name``; None stands for :data:`LOOKED_AT` where there are no ``configs``. Each of
    ``configs`` adds the method of a run's config, or of a run's folder, under the file's name. An override
    ``label.hyperparameter=value`` sets a hyperparameter.

    Raises:
        UserError: one sentence.
    """
    tables: dict[str, dict[str, Any]] = {}
    if named is None:
        named = () if configs else LOOKED_AT
    for label, table in [*map(_named, named), *map(_configured, configs)]:
        if label in KEYS:
            raise ConfigError(f"a method cannot be labelled {label!r}: --set would take it for that key of a config")
        if label in tables:
            raise ConfigError(f"two methods are labelled {label!r}: write another label, as in other={table['name']}")
        tables[label] = table
    rest = [override for override in overrides if not _set_knob(tables, override)]
    methods = {}
    for label, table in tables.items():
        name = table.pop("name")
        try:
            methods[label] = build_method(name, table)
        except ConfigError as error:
            raise ConfigError(str(error) if label == name else f"{label}: {error}") from error
    return methods, rest


def hyperparameters(methods: Mapping[str, Method], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each label the method's name and the hyperparameters that differ from the defaults, ready for JSON."""
    changed = {}
    for label in names:
        method = methods[label]
        whole = method.model_dump(mode="json")
        given = {key: whole[key] for key in method.model_dump(exclude_defaults=True)}
        changed[label] = {"method": name_of(type(method)), "knobs": given}
    return changed


def name_of(kind: type[Method]) -> str:
    """The name under which a config finds a method's class."""
    own = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, known in METHODS.items() if known is kind), own)


def _named(text: str) -> tuple[str, dict[str, Any]]:
    label, equals, name = (word.strip() for word in text.partition("="))
    if equals and not (label and name):
        raise ConfigError(f"--methods {text!r}: write NAME or LABEL=NAME, for example strong=antisd")
    return label, {"name": name or label}


def _configured(source: str) -> tuple[str, dict[str, Any]]:
    stored = read_object(Path(source) / "config.json")
    if stored:
        if "name" not in stored.get("method", {}):
            raise DataError(f"--config {source}: its config.json is no run's, for it names no method")
        return Path(source).resolve().name, dict(stored["method"])
    return Path(source).stem, dict(load_config(source).method)


def _set_knob(tables: Mapping[str, dict[str, Any]], override: str) -> bool:
    """Write an override into the table of the method that it names; False where it names none."""
    key, equals, value = override.partition("=")
    # The longest label speaks: one may begin another, as `arm` does `arm.wide`.
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
