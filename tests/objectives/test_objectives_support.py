"""Top-k and tail: a distribution on K+1 bins, at full mass, at no mass, and next to the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import objectives_by_hand as by_hand
from objectives_by_hand import random_logprobs
from selfdistill.objectives import forward_kl, jensen_shannon, log1mexp, reverse_kl, with_tail

DIVERGENCES = [forward_kl, reverse_kl, jensen_shannon]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.__name__)
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def test_the_tail_is_the_mass_left_out() -> None:
    logprobs_NV = random_logprobs(6, 9, seed=1)
    ids_NK = logprobs_NV.topk(4, -1).indices
    bins_NK = with_tail(logprobs_NV.gather(-1, ids_NK))
    for n, (row, ids) in enumerate(zip(logprobs_NV.tolist(), ids_NK.tolist(), strict=True)):
        expected = by_hand.with_tail([row[i] for i in ids])
        assert bins_NK[n].tolist() == pytest.approx(expected, rel=1e-12)
        assert math.fsum(math.exp(p) for p in bins_NK[n].tolist()) == pytest.approx(1.0, abs=1e-14)


def test_a_half_and_an_eighth_leave_three_eighths() -> None:
    bins_NK = with_tail(torch.tensor([[0.5, 0.125]], dtype=torch.float64).log())
    assert bins_NK[0].exp().tolist() == pytest.approx([0.5, 0.125, 0.375], rel=1e-14)


@every_divergence
def test_fewer_bins_see_less_and_all_but_one_see_everything(divergence: Callable[[Tensor, Tensor], Tensor]) -> None:
    student_NV, teacher_NV = random_logprobs(20, 9, seed=2), random_logprobs(20, 9, seed=3)
    order_NV = student_NV.argsort(-1, descending=True)
    on_all_N = divergence(student_NV, teacher_NV)
    previous_N = torch.zeros_like(on_all_N)
    for k in range(1, 9):
        student_NK, teacher_NK = (with_tail(side.gather(-1, order_NV[:, :k])) for side in (student_NV, teacher_NV))
        on_k_N = divergence(student_NK, teacher_NK)
        assert (on_k_N >= previous_N - 1e-12).all()
        assert (on_k_N <= on_all_N + 1e-12).all()
        previous_N = on_k_N
    torch.testing.assert_close(previous_N, on_all_N, rtol=1e-11, atol=1e-13)


@every_divergence
def test_the_gradient_through_the_tail_equals_a_loop(divergence: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher_NV = random_logprobs(4, 7, seed=4)
    logits_NV = random_logprobs(4, 7, seed=5).requires_grad_()
    ids_NK = logits_NV.topk(3, -1).indices
    student_NK = with_tail(torch.log_softmax(logits_NV, -1).gather(-1, ids_NK))
    divergence(student_NK, with_tail(teacher_NV.gather(-1, ids_NK))).sum().backward()
    assert logits_NV.grad is not None
    loops: dict[object, Callable[[by_hand.Row, by_hand.Row], float]] = {
        forward_kl: by_hand.forward_kl,
        reverse_kl: by_hand.reverse_kl,
        jensen_shannon: lambda student, teacher: by_hand.jensen_shannon(student, teacher, 0.5),
    }
    for n in range(4):
        ids, teacher = ids_NK[n].tolist(), teacher_NV[n].tolist()

        def value(row: list[float], ids: list[int] = ids, teacher: list[float] = teacher) -> float:
            student_K, teacher_K = ([side[i] for i in ids] for side in (row, teacher))
            return loops[divergence](by_hand.with_tail(student_K), by_hand.with_tail(teacher_K))

        expected = by_hand.gradient(value, logits_NV[n].tolist())
        assert logits_NV.grad[n].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@both_types
@every_divergence
def test_a_support_that_holds_all_the_mass(divergence: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    logits_NV = torch.tensor([[80.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, -200.0], [0.0, 0.0, 0.0, -math.inf]], dtype=dtype)
    logits_NV.requires_grad_()
    ids_NK = torch.tensor([[0, 1, 2]] * 3)
    student_NK = with_tail(torch.log_softmax(logits_NV, -1).gather(-1, ids_NK))
    # Rounding may leave a tail of a few eps where nothing is left out; never none, and never a negative one.
    eps = torch.finfo(dtype).eps
    assert (student_NK[:, -1].exp() > 0.9 * eps).all()
    assert (student_NK[:, -1].exp() < 8 * eps).all()
    for teacher_NK in (student_NK.detach(), with_tail(torch.full((3, 3), 0.25, dtype=dtype).log())):
        value_N = divergence(student_NK, teacher_NK)
        assert value_N.isfinite().all()
        (gradient_NV,) = torch.autograd.grad(value_N.sum(), logits_NV, retain_graph=True)
        assert gradient_NV.isfinite().all()


@both_types
def test_full_mass_on_both_sides_is_the_divergence_on_the_support(dtype: torch.dtype) -> None:
    student_NK, teacher_NK = random_logprobs(5, 6, seed=6).to(dtype), random_logprobs(5, 6, seed=7).to(dtype)
    for divergence in (forward_kl, reverse_kl, jensen_shannon):
        on_bins_N = divergence(with_tail(student_NK), with_tail(teacher_NK))
        torch.testing.assert_close(on_bins_N, divergence(student_NK, teacher_NK), rtol=1e-5, atol=2e-6)


def test_a_support_without_mass_is_all_tail() -> None:
    logprobs_NK = torch.tensor([[-math.inf, -math.inf], [math.log(0.5), -math.inf]], dtype=torch.float64)
    logprobs_NK.requires_grad_()
    bins_NK = with_tail(logprobs_NK)
    assert bins_NK[0].tolist() == [-math.inf, -math.inf, 0.0]
    assert bins_NK[1].tolist() == pytest.approx([math.log(0.5), -math.inf, math.log(0.5)])
    (gradient_NK,) = torch.autograd.grad(bins_NK[:, -1].sum(), logprobs_NK)
    # d log(1 − e^a) / da = −e^a / (1 − e^a) = −1 at one half.
    assert gradient_NK.tolist() == [[0.0, 0.0], [pytest.approx(-1.0), 0.0]]


@both_types
def test_log1mexp_is_accurate_at_both_ends(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e-30, -1e-9, -1e-4, -0.5, -0.7, -3.0, -60.0], dtype=dtype)
    # Near zero 1 − e^x = −x (1 + x/2); far out log(1 − p) = −p.
    expected = [math.log(-math.expm1(value)) for value in x.tolist()[:5]] + [
        math.log1p(-math.exp(value)) for value in x.tolist()[5:]
    ]
    assert log1mexp(x).tolist() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)


def test_log1mexp_at_its_limits() -> None:
    x = torch.tensor([-math.inf, -1e-30, -1e-9, -math.log(2.0)], dtype=torch.float64, requires_grad=True)
    value = log1mexp(x)
    assert value[0].item() == 0.0
    assert value[3].item() == pytest.approx(-math.log(2.0))
    value.sum().backward()
    assert x.grad is not None
    # −1 / (e^{−x} − 1)
    assert x.grad.tolist() == pytest.approx([0.0, -1e30, -1e9, -1.0], rel=1e-8)
    assert log1mexp(torch.zeros(1)).item() == -math.inf


def test_log1mexp_gradcheck() -> None:
    x = torch.tensor([-5.0, -0.8, -0.6, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, (x,))
