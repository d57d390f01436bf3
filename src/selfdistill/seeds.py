"""Seeds by purpose: every random choice is a function of the run's seed, the step and what it is for.

So a resumed run needs no saved generator states to draw what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, for example ``derive(0, "sampling", step)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def batches(size: int, per_step: int, *, seed: int, first_step: int) -> Iterator[list[int]]:
    """Indices of each step's examples: shuffled epochs, one after another, from ``first_step`` (counted from 1) on.

    A batch may span two epochs; it is the same whether or not the run began at step 1.
    """
    position = (first_step - 1) * per_step
    epoch, order = -1, []
    while True:
        chosen = []
        for i in range(position, position + per_step):
            if i // size != epoch:
                epoch = i // size
                order = list(range(size))
                random.Random(derive(seed, "order", epoch)).shuffle(order)
            chosen.append(order[i % size])
        yield chosen
        position += per_step
