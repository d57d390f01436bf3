"""Memory while completions are drawn: how many at once, and what the learner lets go of for an engine beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfdistill.distributed.world import World


def to_stderr(sentence: str) -> None:
    """Say something, of several ranks with the number of the one that says it."""
    world = World.current()
    print(f"rank {world.rank}: {sentence}" if world.size > 1 else sentence, file=sys.stderr)


@dataclass(slots=True)
class Rows:
    """A bound on the rows of a batch, shared by all that draw from one device."""

    most: int
    say: Callable[[str], None] = to_stderr

    def halve(self, tried: int) -> None:
        """So many were too many."""
        self.most = max(1, tried // 2)
        self.say(
            f"sampling.max_rows: memory does not suffice for {tried} completions at once; from here on "
            f"{self.most} are drawn at once, which changes none of them"
        )


def give_back(device: torch.device) -> None:
    """Let go of memory that is kept for later tensors, for others that share the device."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
