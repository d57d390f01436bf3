"""The arms of a comparison before they are trained: their sources, their methods and their differences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.comparison.options import method_arm, parse_sweep, sweep_label
from selfdistill.config.run import apply_overrides, load_config
from selfdistill.config.sources import find_source, read_config
from selfdistill.errors import ConfigError
from selfdistill.files.text import counted
from selfdistill.report.outcome import flatten
from selfdistill.training.problem import resolve

SAMPLING = ("completions", "max_tokens", "temperature", "top_p", "top_k")
"""Keys of ``sampling`` whose defaults depend on the method."""


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One arm: its name, its config, and the overrides that turn the config into this arm."""

    name: str
    source: str
    settings: tuple[str, ...] = ()


def plan_arms(
    sources: Sequence[str], methods: Sequence[str], overrides: Sequence[str], sweeps: Sequence[str] = ()
) -> list[ArmPlan]:
    """Return one arm for each config, or with ``methods`` one for each config and method, named ``config-method``.

    The config's own method keeps its settings; every other method has its defaults. Sampling settings that the config
    leaves open are those of the config's own method, or of the first of ``methods`` if it has none. A sweep,
    ``key=value,value``, makes one arm per value out of each of these, named ``arm-key-value``; several sweeps make one
    per combination.

    Raises:
        ConfigError: a config cannot be used, a method is named twice, or a sweep cannot be read.
    """
    arms = _of_methods(sources, methods, overrides)
    for sweep in sweeps:
        settings = parse_sweep(sweep)
        if any(override.partition("=")[0].strip() == settings[0].partition("=")[0] for override in overrides):
            raise ConfigError(f"--sweep {sweep}: --set gives the same key to all arms; leave one of the two out")
        arms = [
            ArmPlan(f"{arm.name}-{sweep_label(setting)}", arm.source, (*arm.settings, setting))
            for arm in arms
            for setting in settings
        ]
    return arms


def _of_methods(sources: Sequence[str], methods: Sequence[str], overrides: Sequence[str]) -> list[ArmPlan]:
    """Return one arm for each config, or one for each config and method."""
    if len(set(methods)) < len(methods):
        raise ConfigError(f"--methods {','.join(methods)} names a method twice")
    arms = []
    for name in sources:
        label = find_source(name).label
        if not methods:
            arms.append(ArmPlan(label, name))
            continue
        raw = read_config(name)
        apply_overrides(raw, overrides)
        own = raw["method"].get("name") if isinstance(raw.get("method"), Mapping) else raw.get("method")
        first = resolve(load_config(name, [*([] if own else [f'method="{methods[0]}"']), *overrides]))
        given = raw.get("sampling", {})
        shared = [f"sampling.{key}={getattr(first.sampling, key)}" for key in SAMPLING if given.get(key) is None]
        for method in methods:
            settings = (*([] if method == own else [f'method="{method}"']), *shared)
            arms.append(ArmPlan(method_arm(label, method), name, settings))
    return arms


def differences(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each arm the dotted keys and values of its config that are not the same in all arms."""
    flat = {name: dict(flatten(table)) for name, table in tables.items()}
    keys = dict.fromkeys(key for table in flat.values() for key in table)
    absent = object()
    unequal = [key for key in keys if len({repr(table.get(key, absent)) for table in flat.values()}) > 1]
    return {name: {key: table[key] for key in unequal if key in table} for name, table in flat.items()}


def describe_plan(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the arms of a comparison that would be trained, as lines of text."""
    arms, seeds = report["arms"], report["seeds"]
    runs = len(arms) * len(seeds)
    yield (
        f"{counted(len(arms), 'arm')} × {counted(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}) = {counted(runs, 'run')} of "
        f"{counted(report['steps'], 'step')} in {report['folder']}; baseline: {report['baseline']}"
    )
    for arm in arms:
        # The report is JSON, whose null is a key that a config leaves out.
        told = {key: "unset" if value is None else json.dumps(value) for key, value in arm["differs"].items()}
        values = ", ".join(f"{key} = {value}" for key, value in told.items()) or "nothing of its own"
        yield f"{arm['name']} (from {arm['source']}): {values}"
    yield "everything else is the same in all arms; nothing has been trained"
