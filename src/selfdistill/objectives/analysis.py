"""PBSD's analysis of a teacher, exact on a finite set of answers (arXiv 2605.05040).

The functions are for toys and tests: an answer is one of N outcomes, S and T are their distributions, r their rewards.
They take float64 log-probabilities, and logarithms are natural. Axis letter: ``N`` answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs
from selfdistill.objectives.divergence import reverse_kl
from selfdistill.objectives.preference import preference_loss, preference_slope


def reward_tilted(teacher_N: Tensor, rewards_N: Tensor, *, beta: float) -> Tensor:
    """π* ∝ T · exp(r/beta), the optimum of E_π[r] − beta · KL(π || T), as log-probabilities N.

    It is better than T itself by beta · KL(T || π*), strictly unless r is constant (see :func:`regularised_value`).
    Raises ValueError for a beta that is not positive, unequal shapes or types other than float32 and float64.
    """
    if not beta > 0.0:
        raise ValueError(f"beta must be positive, got {beta}")
    check_logprobs(teacher_N, rewards_N)
    return torch.log_softmax(teacher_N + rewards_N / beta, -1)


def regularised_value(policy_N: Tensor, teacher_N: Tensor, rewards_N: Tensor, *, beta: float) -> Tensor:
    """E_π[r] − beta · KL(π || T), PBSD's objective, as a scalar in units of the reward.

    Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(policy_N, rewards_N)
    return (policy_N.exp() * rewards_N).sum() - beta * reverse_kl(policy_N[None], teacher_N[None])[0]


def expected_right_weight(share: float, *, beta: float, samples: int, drop_wrong_groups: bool = False) -> float:
    """The weight that ``pbsd_reward`` gives to right answers, in expectation over groups of K = ``samples``.

    ``share`` is the teacher's probability of a right answer; rewards are 1 and 0. For K → ∞ it is that of π*,
    share · e^(1/beta) / (share · e^(1/beta) + 1 − share). For a finite K it is biased towards the teacher: a group
    without a right sample has all its weight on wrong ones, and has probability (1 − share)^K. ``drop_wrong_groups``
    is the expectation over the other groups; for a share of 0 its limit, that of groups with one right sample.
    """
    tilt = math.exp(-1.0 / beta)
    if drop_wrong_groups and share == 0.0:
        return 1.0 / (1.0 + (samples - 1) * tilt)
    weight = 0.0
    for right in range(1, samples + 1):
        chance = math.comb(samples, right) * share**right * (1.0 - share) ** (samples - right)
        weight += chance * right / (right + (samples - right) * tilt)
    if not drop_wrong_groups or share == 1.0:
        return weight
    # 1 − (1 − share)^K, which by itself would be rounded to 0 for a small share.
    return weight / -math.expm1(samples * math.log1p(-share))


@dataclass(frozen=True, slots=True)
class TeacherStatistics:
    """Statistics that decide how well a student learns from preferring a teacher's samples to its own.

    ``gap``: reward of the teacher's samples minus the student's. ``shift``: KL(S || T) + KL(T || S) in nats, equal to
    −E[m]/beta. ``curvature``: the largest eigenvalue of the Hessian of E[−log σ(m)] in the student's logits.
    ``rate``: the rise of E_S[r] for a small step down the gradient, by step size.
    """

    gap: float
    shift: float
    curvature: float
    rate: float


def teacher_statistics(student_N: Tensor, teacher_N: Tensor, rewards_N: Tensor, *, beta: float) -> TeacherStatistics:
    """Measure a teacher, exactly, for a student with one logit an answer.

    The further a teacher is, the flatter is the loss: the Hessian holds σ(m) σ(−m), which falls with |m|. At S = T its
    largest eigenvalue is beta²/2 times that of diag(T) − T Tᵀ. A student learns faster from a
    near teacher than from a far one that is as often right: compare ``rate`` (our measure; the paper's condition is
    not known to us). Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(student_N, teacher_N, rewards_N)
    logits_N = student_N.detach().requires_grad_(True)
    chance_NN = teacher_N.exp()[:, None] * student_N.exp()[None, :]

    def risk(at_N: Tensor) -> Tensor:
        # Samples are drawn by the student as it is: the loss is differentiated through its scores alone.
        delta_N = torch.log_softmax(at_N, -1) - teacher_N
        return (chance_NN * preference_loss(beta * (delta_N[:, None] - delta_N[None, :]))).sum()

    (gradient_N,) = torch.autograd.grad(risk(logits_N), logits_N)
    probs_N = student_N.exp()
    reward = (probs_N * rewards_N).sum()
    kl = reverse_kl(torch.stack([student_N, teacher_N]), torch.stack([teacher_N, student_N]))
    return TeacherStatistics(
        gap=float((teacher_N.exp() * rewards_N).sum() - reward),
        shift=float(kl.sum()),
        curvature=largest_curvature(risk, student_N),
        rate=float(-(probs_N * (rewards_N - reward) * gradient_N).sum()),
    )


def preference_hessian(student_N: Tensor, teacher_N: Tensor, *, beta: float) -> Tensor:
    """The Hessian N×N of E[−log σ(m)] in the student's logits, in closed form.

    The normaliser of S cancels in the margin, so that the Hessian is beta² E[σ(m) σ(−m) (e⁺ − e⁻)(e⁺ − e⁻)ᵀ], with the
    unit vectors of the two answers. Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(student_N, teacher_N)
    delta_N = student_N - teacher_N
    slope_NN = preference_slope(beta * (delta_N[:, None] - delta_N[None, :]))
    weight_NN = beta**2 * teacher_N.exp()[:, None] * student_N.exp()[None, :] * -slope_NN * (1.0 + slope_NN)
    pair_NN = weight_NN + weight_NN.T
    return torch.diag(pair_NN.sum(-1)) - pair_NN


def hessian_vector_product(value: Callable[[Tensor], Tensor], at_N: Tensor, vector_N: Tensor) -> Tensor:
    """H v of a scalar function at a point, by two backward passes and without H."""
    point_N = at_N.detach().requires_grad_(True)
    (gradient_N,) = torch.autograd.grad(value(point_N), point_N, create_graph=True)
    if not gradient_N.requires_grad:  # a linear function
        return torch.zeros_like(point_N)
    (product_N,) = torch.autograd.grad(gradient_N, point_N, grad_outputs=vector_N)
    return product_N


def largest_curvature(value: Callable[[Tensor], Tensor], at_N: Tensor, *, iterations: int = 500) -> float:
    """The eigenvalue of the Hessian that is largest in absolute value, by power iteration on H v."""
    vector_N = torch.randn(at_N.shape, dtype=at_N.dtype, generator=torch.Generator().manual_seed(0))
    vector_N = vector_N / vector_N.norm()
    for _ in range(iterations):
        product_N = hessian_vector_product(value, at_N, vector_N)
        if not product_N.norm() > 0.0:
            return 0.0
        vector_N = product_N / product_N.norm()
    return float(vector_N @ hessian_vector_product(value, at_N, vector_N))
