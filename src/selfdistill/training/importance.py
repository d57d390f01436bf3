"""Importance weights for completions that another engine or older weights sampled, and the gap between the policies.

At the first update on a batch the loss computes the learner's log-probabilities anyway, so the correction costs no
forward pass. Later updates reuse them. Axis letters: ``N`` scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfdistill.objectives import truncated_importance_weight
from selfdistill.types import STUDENT, Scores, TokenLoss, TokenMetrics, TokenSlice, View

SAMPLER = "sampler_logprob"
"""Input per token: its log-probability in the sampling engine; NaN if no other engine sampled it."""
LEARNER = "learner_logprob"
"""Input per token: its log-probability under the learner before the first update on this batch."""


def sampled_logprobs(view: View) -> Sequence[float]:
    """Values of :data:`SAMPLER` for a view: NaN for a teacher's samples, which the engine did not sample."""
    return view.old_logprobs if view.source == STUDENT else [math.nan] * len(view.completion_ids)


def corrected(loss: TokenLoss, *, cap: float) -> TokenLoss:
    """A loss that multiplies each token's loss by its importance weight, min(learner / sampler, cap).

    The inner loss gets the learner's log-probabilities as the old ones. The weight then corrects the gap between the
    engines once, and ratios inside the loss measure only the updates on this batch.
    """

    def weighted(tokens: TokenSlice) -> Tensor:
        at_learner, learner_N = _at_the_learner(tokens)
        sampler_N = tokens.inputs[SAMPLER]
        weight_N = truncated_importance_weight(learner_N, sampler_N, cap=cap)
        return torch.where(sampler_N.isnan(), torch.ones_like(weight_N), weight_N) * loss(at_learner)

    return weighted


def metrics_of_learner(metrics: TokenMetrics) -> TokenMetrics:
    """The metrics, computed on the inputs of the corrected loss."""

    def measured(tokens: TokenSlice) -> Mapping[str, Tensor]:
        return metrics(_at_the_learner(tokens)[0])

    return measured


def _at_the_learner(tokens: TokenSlice) -> tuple[TokenSlice, Tensor]:
    learner_N = tokens.inputs[LEARNER] if LEARNER in tokens.inputs else tokens.target(STUDENT).detach()
    by_engine_N = ~tokens.inputs[SAMPLER].isnan()
    old_N = torch.where(by_engine_N, learner_N, tokens.inputs["old_logprob"])
    inputs = {**tokens.inputs, "old_logprob": old_N}
    return TokenSlice(tokens.target_N, tokens.roles, inputs, tokens.values), learner_N


def gaps(views: Sequence[View], learner: Sequence[Scores | None], *, cap: float) -> dict[str, float]:
    """Statistics over the student's tokens that another engine sampled; empty if there are none.

    ``sampler_gap`` is the mean of |log p_learner − log p_sampler| in nats, and ``sampler_gap_max`` its maximum.
    ``importance`` is the mean weight, and ``importance_capped`` the share of weights at the cap.
    """
    pairs = [(v, s) for v, s in zip(views, learner, strict=True) if s is not None and v.source == STUDENT]
    if not pairs:
        return {}
    learner_N = torch.cat([score.target_N.cpu().double() for _, score in pairs])
    sampler_N = torch.tensor([number for view, _ in pairs for number in view.old_logprobs], dtype=torch.float64)
    gap_N = (learner_N - sampler_N).abs()
    weight_N = truncated_importance_weight(learner_N, sampler_N, cap=cap)
    return {
        "sampler_gap": float(gap_N.mean()),
        "sampler_gap_max": float(gap_N.max()),
        "importance": float(weight_N.mean()),
        "importance_capped": float((weight_N >= cap).double().mean()),
    }
