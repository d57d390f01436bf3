"""Token sequences as a model reads them: padded rows, or one row of packed tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Segments of packed tokens with equally many tokens before them. Attention computes them as one batch.

    ``key_SK`` [S segments, A + L] holds the indices of each segment's A preceding tokens, then those of its own tokens,
    its suffix. ``suffix_length`` is L, the length of the longest suffix. Shorter ones are padded on the right with any
    index, because attention is causal. ``segments`` are the segments' numbers, ``parents`` those of the segments that
    they follow (None for roots), and ``lengths`` the numbers of their own tokens.
    """

    key_SK: Tensor
    suffix_length: int
    segments: tuple[int, ...]
    parents: tuple[int | None, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How packed tokens form sequences, for attention.

    ``restore_T`` [T] is the index of each packed token in the concatenated suffixes of all groups, padding included.
    """

    groups: tuple[AttentionGroup, ...]
    restore_T: Tensor

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        moved = tuple(replace(group, key_SK=group.key_SK.to(device)) for group in self.groups)
        return Layout(moved, self.restore_T.to(device))


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Sequences and where their completions stand: right-padded rows, or one row of packed tokens with its layout.

    Scored token n has id ``target_N[n]`` and is predicted by the hidden state at (``row_N[n]``, ``column_N[n]``):
    the shift by one has been made, here and nowhere else. ``position_BL`` counts tokens from their sequence's start.
    """

    ids_BL: Tensor
    row_N: Tensor
    column_N: Tensor
    target_N: Tensor
    position_BL: Tensor | None = None
    layout: Layout | None = None

    def to(self, device: torch.device) -> SequenceBatch:
        """The same batch on another device."""
        ids_BL, row_N, column_N, target_N = (
            part.to(device) for part in (self.ids_BL, self.row_N, self.column_N, self.target_N)
        )
        position_BL = self.position_BL.to(device) if self.position_BL is not None else None
        return SequenceBatch(
            ids_BL, row_N, column_N, target_N, position_BL, self.layout.to(device) if self.layout is not None else None
        )
