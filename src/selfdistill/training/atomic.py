"""Atomic folders: written completely or not at all, and checked for corruption when read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import CheckpointError
from selfdistill.files.jsonl import sync, write_json

MANIFEST = "manifest.json"


def write_folder(target: Path, fill: Callable[[Path], None], *, world: World = ALONE) -> None:
    """Let ``fill`` write a temporary folder, add a manifest of file hashes, and rename the folder to ``target``.

    An older ``target`` is replaced. A crash at any moment leaves the old or the new folder whole. Every rank of
    ``world`` must call, on a shared disk: each rank fills the folder and hashes its share of the files.
    """
    aside, old = target.with_name(target.name + ".tmp"), target.with_name(target.name + ".old")
    if world.is_rank_zero:
        for leftover in (aside, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        aside.mkdir(parents=True)
    world.barrier()
    fill(aside)
    world.barrier()
    files = world.broadcast_from_rank_zero(lambda: sorted(path for path in aside.rglob("*") if path.is_file()))
    own_files = [files[i] for i in world.shard_indices(len(files))]
    parts = world.all_gather({str(path.relative_to(aside)): _digest(path) for path in own_files})
    if world.is_rank_zero:
        write_json(aside / MANIFEST, dict(sorted(pair for part in parts for pair in part.items())))
    for path in own_files:
        sync(path)
    world.barrier()
    if world.is_rank_zero:
        if target.exists():
            target.rename(old)
        aside.rename(target)
        sync(target.parent)
        if old.exists():
            shutil.rmtree(old)
    world.barrier()


def repair(target: Path) -> None:
    """Restore the older folder after a crash between the two renames of :func:`write_folder`."""
    old = target.with_name(target.name + ".old")
    if old.exists() and not target.exists():
        old.rename(target)


def corruption(folder: Path) -> str | None:
    """Why a folder differs from what :func:`write_folder` wrote, or None if it is valid."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "its manifest is missing or unreadable"
    if not isinstance(manifest, dict) or not manifest:
        return "its manifest names no files"
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    if extra := sorted(present - manifest.keys()):
        return f"its manifest does not name {extra[0]}"
    for name, digest in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} is damaged"
    return None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint of a step."""
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """Paths of all checkpoints, oldest first, corrupt ones included."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and path.suffix == "")


def latest_valid(
    folder: Path, objection: Callable[[Path], str | None] = lambda path: None
) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, or None; and one sentence for every newer one that is corrupt.

    ``objection`` returns a further reason to reject a valid checkpoint, for example that the log files do not match.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
    """
    warnings: list[str] = []
    for path in reversed(checkpoints(folder)):
        reason = corruption(path) or objection(path)
        if reason is None:
            return path, warnings
        warnings.append(f"checkpoint {path.name} is torn ({reason}); using the one before it")
    if warnings:
        raise CheckpointError(f"no whole checkpoint in {folder}: {'; '.join(warnings)}")
    return None, warnings


def prune(folder: Path, keep: int, *, last: Path) -> None:
    """Remove all but the newest ``keep`` checkpoints up to ``last``. Later ones are corrupt and do not count."""
    for path in [path for path in checkpoints(folder) if path.name <= last.name][:-keep]:
        shutil.rmtree(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_path(model: str) -> tuple[str, list[str]]:
    """Path of the weights, and warnings. Takes a run's newest valid checkpoint, a checkpoint's model, or the path."""
    # Path("") is the current directory.
    if not model.strip():
        return model, []
    folder = Path(model)
    if (folder / "checkpoints").is_dir():
        newest, warnings = latest_valid(folder / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{model} has no checkpoint yet")
        if not (newest / "model").is_dir():
            raise CheckpointError(
                f"{newest} holds shards and no model directory: make one with selfdistill export {model} --out DIR"
            )
        return str(newest / "model"), warnings
    return (str(folder / "model") if (folder / "model").is_dir() else model), []
