"""PBSD on a toy whose every completion can be listed: where the margin starts, and where its gradient points."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from selfdistill.objectives import forward_kl, preference_loss, preference_margin, preference_slope, reverse_kl

VOCABULARY, STOP, LIMIT = 3, 2, 3


def _completions() -> list[tuple[int, ...]]:
    """Every token sequence that ends at its first stop token, or after ``LIMIT`` tokens."""
    found = []
    for length in range(1, LIMIT + 1):
        for ids in itertools.product(range(VOCABULARY), repeat=length):
            if STOP not in ids[:-1] and (ids[-1] == STOP or length == LIMIT):
                found.append(ids)
    return found


def _sequence_logprobs(table: Tensor) -> Tensor:
    """log p of every completion under next-token logits that depend on the step and the previous token."""
    steps = torch.log_softmax(table, -1)
    by_token = [[steps[t, ids[t - 1] if t else 0, ids[t]] for t in range(len(ids))] for ids in _completions()]
    return torch.stack([torch.stack(tokens).sum() for tokens in by_token])


def _table(seed: int) -> Tensor:
    return torch.randn(
        LIMIT, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _all_pairs(student_Y: Tensor, teacher_Y: Tensor, beta: float) -> Tensor:
    """The margin of every pair (y⁺, y⁻), row by row."""
    count = len(student_Y)
    positive, negative = torch.arange(count).repeat_interleave(count), torch.arange(count).repeat(count)
    return preference_margin(
        student_Y[positive], teacher_Y[positive], student_Y[negative], teacher_Y[negative], beta=beta
    )


def test_the_toy_lists_everything_that_can_be_drawn() -> None:
    assert len(_completions()) == 1 + 2 + 4 * 3
    assert _sequence_logprobs(_table(1)).exp().sum().item() == pytest.approx(1.0)


def test_the_expected_margin_starts_at_minus_beta_times_both_kls() -> None:
    student_Y, teacher_Y = _sequence_logprobs(_table(1)), _sequence_logprobs(_table(2))
    margin_P = _all_pairs(student_Y, teacher_Y, beta=0.3)
    drawn_P = (teacher_Y.exp()[:, None] * student_Y.exp()[None, :]).flatten()
    both_kls = forward_kl(student_Y[None], teacher_Y[None]) + reverse_kl(student_Y[None], teacher_Y[None])
    assert (drawn_P * margin_P).sum().item() == pytest.approx(-0.3 * both_kls.item(), rel=1e-13)


def test_the_margin_in_numbers() -> None:
    margin_P = preference_margin(*(torch.tensor([x]) for x in (-3.0, -1.0, -2.0, -5.0)), beta=0.1)
    # Δ(y⁺) = −2, Δ(y⁻) = 3
    assert margin_P.item() == pytest.approx(-0.5)


def test_identical_contexts_leave_a_margin_of_zero() -> None:
    student_Y = _sequence_logprobs(_table(3))
    margin_P = _all_pairs(student_Y, student_Y, beta=0.3)
    assert margin_P.tolist() == [0.0] * len(margin_P)
    assert preference_loss(margin_P).tolist() == pytest.approx([math.log(2)] * len(margin_P))


def test_the_loss_is_the_log_of_one_plus_exp_minus_m() -> None:
    margin_P = torch.tensor([0.0, math.log(3.0), -math.log(3.0), 800.0, -800.0], dtype=torch.float64)
    expected = [math.log(2), math.log(4 / 3), math.log(4), 0.0, 800.0]
    assert preference_loss(margin_P).tolist() == pytest.approx(expected, rel=1e-14)
    assert preference_slope(margin_P).tolist() == pytest.approx([-0.5, -0.25, -0.75, 0.0, -1.0], rel=1e-14)


def test_the_loss_may_be_taken_token_by_token_with_a_constant_weight() -> None:
    table, teacher_Y = _table(4).requires_grad_(), _sequence_logprobs(_table(5))
    student_Y = _sequence_logprobs(table)
    margin_P = _all_pairs(student_Y, teacher_Y, beta=0.3)
    (exact,) = torch.autograd.grad(preference_loss(margin_P).sum(), table, retain_graph=True)
    # ∇[−log σ(m)] = −σ(−m) ∇m, and ∇m = β (∇log S(y⁺) − ∇log S(y⁻)): linear in the token log-probabilities.
    slope_YY = preference_slope(margin_P).reshape(len(student_Y), -1)
    assert not slope_YY.requires_grad
    by_completion = 0.3 * (slope_YY.sum(1) * student_Y - slope_YY.sum(0) * student_Y).sum()
    (by_token,) = torch.autograd.grad(by_completion, table)
    torch.testing.assert_close(by_token, exact, rtol=1e-12, atol=1e-14)


def test_gradcheck_and_a_teacher_without_gradient() -> None:
    sides = [torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(4)]
    students = [sides[0].requires_grad_(), sides[2].requires_grad_()]

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        return preference_loss(preference_margin(positive, sides[1], negative, sides[3], beta=0.5))

    assert torch.autograd.gradcheck(loss, students)
    teachers = [torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    preference_margin(students[0], teachers[0], students[1], teachers[1], beta=0.5).sum().backward()
    assert [teacher.grad for teacher in teachers] == [None, None]
    gradients = [student.grad.tolist() for student in students if student.grad is not None]
    assert gradients == [[0.5] * 4, [-0.5] * 4]


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_beta_must_be_positive(beta: float) -> None:
    pair = torch.zeros(1)
    with pytest.raises(ValueError, match="beta must be positive"):
        preference_margin(pair, pair, pair, pair, beta=beta)
