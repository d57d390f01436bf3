"""Weights on their way to an engine: directories that it can load, each with the label of its version."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.models.policy import Policy, save_policy


class Handover:
    """Writes every version into a folder that the engine sees too, and keeps the newest two."""

    def __init__(self, folder: Path, chat: Chat) -> None:
        self.folder = folder.absolute()
        self.chat = chat
        self.run = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        """A name of the run, so that a server tells its weights from another run's."""

    @property
    def prefix(self) -> str:
        """How the labels of all this run's versions begin."""
        return f"selfdistill-{self.run}-"

    def label(self, version: int) -> str:
        """What the engine calls these weights."""
        return f"{self.prefix}{version}"

    def write(self, policy: Policy, version: int, world: World = ALONE) -> Path:
        """The directory of a version: whole weights, or the adapter alone. All ranks call, the first one writes."""
        path = self.folder / f"version-{version:06d}"
        kept = {path.name, f"version-{version - 1:06d}"}
        if world.first:
            for old in self.folder.glob("version-*"):
                if old.name not in kept:
                    shutil.rmtree(old)
            # What a stopped run left half-written must not be read.
            shutil.rmtree(path, ignore_errors=True)
        save_policy(policy, self.chat, path, writes=world.first)
        return path

    def clear(self) -> None:
        """Remove all versions."""
        for path in self.folder.glob("version-*"):
            shutil.rmtree(path)
