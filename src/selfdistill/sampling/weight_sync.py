"""Weight sync to an engine through model directories, each labelled with its version."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.models.lora import STUDENT_ADAPTER
from selfdistill.models.policy import Policy, save_policy
from selfdistill.models.teachers import adapter_of
from selfdistill.types import External, Server, Snapshot, Weights

DIRECTORY = re.compile(r"(version|frozen|ema|snapshot\d+|external)-\d{6}")
"""Names of the directories that are written here. Whatever else stands in the folder is left alone."""

SHARED = Path("/dev/shm")
"""Where Linux keeps files in memory."""


class WeightSync:
    """Writes every version into a folder shared with the engine, and keeps the student's newest two.

    Of a teacher's weights it keeps one version.
    """

    def __init__(self, folder: Path, chat: Chat) -> None:
        self.folder = folder.absolute()
        self.chat = chat
        self.bytes = 0
        """Bytes of all files that were written so far."""
        self.run = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        """Identifies the run, so that a server can tell its weights from those of another run."""

    @property
    def prefix(self) -> str:
        """Common prefix of the labels of this run's versions."""
        return f"selfdistill-{self.run}-"

    def label(self, version: int, weights: Weights = "live") -> str:
        """The engine's label of a version of the student's weights, or of a teacher's."""
        return f"{self.prefix}{version}" if weights == "live" else f"{self.prefix}{_name(weights)}-{version}"

    def write(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> Path:
        """Write a version, the whole weights or only the adapter; returns its directory.

        ``policy`` has the ``weights``: for a teacher that is an adapter of the student, it is the student. All ranks
        must call. Only rank 0 writes.
        """
        name = _name(weights)
        path = self.folder / f"{name}-{version:06d}"
        recent = {path.name, f"version-{version - 1:06d}"}
        if world.is_rank_zero:
            for old in self._written():
                if old.name.rpartition("-")[0] == name and old.name not in recent:
                    shutil.rmtree(old)
            # A directory that a stopped run left half-written must not be read.
            shutil.rmtree(path, ignore_errors=True)
        adapter = adapter_of(weights) if policy.is_lora else STUDENT_ADAPTER
        save_policy(policy, self.chat, path, writes=world.is_rank_zero, adapter_only=True, adapter=adapter)
        if world.is_rank_zero:
            self.bytes += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path

    def clear(self) -> None:
        """Remove the directories of all versions."""
        for path in self._written():
            shutil.rmtree(path)
        if self.folder.parent == SHARED and self.folder.is_dir():
            self.folder.rmdir()

    def _written(self) -> list[Path]:
        return [path for path in self.folder.glob("*-*") if DIRECTORY.fullmatch(path.name)]


def in_memory(name: str, size: int) -> Path | None:
    """A folder of this name whose files are kept in memory (tmpfs); None if there is no place for ``size`` bytes.

    A container has 64 MB of it by default.
    """
    if not (SHARED.is_dir() and os.access(SHARED, os.W_OK)) or shutil.disk_usage(SHARED).free < size:
        return None
    return SHARED / f"selfdistill-{name}"


def _name(weights: Weights) -> str:
    """The part of a directory's name, and of a label, that says whose weights they are."""
    match weights:
        case "live":
            return "version"
        case Snapshot(every=every):
            return f"snapshot{every}"
        case External() | Server():
            return "external"
        case word:
            return word
