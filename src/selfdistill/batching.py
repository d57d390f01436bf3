"""Views to tensors: packing by a token budget, padding, and the only shift by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfdistill.types import SequenceBatch, View


def micro_batches(views: Sequence[View], *, max_tokens: int) -> list[list[int]]:
    """Indices of the views, longest first, cut so that no role's padded batch exceeds ``max_tokens``.

    Similar lengths come together, so little is padded. A view longer than the budget stands alone.
    """
    length = [max((len(ids) for ids in view.prompts.values()), default=0) + len(view.completion_ids) for view in views]
    order = sorted(range(len(views)), key=lambda i: (-length[i], i))
    batches: list[list[int]] = []
    for i in order:
        # The first view of a batch is its longest: it sets the padded length.
        if batches and (len(batches[-1]) + 1) * length[batches[-1][0]] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(views: Sequence[View], role: str) -> SequenceBatch:
    """Right-padded sequences of one role, and where each completion token is predicted.

    Causal attention never looks right, so padding on the right needs no mask. Every role of the same views yields the
    same ``target_N`` in the same order; that is what makes their scores comparable.

    Raises:
        ValueError: an empty prompt, whose completion's first token nothing predicts.
    """
    sequences = [(*view.prompts[role], *view.completion_ids) for view in views]
    longest = max(len(sequence) for sequence in sequences)
    ids_BL = torch.zeros(len(views), longest, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (view, sequence) in enumerate(zip(views, sequences, strict=True)):
        prompt = len(view.prompts[role])
        if not prompt:
            raise ValueError(f"role {role!r} has an empty prompt")
        ids_BL[row, : len(sequence)] = torch.tensor(sequence)
        rows.extend([row] * len(view.completion_ids))
        columns.extend(range(prompt - 1, len(sequence) - 1))
        targets.extend(view.completion_ids)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return SequenceBatch(ids_BL, lengths, torch.tensor(rows), torch.tensor(columns), torch.tensor(targets))


def concatenate(values: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Per-token numbers of several views, in the order of :func:`collate`'s targets."""
    return torch.tensor([number for sequence in values for number in sequence], dtype=dtype)
