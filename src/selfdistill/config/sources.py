"""Find the config, run folder, checkpoint or model that a command's argument names, and read its config."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from selfdistill.config.renamed import with_new_names
from selfdistill.errors import CheckpointError, ConfigError, ModelError

FILE_ENDINGS = (".toml", ".json", ".jsonl", ".parquet", ".csv", ".yaml", ".yml", ".txt", ".gz", ".py")
"""Endings of files. A name with one of them is no hub id."""

WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
"""Endings of files that hold weights."""
ROWS = (".jsonl", ".parquet", ".csv", ".gz")
"""Endings of files that hold rows."""


NO_RUN = "is no run folder: its config.json is missing or names no task"
NEITHER = "is neither a run folder nor a model directory: it holds no config.json of either"


@dataclass(frozen=True, slots=True)
class Source:
    """The config, run or model that an argument names. :func:`find_source` is the only place that decides."""

    name: str
    """The argument as it was written."""
    kind: Literal["config", "run", "model", "nothing"]
    path: Path | None = None
    """The config file, the run folder or the model directory; None for a hub id and for nothing."""
    checkpoint: str | None = None
    """The checkpoint that the argument itself names, ``"best"`` or a step; the run folder is then in ``path``."""

    @property
    def label(self) -> str:
        """A short name for an arm, an inspected method or a run folder."""
        # Only configs lose their ending: other names may have dots. resolve() gives "." a name.
        return Path(self.name).stem if self.kind == "config" else Path(self.name).resolve().name


def shipped_configs() -> list[str]:
    """Names of the configs in the package."""
    folder = resources.files("selfdistill.config") / "shipped"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    folder = resources.files("selfdistill.models") / "shipped"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def find_source(name: str) -> Source:
    """Decide what an argument names: a shipped config or model, a file, a folder, or a hub id.

    Raises:
        ConfigError: the folder is both a run and a model.
        CheckpointError: it is a checkpoint whose run has no config.
    """
    # An empty name would be the current folder.
    if not name.strip():
        return Source(name, "nothing")
    path = Path(name)
    # "." and ".." are folders of the user, not those around the shipped files.
    if "/" not in name and name.strip("."):
        shipped = resources.files("selfdistill.config") / "shipped" / f"{name}.toml"
        if isinstance(shipped, Path) and shipped.is_file():
            return Source(name, "config", shipped)
        model = resources.files("selfdistill.models") / "shipped" / name
        if isinstance(model, Path) and model.is_dir():
            return Source(name, "model", model)
    if path.is_dir():
        return _folder(name, path)
    if path.exists():
        # A file of a model directory is not a config; the model's loader reports what to give instead.
        of_model = path.suffix in WEIGHTS or (path.suffix == ".json" and "model_type" in _keys(path))
        return Source(name, "model" if of_model else "config", path)
    parts = name.split("/")
    is_hub_id = len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") and not name.endswith(FILE_ENDINGS)
    return Source(name, "model" if is_hub_id else "nothing")


def check_model_name(name: str) -> None:
    """Refuse the name of a model that is neither here nor could be on the hub. What lies at a path is not looked into.

    Raises:
        ModelError: the message says what a name may be.
    """
    try:
        missing = find_source(name).kind == "nothing" and not os.path.lexists(name)
    except (ConfigError, CheckpointError):
        # Something is there, and its loader knows what a model needs of it.
        return
    except (OSError, ValueError):
        # The name is too long for a path, or holds what no path may hold.
        missing = True
    if missing and name.strip():
        raise ModelError(model_not_found(name))


def model_not_found(name: str) -> str:
    """The sentence on a model that is not found."""
    short = f"{name[:200]}…" if len(name) > 200 else name
    return (
        f"model {short!r} not found: give a model directory, a hub id (org/name) "
        f"or a shipped name ({', '.join(shipped_models())})"
    )


def _folder(name: str, path: Path) -> Source:
    """Decide what a folder is. A run and a model both have a ``config.json``, with different keys."""
    # A checkpoint of a run: checkpoints/step-000020, the model in it, or checkpoints/best.
    folder = path.absolute()
    folder = folder.parent if folder.name == "model" else folder
    if folder.parent.name == "checkpoints" and (folder.name == "best" or folder.name.startswith("step-")):
        run = folder.parent.parent
        if (run / "config.json").is_file():
            step = folder.name.removeprefix("step-")
            return Source(name, "run", run, step if step == "best" else str(int(step)) if step.isdecimal() else step)
    keys = _keys(path / "config.json")
    is_run = "method" in keys or (path / "checkpoints").is_dir()
    is_model = (
        "model_type" in keys
        or (path / "adapter_config.json").is_file()
        or any(True for ending in ("*.safetensors", "*.gguf") for _ in path.glob(ending))
    )
    if is_run and is_model:
        raise ConfigError(
            f"{name} is both a run folder and a model directory, so it is unclear which is meant: "
            "move the model's files or the run's checkpoints to a folder of their own"
        )
    if is_run:
        return Source(name, "run", path)
    if is_model:
        return Source(name, "model", path)
    if (path / "model").is_dir():
        return Source(name, "model", path / "model")
    return Source(name, "nothing", path)


def _keys(path: Path) -> Iterable[str]:
    """The keys of a JSON object; none if the file is missing or damaged, which the later reading of it reports."""
    try:
        table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return ()
    return table if isinstance(table, dict) else ()


def holds_config(source: Source) -> bool:
    """Whether a source is a config or a run, and not a file of rows: a JSON file may be either."""
    if source.kind != "config" or source.path is None or source.path.suffix not in (".json", *ROWS):
        return source.kind in ("config", "run")
    return source.path.suffix == ".json" and "method" in _keys(source.path)


def collision(name: str) -> str | None:
    """A warning if a shipped name hides a folder of the same name, else None."""
    if name in (*shipped_configs(), *shipped_models()) and Path(name).is_dir():
        return f"{name} is taken for what the package ships under that name; the folder here is ./{name}"
    return None


def config_text(name: str) -> str:
    """The text of a shipped config by name, of a TOML or JSON file by path, or of the config in a run's folder.

    Raises:
        ConfigError: there is no such file, or it is not UTF-8 text.
    """
    path = config_path(find_source(name))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {name} is not UTF-8 text: {error}") from error


def config_path(source: Source) -> Path:
    """The file that holds the config of a source.

    Raises:
        ConfigError: it has none; the message names the nearest shipped config.
    """
    if source.kind == "config" and source.path is not None:
        if source.path.suffix in ROWS:
            raise ConfigError(
                f"{source.name} holds rows and is no config: selfdistill init --model MODEL --data {source.name} "
                "writes one for them"
            )
        return source.path
    if source.kind == "run" and source.path is not None:
        path = source.path / "config.json"
        if path.is_file():
            return path
        raise CheckpointError(f"{source.name} {NO_RUN}")
    if source.kind == "model":
        raise ConfigError(f"{source.name} is a model, which has no config")
    if source.path is not None:
        raise ConfigError(f"{source.name} {NEITHER}")
    raise ConfigError(f"config {source.name!r} not found; {nearest_config(source.name)}")


def nearest_config(name: str) -> str:
    """What to give for a config that is not found: for a path the nearest file there, else shipped names."""
    if "/" in name or name.endswith(FILE_ENDINGS):
        # Unlike Path.expanduser, it leaves the home of an unknown user as it is.
        folder = Path(os.path.expanduser(name)).parent
        if not folder.is_dir():
            return f"there is no folder {folder}"
        # Endings are all alike, so the names before them are compared.
        here = {entry.stem: entry for entry in sorted(folder.iterdir()) if entry.suffix in (".toml", ".json")}
        close = get_close_matches(Path(name).stem, list(here), n=1)
        return f"did you mean {str(here[close[0]])!r}?" if close else f"there is no such file in {folder.absolute()}"
    close = get_close_matches(name, shipped_configs(), n=3)
    nearest = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{nearest}selfdistill configs lists the shipped ones; or give a path to a TOML file"


def read_config(name: str) -> dict[str, Any]:
    """The tables of a config, of a run's folder, or of a model (its path alone), unchecked.

    Raises:
        ConfigError: it is missing or malformed.
    """
    source = find_source(name)
    if source.kind == "model":
        return {"model": {"path": name}}
    path = config_path(source)
    is_json = path.suffix == ".json"
    try:
        table = json.loads(config_text(name)) if is_json else tomllib.loads(config_text(name))
    # ValueError: malformed text, or an integer with too many digits. RecursionError: too many nested brackets.
    except (ValueError, RecursionError) as error:
        where = path if source.kind == "run" else f"config {name}"
        raise ConfigError(f"{where} is not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"config {name} holds no table of keys")
    if source.kind != "run":
        return table
    if not table.keys() & {"method", "task"}:
        raise CheckpointError(f"{name} {NO_RUN}")
    # A run that an earlier version wrote can be continued from its folder alone.
    return with_new_names(table)
