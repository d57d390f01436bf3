"""GPU and CPU memory during sampling: the batch size, and the memory cache of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from selfdistill.distributed.world import World


def log_to_stderr(message: str) -> None:
    """Print a message to stderr, with the rank if there are several."""
    world = World.current()
    print(f"rank {world.rank}: {message}" if world.size > 1 else message, file=sys.stderr)


@dataclass(slots=True)
class BatchSizeLimit:
    """Maximum batch size of sampling, shared by all samplers of a device."""

    value: int
    log: Callable[[str], None] = log_to_stderr
    keeps_turns: bool = True
    """Whether what was read of conversations is kept between the turns of episodes."""

    def forget_turns(self) -> None:
        """Keep nothing between turns from here on, after running out of memory beside what was kept."""
        self.keeps_turns = False
        self.log(
            "memory does not suffice to keep conversations between their turns; from here on every turn reads its own "
            "from the start, which changes none of them"
        )

    def halve(self, tried: int) -> None:
        """Halve the batch size after running out of memory. ``tried`` is the batch size that did not fit."""
        self.value = max(1, tried // 2)
        self.log(
            f"sampling.max_batch_size: memory does not suffice for {tried} completions at once; from here on "
            f"{self.value} are sampled at once, which changes none of them"
        )


def empty_cache(device: torch.device) -> None:
    """Empty torch's memory cache, for other processes on the same device."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
