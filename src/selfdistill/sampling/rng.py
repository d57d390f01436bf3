"""Counter-based random numbers: number t of row i is a hash of (seed_i, t).

A stateful generator returns its numbers in the order of the calls, so a row that finishes, or is sampled on another
machine, would change all other rows. Hashed numbers need no state and are the same on every device. They cost a few
integer operations per row and token.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""The constants of SplitMix64 (Steele, Lea and Flood 2014), whose outputs pass BigCrush."""


def uniform(seed_B: Tensor, number: int) -> Tensor:
    """Random number ``number`` of every row, in [0, 1) with 53 random bits: output ``number`` of SplitMix64(seed).

    ``seed_B`` is int64; its products wrap around like those of unsigned integers.
    """
    state = seed_B + _signed((number + 1) * GOLDEN)
    for shift, factor in MIX:
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    state = state ^ _shifted(state, 31)
    return _shifted(state, 11).to(torch.float64) * 2.0**-53


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical right shift. The operator of torch shifts int64 arithmetically."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
