"""Memory while completions are drawn: how many at once, and what the learner lets go of for an engine beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfdistill.distributed.world import World


def to_stderr(sentence: str) -> None:
    """Print a message to stderr, with the rank if there are several."""
    world = World.current()
    print(f"rank {world.rank}: {sentence}" if world.size > 1 else sentence, file=sys.stderr)


@dataclass(slots=True)
class Rows:
    """Maximum batch size of sampling, shared by all samplers of a device."""

    most: int
    say: Callable[[str], None] = to_stderr

    def halve(self, tried: int) -> None:
        """Halve the batch size after running out of memory."""
        self.most = max(1, tried // 2)
        self.say(
            f"sampling.max_rows: memory does not suffice for {tried} completions at once; from here on "
            f"{self.most} are drawn at once, which changes none of them"
        )


def give_back(device: torch.device) -> None:
    """Empty torch's memory cache, for other processes on the same device."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
