"""Views to batches: micro-batches within a token budget, packing or padding, and the shift by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from selfdistill.distributed.world import World
from selfdistill.models.packing import build_prefix_tree, pack
from selfdistill.types import STUDENT, SequenceBatch, View


def cut_by_tokens(
    views: Sequence[View],
    *,
    max_tokens: int,
    forwards: Sequence[Sequence[str]] | None = None,
    packed: bool = False,
) -> list[list[int]]:
    """Split views into micro-batches, as indices, so that no forward pass computes more than ``max_tokens`` tokens.

    ``forwards`` lists the roles that share a forward pass; None runs each role separately. Padded views are ordered
    longest first, so that similar lengths share a batch and padding is small. Packed views are ordered by prompt, so
    that a shared prefix is computed, and counted, once. A view larger than the budget is its own micro-batch.
    """
    if forwards is None:
        forwards = [[role] for role in dict.fromkeys(role for view in views for role in view.prompts)]

    def tokens(indices: Sequence[int]) -> int:
        return max((_computed([views[i] for i in indices], roles, packed=packed) for roles in forwards), default=0)

    order = sorted(range(len(views)), key=lambda i: (_prompts(views[i]), i) if packed else (-_length(views[i]), i))
    batches: list[list[int]] = []
    while order:
        size = _largest(len(order), lambda count: tokens(order[:count]) <= max_tokens)  # noqa: B023
        batches.append(order[:size])
        order = order[size:]
    return batches


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch of this rank, by the indices of its views."""

    indices: list[int]
    is_dummy: bool = False
    """Whether it only keeps ranks in step. Its results do not count."""


def micro_batches(
    views: Sequence[View],
    *,
    max_tokens: int,
    forwards: Sequence[Sequence[str]] | None = None,
    packed: bool = False,
    world: World,
) -> list[MicroBatch]:
    """This rank's micro-batches of views that all ranks know. Every rank gets the same number.

    Every forward pass all-gathers sharded weights, so ranks must make the same number of passes. A rank with fewer
    micro-batches adds dummies of the shortest view, which do not count. The views of a group may go to several ranks.
    The other arguments are those of :func:`cut_by_tokens`.
    """
    shares = _dealt(views, world.size)
    cut = [
        cut_by_tokens([views[i] for i in share], max_tokens=max_tokens, forwards=forwards, packed=packed)
        for share in shares
    ]
    own = [MicroBatch([shares[world.rank][i] for i in batch]) for batch in cut[world.rank]]
    idle = max(map(len, cut)) - len(own)
    return (
        own + [MicroBatch([min(range(len(views)), key=lambda i: _length(views[i]))], is_dummy=True)] * idle
        if idle
        else own
    )


def _dealt(views: Sequence[View], ranks: int) -> list[list[int]]:
    """Indices of the views for each rank. Ranks get about equally many tokens; views with one prompt stay together."""
    if ranks == 1:
        return [list(range(len(views)))]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    total, before = sum(map(_length, views)), 0
    for i in sorted(range(len(views)), key=lambda i: (_prompts(views[i]), i)):
        # Assign the view to the rank whose share of the tokens contains its midpoint.
        shares[(2 * before + _length(views[i])) * ranks // (2 * total)].append(i)
        before += _length(views[i])
    return shares


def _length(view: View) -> int:
    """Length of the view's longest sequence, in tokens."""
    return max((len(ids) + len(view.ids_after(role)) for role, ids in view.prompts.items()), default=0)


def collate(views: Sequence[View], *roles: str, packed: bool = False) -> SequenceBatch:
    """Batch the sequences of one or several roles, role by role, with the position that predicts each completion token.

    A view that lacks a role is skipped for that role. Rows are padded on the right, so causal attention needs no mask;
    packed sequences store a common prefix once. Every role of the same views has the same ``target_N`` in the same
    order, which makes their scores comparable. What stands between the turns of an episode is read and is no target.

    Raises:
        ValueError: a prompt is empty, so no position predicts the first completion token.
    """
    pairs = [(role, view) for role in roles for view in views if role in view.prompts]
    sequences = [(*view.prompts[role], *view.ids_after(role)) for role, view in pairs]
    prompts = [len(view.prompts[role]) for role, view in pairs]
    if not all(prompts):
        raise ValueError(f"role {pairs[prompts.index(0)][0]!r} has an empty prompt")
    target_N = torch.tensor([token for _, view in pairs for token in view.completion_ids], dtype=torch.long)
    # A token is predicted at the place before its own.
    places = [
        torch.tensor(view.places(role), dtype=torch.long) + (prompt - 1)
        for (role, view), prompt in zip(pairs, prompts, strict=True)
    ]
    if packed:
        layout = pack(build_prefix_tree(sequences))
        column_N = torch.cat([indices[place] for indices, place in zip(layout.token_indices, places, strict=True)])
        row_N = torch.zeros_like(column_N)
        return SequenceBatch(layout.ids_T[None], row_N, column_N, target_N, layout.position_T[None], layout.layout)
    ids_BL = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True)
    lengths = torch.tensor([len(view.completion_ids) for _, view in pairs])
    return SequenceBatch(ids_BL, torch.arange(len(pairs)).repeat_interleave(lengths), torch.cat(places), target_N)


def concatenate(values: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Concatenate per-token numbers of several views, in the order of :func:`collate`'s targets."""
    return torch.tensor([number for sequence in values for number in sequence], dtype=dtype)


def _computed(views: Sequence[View], roles: Sequence[str], *, packed: bool) -> int:
    """Tokens that a forward pass over these roles computes: padding included, a packed shared prefix counted once."""
    sequences = [
        (*view.prompts[role], *view.ids_after(role)) for view in views for role in roles if role in view.prompts
    ]
    if packed and sequences:
        return build_prefix_tree(sequences).tokens
    return len(sequences) * max((len(ids) for ids in sequences), default=0)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``most`` that fits, or 1. Doubles first and then bisects."""
    size = 1
    while size < most and fits(min(2 * size, most)):
        size = min(2 * size, most)
    beyond = min(2 * size, most + 1)
    while beyond - size > 1:
        middle = (size + beyond) // 2
        size, beyond = (middle, beyond) if fits(middle) else (size, middle)
    return size


def _prompts(view: View) -> tuple[tuple[int, ...], ...]:
    """Sort key of views: the student's prompt, which a group shares, then the other prompts."""
    others = sorted(role for role in view.prompts if role != STUDENT)
    return (view.prompts.get(STUDENT, ()), *(view.prompts[role] for role in others))
