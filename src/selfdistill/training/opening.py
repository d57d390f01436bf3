"""A run's folder before its first step: whose it is, and whether a config may go on with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfdistill.config.renamed import with_new_names
from selfdistill.config.run import ResolvedConfig, lasting
from selfdistill.config.suggest import suggest
from selfdistill.errors import CheckpointError


def holds_run(folder: Path, *, resume: bool) -> bool:
    """Whether a folder holds a run to resume.

    Raises:
        CheckpointError: it holds a run and ``resume`` is not set, or it holds other files.
    """
    exists = (folder / "config.json").exists()
    if exists and not resume:
        raise CheckpointError(f"{folder} holds another run: choose another --out, or continue it with --resume")
    if not exists and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no run: choose another --out")
    return exists


def check_same_config(
    folder: Path, config: ResolvedConfig, *, kept: Callable[[ResolvedConfig], dict[str, Any]] = lasting
) -> None:
    """Refuse to resume a run with another config than its own. ``kept`` are the keys of a config that must be the same.

    A key missing from the stored config is newer than the run, which behaved as the default does.

    Raises:
        CheckpointError: names the first key that differs.
    """
    try:
        made = ResolvedConfig.model_validate(
            with_new_names(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        )
    except ValidationError as error:
        raise _another_config(folder, suggest(error, ResolvedConfig)) from error
    stored, ours = (json.loads(json.dumps(kept(one))) for one in (made, config))
    for key in sorted({*stored, *ours}):
        if stored.get(key) != ours.get(key):
            raise _another_config(folder, _difference(key, stored.get(key), ours.get(key)))


def _another_config(folder: Path, where: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} was made with another config: {where}; resume with the same, or choose another --out"
    )


def _difference(key: str, stored: Any, ours: Any) -> str:
    if isinstance(stored, dict) and isinstance(ours, dict):
        for below in sorted({*stored, *ours}):
            if stored.get(below) != ours.get(below):
                return _difference(f"{key}.{below}", stored.get(below), ours.get(below))
    return f"{key} was {stored!r} and is now {ours!r}"
