"""Prefix trees: tokens shared by several sequences are stored and computed once.

A *segment* is a run of tokens that follows a parent segment. A sequence is the path from a root to a segment. Packing
concatenates all segments without padding; the layout tells attention which tokens precede a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from selfdistill.types import AttentionGroup, Layout

SHARE_FROM = 64
"""Minimum number of tokens that sharing a prefix must save. One more attention group costs a few attention calls
per layer: as much as 4 tokens of the shipped models on a CPU, or 100 tokens of a model with 8B weights on a GPU."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens ``start`` … ``start + len(ids)`` of one or more sequences. ``parent`` is None for a root."""

    ids: tuple[int, ...]
    start: int
    parent: int | None


@dataclass(slots=True)
class PrefixTree:
    """Prefix trees: segments, parents before children; and the index of each sequence's last segment."""

    segments: list[Segment] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens that a forward pass computes."""
        return sum(len(segment.ids) for segment in self.segments)

    def path(self, sequence: int) -> list[int]:
        """Indices of a sequence's segments, starting at the root."""
        leaf_to_root: list[int] = []
        segment: int | None = self.ends[sequence]
        while segment is not None:
            leaf_to_root.append(segment)
            segment = self.segments[segment].parent
        return leaf_to_root[::-1]


def build_prefix_tree(sequences: Sequence[tuple[int, ...]], *, share_from: int | None = None) -> PrefixTree:
    """Build the prefix trees of sequences. A common prefix is shared if that saves at least ``share_from`` tokens.

    ``share_from`` None is :data:`SHARE_FROM`; 1 shares every common prefix.
    """
    least = SHARE_FROM if share_from is None else share_from
    tree = PrefixTree(ends=[0] * len(sequences))
    ordered = sorted(range(len(sequences)), key=sequences.__getitem__)
    # Each entry: sequences that agree up to ``start``, the length of their path so far, and their parent segment.
    todo: list[tuple[list[int], int, int | None]] = [(same, 0, None) for same in _split(sequences, ordered, 0)[::-1]]
    while todo:
        members, start, parent = todo.pop()
        first = sequences[members[0]]
        common = _common(first, sequences[members[-1]], start)
        if len(members) > 1 and (len(members) - 1) * (common - start) < least:
            # The common prefix is too short to share, but subsets may share a longer one.
            todo += [(same, start, parent) for same in _split(sequences, members, common)[::-1]]
            continue
        index = len(tree.segments)
        tree.segments.append(Segment(first[start:common], start, parent))
        longer = [member for member in members if len(sequences[member]) > common]
        for member in members:
            tree.ends[member] = index
        todo += [(same, common, index) for same in _split(sequences, longer, common)[::-1]]
    return tree


def _common(first: tuple[int, ...], last: tuple[int, ...], start: int) -> int:
    """Length of the common prefix of two sequences that agree on their first ``start`` tokens."""
    shorter = min(len(first), len(last))
    if first[start:shorter] == last[start:shorter]:
        return shorter
    return next(i for i in range(start, shorter) if first[i] != last[i])


def _split(sequences: Sequence[tuple[int, ...]], members: Sequence[int], at: int) -> list[list[int]]:
    """Sorted sequences grouped by their token at a position. A sequence that ends there is its own group."""
    parts: dict[int, list[int]] = {}
    for member in members:
        ended = len(sequences[member]) == at
        parts.setdefault(-1 - member if ended else sequences[member][at], []).append(member)
    return list(parts.values())


@dataclass(frozen=True, slots=True)
class Packed:
    """Tokens of prefix trees in one row: ids, positions, layout, and the indices of each sequence's tokens."""

    ids_T: Tensor
    position_T: Tensor
    layout: Layout
    token_indices: list[Tensor]


def pack(tree: PrefixTree) -> Packed:
    """Concatenate all segments into one row of tokens without padding."""
    offsets, generations = [0], dict[int, list[int]]()
    for number, segment in enumerate(tree.segments):
        offsets.append(offsets[-1] + len(segment.ids))
        generations.setdefault(segment.start, []).append(number)
    suffixes = [torch.arange(start, end) for start, end in pairwise(offsets)]
    paths: list[Tensor] = []
    for number, segment in enumerate(tree.segments):
        above = [] if segment.parent is None else [paths[segment.parent]]
        paths.append(torch.cat([*above, suffixes[number]]))
    restore_T = torch.empty(offsets[-1], dtype=torch.long)
    groups: list[AttentionGroup] = []
    filled = 0
    # Segments with equally many tokens before them form one attention batch, also with different parents.
    for start, members in generations.items():
        for alike in _alike(members, [len(suffix) for suffix in suffixes]):
            suffix_SL = torch.nn.utils.rnn.pad_sequence([suffixes[child] for child in alike], batch_first=True)
            for row, child in enumerate(alike):
                restore_T[suffixes[child]] = filled + row * suffix_SL.shape[1] + torch.arange(len(suffixes[child]))
            filled += suffix_SL.numel()
            before_SK = torch.stack([paths[child][:start] for child in alike])
            groups.append(
                AttentionGroup(
                    key_SK=torch.cat([before_SK, suffix_SL], 1),
                    suffix_length=suffix_SL.shape[1],
                    segments=tuple(alike),
                    parents=tuple(tree.segments[child].parent for child in alike),
                    lengths=tuple(len(suffixes[child]) for child in alike),
                )
            )
    return Packed(
        ids_T=torch.tensor([token for segment in tree.segments for token in segment.ids]),
        position_T=torch.cat([torch.arange(len(segment.ids)) + segment.start for segment in tree.segments]),
        layout=Layout(tuple(groups), restore_T),
        token_indices=[paths[end] for end in tree.ends],
    )


def _alike(children: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Group segments by length, longest first, so that each is at least half as long as its group's first.

    This bounds the padding to a factor of two. Only attention is padded.
    """
    cut: list[list[int]] = []
    for child in sorted(children, key=lambda child: (-lengths[child], child)):
        if cut and 2 * lengths[child] >= lengths[cut[-1][0]]:
            cut[-1].append(child)
        else:
            cut.append([child])
    return cut
