"""Group advantages and the clipped policy gradient, in numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from selfdistill.objectives import (
    clipped_policy_gradient,
    clipped_weight_policy_gradient,
    group_advantages,
    reference_penalty,
    sequence_policy_gradient,
    truncated_importance_weight,
    weighted_reverse_kl,
)

NAN = math.nan


def _rewards(*groups: list[float]) -> torch.Tensor:
    return torch.tensor(groups, dtype=torch.float64)


def test_advantages_in_numbers() -> None:
    rewards_PG = _rewards([1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0])
    # Means ¼ and 5/2; squared deviations sum to ¾ and 5, over n − 1 = 3.
    root = math.sqrt(0.25)
    expected = [[0.75 / root, *[-0.25 / root] * 3], [x / math.sqrt(5 / 3) for x in (-1.5, -0.5, 0.5, 1.5)]]
    for row, wanted in zip(group_advantages(rewards_PG).tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-14)
    assert group_advantages(rewards_PG, scale="none").tolist() == [[0.75, -0.25, -0.25, -0.25], [-1.5, -0.5, 0.5, 1.5]]


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1e6 / 3])
def test_equal_rewards_give_exactly_zero(scale: str, dtype: torch.dtype, reward: float) -> None:
    for size in (1, 2, 3, 7, 8):
        rewards_PG = torch.full((2, size), reward, dtype=dtype)
        advantages = group_advantages(rewards_PG, scale=scale)  # type: ignore[arg-type]
        assert advantages.tolist() == [[0.0] * size] * 2


@pytest.mark.parametrize("scale", ["std", "none"])
def test_what_is_not_judged_takes_no_part(scale: str) -> None:
    some = group_advantages(_rewards([1.0, NAN, 0.0, 0.0, NAN]), scale=scale)[0].tolist()  # type: ignore[arg-type]
    judged = group_advantages(_rewards([1.0, 0.0, 0.0]), scale=scale)[0].tolist()  # type: ignore[arg-type]
    assert some == pytest.approx([judged[0], 0.0, judged[1], judged[2], 0.0])
    assert some[1] == some[4] == 0.0


def test_groups_with_fewer_than_two_judged_give_zero() -> None:
    rewards_PG = _rewards([NAN, NAN, NAN], [NAN, 5.0, NAN], [0.1, 0.1, NAN])
    assert group_advantages(rewards_PG).tolist() == [[0.0] * 3] * 3


def test_groups_do_not_know_of_one_another() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards_PG = torch.rand(5, 8, generator=generator, dtype=torch.float64)
    whole_PG = group_advantages(rewards_PG)
    assert torch.equal(torch.cat([group_advantages(rewards_PG[:2]), group_advantages(rewards_PG[2:])]), whole_PG)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    torch.testing.assert_close(group_advantages(rewards_PG[:, order]), whole_PG[:, order], rtol=1e-12, atol=1e-14)
    assert whole_PG.std(-1).tolist() == pytest.approx([1.0] * 5)
    assert whole_PG.mean(-1).tolist() == pytest.approx([0.0] * 5, abs=1e-15)


def test_the_floor_on_the_deviation_bounds_advantages() -> None:
    # Deviations ±5e-9, a standard deviation of 7e-9: divided by the floor instead.
    advantages = group_advantages(_rewards([1e-8, 0.0]), eps=1e-6)
    assert advantages[0].tolist() == pytest.approx([5e-3, -5e-3])


def test_rewards_that_cannot_be_used_are_errors() -> None:
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(_rewards([1.0, math.inf]))
    with pytest.raises(ValueError, match="float P×G"):
        group_advantages(torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="float P×G"):
        group_advantages(torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="scale"):
        group_advantages(_rewards([1.0, 2.0]), scale="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps"):
        group_advantages(_rewards([1.0, 2.0]), eps=0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.6, 0.0),  # better than average and already likelier by more than 1 + 0.3
        (0.5, 2.0, -1.0, -1.0),  # better, and less likely: pulled back without bound
        (0.5, -2.0, 1.6, 0.0),  # worse and already rarer than 1 − 0.2
        (1.5, -2.0, 3.0, 3.0),  # worse, and likelier: pushed down without bound
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_in_numbers(ratio: float, advantage: float, loss: float, slope: float) -> None:
    old_N = torch.tensor([-1.0], dtype=torch.float64)
    logprob_N = (old_N + math.log(ratio)).requires_grad_()
    advantage_N = torch.tensor([advantage], dtype=torch.float64)
    loss_N = clipped_policy_gradient(logprob_N, old_N, advantage_N, clip_low=0.2, clip_high=0.3)
    loss_N.sum().backward()
    assert loss_N.item() == pytest.approx(loss)
    assert logprob_N.grad is not None
    assert logprob_N.grad.item() == pytest.approx(slope)


def test_on_policy_it_is_the_policy_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    logits_NV = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    advantage_N = torch.randn(6, generator=generator, dtype=torch.float64)
    ids_N1 = torch.randint(5, (6, 1), generator=generator)
    logprob_N = torch.log_softmax(logits_NV, -1).gather(-1, ids_N1).squeeze(-1)
    loss_N = clipped_policy_gradient(logprob_N, logprob_N, advantage_N)
    assert loss_N.tolist() == pytest.approx((-advantage_N).tolist())
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), logits_NV, retain_graph=True)
    (expected_NV,) = torch.autograd.grad(-(advantage_N * logprob_N).sum(), logits_NV)
    torch.testing.assert_close(gradient_NV, expected_NV)


def test_gradcheck_off_policy() -> None:
    old_N = torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64)
    advantage_N = torch.tensor([1.0, -1.0, -2.0, 0.5], dtype=torch.float64)
    logprob_N = (old_N + torch.tensor([0.1, 0.4, -0.4, -0.5], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_policy_gradient(x, old_N, advantage_N), (logprob_N,))


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("gap", [-1000.0, 1000.0, -math.inf])
def test_extreme_ratios_stay_finite(advantage: float, gap: float) -> None:
    logprob_N = torch.tensor([gap], requires_grad=True)
    loss_N = clipped_policy_gradient(logprob_N, torch.zeros(1), torch.tensor([advantage]))
    loss_N.sum().backward()
    assert loss_N.isfinite().all()
    assert logprob_N.grad is not None
    assert logprob_N.grad.item() == 0.0


def test_gradient_flows_through_the_learner_alone() -> None:
    logprob_N, old_N, advantage_N = (torch.full((2,), value, requires_grad=True) for value in (-1.0, -1.1, 1.0))
    clipped_policy_gradient(logprob_N, old_N, advantage_N).sum().backward()
    assert logprob_N.grad is not None
    assert old_N.grad is None
    assert advantage_N.grad is None


OTHERS = [sequence_policy_gradient, clipped_weight_policy_gradient, reference_penalty, weighted_reverse_kl]


@pytest.mark.parametrize("objective", OTHERS)
def test_the_others_too_have_a_gradient_in_the_learner_alone(objective: Callable[..., torch.Tensor]) -> None:
    count = 2 if objective is reference_penalty else 3
    tensors = [torch.full((2,), value, requires_grad=True) for value in (-1.0, -1.1, 1.0)[:count]]
    objective(*tensors).sum().backward()
    assert [each.grad is None for each in tensors] == [False, True, True][:count]


def test_the_ratios_of_the_others_too_stop_at_e_to_the_20() -> None:
    """A ratio of e^30 counts as e^20: in s, in a weight without an upper bound, and in q − log q − 1."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    top = math.exp(20.0)
    assert sequence_policy_gradient(zero, zero + 30.0, -one).item() == pytest.approx(top, rel=1e-12)
    weighed = clipped_weight_policy_gradient(-one, -one - 30.0, one, clip_high=math.inf)
    assert weighed.item() == pytest.approx(top, rel=1e-12)
    assert reference_penalty(-one - 30.0, -one).item() == pytest.approx(top - 21.0, rel=1e-12)
    assert weighted_reverse_kl(-one, -one - 30.0, -one - 1.0).item() == pytest.approx(top / math.e, rel=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (1.1, 0.2), (0.2, -0.1), (math.nan, 0.2), (0.2, math.nan)])
def test_impossible_bounds_are_errors(low: float, high: float) -> None:
    token = torch.zeros(1)
    with pytest.raises(ValueError, match="clip bounds"):
        clipped_policy_gradient(token, token, token, clip_low=low, clip_high=high)


def test_the_dual_clip_bounds_what_a_bad_token_costs() -> None:
    """Ratios 1, 2, 5 and 5: −A r is 1, 2, 5 for A = −1; the bound 3 leaves 3, without a gradient."""
    logprob_N = torch.tensor([1.0, 2.0, 5.0, 5.0], dtype=torch.float64).log().requires_grad_()
    advantage_N = torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    loss_N = clipped_policy_gradient(logprob_N, torch.zeros_like(advantage_N), advantage_N, dual_clip=3.0)
    assert loss_N.tolist() == pytest.approx([1.0, 2.0, 3.0, -1.2])
    loss_N.sum().backward()
    assert logprob_N.grad is not None
    assert logprob_N.grad.tolist() == pytest.approx([1.0, 2.0, 0.0, 0.0])
    # A bound of 1.5 times |A| = ½; an advantage above 0 has no bound besides the clip.
    ratio_N, signed_N = torch.tensor([5.0, 0.1]).double(), torch.tensor([-0.5, 0.5]).double()
    bounded_N = clipped_policy_gradient(ratio_N.log(), torch.zeros_like(ratio_N), signed_N, dual_clip=1.5)
    assert bounded_N.tolist() == pytest.approx([0.75, -0.05])
    with pytest.raises(ValueError, match="dual_clip must be greater than 1"):
        clipped_policy_gradient(logprob_N, logprob_N, logprob_N, dual_clip=1.0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        clipped_policy_gradient(torch.zeros(3), torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match="shapes differ"):
        truncated_importance_weight(torch.zeros(3), torch.zeros(1))


def test_the_values_are_those_of_a_hand_calculation() -> None:
    half, old = torch.tensor([math.log(0.5)]).double(), torch.tensor([math.log(0.25)]).double()
    one = torch.ones(1).double()
    # r = 2, cut at 1.2: −1.2 · log ½; without an upper bound that reaches it, −2 · log ½.
    assert clipped_weight_policy_gradient(half, old, one).tolist() == pytest.approx([1.2 * math.log(2)])
    assert clipped_weight_policy_gradient(half, old, one, clip_high=3.0).tolist() == pytest.approx([2 * math.log(2)])
    assert clipped_weight_policy_gradient(old, half, -one, clip_low=0.3).tolist() == pytest.approx([-0.7 * math.log(4)])
    # s = 1.5 stands at every token, whatever the token's own ratio is.
    s = torch.tensor([math.log(1.5)]).double()
    assert sequence_policy_gradient(half, s, one, clip_low=0.1, clip_high=0.1).tolist() == pytest.approx([-1.1])
    assert sequence_policy_gradient(half, s, -one, clip_low=0.1, clip_high=0.1).tolist() == pytest.approx([1.5])
    # The advantage is a factor, and so is s of the slope at every token.
    assert clipped_weight_policy_gradient(half, old, 3 * one).tolist() == pytest.approx([3.6 * math.log(2)])
    leaf = half.clone().requires_grad_()
    sequence_policy_gradient(leaf, s, -2 * one, clip_low=0.1, clip_high=0.1).sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == pytest.approx([3.0])
    # q = ½: ½ + log 2 − 1; equal policies are no distance apart.
    assert reference_penalty(half, old).tolist() == pytest.approx([0.5 + math.log(2) - 1])
    assert reference_penalty(half, half).tolist() == [0.0]
    # ρ = ½ / ¼ and q = ¼ / ½, so twice the penalty.
    assert weighted_reverse_kl(half, old, old).tolist() == pytest.approx([2 * (0.5 + math.log(2) - 1)])
    for wrong in ({"clip_low": 1.5}, {"clip_high": -0.1}):
        with pytest.raises(ValueError, match="clip bounds"):
            clipped_weight_policy_gradient(half, old, one, **wrong)
        with pytest.raises(ValueError, match="clip bounds"):
            sequence_policy_gradient(half, s, one, **wrong)
    with pytest.raises(ValueError, match="shapes differ"):
        reference_penalty(half, torch.zeros(2).double())


def test_the_mean_of_the_penalty_is_the_divergence() -> None:
    p, q = (torch.tensor(row, dtype=torch.float64) for row in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6]))
    expected = float((p * (p / q).log()).sum())
    assert float((p * reference_penalty(p.log(), q.log())).sum()) == pytest.approx(expected, rel=1e-12)


def test_the_truncated_weight_in_numbers() -> None:
    gap_N = torch.tensor([0.0, math.log(1.5), math.log(3.0), -math.log(4.0), 500.0], dtype=torch.float64)
    learner_N = (gap_N - 1.0).requires_grad_()
    weight_N = truncated_importance_weight(learner_N, torch.full_like(gap_N, -1.0))
    assert weight_N.tolist() == pytest.approx([1.0, 1.5, 2.0, 0.25, 2.0])
    # Cap hits are counted by equality.
    assert (weight_N == 2.0).tolist() == [False, False, True, False, True]
    assert not weight_N.requires_grad
    assert truncated_importance_weight(learner_N, torch.full_like(gap_N, -1.0), cap=1.2)[1].item() == 1.2
    with pytest.raises(ValueError, match="cap must be positive"):
        truncated_importance_weight(gap_N, gap_N, cap=0.0)
