"""Random numbers by name instead of by turn: number t of a row is a hash of the row's seed and t.

A generator deals its numbers in the order in which they are asked for, so a row that finishes, or is drawn on another
machine, would change what all others say. Hashed numbers need no state, are the same on every device, and cost a few
operations on one number a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""The constants of SplitMix64 (Steele, Lea and Flood 2014), whose outputs pass BigCrush."""


def uniform(seed_B: Tensor, number: int) -> Tensor:
    """Number ``number`` of every row, in [0, 1) with 53 random bits: output ``number`` of SplitMix64(seed).

    ``seed_B`` is int64, whose products wrap around as those of unsigned numbers do.
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
    """The unsigned shift to the right."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
