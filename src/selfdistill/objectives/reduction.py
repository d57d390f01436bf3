"""The one place where per-token values become one number.

Axis letter: ``N`` scored tokens. A token of weight 0 takes no part: not even an infinite or missing value of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

EVEN_SPLIT = 1e-12
"""Relative difference up to which two sums of weights count as equal; float64 rounding stays below it."""


def weighted_sum(loss_N: Tensor, weight_N: Tensor, total_weight: float) -> Tensor:
    """This part's share of the weighted mean: Σ weight · loss / total_weight, a scalar with gradient.

    ``total_weight`` is global, over all slices, micro-batches and ranks, and known before the first forward pass; the
    shares of all parts then add up to the mean however the tokens were cut. No tokens, or weights of 0, give a share
    of 0 that can still be sent backward. Weights are detached. Raises ValueError for unequal shapes and for a total
    that is not positive.
    """
    _check_shapes(loss_N, weight_N)
    if not total_weight > 0.0:
        raise ValueError(f"total_weight must be positive, got {total_weight}")
    weight_N = weight_N.detach()
    return (loss_N.masked_fill(weight_N == 0.0, 0.0) * weight_N).sum() / total_weight


def masked_mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """The mean of the values whose mask is True, a scalar with gradient; NaN where the mask is empty.

    A mean of nothing is missing, and missing is not zero. Raises ValueError for unequal shapes or a mask that is not
    bool.
    """
    _check_shapes(values_N, mask_N)
    if mask_N.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask_N.dtype}")
    return values_N.masked_fill(~mask_N, 0.0).sum() / mask_N.sum()


def weighted_median(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """The value with half of the weight on either side, a scalar without gradient.

    Where the weight splits evenly between two values it is their mean, so equal weights give the ordinary median (which
    ``torch.median`` does not). Raises ValueError for unequal shapes, negative weights or no weight at all.
    """
    _check_shapes(values_N, weight_N)
    if (weight_N < 0.0).any():
        raise ValueError("weights must not be negative")
    kept_N = weight_N > 0.0
    if not kept_N.any():
        raise ValueError("a median needs at least one value of positive weight")
    ordered_N, order_N = values_N.detach()[kept_N].sort()
    # Six weights of 0.1 do not add up to twice three of them: an even split is one up to the rounding of the sums.
    cumulative_N = weight_N.detach()[kept_N][order_N].double().cumsum(0)
    half = cumulative_N[-1:] / 2.0
    lower = torch.searchsorted(cumulative_N, half * (1.0 - EVEN_SPLIT))
    upper = torch.searchsorted(cumulative_N, half * (1.0 + EVEN_SPLIT), right=True)
    return ((ordered_N[lower] + ordered_N[upper]) / 2.0).squeeze(0)


def _check_shapes(first_N: Tensor, second_N: Tensor) -> None:
    if first_N.shape != second_N.shape:
        raise ValueError(f"shapes differ: {tuple(first_N.shape)} and {tuple(second_N.shape)}")
