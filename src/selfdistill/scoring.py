"""Views under a role's weights to scores: the one path by which training, inspection and evaluation score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfdistill.batching import collate, micro_batches
from selfdistill.head import Readout
from selfdistill.policy import Policy
from selfdistill.teachers import Teachers
from selfdistill.types import Scores, View, Weights


def score_views(policy: Policy, views: Sequence[View], role: str, *, max_tokens: int, elements: int) -> list[Scores]:
    """Log-probability and entropy of every completion token under one role's prompts, view by view."""
    results: dict[int, Scores] = {}
    for chosen in micro_batches([_only(view, role) for view in views], max_tokens=max_tokens):
        picked = [views[i] for i in chosen]
        scores = policy.score(collate(picked, role), elements=elements)
        results.update(zip(chosen, split(scores, picked), strict=True))
    return [results[i] for i in range(len(views))]


def split(scores: Scores, views: Sequence[View]) -> list[Scores]:
    """Scores of a batch, cut into those of its views."""
    lengths = [len(view.completion_ids) for view in views]
    pairs = zip(scores.target_N.split(lengths), scores.entropy_N.split(lengths), strict=True)
    return [Scores(target, entropy) for target, entropy in pairs]


def readouts(
    teachers: Teachers, views: Sequence[View], weights: Mapping[str, Weights], target_N: Tensor
) -> dict[str, Readout]:
    """Hidden states of every role of a micro-batch, without gradient, for losses that compare distributions.

    Raises:
        RuntimeError: a role's target ids differ from the student's; scores would not be comparable.
    """
    result: dict[str, Readout] = {}
    for role, kind in weights.items():
        batch = collate(views, role)
        if not torch.equal(batch.target_N, target_N):
            raise RuntimeError(f"role {role!r} scores other tokens than the student")
        with teachers.weights(kind) as policy:
            result[role] = policy.readout(batch)
    return result


def _only(view: View, role: str) -> View:
    return View({role: view.prompts[role]}, view.completion_ids, (), (), 0.0, view.group, view.index)
