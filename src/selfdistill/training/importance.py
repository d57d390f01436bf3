"""Completions that another engine drew, or older weights: what their tokens weigh, and how far the two policies are.

At the first update on a batch the learner's own log-probabilities are those that the loss computes anyway, so the
correction costs no forward pass; later updates are given them. Axis letters: ``N`` scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfdistill.objectives import truncated_importance_weight
from selfdistill.types import STUDENT, Scores, TokenLoss, TokenMetrics, TokenSlice, View

SAMPLER = "sampler_logprob"
"""Input of a token: its log-probability where it was drawn; NaN where no other engine drew it."""
LEARNER = "learner_logprob"
"""Input of a token: its log-probability under the learner before the first update on this batch."""


def drawn_logprobs(view: View) -> Sequence[float]:
    """What :data:`SAMPLER` holds for a view: a teacher that draws does so with weights that are at hand."""
    return view.old_logprobs if view.source == STUDENT else [math.nan] * len(view.completion_ids)


def corrected(loss: TokenLoss, *, cap: float) -> TokenLoss:
    """The loss times each token's importance weight, min(learner / sampler, cap).

    The loss itself sees the learner's own log-probabilities as the old ones: what the engines differ by is corrected
    once, by the weight, and ratios within the loss measure the updates on this batch alone.
    """

    def weighted(tokens: TokenSlice) -> Tensor:
        seen, learner_N = _at_the_learner(tokens)
        sampler_N = tokens.inputs[SAMPLER]
        weight_N = truncated_importance_weight(learner_N, sampler_N, cap=cap)
        return torch.where(sampler_N.isnan(), torch.ones_like(weight_N), weight_N) * loss(seen)

    return weighted


def seen_by(metrics: TokenMetrics) -> TokenMetrics:
    """The metrics of the tokens as the corrected loss sees them."""

    def measured(tokens: TokenSlice) -> Mapping[str, Tensor]:
        return metrics(_at_the_learner(tokens)[0])

    return measured


def _at_the_learner(tokens: TokenSlice) -> tuple[TokenSlice, Tensor]:
    learner_N = tokens.inputs[LEARNER] if LEARNER in tokens.inputs else tokens.target(STUDENT).detach()
    elsewhere_N = ~tokens.inputs[SAMPLER].isnan()
    old_N = torch.where(elsewhere_N, learner_N, tokens.inputs["old_logprob"])
    inputs = {**tokens.inputs, "old_logprob": old_N}
    return TokenSlice(tokens.target_N, tokens.roles, inputs, tokens.values), learner_N


def gaps(views: Sequence[View], learner: Sequence[Scores | None], *, cap: float) -> dict[str, float]:
    """Means over the tokens that another engine drew; empty where there are none.

    ``sampler_gap`` is |log p_learner − log p_sampler| in nats and ``sampler_gap_max`` the largest, ``importance`` the
    weight and ``importance_capped`` the share of weights at the cap.
    """
    pairs = [(v, s) for v, s in zip(views, learner, strict=True) if s is not None and v.source == STUDENT]
    if not pairs:
        return {}
    learner_N = torch.cat([score.target_N.double().cpu() for _, score in pairs])
    sampler_N = torch.tensor([number for view, _ in pairs for number in view.old_logprobs], dtype=torch.float64)
    gap_N = (learner_N - sampler_N).abs()
    weight_N = truncated_importance_weight(learner_N, sampler_N, cap=cap)
    return {
        "sampler_gap": float(gap_N.mean()),
        "sampler_gap_max": float(gap_N.max()),
        "importance": float(weight_N.mean()),
        "importance_capped": float((weight_N >= cap).double().mean()),
    }
