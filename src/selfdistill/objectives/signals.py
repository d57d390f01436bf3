"""Per-token hindsight signals: pointwise mutual information, its bounded form, its decomposition, entropy.

Axis letters: ``N`` scored tokens, ``V`` vocabulary. T teacher, S student, R reference-only teacher (it sees the
solution and not the question).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Cosines and Euclidean norms of three differences of log-probability vectors, each N.

    ``total`` = log T − log S, ``reference`` = log R − log S (what the solution alone induces), ``question`` =
    log T − log R (what the question adds); total = reference + question. A cosine with a zero vector is NaN: missing.
    """

    cosine_total_reference_N: Tensor
    cosine_total_question_N: Tensor
    cosine_reference_question_N: Tensor
    norm_total_N: Tensor
    norm_reference_N: Tensor
    norm_question_N: Tensor


def pointwise_mutual_information(teacher_N: Tensor, student_N: Tensor) -> Tensor:
    """u = log T(y_t) − log S(y_t) at each sampled token, in nats.

    With teacher weights equal to the student's and a context that acts like Bayes' rule, u is a filtering increment
    and its sum over a completion is log p(c|x,y) − log p(c|x), the pointwise mutual information of completion and
    context. With frozen or averaged teacher weights the sum also holds the change of the weights. Takes and returns
    N; the teacher is detached. Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(teacher_N, student_N)
    return teacher_N.detach() - student_N


def difference(first_NV: Tensor, second_NV: Tensor) -> Tensor:
    """log P − log Q entry by entry, and 0 where both are −inf.

    Ids beyond the vocabulary and the tail of a support that holds everything have no probability on either side, and
    −inf − (−inf) would be NaN. An entry that only one side excludes stays infinite. Any shape; gradient flows where the
    difference is finite. Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(first_NV, second_NV)
    neither_NV = (first_NV == -math.inf) & (second_NV == -math.inf)
    # Masked before the subtraction: a gradient through inf − inf would be NaN even where its value is replaced.
    return first_NV.masked_fill(neither_NV, 0.0) - second_NV.masked_fill(neither_NV, 0.0)


def antisd_advantage(u_N: Tensor) -> Tensor:
    """The bounded bonus of AntiSD, −φ(u) with φ(u) = ½ (softplus(u) − ln 2), detached (arXiv 2605.11609).

    At most ½ ln 2 for tokens the teacher finds less likely than the student, falling like −u/2 for those it finds
    more likely. Averaged over v ~ S, −φ(u_v) ∇log S(v) is the gradient of the Jensen–Shannon divergence of student
    and teacher (w = ½), so that adding it to an advantage *ascends* that divergence. Takes and returns N, in nats.
    """
    check_logprobs(u_N)
    u_N = u_N.detach()
    # torch's softplus turns linear above 20, an error of 2e-9 that float64 would show.
    return -0.5 * (torch.logaddexp(u_N, torch.zeros_like(u_N)) - math.log(2.0))


def entropy(logprobs_NV: Tensor) -> Tensor:
    """Entropy of the distribution at each token, −Σ_v p log p, in nats.

    Takes log-probabilities N×V, returns N; gradient flows, and an entry of −inf adds 0 to value and gradient.
    """
    check_logprobs(logprobs_NV)
    probs_NV = logprobs_NV.exp()
    return -(probs_NV * logprobs_NV.masked_fill(probs_NV == 0.0, 0.0)).sum(-1)


@torch.no_grad()
def decompose(student_NV: Tensor, teacher_NV: Tensor, reference_only_NV: Tensor) -> Decomposition:
    """Split log T − log S into the solution's part and the question's part (arXiv 2607.02234).

    A diagnostic, without gradient. Takes three N×V log-probabilities; entries that are −inf in any of them (padded
    vocabulary rows) are left out. The vectors are differences of log-probabilities as they stand, not centred: our
    reading, since the paper defines the three differences that way. Raises ValueError for unequal shapes.
    """
    check_logprobs(student_NV, teacher_NV, reference_only_NV)
    padded_NV = (student_NV == -math.inf) | (teacher_NV == -math.inf) | (reference_only_NV == -math.inf)
    reference_NV = (reference_only_NV - student_NV).masked_fill(padded_NV, 0.0)
    question_NV = (teacher_NV - reference_only_NV).masked_fill(padded_NV, 0.0)
    total_NV = (teacher_NV - student_NV).masked_fill(padded_NV, 0.0)
    norm_total_N, norm_reference_N, norm_question_N = (
        torch.linalg.vector_norm(vector_NV, dim=-1) for vector_NV in (total_NV, reference_NV, question_NV)
    )
    return Decomposition(
        cosine_total_reference_N=(total_NV * reference_NV).sum(-1) / (norm_total_N * norm_reference_N),
        cosine_total_question_N=(total_NV * question_NV).sum(-1) / (norm_total_N * norm_question_N),
        cosine_reference_question_N=(reference_NV * question_NV).sum(-1) / (norm_reference_N * norm_question_N),
        norm_total_N=norm_total_N,
        norm_reference_N=norm_reference_N,
        norm_question_N=norm_question_N,
    )
