"""Weight sync to an engine through model directories, each labelled with its version."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.models.policy import Policy, save_policy


class WeightSync:
    """Writes every version into a folder shared with the engine, and keeps the newest two."""

    def __init__(self, folder: Path, chat: Chat) -> None:
        self.folder = folder.absolute()
        self.chat = chat
        self.run = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        """Identifies the run, so that a server can tell its weights from those of another run."""

    @property
    def prefix(self) -> str:
        """Common prefix of the labels of this run's versions."""
        return f"selfdistill-{self.run}-"

    def label(self, version: int) -> str:
        """The engine's label of a version."""
        return f"{self.prefix}{version}"

    def write(self, policy: Policy, version: int, world: World = ALONE) -> Path:
        """Write a version, the whole weights or only the adapter; returns its directory.

        All ranks must call. Only rank 0 writes.
        """
        path = self.folder / f"version-{version:06d}"
        recent = {path.name, f"version-{version - 1:06d}"}
        if world.is_rank_zero:
            for old in self.folder.glob("version-*"):
                if old.name not in recent:
                    shutil.rmtree(old)
            # A directory that a stopped run left half-written must not be read.
            shutil.rmtree(path, ignore_errors=True)
        save_policy(policy, self.chat, path, writes=world.is_rank_zero, adapter_only=True)
        return path

    def clear(self) -> None:
        """Remove the directories of all versions."""
        for path in self.folder.glob("version-*"):
            shutil.rmtree(path)
