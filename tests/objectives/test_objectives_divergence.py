"""Divergences against loops over plain numbers, against numbers worked out by hand, and at their edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import objectives_by_hand as by_hand
from objectives_by_hand import random_logprobs
from selfdistill.objectives import clipped_forward_kl, forward_kl, jensen_shannon, reverse_kl

Divergence = Callable[[Tensor, Tensor], Tensor]
Loop = Callable[[by_hand.Row, by_hand.Row], float]


def _jensen_shannon(weight: float) -> tuple[Divergence, Loop]:
    return (
        lambda student, teacher: jensen_shannon(student, teacher, teacher_weight=weight),
        lambda student, teacher: by_hand.jensen_shannon(student, teacher, weight),
    )


def _clipped(clip: float) -> tuple[Divergence, Loop]:
    return (
        lambda student, teacher: clipped_forward_kl(student, teacher, clip=clip),
        lambda student, teacher: by_hand.clipped_forward_kl(student, teacher, clip),
    )


PAIRS = {
    "forward": (forward_kl, by_hand.forward_kl),
    "reverse": (reverse_kl, by_hand.reverse_kl),
    "jensen_shannon": _jensen_shannon(0.5),
    "jensen_shannon_0.1": _jensen_shannon(0.1),
    "jensen_shannon_0.9": _jensen_shannon(0.9),
    "clipped": _clipped(0.05),
    "clipped_wide": _clipped(1.0),
}
every_divergence = pytest.mark.parametrize(("divergence", "loop"), PAIRS.values(), ids=PAIRS.keys())
HALF_AND_HALF = [math.log(0.5), math.log(0.5)]
QUARTERS = [math.log(0.25), math.log(0.75)]


@every_divergence
@pytest.mark.parametrize("padded", [0, 3])
def test_value_and_gradient_equal_a_loop_over_the_vocabulary(divergence: Divergence, loop: Loop, padded: int) -> None:
    teacher_NV = random_logprobs(6, 11, seed=1, padded=padded)
    logits_NV = random_logprobs(6, 11, seed=2, padded=padded).requires_grad_()
    value_N = divergence(torch.log_softmax(logits_NV, -1), teacher_NV)
    value_N.sum().backward()
    assert logits_NV.grad is not None
    for n, (logits, teacher) in enumerate(zip(logits_NV.tolist(), teacher_NV.tolist(), strict=True)):
        assert value_N[n].item() == pytest.approx(loop(by_hand.normalise(logits), teacher), rel=1e-11)
        expected = by_hand.gradient(lambda row, teacher=teacher: loop(row, teacher), logits)  # type: ignore[misc]
        assert logits_NV.grad[n].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@every_divergence
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_distributions_are_at_distance_zero(
    divergence: Divergence, loop: Loop, padded: int, dtype: torch.dtype
) -> None:
    logits_NV = random_logprobs(6, 11, seed=3, padded=padded).to(dtype).requires_grad_()
    student_NV = torch.log_softmax(logits_NV, -1)
    value_N = divergence(student_NV, student_NV)
    value_N.sum().backward()
    assert logits_NV.grad is not None
    assert value_N.tolist() == [0.0] * 6
    assert logits_NV.grad.abs().max().item() < 4 * torch.finfo(dtype).eps


def test_numbers_worked_out_by_hand() -> None:
    student_NV, teacher_NV = torch.tensor([HALF_AND_HALF]).double(), torch.tensor([QUARTERS]).double()
    # KL(¼¾ ‖ ½½) = ¼ ln ½ + ¾ ln 3/2; KL(½½ ‖ ¼¾) = ½ ln 2 + ½ ln 2/3; M = (⅜, ⅝).
    assert forward_kl(student_NV, teacher_NV).item() == pytest.approx(0.1308121, abs=1e-7)
    assert reverse_kl(student_NV, teacher_NV).item() == pytest.approx(0.1438410, abs=1e-7)
    assert jensen_shannon(student_NV, teacher_NV).item() == pytest.approx(0.0338221, abs=1e-7)
    # The entries of the forward KL are −0.1732868 and 0.3040988; only the second is capped.
    assert clipped_forward_kl(student_NV, teacher_NV, clip=0.05).item() == pytest.approx(-0.1232868, abs=1e-7)


def test_gradients_in_closed_form() -> None:
    student_NV, teacher_NV = random_logprobs(5, 9, seed=4), random_logprobs(5, 9, seed=5)
    gap_NV = student_NV - teacher_NV
    mixture_NV = (0.3 * teacher_NV.exp() + 0.7 * student_NV.exp()).log()

    def by_logprob(divergence: Divergence) -> Tensor:
        leaf_NV = student_NV.clone().requires_grad_()
        return torch.autograd.grad(divergence(leaf_NV, teacher_NV).sum(), leaf_NV)[0]

    torch.testing.assert_close(by_logprob(forward_kl), -teacher_NV.exp())
    torch.testing.assert_close(by_logprob(reverse_kl), student_NV.exp() * (gap_NV + 1))
    expected_NV = 0.7 * student_NV.exp() * (student_NV - mixture_NV)
    torch.testing.assert_close(by_logprob(_jensen_shannon(0.3)[0]), expected_NV)


def test_a_capped_entry_has_no_gradient() -> None:
    student_NV = torch.tensor([HALF_AND_HALF]).double().requires_grad_()
    clipped_forward_kl(student_NV, torch.tensor([QUARTERS]).double(), clip=0.05).sum().backward()
    assert student_NV.grad is not None
    assert student_NV.grad[0].tolist() == pytest.approx([-0.25, 0.0])


def test_a_cap_out_of_reach_is_the_forward_kl() -> None:
    student_NV, teacher_NV = random_logprobs(5, 9, seed=6), random_logprobs(5, 9, seed=7)
    expected_N = forward_kl(student_NV, teacher_NV)
    assert torch.equal(clipped_forward_kl(student_NV, teacher_NV, clip=math.inf), expected_N)


@every_divergence
def test_the_teacher_gets_no_gradient(divergence: Divergence, loop: Loop) -> None:
    student_NV = random_logprobs(5, 9, seed=8).requires_grad_()
    teacher_NV = random_logprobs(5, 9, seed=9).requires_grad_()
    divergence(student_NV, teacher_NV).sum().backward()
    assert student_NV.grad is not None
    assert teacher_NV.grad is None


@pytest.mark.parametrize("name", ["forward", "reverse", "clipped_wide", "jensen_shannon_0.1"])
def test_gradcheck(name: str) -> None:
    teacher_NV = random_logprobs(3, 5, seed=10)
    logits_NV = random_logprobs(3, 5, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PAIRS[name][0](torch.log_softmax(x, -1), teacher_NV), (logits_NV,))


@every_divergence
def test_padded_entries_change_nothing(divergence: Divergence, loop: Loop) -> None:
    logits_NV = random_logprobs(5, 9, seed=12).requires_grad_()
    teacher_NV = random_logprobs(5, 9, seed=13)
    pad_N2 = torch.full((5, 2), -math.inf, dtype=torch.float64)
    bare_N = divergence(torch.log_softmax(logits_NV, -1), teacher_NV)
    padded_N = divergence(
        torch.log_softmax(torch.cat([logits_NV, pad_N2], -1), -1), torch.cat([teacher_NV, pad_N2], -1)
    )
    torch.testing.assert_close(padded_N, bare_N, rtol=1e-13, atol=0.0)
    bare_grad, padded_grad = (torch.autograd.grad(value.sum(), logits_NV)[0] for value in (bare_N, padded_N))
    torch.testing.assert_close(padded_grad, bare_grad, rtol=1e-12, atol=1e-15)


def test_a_zero_on_one_side_only() -> None:
    some_NV = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    other_NV = torch.tensor([[math.log(0.5), -math.inf, math.log(0.5)]])
    all_NV = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.25)]])
    # Σ T = ½ ln 1 + ½ ln 2, the entry without teacher adds nothing.
    assert forward_kl(all_NV, some_NV).item() == pytest.approx(0.5 * math.log(2))
    assert reverse_kl(some_NV, all_NV).item() == pytest.approx(0.5 * math.log(2))
    assert forward_kl(some_NV, all_NV).item() == math.inf
    assert reverse_kl(all_NV, some_NV).item() == math.inf
    assert jensen_shannon(some_NV, other_NV).item() == pytest.approx(0.5 * math.log(2))
    student_NV = some_NV.clone().requires_grad_()
    jensen_shannon(student_NV, other_NV).sum().backward()
    # ½ S log(S/M): shared entry 0, the student's own ½·½·ln 2, the teacher's own 0.
    assert student_NV.grad is not None
    assert student_NV.grad[0].tolist() == pytest.approx([0.0, 0.25 * math.log(2), 0.0])


@every_divergence
def test_probabilities_that_underflow(divergence: Divergence, loop: Loop) -> None:
    # exp(−500) is 0 in float32 though its logarithm is finite; a gap of 1,000 overflows exp as well.
    sure_NV = torch.tensor([[0.0, -500.0, -1000.0, -math.inf]])
    student_NV = sure_NV.clone().requires_grad_()
    value_N = divergence(student_NV, torch.tensor([[-500.0, 0.0, -math.inf, -1000.0]]))
    assert value_N.isfinite().all()
    (gradient_NV,) = torch.autograd.grad(value_N.sum(), student_NV)
    assert gradient_NV.isfinite().all()


def test_jensen_shannon_resolves_small_distances_in_float32() -> None:
    # To second order the divergence is Σ (δp)²/(8p): probabilities ½ ± 1e-4 give 5e-9, below the rounding of ln 2.
    student_NV = torch.tensor([[0.5 + 1e-4, 0.5 - 1e-4]], dtype=torch.float64).log()
    teacher_NV = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    exact = jensen_shannon(student_NV, teacher_NV).item()
    assert exact == pytest.approx(5e-9, rel=1e-6)
    assert jensen_shannon(student_NV.float(), teacher_NV.float()).item() == pytest.approx(exact, rel=0.1)


def test_jensen_shannon_goes_to_zero_at_its_ends_without_a_jump() -> None:
    student_NV = torch.tensor([[0.0, -40.0]])
    teacher_NV = torch.tensor([[-40.0, 0.0]])
    for weight in (1e-9, 1e-6, 1e-3):
        for w in (weight, 1.0 - weight):
            # Disjoint distributions are at the entropy of the weights.
            expected = -w * math.log(w) - (1 - w) * math.log1p(-w)
            value = jensen_shannon(student_NV, teacher_NV, teacher_weight=w).item()
            assert value == pytest.approx(expected, rel=1e-3, abs=2e-7)


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_the_endpoints_of_jensen_shannon_are_errors(weight: float) -> None:
    row = random_logprobs(1, 3, seed=14)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        jensen_shannon(row, row, teacher_weight=weight)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_cap_must_be_positive(clip: float) -> None:
    row = random_logprobs(1, 3, seed=15)
    with pytest.raises(ValueError, match="clip must be positive"):
        clipped_forward_kl(row, row, clip=clip)


@every_divergence
def test_shapes_and_types_are_checked(divergence: Divergence, loop: Loop) -> None:
    student_NV = random_logprobs(4, 5, seed=16)
    with pytest.raises(ValueError, match="shapes differ"):
        divergence(student_NV, student_NV[:1])
    with pytest.raises(ValueError, match="float32 or float64"):
        divergence(student_NV, student_NV.bfloat16())


@every_divergence
def test_tokens_do_not_know_of_one_another(divergence: Divergence, loop: Loop) -> None:
    student_NV, teacher_NV = random_logprobs(7, 9, seed=17), random_logprobs(7, 9, seed=18)
    whole_N = divergence(student_NV, teacher_NV)
    parts = [divergence(s, t) for s, t in zip(student_NV.split(3), teacher_NV.split(3), strict=True)]
    torch.testing.assert_close(torch.cat(parts), whole_N, rtol=1e-14, atol=0.0)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(divergence(student_NV[order], teacher_NV[order]), whole_N[order], rtol=1e-14, atol=0.0)


@every_divergence
def test_a_number_that_is_missing_stays_missing(divergence: Divergence, loop: Loop) -> None:
    student_NV, teacher_NV = random_logprobs(2, 5, seed=19), random_logprobs(2, 5, seed=20)
    student_NV[1, 2] = math.nan
    value_N = divergence(student_NV, teacher_NV)
    assert value_N.isnan().tolist() == [False, True]
