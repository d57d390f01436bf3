"""Target distributions combined from several contexts: normalised log-probabilities, detached.

Axis letters: ``N`` scored tokens, ``V`` vocabulary, ``S`` support (the whole vocabulary, or K ids and their tail),
``C`` contrasts.

An entry that is −inf in any input is a padded vocabulary row: it takes no part and is −inf in the target.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs


def credit_target(teacher_NS: Tensor, contrast_CNS: Tensor, *, weight: float) -> Tensor:
    """The target of CREDIT: Q ∝ T · exp(−weight · mean_k log N_k), a mean of logs (arXiv 2605.11613).

    Each contrast N_k scores the completion with the feedback of its own question under another question, so the part
    that any question would earn is divided out. The reverse KL to Q has the gradient of the paper's vocabulary-level
    advantage log T − log S − weight · mean_k log N_k; writing it as a target is our derivation, and lets any
    divergence use it. Takes N×S and C×N×S, on a top-k support with the tail already appended; returns N×S. Weight 0
    returns the teacher.

    Raises ValueError for a negative weight, no contrast at all, unequal shapes or other types.
    """
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"weight must be finite and not negative, got {weight}")
    if contrast_CNS.shape[0] == 0:
        raise ValueError("credit_target needs at least one contrast")
    check_logprobs(teacher_NS, *contrast_CNS)
    padded_NS = (teacher_NS == -math.inf) | (contrast_CNS == -math.inf).any(0)
    scores_NS = teacher_NS.detach() - weight * contrast_CNS.detach().mean(0)
    return torch.log_softmax(scores_NS.masked_fill(padded_NS, -math.inf), -1)


def purified_target(
    base_NV: Tensor, teacher_NV: Tensor, reference_only_NV: Tensor, *, beta: float = 1.0, clip: float = 10.0
) -> Tensor:
    """The target of Purified OPSD: P ∝ B · exp(Δ̃/beta), Δ̃ the question's part of the teacher (arXiv 2607.02234).

    Δ = log T − log R, centred over the vocabulary by its unweighted mean over real entries, then softly clipped:
    Δ̃ = clip · tanh(Δ/clip). P is the optimum of E_P[Δ̃] − beta · KL(P || B). ``clip=math.inf`` leaves the clip out, and
    the centring then changes nothing; with R = B and beta = 1 the target is then the teacher. Takes and returns N×V.

    Raises ValueError unless beta and clip are positive (and beta finite), or for unequal shapes or other types.
    """
    if not 0.0 < beta < math.inf:
        raise ValueError(f"beta must be positive and finite, got {beta}")
    if not clip > 0.0:
        raise ValueError(f"clip must be positive, got {clip}")
    check_logprobs(base_NV, teacher_NV, reference_only_NV)
    base_NV, teacher_NV, reference_only_NV = base_NV.detach(), teacher_NV.detach(), reference_only_NV.detach()
    padded_NV = (base_NV == -math.inf) | (teacher_NV == -math.inf) | (reference_only_NV == -math.inf)
    delta_NV = (teacher_NV - reference_only_NV).masked_fill(padded_NV, 0.0)
    delta_NV = delta_NV - delta_NV.sum(-1, keepdim=True) / (~padded_NV).sum(-1, keepdim=True)
    if clip < math.inf:
        delta_NV = clip * torch.tanh(delta_NV / clip)
    return torch.log_softmax((base_NV + delta_NV / beta).masked_fill(padded_NV, -math.inf), -1)
