"""PBSD's analysis on toys: the tilted teacher, the bias of finitely many samples, gap, shift and curvature."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from selfdistill.methods import build_method
from selfdistill.methods.base import BatchScores
from selfdistill.objectives import preference_loss, preference_margin
from selfdistill.objectives.analysis import (
    expected_right_weight,
    hessian_vector_product,
    largest_curvature,
    preference_hessian,
    regularised_value,
    reward_tilted,
    teacher_statistics,
)
from selfdistill.types import View


def logs(*probs: float) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


S = logs(0.4, 0.3, 0.2, 0.1)
T = logs(0.1, 0.2, 0.3, 0.4)
R = torch.tensor([0.0, 0.3, 0.0, 1.0], dtype=torch.float64)


def kl(left: Tensor, right: Tensor) -> float:
    return float((left.exp() * (left - right)).sum())


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("rewards", [R, R * 0.0 + 0.7])
def test_the_tilted_teacher_is_better_than_the_teacher_by_beta_times_their_divergence(
    beta: float, rewards: Tensor
) -> None:
    best = reward_tilted(T, rewards, beta=beta)
    value = [float(regularised_value(policy, T, rewards, beta=beta)) for policy in (best, T)]
    assert value[0] - value[1] == pytest.approx(beta * kl(T, best), rel=1e-12, abs=1e-15)
    # Strictly, unless the reward is constant.
    assert (value[0] - value[1] > 1e-3) == (rewards is R)
    # It is an optimum: its value is β log E_T[e^(r/β)], and no other policy reaches it.
    top = beta * float((T + rewards / beta).logsumexp(-1))
    assert value[0] == pytest.approx(top, rel=1e-12)
    for seed in range(20):
        noise = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        other = torch.log_softmax(best + 0.1 * noise, -1)
        gap = value[0] - float(regularised_value(other, T, rewards, beta=beta))
        assert gap == pytest.approx(beta * kl(other, best), rel=1e-9)


def views(rewards: Sequence[float]) -> list[View]:
    return [View({"student": (1,)}, (2,), (1.0,), (0.0,), 0.0, 0, i, "teacher", r) for i, r in enumerate(rewards)]


@pytest.mark.parametrize("samples", [1, 2, 4])
@pytest.mark.parametrize(("share", "beta"), [(0.3, 0.5), (0.05, 0.1), (0.9, 2.0)])
def test_the_weight_of_right_answers_is_the_methods_own_over_all_groups(
    samples: int, share: float, beta: float
) -> None:
    method = build_method("pbsd_reward", {"beta": beta})
    expected = kept = 0.0
    for group in itertools.product((0.0, 1.0), repeat=samples):
        chance = math.prod(share if right else 1 - share for right in group)
        tilt = method.on_batch(None, BatchScores({}, views(group)))["tilt"]
        assert isinstance(tilt, Tensor)
        # The weights of a group are shares of its completions' number.
        expected += chance * float((tilt * torch.tensor(group)).sum()) / samples
        kept += chance * any(group)
    assert expected_right_weight(share, beta=beta, samples=samples) == pytest.approx(expected, rel=1e-12)
    left = expected_right_weight(share, beta=beta, samples=samples, drop_wrong_groups=True)
    assert left == pytest.approx(expected / kept, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 1e-18])
def test_a_teacher_that_is_never_right_has_the_limit_of_groups_with_one_right_sample(share: float) -> None:
    assert expected_right_weight(share, beta=0.5, samples=4) == pytest.approx(0.0, abs=1e-16)
    left = expected_right_weight(share, beta=0.5, samples=4, drop_wrong_groups=True)
    # The right sample's weight is 1, that of the three others e^−2 each.
    assert left == pytest.approx(1.0 / (1.0 + 3.0 * math.exp(-2.0)), rel=1e-12)
    assert expected_right_weight(1.0, beta=0.5, samples=4, drop_wrong_groups=True) == 1.0


def test_the_bias_of_a_finite_group_is_of_order_1_over_k_and_towards_the_teacher() -> None:
    share, beta = 0.3, 0.5
    exact = float(reward_tilted(logs(share, 1 - share), torch.tensor([1.0, 0.0]).double(), beta=beta).exp()[0])
    bias = {k: exact - expected_right_weight(share, beta=beta, samples=k) for k in (1, 8, 64, 256, 512)}
    # One sample has all the weight, whatever its reward: the teacher itself.
    assert bias[1] == pytest.approx(exact - share)
    assert list(bias.values()) == sorted(bias.values(), reverse=True) and bias[512] > 0
    assert bias[256] / bias[512] == pytest.approx(2.0, rel=0.01)
    # With a sharp β nearly all of it is the chance of a group without a right sample, which may be left out.
    sharp = [expected_right_weight(0.1, beta=0.1, samples=8, drop_wrong_groups=drop) for drop in (False, True)]
    assert sharp[0] == pytest.approx(1 - 0.9**8, abs=1e-3) and sharp[1] == pytest.approx(1.0, abs=1e-3)


def test_the_expected_margin_is_minus_beta_times_the_shift() -> None:
    shift = teacher_statistics(S, T, R, beta=0.3).shift
    assert shift == pytest.approx(kl(S, T) + kl(T, S), rel=1e-12)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    plus, minus = (torch.tensor(side) for side in zip(*pairs, strict=True))
    margin = preference_margin(S[plus], T[plus], S[minus], T[minus], beta=0.3)
    assert float((T[plus].exp() * S[minus].exp() * margin).sum()) == pytest.approx(-0.3 * shift, rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_curvature_is_that_of_the_whole_hessian(beta: float) -> None:
    def risk(logits: Tensor) -> Tensor:
        delta = torch.log_softmax(logits, -1) - T
        losses = preference_loss(beta * (delta[:, None] - delta[None, :]))
        return sum(
            ((T[i] + S[j]).exp() * losses[i, j] for i in range(4) for j in range(4)),
            torch.zeros((), dtype=torch.float64),
        )

    whole = torch.autograd.functional.hessian(risk, S)
    torch.testing.assert_close(preference_hessian(S, T, beta=beta), whole, rtol=1e-10, atol=1e-14)
    vector = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(hessian_vector_product(risk, S, vector), whole @ vector, rtol=1e-10, atol=1e-14)
    largest = float(torch.linalg.eigvalsh(whole)[-1])
    assert largest_curvature(risk, S) == pytest.approx(largest, rel=1e-9)
    assert teacher_statistics(S, T, R, beta=beta).curvature == pytest.approx(largest, rel=1e-9)


def test_at_the_optimum_the_hessian_is_half_beta_squared_times_the_covariance() -> None:
    p = T.exp()
    torch.testing.assert_close(preference_hessian(T, T, beta=0.3), 0.045 * (torch.diag(p) - torch.outer(p, p)))
    assert largest_curvature(lambda at: at.sum(), T) == 0.0


def test_the_rate_is_the_rise_of_the_reward_for_a_small_step_and_a_nearer_teacher_has_more_curvature() -> None:
    measured = teacher_statistics(S, T, R, beta=0.3)
    assert measured.gap == pytest.approx(float((T.exp() - S.exp()) @ R))
    logits, h = S.clone().requires_grad_(True), 1e-6
    delta = torch.log_softmax(logits, -1) - T
    chance = T.exp()[:, None] * S.exp()[None, :]
    loss = (chance * preference_loss(0.3 * (delta[:, None] - delta[None, :]))).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    rise = float(((S - h * gradient).softmax(-1) - (S + h * gradient).softmax(-1)) @ R) / (2 * h)
    assert measured.rate == pytest.approx(rise, rel=1e-6)

    # Two teachers of the same reward, one as the student but for the right answer, the other elsewhere as well.
    right = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    near, far = logs(0.3, 0.22, 0.08, 0.4), logs(1e-9, 0.6 - 2e-9, 1e-9, 0.4)
    nearer, farther = (teacher_statistics(S, teacher, right, beta=1.0) for teacher in (near, far))
    assert nearer.gap == pytest.approx(farther.gap, abs=1e-12)
    assert nearer.shift < farther.shift and nearer.curvature > farther.curvature


def test_sharp_betas_and_certain_teachers_are_no_division_by_zero() -> None:
    # e^(−1/β) is 0 in float64: a group's weight is on its right samples, if it has any.
    assert expected_right_weight(0.3, beta=1e-3, samples=2) == pytest.approx(1 - 0.7**2, rel=1e-12)
    assert expected_right_weight(1.0, beta=0.5, samples=3) == 1.0


def test_the_power_iteration_starts_from_a_unit_vector_of_its_own() -> None:
    at = torch.zeros(3, dtype=torch.float64)
    called = 0

    def bowl(x: Tensor) -> Tensor:
        nonlocal called
        called += 1
        return (x**2).sum()

    # Every direction has the curvature 2.
    assert largest_curvature(bowl, at, iterations=0) == pytest.approx(2.0, rel=1e-12)
    assert largest_curvature(bowl, at) == pytest.approx(2.0, rel=1e-12)
    assert called == 1 + 501
    # After one step of it the start still tells; it does not depend on what has drawn random numbers before.
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    few = [largest_curvature(lambda x: (scale * x**2).sum(), at, iterations=1) for _ in range(2)]
    assert few[0] == few[1] and 2.0 < few[0] < 5.999


def test_what_is_measured_is_left_without_a_gradient() -> None:
    student, vector = S.clone(), torch.ones_like(S)
    teacher_statistics(student, T, R, beta=0.3)
    hessian_vector_product(lambda at: (at**2).sum(), student, vector)
    assert not student.requires_grad


def test_a_beta_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        reward_tilted(T, R, beta=0.0)
