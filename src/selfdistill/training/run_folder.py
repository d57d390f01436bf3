"""Read a run folder or a model without training: its config, its weights, its export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfdistill.config.renamed import with_new_names
from selfdistill.config.run import RunConfig, apply_overrides, parse_config
from selfdistill.contexts.chat import Chat
from selfdistill.errors import CheckpointError, ConfigError, DataError
from selfdistill.files.jsonl import read_object
from selfdistill.models.policy import ADAPTER, DTYPES, Policy, save_policy
from selfdistill.tracking.progress import activity
from selfdistill.training import atomic as checkpoint
from selfdistill.training.atomic import model_path
from selfdistill.training.build import build_policy
from selfdistill.training.checkpoint import load_trained


def load_model(
    model: str, config: RunConfig, loaded: tuple[Policy, Chat] | None = None
) -> tuple[Policy, Chat, str, list[str]]:
    """Load a model or a run's newest checkpoint; returns policy, chat, path of the weights, and remarks for the user.

    ``loaded`` is returned as it is if the model is already in memory.

    Raises:
        UserError: the model cannot be found or used.
    """
    if loaded is not None:
        return (*loaded, loaded[1].name, [])
    path, remarks = model_path(model)
    with activity(f"loading {path}"):
        policy, chat = build_policy(config.model.model_copy(update={"path": path}), seed=config.seed)
    return policy, chat, path, remarks


def export_model(run: Path, out: Path, *, step: int | None, dtype: str | None = None, merge: bool = False) -> Path:
    """Write a checkpoint's model, sharded or not, as a transformers directory; returns the checkpoint's path.

    ``merge`` adds an adapter to its base, so that the directory is a plain model and needs no other.

    ``step`` selects the checkpoint; None is the newest valid one. ``dtype`` is the number type of the written weights;
    None is the run's ``model.dtype``.

    Raises:
        CheckpointError: there is no such checkpoint, it is corrupt, or ``out`` is not empty.
        ConfigError: the number type is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is no number type: write one of {', '.join(DTYPES)}")
    saved = run / "checkpoints"
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another --out")
    path = checkpoint.latest_valid(saved)[0] if step is None else checkpoint.checkpoint_path(saved, step)
    kept = ", ".join(str(int(found.name.removeprefix("step-"))) for found in checkpoint.checkpoints(saved))
    if not kept:
        raise CheckpointError(f"{run} holds no checkpoint: give the folder of a run that has saved one")
    if path is None or not path.is_dir():
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it keeps: {kept}")
    reason = checkpoint.corruption(path)
    if reason is not None:
        raise CheckpointError(f"checkpoint {path.name} is torn ({reason})")
    stored = path / "model"
    adapter = (stored / "adapter_config.json").is_file()
    if stored.is_dir() and dtype is None and not (merge and adapter):
        # A merged model stands beside its own adapter, which only a resume needs.
        shutil.copytree(stored, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ADAPTER))
        return path
    config = RunConfig.model_validate(with_new_names(read_object(run / "config.json")))
    wanted = {"device": "cpu", "dtype": dtype or config.model.dtype}
    policy, chat = build_policy(config.model.model_copy(update=wanted), seed=config.seed)
    load_trained(path, policy)
    if not merge or not policy.is_lora:
        save_policy(policy, chat, out)
        return path
    with TemporaryDirectory(prefix="selfdistill-export-") as aside:
        save_policy(policy, chat, Path(aside), adapter_only=True)
        merged = {"path": aside, "lora": None, **wanted}
        save_policy(*build_policy(config.model.model_copy(update=merged), seed=config.seed), out)
    return path


OWN = {
    "sampling": ("max_tokens", "thinking", "max_batch_size"),
    "evaluation": ("temperature", "top_p", "top_k", "max_tokens", "thinking"),
}
"""Settings of a run that a command on its folder takes over."""


def config_for(
    model: str,
    task: str | Mapping[str, Any] | None,
    overrides: Sequence[str] | Mapping[str, Any],
    *,
    command: str,
) -> RunConfig:
    """The config for a command that does not train. ``task`` is a kind or a table; None takes the run's own task.

    Raises:
        UserError: no task is given, the run's config cannot be read, or an override is invalid.
    """
    for override in overrides:
        if override.partition("=")[0].strip().partition(".")[0] == "method":
            raise ConfigError(f"--set {override}: {command} trains nothing, so it has no method to set")
    raw: dict[str, Any] = {"method": {"name": "grpo"}}
    if task is None:
        if not (Path(model) / "checkpoints").is_dir():
            raise ConfigError(
                f"{model} is no run folder, so it names no task: add --task, for example --task countdown"
            )
        run = with_new_names(read_object(Path(model) / "config.json"))
        if "task" not in run:
            raise DataError(f"{model} is no run folder: its config.json is missing or names no task")
        raw.update({key: run[key] for key in ("task", "reward", "contexts") if key in run})
        for table, names in OWN.items():
            raw[table] = {key: run.get(table, {})[key] for key in names if key in run.get(table, {})}
    else:
        raw["task"] = {"kind": task} if isinstance(task, str) else dict(task)
    apply_overrides(raw, overrides)
    return parse_config(raw, command)
