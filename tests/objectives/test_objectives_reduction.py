"""Sums, means and medians over tokens: every cut gives the same number, and weight 0 means absent."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from selfdistill.objectives import masked_mean, weighted_median, weighted_sum


def test_shares_of_any_cut_add_up_to_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    loss_N = torch.randn(10, generator=generator, dtype=torch.float64)
    weight_N = torch.rand(10, generator=generator, dtype=torch.float64)
    total = weight_N.sum().item()
    mean = math.fsum(w * x for w, x in zip(weight_N.tolist(), loss_N.tolist(), strict=True)) / total
    for size in (1, 3, 10):
        parts = zip(loss_N.split(size), weight_N.split(size), strict=True)
        assert sum(weighted_sum(loss, weight, total).item() for loss, weight in parts) == pytest.approx(mean, rel=1e-13)


def test_the_gradient_is_the_weight_over_the_total() -> None:
    loss_N = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weight_N = torch.tensor([1.0, 0.0, 3.0], requires_grad=True)
    value = weighted_sum(loss_N, weight_N, 8.0)
    value.backward()
    assert value.item() == 10.0 / 8.0
    assert loss_N.grad is not None
    assert loss_N.grad.tolist() == [1 / 8, 0.0, 3 / 8]
    assert weight_N.grad is None


@pytest.mark.parametrize("absent", [math.nan, math.inf, -math.inf])
def test_a_token_without_weight_is_absent_whatever_its_loss(absent: float) -> None:
    loss_N = torch.tensor([1.0, absent], requires_grad=True)
    value = weighted_sum(loss_N, torch.tensor([2.0, 0.0]), 4.0)
    value.backward()
    assert value.item() == 0.5
    assert loss_N.grad is not None
    assert loss_N.grad.tolist() == [0.5, 0.0]


def test_a_share_without_tokens_is_zero_and_can_be_sent_backward() -> None:
    loss_N = torch.zeros(0, requires_grad=True)
    value = weighted_sum(loss_N, torch.zeros(0), 4.0)
    value.backward()
    assert value.item() == 0.0
    assert loss_N.grad is not None


def test_a_total_must_be_positive_and_shapes_equal() -> None:
    for total in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="total_weight must be positive"):
            weighted_sum(torch.zeros(1), torch.zeros(1), total)
    with pytest.raises(ValueError, match="shapes differ"):
        weighted_sum(torch.zeros(3), torch.ones(1), 1.0)


def test_masked_mean() -> None:
    values_N = torch.tensor([1.0, math.nan, 4.0], requires_grad=True)
    mean = masked_mean(values_N, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.5
    assert values_N.grad is not None
    assert values_N.grad.tolist() == [0.5, 0.0, 0.5]
    assert masked_mean(values_N, torch.tensor([False] * 3)).isnan()
    with pytest.raises(ValueError, match="mask must be bool"):
        masked_mean(values_N, torch.ones(3))
    with pytest.raises(ValueError, match="shapes differ"):
        masked_mean(values_N, torch.tensor([True]))


def test_equal_weights_give_the_ordinary_median() -> None:
    generator = torch.Generator().manual_seed(2)
    for size in range(1, 9):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        expected = statistics.median(values.tolist())
        for weight in (0.1, 1.0, 3.0):
            assert weighted_median(values, torch.full_like(values, weight)).item() == expected


def test_a_weight_counts_like_copies() -> None:
    values_N = torch.tensor([5.0, 1.0, 3.0, 2.0])
    weight_N = torch.tensor([2.0, 1.0, 0.0, 4.0])
    copies = [5.0, 5.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert weighted_median(values_N, weight_N).item() == statistics.median(copies)
    # 1 | 2 split the weight evenly.
    assert weighted_median(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])).item() == 1.5
    assert weighted_median(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 1.0, 1.0])).item() == 1.5


def test_a_median_leaves_out_what_has_no_weight() -> None:
    values_N = torch.tensor([math.nan, 7.0], requires_grad=True)
    median = weighted_median(values_N, torch.tensor([0.0, 1.0]))
    assert median.item() == 7.0
    assert not median.requires_grad
    with pytest.raises(ValueError, match="positive weight"):
        weighted_median(values_N, torch.zeros(2))
    with pytest.raises(ValueError, match="negative"):
        weighted_median(values_N, torch.tensor([-1.0, 2.0]))
