"""What u, the AntiSD bonus, the entropy and the decomposition mean, on worlds small enough to enumerate."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from objectives_by_hand import random_logprobs
from selfdistill.objectives import (
    antisd_advantage,
    decompose,
    difference,
    entropy,
    jensen_shannon,
    pointwise_mutual_information,
)


class TabularWorld:
    """p(c) and p(y|c) for every completion of ``LENGTH`` tokens, as one joint table; the question x is fixed.

    The teacher is the world that knows c, the student the one that does not: its next token is the mixture of the
    teachers under what the prefix says about c. Everything is summed from the joint table.
    """

    CONTEXTS, VOCABULARY, LENGTH = 3, 3, 4

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        prior = self._distribution(dice, self.CONTEXTS)
        self.joint: dict[tuple[int, tuple[int, ...]], float] = {}
        for c in range(self.CONTEXTS):
            step = {
                prefix: self._distribution(dice, self.VOCABULARY)
                for length in range(self.LENGTH)
                for prefix in itertools.product(range(self.VOCABULARY), repeat=length)
            }
            for y in self.completions():
                self.joint[c, y] = prior[c] * math.prod(step[y[:t]][y[t]] for t in range(self.LENGTH))

    @staticmethod
    def _distribution(dice: random.Random, size: int) -> list[float]:
        masses = [dice.random() + 0.05 for _ in range(size)]
        return [mass / sum(masses) for mass in masses]

    def completions(self) -> itertools.product[tuple[int, ...]]:
        return itertools.product(range(self.VOCABULARY), repeat=self.LENGTH)

    def mass(self, prefix: tuple[int, ...], context: int | None = None) -> float:
        """p(c, y starts with prefix), or p(y starts with prefix) without a context."""
        return math.fsum(p for (c, y), p in self.joint.items() if y[: len(prefix)] == prefix and context in (None, c))

    def next_logprob(self, y: tuple[int, ...], t: int, context: int | None = None) -> float:
        return math.log(self.mass(y[: t + 1], context) / self.mass(y[:t], context))


def test_u_adds_up_to_what_the_completion_says_about_the_context() -> None:
    world = TabularWorld(seed=1)
    for c, y in itertools.product(range(world.CONTEXTS), world.completions()):
        steps = range(world.LENGTH)
        teacher_N = torch.tensor([world.next_logprob(y, t, c) for t in steps], dtype=torch.float64)
        student_N = torch.tensor([world.next_logprob(y, t) for t in steps], dtype=torch.float64)
        u_N = pointwise_mutual_information(teacher_N, student_N)
        posteriors = [math.log(world.mass(y[:t], c) / world.mass(y[:t])) for t in range(world.LENGTH + 1)]
        # Each u is the step of a Bayesian filter, so the whole is log p(c|x,y) − log p(c|x).
        assert u_N.tolist() == pytest.approx([b - a for a, b in itertools.pairwise(posteriors)], abs=1e-13)
        assert u_N.sum().item() == pytest.approx(posteriors[-1] - posteriors[0], abs=1e-13)


def test_u_is_zero_for_the_same_context_and_sends_no_gradient_to_the_teacher() -> None:
    student_N = random_logprobs(5, seed=2).requires_grad_()
    teacher_N = random_logprobs(5, seed=2).requires_grad_()
    u_N = pointwise_mutual_information(teacher_N, student_N)
    assert u_N.tolist() == [0.0] * 5
    u_N.sum().backward()
    assert student_N.grad is not None
    assert student_N.grad.tolist() == [-1.0] * 5
    assert teacher_N.grad is None


def test_antisd_bonus_in_numbers() -> None:
    bonus = antisd_advantage(torch.tensor([0.0, math.log(3.0), -math.log(3.0), -800.0, 800.0], dtype=torch.float64))
    # softplus(ln 3) = ln 4 and softplus(−ln 3) = ln 4/3, so φ is ½ ln 2 and ½ ln 2/3.
    expected = [0.0, -0.5 * math.log(2), -0.5 * math.log(2 / 3), 0.5 * math.log(2), -0.5 * (800 - math.log(2))]
    assert bonus.tolist() == pytest.approx(expected, rel=1e-15)
    assert antisd_advantage(torch.zeros(1)).item() == 0.0


def test_antisd_bonus_has_the_slope_of_half_a_sigmoid() -> None:
    u_N = torch.linspace(-30.0, 30.0, 61, dtype=torch.float64)
    slope_N = (antisd_advantage(u_N + 1e-4) - antisd_advantage(u_N - 1e-4)) / 2e-4
    torch.testing.assert_close(slope_N, -0.5 * torch.sigmoid(u_N), rtol=1e-8, atol=1e-10)


def test_antisd_bonus_is_detached() -> None:
    assert not antisd_advantage(torch.zeros(3, requires_grad=True)).requires_grad


def test_the_mean_antisd_update_is_the_gradient_of_jensen_shannon() -> None:
    teacher_NV = random_logprobs(8, 7, seed=3, padded=1)
    logits_NV = random_logprobs(8, 7, seed=4, padded=1).requires_grad_()
    student_NV = torch.log_softmax(logits_NV, -1)
    (expected_NV,) = torch.autograd.grad(jensen_shannon(student_NV, teacher_NV).sum(), logits_NV, retain_graph=True)
    # E_{v~S}[−φ(u_v) ∇log S(v)], the expectation written out over the six tokens that can be drawn.
    drawn_NV = student_NV[:, :6]
    u_NV = pointwise_mutual_information(teacher_NV[:, :6], drawn_NV)
    update = (drawn_NV.detach().exp() * antisd_advantage(u_NV) * drawn_NV).sum()
    (update_NV,) = torch.autograd.grad(update, logits_NV)
    torch.testing.assert_close(update_NV, expected_NV, rtol=1e-12, atol=1e-15)


def test_entropy_in_numbers() -> None:
    logprobs_NV = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]]).double().log()
    expected = [2 * math.log(2), 0.0, 1.5 * math.log(2)]
    assert entropy(logprobs_NV).tolist() == pytest.approx(expected, rel=1e-15)


def test_entropy_and_its_gradient_equal_a_loop() -> None:
    logits_NV = random_logprobs(4, 6, seed=5, padded=2).requires_grad_()
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    entropy_N = entropy(logprobs_NV)
    (gradient_NV,) = torch.autograd.grad(entropy_N.sum(), logits_NV)
    for n, row in enumerate(logprobs_NV.tolist()):
        loop = -math.fsum(math.exp(p) * p for p in row[:4])
        assert entropy_N[n].item() == pytest.approx(loop, rel=1e-13)
        # ∂H/∂logit_v = −p_v (log p_v + H)
        expected = [-math.exp(p) * (p + loop) for p in row[:4]] + [0.0, 0.0]
        assert gradient_NV[n].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert torch.autograd.gradcheck(
        lambda x: entropy(torch.log_softmax(x, -1)), (random_logprobs(2, 4, seed=6).requires_grad_(),)
    )


def test_decomposition_in_numbers() -> None:
    def row(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    # log S = 0 puts the differences in the open: reference (3, 4), total (3, 0), question (0, −4); the pad is no axis.
    parts = decompose(row(0, 0, -math.inf), row(3, 0, -math.inf), row(3, 4, -math.inf))
    assert parts.norm_reference_N.item() == 5.0
    assert parts.norm_total_N.item() == 3.0
    assert parts.norm_question_N.item() == 4.0
    assert parts.cosine_total_reference_N.item() == pytest.approx(0.6)
    assert parts.cosine_reference_question_N.item() == pytest.approx(-0.8)
    assert parts.cosine_total_question_N.item() == 0.0


def test_the_parts_add_up_to_the_total() -> None:
    parts = decompose(*(random_logprobs(5, 9, seed=seed, padded=2) for seed in (7, 8, 9)))
    # |a + b|² = |a|² + |b|² + 2 a·b, and total · reference = |reference|² + reference · question.
    cross_N = parts.cosine_reference_question_N * parts.norm_reference_N * parts.norm_question_N
    total_N = parts.norm_reference_N.square() + parts.norm_question_N.square() + 2 * cross_N
    torch.testing.assert_close(parts.norm_total_N.square(), total_N)
    with_reference_N = parts.cosine_total_reference_N * parts.norm_total_N * parts.norm_reference_N
    torch.testing.assert_close(with_reference_N, parts.norm_reference_N.square() + cross_N)
    with_question_N = parts.cosine_total_question_N * parts.norm_total_N * parts.norm_question_N
    torch.testing.assert_close(with_question_N, parts.norm_question_N.square() + cross_N)


def test_a_cosine_with_nothing_is_missing() -> None:
    student_NV, reference_NV = random_logprobs(3, 5, seed=10), random_logprobs(3, 5, seed=11)
    parts = decompose(student_NV, student_NV, reference_NV)
    assert parts.norm_total_N.tolist() == [0.0] * 3
    assert parts.cosine_total_reference_N.isnan().all()
    assert parts.cosine_reference_question_N.tolist() == pytest.approx([-1.0] * 3)


def test_the_difference_of_two_impossible_entries_is_nothing_and_has_no_gradient() -> None:
    first = torch.tensor([[0.5, 0.25, 0.0, 0.25, 0.0]], dtype=torch.float64).log().requires_grad_()
    second = torch.tensor([[0.25, 0.5, 0.0, 0.0, 0.25]], dtype=torch.float64).log()
    value = difference(first, second)
    expected = [[math.log(2.0), -math.log(2.0), 0.0, math.inf, -math.inf]]
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=torch.float64))
    value[:, :3].sum().backward()
    assert first.grad is not None and first.grad.tolist() == [[1.0, 1.0, 0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="shapes differ"):
        difference(first, second[:, :2])
