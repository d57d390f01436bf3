"""Where configs are read from: the shipped ones by name, files by path."""

from __future__ import annotations

import difflib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from selfdistill.errors import ConfigError


def shipped_configs() -> list[str]:
    """Names of the configs in the package."""
    folder = resources.files("selfdistill.config") / "shipped"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_config(source: str) -> dict[str, Any]:
    """The tables of a shipped config by name, or of a TOML or JSON file by path (a run's ``config.json``), unchecked.

    Raises:
        ConfigError: it is missing or malformed.
    """
    shipped = resources.files("selfdistill.config") / "shipped" / f"{source}.toml"
    path = shipped if "/" not in source and shipped.is_file() else Path(source)
    if not path.is_file():
        close = difflib.get_close_matches(source, shipped_configs(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"config {source!r} not found; {hint}shipped: {', '.join(shipped_configs())}; or give a path to a TOML file"
        )
    is_json = source.endswith(".json")
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if is_json else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {source} is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"config {source} holds no table of keys")
    return table
