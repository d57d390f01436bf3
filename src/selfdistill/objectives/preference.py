"""The teacher's completion preferred to the student's: the Bradley–Terry loss of PBSD (arXiv 2605.05040).

Axis letter: ``P`` pairs of completions, y⁺ sampled from the teacher T(·|x,c) and y⁻ from the student S(·|x). Both are
scored under both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from selfdistill.objectives._checks import check_logprobs


def preference_margin(
    student_positive_P: Tensor,
    teacher_positive_P: Tensor,
    student_negative_P: Tensor,
    teacher_negative_P: Tensor,
    *,
    beta: float,
) -> Tensor:
    """m = β [Δ(y⁺) − Δ(y⁻)] with Δ(y) = log S(y|x) − log T(y|x,c); DPO with the teacher as reference.

    Takes the log-probabilities of whole completions, summed over tokens (the default of the method) or averaged
    (another objective), four times P; returns P. Gradient flows through the student's two. With y⁻ sampled from S,
    E[m] = −β (KL(T||S) + KL(S||T)), which grows with length. Raises ValueError for a beta that is not positive,
    unequal shapes or types other than float32 and float64.
    """
    if not beta > 0.0:
        raise ValueError(f"beta must be positive, got {beta}")
    check_logprobs(student_positive_P, teacher_positive_P, student_negative_P, teacher_negative_P)
    positive_P = student_positive_P - teacher_positive_P.detach()
    negative_P = student_negative_P - teacher_negative_P.detach()
    return beta * (positive_P - negative_P)


def preference_loss(margin_P: Tensor) -> Tensor:
    """−log σ(m) for each pair, in nats; ln 2 at m = 0. Takes and returns P; gradient flows."""
    return -functional.logsigmoid(margin_P)


def preference_slope(margin_P: Tensor) -> Tensor:
    """−σ(−m), the derivative of ``preference_loss`` with respect to the margin, detached.

    Lets the sequence-level loss be taken token by token: with the margins of a pass without gradient, each token of y⁺
    carries the constant weight β · slope on its log-probability, each token of y⁻ the opposite.
    """
    return -torch.sigmoid(-margin_P.detach())
