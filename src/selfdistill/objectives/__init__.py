"""Pure functions on log-probabilities: one value per token in nats, no mask, no mean, no model, no config.

``divergence`` compares student and teacher · ``support`` restricts the vocabulary · ``signals`` has per-token signals ·
``targets`` has the distributions to distil to · ``policy_gradient`` and ``preference`` are losses on sampled tokens and
completions.
"""

from __future__ import annotations

from selfdistill.objectives.divergence import clipped_forward_kl, forward_kl, jensen_shannon, reverse_kl
from selfdistill.objectives.policy_gradient import (
    advantages_within,
    clipped_policy_gradient,
    clipped_weight_policy_gradient,
    group_advantages,
    reference_penalty,
    returns_to_go,
    sequence_policy_gradient,
    truncated_importance_weight,
    weighted_reverse_kl,
)
from selfdistill.objectives.preference import preference_loss, preference_margin, preference_slope
from selfdistill.objectives.signals import (
    Decomposition,
    antisd_advantage,
    decompose,
    difference,
    entropy,
    pointwise_mutual_information,
)
from selfdistill.objectives.support import log1mexp, with_tail
from selfdistill.objectives.targets import credit_target, purified_target

__all__ = [
    "Decomposition",
    "advantages_within",
    "antisd_advantage",
    "clipped_forward_kl",
    "clipped_policy_gradient",
    "clipped_weight_policy_gradient",
    "credit_target",
    "decompose",
    "difference",
    "entropy",
    "forward_kl",
    "group_advantages",
    "jensen_shannon",
    "log1mexp",
    "pointwise_mutual_information",
    "preference_loss",
    "preference_margin",
    "preference_slope",
    "purified_target",
    "reference_penalty",
    "returns_to_go",
    "reverse_kl",
    "sequence_policy_gradient",
    "truncated_importance_weight",
    "weighted_reverse_kl",
    "with_tail",
]
