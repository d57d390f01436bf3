"""The borders of every objective: what is refused, axes before the last one, padding in one input alone, defaults."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfdistill.methods.entropy_gate import EntropyGate
from selfdistill.objectives import (
    antisd_advantage,
    clipped_forward_kl,
    clipped_policy_gradient,
    clipped_weight_policy_gradient,
    credit_target,
    decompose,
    entropy,
    forward_kl,
    group_advantages,
    jensen_shannon,
    pointwise_mutual_information,
    preference_margin,
    purified_target,
    reference_penalty,
    reverse_kl,
    sequence_policy_gradient,
    truncated_importance_weight,
    weighted_reverse_kl,
    with_tail,
)
from selfdistill.objectives.analysis import preference_hessian, regularised_value, reward_tilted, teacher_statistics

Objective = Callable[..., Tensor]


def credit(teacher: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return credit_target(teacher, torch.stack([one, other]), weight=0.3)


def margin(*sides: Tensor) -> Tensor:
    return preference_margin(*sides, beta=0.5)


def clipped(student: Tensor, teacher: Tensor) -> Tensor:
    return clipped_forward_kl(student, teacher, clip=0.05)


def cosine(student: Tensor, teacher: Tensor, reference: Tensor) -> Tensor:
    return decompose(student, teacher, reference).cosine_total_question_N


def tilted(teacher: Tensor, rewards: Tensor) -> Tensor:
    return reward_tilted(teacher, rewards, beta=0.5)


def value(policy: Tensor, teacher: Tensor, rewards: Tensor) -> Tensor:
    return regularised_value(policy, teacher, rewards, beta=0.5)


def rate(student: Tensor, teacher: Tensor, rewards: Tensor) -> Tensor:
    return torch.tensor(teacher_statistics(student, teacher, rewards, beta=0.5).rate)


def hessian(student: Tensor, teacher: Tensor) -> Tensor:
    return preference_hessian(student, teacher, beta=0.5)


# Each with the number of its tensors; every one of them over a vocabulary, or one number a token.
OVER_A_VOCABULARY: dict[str, tuple[Objective, int]] = {
    "forward_kl": (forward_kl, 2),
    "reverse_kl": (reverse_kl, 2),
    "jensen_shannon": (jensen_shannon, 2),
    "clipped_forward_kl": (clipped, 2),
    "entropy": (entropy, 1),
    "with_tail": (with_tail, 1),
    "credit_target": (credit, 3),
    "purified_target": (purified_target, 3),
    "decompose": (cosine, 3),
}
A_NUMBER_A_TOKEN: dict[str, tuple[Objective, int]] = {
    "clipped_policy_gradient": (clipped_policy_gradient, 3),
    "sequence_policy_gradient": (sequence_policy_gradient, 3),
    "clipped_weight_policy_gradient": (clipped_weight_policy_gradient, 3),
    "reference_penalty": (reference_penalty, 2),
    "weighted_reverse_kl": (weighted_reverse_kl, 3),
    "truncated_importance_weight": (truncated_importance_weight, 2),
    "pointwise_mutual_information": (pointwise_mutual_information, 2),
    "antisd_advantage": (antisd_advantage, 1),
    "preference_margin": (margin, 4),
}
OVER_ANSWERS: dict[str, tuple[Objective, int]] = {
    "reward_tilted": (tilted, 2),
    "regularised_value": (value, 3),
    "teacher_statistics": (rate, 3),
    "preference_hessian": (hessian, 2),
}
ALL = {**OVER_A_VOCABULARY, **A_NUMBER_A_TOKEN, **OVER_ANSWERS}


def some(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(count)]


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_must_be_float32_or_float64(name: str) -> None:
    objective, count = ALL[name]
    # Together: with one of them alone the types would differ, which torch may refuse by itself.
    with pytest.raises(ValueError, match="float32 or float64"):
        objective(*(each.half() for each in some(count, 2, 3)))


@pytest.mark.parametrize("name", [name for name, (_, count) in ALL.items() if count > 1])
def test_no_tensor_may_be_broadcast(name: str) -> None:
    objective, count = ALL[name]
    # credit_target's contrasts are stacked by this test, which refuses unequal ones first.
    refused = r"shapes differ|stack expects" if name == "credit_target" else r"shapes differ"
    for odd in range(count):
        tensors = some(count, *((3,) if name in OVER_ANSWERS else (2, 3)))
        tensors[odd] = tensors[odd][:1]
        with pytest.raises((ValueError, RuntimeError), match=refused):
            objective(*tensors)


@pytest.mark.parametrize("name", OVER_A_VOCABULARY)
def test_axes_before_the_last_are_tokens(name: str) -> None:
    objective, count = OVER_A_VOCABULARY[name]
    deep = some(count, 2, 4, 3)
    flat = [each.reshape(8, 3) for each in deep]
    torch.testing.assert_close(objective(*deep).flatten(), objective(*flat).flatten(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_padding_in_one_input_alone_takes_no_part(place: int) -> None:
    """A row of the vocabulary that only one side calls padding is left out of targets and decompositions."""
    whole = some(3, 2, 5)
    padded = [each.clone() for each in whole]
    padded[place][:, 3] = -math.inf
    kept = [torch.cat([each[:, :3], each[:, 4:]], -1) for each in whole]
    for build in (credit, purified_target):
        target, without = build(*padded), build(*kept)
        assert target[:, 3].tolist() == [-math.inf, -math.inf]
        torch.testing.assert_close(torch.cat([target[:, :3], target[:, 4:]], -1), without)
    for name in ("cosine_total_reference_N", "cosine_reference_question_N", "norm_total_N", "norm_question_N"):
        torch.testing.assert_close(getattr(decompose(*padded), name), getattr(decompose(*kept), name))


def test_groups_are_compared_each_with_itself() -> None:
    """Of three equal rewards of 0.1 the mean is not 0.1: only asking the group itself gives exactly 0."""
    unknown = math.nan
    rewards = torch.tensor([[0.1, 0.1, 0.1, unknown], [0.0, 1.0, unknown, unknown]], dtype=torch.float64)
    half = 0.5 / math.sqrt(0.5)  # two rewards 0 and 1: the sample variance is 1/2
    found = group_advantages(rewards)
    assert found[0].tolist() == [0.0] * 4
    assert found[1].tolist() == pytest.approx([-half, half, 0.0, 0.0])


def test_the_defaults_of_the_policy_gradient() -> None:
    token = torch.zeros(4, dtype=torch.float64)
    ratio = torch.tensor([1.4, 0.6, 1.1, 0.9], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    assert clipped_policy_gradient(ratio.log(), token, advantage).tolist() == pytest.approx([-1.2, 0.8, -1.1, 0.9])
    # Ratios stop at e^20.
    loss = clipped_policy_gradient(token[:1] + 30.0, token[:1], advantage[1:2])
    assert loss.tolist() == pytest.approx([math.exp(20.0)], rel=1e-12)


def test_the_defaults_of_the_other_ratios_are_the_papers() -> None:
    """GSPO: 3e-4 and 4e-4. CISPO: no lower bound, and 0.2."""
    log_p = torch.full((2,), math.log(0.5), dtype=torch.float64)
    up, down = torch.ones_like(log_p), -torch.ones_like(log_p)
    far = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    assert sequence_policy_gradient(log_p, far, up)[1].item() == pytest.approx(-1.0004, rel=1e-12)
    assert sequence_policy_gradient(log_p, far, down)[0].item() == pytest.approx(0.9997, rel=1e-12)
    # Ratios e^−3 and e^3, times −log ½.
    weighed = clipped_weight_policy_gradient(log_p, log_p - far, up) / math.log(2)
    assert weighed.tolist() == pytest.approx([math.exp(-3.0), 1.2], rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (1.0, 0.2), (0.2, 0.0)])
def test_the_ends_of_the_clip_are_allowed(low: float, high: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert clipped_policy_gradient(one, one, one, clip_low=low, clip_high=high).tolist() == [-1.0]


def test_an_importance_weight_has_no_gradient_and_any_positive_cap() -> None:
    learner, sampler = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = truncated_importance_weight(learner, sampler, cap=0.5)
    assert (weight.tolist(), weight.requires_grad) == ([0.5], False)


def test_a_fresh_gate_is_the_papers() -> None:
    assert EntropyGate().state_dict() == {
        "warmup": 5,
        "ratio": 0.93,
        "recorded": [],
        "warm_up_just_ended": False,
        "open": False,
    }
    assert EntropyGate(warmup=1, ratio=1.0).state_dict()["ratio"] == 1.0


def test_the_targets_defaults_are_the_papers() -> None:
    tensors = [10 * each for each in some(3, 2, 5)]
    spelt_out = purified_target(*tensors, beta=1.0, clip=10.0)
    assert torch.equal(purified_target(*tensors), spelt_out)
    other = jensen_shannon(*some(2, 2, 5), teacher_weight=0.5)
    assert torch.equal(jensen_shannon(*some(2, 2, 5)), other)
