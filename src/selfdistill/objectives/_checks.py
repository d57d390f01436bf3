"""Input checks of the objectives: equal shapes, and enough precision for log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def check_logprobs(*tensors: Tensor) -> None:
    """Raise ValueError unless all tensors are float32 or float64 and share one shape.

    Broadcasting would accept a teacher of one row against a student of many and return a plausible number. bfloat16
    keeps 8 bits: near a probability of one its log-probabilities are off by more than the signals measured here.
    """
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"log-probabilities must be float32 or float64, got {tensor.dtype}")
        if tensor.shape != tensors[0].shape:
            raise ValueError(f"shapes differ: {tuple(tensors[0].shape)} and {tuple(tensor.shape)}")
