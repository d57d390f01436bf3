"""Read configs: shipped ones by name, files by path."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from selfdistill.config.renamed import with_new_names
from selfdistill.config.suggest import near
from selfdistill.errors import ConfigError


def shipped_configs() -> list[str]:
    """Names of the configs in the package."""
    folder = resources.files("selfdistill.config") / "shipped"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def config_text(source: str) -> str:
    """The text of a shipped config by name, of a TOML or JSON file by path, or of the config in a run's folder.

    Raises:
        ConfigError: there is no such file, or it is not UTF-8 text.
    """
    path = _config_path(source)
    if not path.is_file():
        known = shipped_configs()
        hint = f"{near(source, known)} shipped: {', '.join(known)}; or give a path to a TOML file".lstrip()
        raise ConfigError(f"config {source!r} not found; {hint}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {source} is not UTF-8 text: {error}") from error


def _config_path(source: str) -> Traversable:
    shipped = resources.files("selfdistill.config") / "shipped" / f"{source}.toml"
    if "/" not in source and shipped.is_file():
        return shipped
    path = Path(source)
    return path / "config.json" if path.is_dir() else path


def read_config(source: str) -> dict[str, Any]:
    """The tables of a config named as in :func:`config_text`, unchecked.

    Raises:
        ConfigError: it is missing or malformed.
    """
    is_json = _config_path(source).name.endswith(".json")
    try:
        table = json.loads(config_text(source)) if is_json else tomllib.loads(config_text(source))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"config {source} is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"config {source} holds no table of keys")
    # A run that an earlier version wrote can be continued from its folder alone.
    return with_new_names(table) if Path(source).is_dir() else table
