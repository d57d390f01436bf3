"""A run's folder before the first step: the lock, and the checks whether a config may resume the run."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfdistill.config.renamed import with_new_names
from selfdistill.config.run import ResolvedConfig, lasting
from selfdistill.config.suggest import suggest
from selfdistill.distributed.world import World
from selfdistill.errors import CheckpointError
from selfdistill.files.disk import lock_folder, report_disk_errors
from selfdistill.files.jsonl import JsonLines
from selfdistill.tasks.turns import is_replayable
from selfdistill.training.atomic import checkpoint_path, checkpoints, corruption, latest_valid
from selfdistill.training.checkpoint import save_best
from selfdistill.types import Task


class Hold:
    """A run's lock on its folder: two runs that write into one ruin both.

    The lock ends with :meth:`release`, with the last reference to this object, or with the process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end: weakref.finalize[..., Hold] | None = None

    def take(self) -> None:
        """Make the folder if need be, and lock it unless it is held already.

        Raises:
            CheckpointError: another run holds it, or the folder cannot be made.
        """
        if self._end is None:
            held = f"another run still writes to {self._folder}: wait for it to end, or choose another --out"
            with report_disk_errors(self._folder):
                descriptor = lock_folder(self._folder, held)
            if descriptor is not None:
                self._end = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Release the lock."""
        if self._end is not None:
            self._end()
            self._end = None


def stored_config(folder: Path) -> tuple[Mapping[str, Any], str | None]:
    """The config that a run was made with, and a warning if it had to be read from a checkpoint.

    Raises:
        CheckpointError: ``config.json`` is no JSON object, and no whole checkpoint holds a copy.
    """
    path = folder / "config.json"
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        stored = None
    if isinstance(stored, dict):
        return stored, None
    for checkpoint in reversed(checkpoints(folder / "checkpoints")):
        if corruption(checkpoint) is None:
            state = _state(checkpoint)
            if "config" in state:
                return state["config"], f"{path} is damaged: it is written again from checkpoint {checkpoint.name}"
    raise CheckpointError(f"{path} is damaged, and no whole checkpoint holds a copy of it: choose another --out")


def state_to_resume(
    folder: Path, config: ResolvedConfig, task: Task, origin: str, *, log: Callable[[str], None]
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint that a run resumes from and its ``state.json``; None and an empty dict if it has none yet.

    It is the newest valid one whose lines are still in the run's files. ``origin`` is the fingerprint of the weights
    that the config's model holds now. ``log`` gets a warning for each newer checkpoint, and that of
    :func:`stored_config`.

    Raises:
        CheckpointError: the task cannot be resumed, the config or the model's weights are not the run's, or there are
            checkpoints, but none is usable.
    """
    if not is_replayable(task):
        raise CheckpointError(
            f"{folder} cannot be resumed: task {task.name!r} says replayable = False, so the next steps would not be "
            "those of a run without a break; start another run from its checkpoint with model.path"
        )
    config_warning = check_same_config(folder, config)
    if config_warning is not None:
        log(config_warning)

    def objection(checkpoint: Path) -> str | None:
        # A checkpoint of an older version has no marks.
        marks = _state(checkpoint).get("logs", {})
        changed = [f"{name}.jsonl" for name in marks if JsonLines(folder / f"{name}.jsonl").differs(marks[name])]
        return f"{changed[0]} has lost or changed lines from before it" if changed else None

    path, warnings = World.current().broadcast_from_rank_zero(lambda: latest_valid(folder / "checkpoints", objection))
    for warning in warnings:
        log(warning)
    if path is None:
        return None, {}
    state = _state(path)
    if state["origin"] != origin:
        raise CheckpointError(f"{folder} began from other weights than {config.model.path} holds now: it cannot resume")
    return path, state


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def mend_best(saved: Path, step: int) -> str | None:
    """Restore damaged best weights from the checkpoint of their step; returns a warning, or None if they are valid."""
    best, source = saved / "best", checkpoint_path(saved, step)
    reason = corruption(best)
    if reason is None:
        return None
    if not (source / "model").is_dir() or corruption(source) is not None:
        return f"{best} is damaged ({reason}), and the checkpoint of its step is gone: the next better one replaces it"

    save_best(saved, step, lambda folder: shutil.copytree(source / "model", folder, dirs_exist_ok=True))
    return f"{best} was damaged ({reason}): it is restored from checkpoint {source.name}"


def check_same_config(
    folder: Path, config: ResolvedConfig, *, kept: Callable[[ResolvedConfig], dict[str, Any]] = lasting
) -> str | None:
    """Refuse to resume a run with another config than its own; returns the warning of :func:`stored_config`.

    ``kept`` are the keys of a config that must be the same. A key missing from the stored config is newer than the run,
    which behaved as the default does.

    Raises:
        CheckpointError: names the first key that differs, or says that no config can be read.
    """
    settings, warning = stored_config(folder)
    try:
        original = ResolvedConfig.model_validate(with_new_names(settings))
    except ValidationError as error:
        raise _another_config(folder, suggest(error, ResolvedConfig)) from error
    stored, current = (_of_kind(json.loads(json.dumps(kept(resolved)))) for resolved in (original, config))
    for key in sorted({*stored, *current}):
        if stored.get(key) != current.get(key):
            raise _another_config(folder, _difference(key, stored.get(key), current.get(key)))
    return warning


def check_steps(folder: Path, done: int, steps: int, *, log: Callable[[str], None]) -> None:
    """Refuse to resume a run that is already beyond the config's steps, and log if no step is left.

    Raises:
        CheckpointError: the run has made more steps than the config wants.
    """
    if done > steps:
        raise CheckpointError(
            f"{folder} is already at step {done}, beyond steps = {steps}: set steps higher, or choose another --out"
        )
    if done == steps:
        log(f"{folder} is already at step {done} of {steps}: nothing is left to train; set steps higher to go on")


def _of_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the index of the device, because the choice among several GPUs changes no result."""
    model = settings["model"]
    return {**settings, "model": {**model, "device": model["device"].partition(":")[0]}}


def _another_config(folder: Path, where: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} was made with another config: {where}; resume with the same, or choose another --out"
    )


def _difference(key: str, stored: Any, current: Any) -> str:
    if isinstance(stored, dict) and isinstance(current, dict):
        for name in sorted({*stored, *current}):
            if stored.get(name) != current.get(name):
                return _difference(f"{key}.{name}", stored.get(name), current.get(name))
    return f"{key} was {stored!r} and is now {current!r}"
