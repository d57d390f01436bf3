"""Targets against loops, the identities that define them, and their limits, which are other methods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import objectives_by_hand as by_hand
from objectives_by_hand import random_logprobs
from selfdistill.objectives import (
    credit_target,
    forward_kl,
    jensen_shannon,
    purified_target,
    reverse_kl,
    with_tail,
)

padding = pytest.mark.parametrize("padded", [0, 2])


def _expectation(weights_NV: Tensor, values_NV: Tensor) -> Tensor:
    return (weights_NV.exp() * values_NV).sum(-1)


@padding
@pytest.mark.parametrize("weight", [0.1, 1.0])
@pytest.mark.parametrize("contrasts", [1, 3])
def test_credit_equals_a_loop(padded: int, weight: float, contrasts: int) -> None:
    teacher_NS = random_logprobs(5, 8, seed=1, padded=padded)
    contrast_CNS = random_logprobs(contrasts, 5, 8, seed=2, padded=padded)
    target_NS = credit_target(teacher_NS, contrast_CNS, weight=weight)
    for n in range(5):
        expected = by_hand.credit_target(teacher_NS[n].tolist(), contrast_CNS[:, n].tolist(), weight)
        assert target_NS[n].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_credit_in_numbers() -> None:
    teacher_NS = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    contrast_CNS = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]], [[0.8, 0.2]]], dtype=torch.float64).log()
    # A mean of logs: the first two contrasts cancel, the third leaves (4:1)^(1/3), divided out at weight 3 as 1:4.
    target_NS = credit_target(teacher_NS, contrast_CNS, weight=3.0)
    assert target_NS[0].exp().tolist() == pytest.approx([0.2, 0.8])


@padding
def test_credit_without_weight_is_the_teacher(padded: int) -> None:
    teacher_NS = random_logprobs(5, 8, seed=3, padded=padded)
    target_NS = credit_target(teacher_NS, random_logprobs(2, 5, 8, seed=4, padded=padded), weight=0.0)
    torch.testing.assert_close(target_NS, teacher_NS, rtol=1e-14, atol=1e-15)


def test_credit_takes_the_tail_as_one_more_entry() -> None:
    teacher_NV, contrast_NV, student_NV = (random_logprobs(5, 8, seed=seed) for seed in (5, 6, 7))
    ids_NK = student_NV.topk(3, -1).indices
    teacher_NS, contrast_NS = (with_tail(side.gather(-1, ids_NK)) for side in (teacher_NV, contrast_NV))
    target_NS = credit_target(teacher_NS, contrast_NS[None], weight=0.5)
    for n in range(5):
        expected = by_hand.credit_target(teacher_NS[n].tolist(), [contrast_NS[n].tolist()], 0.5)
        assert len(expected) == 4
        assert target_NS[n].tolist() == pytest.approx(expected, rel=1e-12)


def test_reverse_kl_to_the_credit_target_has_the_gradient_of_the_credit_advantage() -> None:
    teacher_NV, contrast_CNV = random_logprobs(6, 7, seed=8), random_logprobs(2, 6, 7, seed=9)
    logits_NV = random_logprobs(6, 7, seed=10).requires_grad_()
    student_NV = torch.log_softmax(logits_NV, -1)
    target_NV = credit_target(teacher_NV, contrast_CNV, weight=0.7)
    (gradient_NV,) = torch.autograd.grad(reverse_kl(student_NV, target_NV).sum(), logits_NV, retain_graph=True)
    # E_{v~S}[R(v) ∇log S(v)] with R = log T − log S − λ mean_k log N_k, written out over the vocabulary.
    credit_NV = (teacher_NV - student_NV - 0.7 * contrast_CNV.mean(0)).detach()
    surrogate = (student_NV.detach().exp() * credit_NV * student_NV).sum()
    (ascent_NV,) = torch.autograd.grad(surrogate, logits_NV)
    torch.testing.assert_close(gradient_NV, -ascent_NV, rtol=1e-11, atol=1e-14)


@padding
@pytest.mark.parametrize(("beta", "clip"), [(1.0, 10.0), (0.5, 1.0), (3.0, 0.2)])
def test_purified_equals_a_loop(padded: int, beta: float, clip: float) -> None:
    base_NV, teacher_NV, reference_NV = (random_logprobs(5, 8, seed=seed, padded=padded) for seed in (11, 12, 13))
    target_NV = purified_target(base_NV, teacher_NV, reference_NV, beta=beta, clip=clip)
    for n in range(5):
        base, teacher, reference_only = (side[n].tolist() for side in (base_NV, teacher_NV, reference_NV))
        expected = by_hand.purified_target(base, teacher, reference_only, beta, clip)
        assert target_NV[n].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_purified_in_numbers() -> None:
    base_NV = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    teacher_NV = torch.tensor([[0.8, 0.2]], dtype=torch.float64).log()
    # R = B, so Δ = (ln 1.6, ln 0.4), centred ±ln 2; a clip of ln 2 leaves ± ln 2 · tanh(1), twice that between them.
    target_NV = purified_target(base_NV, teacher_NV, base_NV, clip=math.log(2))
    odds = math.exp(2 * math.log(2) * math.tanh(1))
    assert target_NV[0].exp().tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])


@padding
@pytest.mark.parametrize(("clip", "tolerance"), [(math.inf, 1e-13), (1e9, 1e-12), (1e4, 1e-5)])
def test_purified_with_the_base_as_reference_and_no_clip_is_the_teacher(
    padded: int, clip: float, tolerance: float
) -> None:
    base_NV, teacher_NV = random_logprobs(5, 8, seed=14, padded=padded), random_logprobs(5, 8, seed=15, padded=padded)
    target_NV = purified_target(base_NV, teacher_NV, base_NV, beta=1.0, clip=clip)
    torch.testing.assert_close(target_NV, teacher_NV, rtol=0.0, atol=tolerance)


def test_purified_without_a_question_part_is_the_base() -> None:
    base_NV, teacher_NV = random_logprobs(5, 8, seed=16), random_logprobs(5, 8, seed=17)
    torch.testing.assert_close(purified_target(base_NV, teacher_NV, teacher_NV), base_NV, rtol=1e-14, atol=1e-15)


def test_centring_matters_only_under_the_clip() -> None:
    base_NV, teacher_NV, reference_NV = (random_logprobs(5, 8, seed=seed) for seed in (18, 19, 20))
    for clip in (1.0, math.inf):
        # A shift of all log-probabilities of a token is what centring takes out.
        plain_NV = purified_target(base_NV, teacher_NV, reference_NV, clip=clip)
        shifted_NV = purified_target(base_NV, teacher_NV + 3.0, reference_NV, clip=clip)
        torch.testing.assert_close(shifted_NV, plain_NV, rtol=1e-12, atol=1e-13)
    not_centred_NV = torch.log_softmax(base_NV + teacher_NV - reference_NV, -1)
    torch.testing.assert_close(purified_target(base_NV, teacher_NV, reference_NV, clip=math.inf), not_centred_NV)
    uncentred_clip_NV = torch.log_softmax(base_NV + torch.tanh(teacher_NV - reference_NV), -1)
    assert (purified_target(base_NV, teacher_NV, reference_NV, clip=1.0) - uncentred_clip_NV).abs().max() > 1e-2


def test_purified_is_the_optimum_it_claims_to_be() -> None:
    base_NV, teacher_NV, reference_NV = (random_logprobs(4, 6, seed=seed) for seed in (21, 22, 23))
    beta, clip = 0.7, 2.0
    delta_NV = teacher_NV - reference_NV
    soft_NV = clip * torch.tanh((delta_NV - delta_NV.mean(-1, keepdim=True)) / clip)

    def objective(p_NV: Tensor) -> Tensor:
        return _expectation(p_NV, soft_NV) - beta * forward_kl(base_NV, p_NV)

    target_NV = purified_target(base_NV, teacher_NV, reference_NV, beta=beta, clip=clip)
    other_NV = random_logprobs(4, 6, seed=24)
    # What any other distribution loses is exactly beta · KL(other || target).
    loss_N = objective(target_NV) - objective(other_NV)
    torch.testing.assert_close(loss_N, beta * forward_kl(target_NV, other_NV), rtol=1e-12, atol=1e-14)
    assert (loss_N > 0.0).all()


@pytest.mark.parametrize("padded", [1, 3])
def test_padded_rows_stay_out_and_a_student_can_be_distilled_to_the_target(padded: int) -> None:
    bare = [random_logprobs(5, 8, seed=seed) for seed in (25, 26, 27)]
    pad_NV = torch.full((5, padded), -math.inf, dtype=torch.float64)
    full = [torch.cat([side, pad_NV], -1) for side in bare]
    for target, target_padded in (
        (purified_target(*bare, clip=1.0), purified_target(*full, clip=1.0)),
        (credit_target(bare[0], bare[1][None], weight=0.3), credit_target(full[0], full[1][None], weight=0.3)),
    ):
        torch.testing.assert_close(target_padded, torch.cat([target, pad_NV], -1), rtol=1e-13, atol=1e-14)
        logits_NV = torch.cat([random_logprobs(5, 8, seed=28), pad_NV], -1).requires_grad_()
        for divergence in (forward_kl, reverse_kl, jensen_shannon):
            value_N = divergence(torch.log_softmax(logits_NV, -1), target_padded)
            (gradient_NV,) = torch.autograd.grad(value_N.sum(), logits_NV)
            assert value_N.isfinite().all()
            assert gradient_NV.isfinite().all()
            assert gradient_NV[:, 8:].abs().max().item() == 0.0


def test_targets_are_normalised_and_detached() -> None:
    sides = [random_logprobs(5, 8, seed=seed).requires_grad_() for seed in (29, 30, 31)]
    for target_NV in (purified_target(*sides), credit_target(sides[0], torch.stack(sides[1:]), weight=0.5)):
        assert not target_NV.requires_grad
        assert target_NV.exp().sum(-1).tolist() == pytest.approx([1.0] * 5, abs=1e-14)


def test_a_number_that_is_missing_stays_missing() -> None:
    sides = [random_logprobs(2, 5, seed=seed) for seed in (32, 33, 34)]
    sides[1][1, 2] = math.nan
    for target_NV in (purified_target(*sides), credit_target(sides[0], sides[1][None], weight=0.5)):
        assert target_NV.isnan().any(-1).tolist() == [False, True]


def test_impossible_settings_are_errors() -> None:
    row_NV = random_logprobs(1, 4, seed=35)
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="weight must be finite"):
            credit_target(row_NV, row_NV[None], weight=weight)
    with pytest.raises(ValueError, match="at least one contrast"):
        credit_target(row_NV, row_NV[None][:0], weight=0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        credit_target(row_NV, row_NV[None, :, :3], weight=0.1)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta must be positive"):
            purified_target(row_NV, row_NV, row_NV, beta=beta)
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip must be positive"):
            purified_target(row_NV, row_NV, row_NV, clip=clip)
    with pytest.raises(ValueError, match="shapes differ"):
        purified_target(row_NV, row_NV, row_NV[:, :3])
