"""Divergences between student and teacher, one value in nats per scored token.

Axis letters: ``N`` scored tokens, ``S`` support (the whole vocabulary, or K ids and their tail).

A probability of zero is a log-probability of ``-inf``, as in the padded rows of a vocabulary. Where the distribution
that weights the sum is zero, the entry adds 0 to value and gradient, whatever the other side is. Where only the
other side is zero, ``forward_kl`` and ``reverse_kl`` are ``+inf``, as they are on paper.

Gradient flows through the student alone: the teacher is detached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs


def forward_kl(student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
    """KL(teacher || student) at each token: Σ_v T (log T − log S), in nats.

    Takes log-probabilities N×S, float32 or float64; returns N. Raises ValueError for other types or unequal shapes.
    """
    return _forward_kl_terms(student_NS, teacher_NS).sum(-1)


def reverse_kl(student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
    """KL(student || teacher) at each token: Σ_v S (log S − log T), in nats.

    Its negative gradient is E_{v~S}[u_v ∇log S(v)] with u = log T − log S. Takes log-probabilities N×S, float32 or
    float64; returns N. Raises ValueError for other types or unequal shapes.
    """
    check_logprobs(student_NS, teacher_NS)
    return _weigh(student_NS, student_NS - teacher_NS.detach()).sum(-1)


def jensen_shannon(student_NS: Tensor, teacher_NS: Tensor, *, teacher_weight: float = 0.5) -> Tensor:
    """Jensen–Shannon divergence at each token, in nats: w KL(T || M) + (1−w) KL(S || M) with M = w T + (1−w) S.

    Takes log-probabilities N×S, float32 or float64, and w = ``teacher_weight``; returns N, always finite. Equal inputs
    give exactly 0 in value and gradient. Raises ValueError for w outside (0, 1): the endpoints are identically zero,
    and the KL that other libraries return there is another objective with its own name.

    Differentiable once. The derivative with respect to log S is (1−w) S (log S − log M): the term through M cancels
    the term through the logarithm of S, so log M is held constant and neither needs to be stored.
    """
    check_logprobs(student_NS, teacher_NS)
    if not 0.0 < teacher_weight < 1.0:
        raise ValueError(f"teacher_weight must lie strictly between 0 and 1, got {teacher_weight}")
    with torch.no_grad():
        student_gap_NS, teacher_gap_NS = _gaps_to_mixture(student_NS, teacher_NS, teacher_weight)
        teacher_share_N = _weigh(teacher_NS, teacher_gap_NS).sum(-1)
    student_share_N = _weigh(student_NS, student_gap_NS).sum(-1)
    return teacher_weight * teacher_share_N + (1.0 - teacher_weight) * student_share_N


def clipped_forward_kl(student_NS: Tensor, teacher_NS: Tensor, *, clip: float) -> Tensor:
    """Forward KL with each vocabulary entry's share capped: Σ_v min(T (log T − log S), clip), in nats.

    The objective of OPSD (arXiv 2601.18734). A capped entry has zero gradient; entries below the cap, the negative ones
    among them, are left alone, so the value may be negative. Takes log-probabilities N×S, float32 or float64; returns
    N. Raises ValueError for other types, unequal shapes, or a clip that is not positive.
    """
    if not clip > 0.0:
        raise ValueError(f"clip must be positive, got {clip}")
    return _forward_kl_terms(student_NS, teacher_NS).clamp(max=clip).sum(-1)


def _forward_kl_terms(student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
    check_logprobs(student_NS, teacher_NS)
    teacher_NS = teacher_NS.detach()
    return _weigh(teacher_NS, teacher_NS - student_NS)


def _weigh(logprobs_NS: Tensor, gap_NS: Tensor) -> Tensor:
    """Probability times gap, with 0 · ±inf = 0 and 0 · NaN = 0 in value and gradient.

    Testing for a probability of zero, not for a log-probability of -inf, also covers underflow: exp(-150) is 0 in
    float32 and would be multiplied by an infinite gap.
    """
    probs_NS = logprobs_NS.exp()
    return probs_NS * gap_NS.masked_fill(probs_NS == 0.0, 0.0)


def _gaps_to_mixture(student_NS: Tensor, teacher_NS: Tensor, teacher_weight: float) -> tuple[Tensor, Tensor]:
    """log S − log M and log T − log M; meaningless where the first distribution of the pair is zero.

    log M is measured from the larger of the two, by expm1 and log1p of their gap: near equality the divergence is
    quadratic in the gap, and logaddexp would leave it as the difference of numbers that agree to seven digits.
    """
    gap_NS = teacher_NS - student_NS
    # Scalars of the gap's own type: ``torch.where`` on two Python numbers returns float32.
    weight_of_teacher = gap_NS.new_full((), teacher_weight)
    weight_of_student = gap_NS.new_full((), 1.0 - teacher_weight)
    weight_of_smaller_NS = torch.where(gap_NS >= 0.0, weight_of_student, weight_of_teacher)
    below_larger_NS = torch.log1p(weight_of_smaller_NS * torch.expm1(-gap_NS.abs()))
    # M is at least the larger times its weight; in float32 a weight of 1 − 1e-9 rounds to 1 and would lose that bound.
    below_larger_NS = below_larger_NS.clamp(min=math.log(min(teacher_weight, 1.0 - teacher_weight)))
    return -gap_NS.clamp(min=0.0) - below_larger_NS, gap_NS.clamp(max=0.0) - below_larger_NS
