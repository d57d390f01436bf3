"""The folder of a run before anything is loaded: whether a run may be written there. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from selfdistill.errors import CheckpointError
from selfdistill.files.disk import check_name, report_disk_errors


def holds_run(folder: Path, *, resume: bool) -> bool:
    """Whether a folder holds a run to resume. Files of a run that ended before it wrote its config do not count.

    Raises:
        CheckpointError: it holds a run and ``resume`` is not set, it holds other files, or it cannot be read.
    """
    with report_disk_errors(folder):
        check_name(folder)
        exists = (folder / "config.json").exists() or any((folder / "checkpoints").glob("step-*"))
        if exists and not resume:
            raise CheckpointError(f"{folder} holds another run: choose another --out, or continue it with --resume")
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if "checkpoints" in names and not any((folder / "checkpoints").iterdir()):
            names.remove("checkpoints")
        if not exists and names - {"config.json.tmp"}:
            raise CheckpointError(f"{folder} is not empty and holds no run: choose another --out")
    return exists
