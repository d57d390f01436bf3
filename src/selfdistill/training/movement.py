"""The share of weights that an update changes. Rounding to the weights' number type swallows small updates.

The share is estimated on evenly spaced weights of every parameter, so it is the same for sharded and whole weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from selfdistill.distributed.world import World

SAMPLE = 1 << 20
"""Sampled weights over all parameters. They give a share of 10 % to 0.03 points and take 4 MiB in float32."""


class Movement:
    """Sampled weights before an update, for comparison with those after it."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.stride = max(1, -(-sum(weight.numel() for weight in weights) // SAMPLE))
        self.before = self.sample(weights)

    def sample(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The sampled elements of tensors in the shapes of the weights; an empty tensor for None."""
        return [torch.zeros(0) if tensor is None else _every(tensor, self.stride) for tensor in tensors]

    def share(self, pulls: Sequence[Tensor], world: World) -> float | None:
        """Share of changed weights among those with a nonzero pull; None if no pull is nonzero.

        ``pulls`` are the sampled gradients, or differences to the target, of each weight; empty for a weight without
        one. The counts are summed over the ranks of ``world``, which hold shards.
        """
        by_weight = [
            torch.stack([((after != before) & (pull != 0)).sum(), (pull != 0).sum()])
            for after, before, pull in zip(self.sample(self.weights), self.before, pulls, strict=True)
            if len(pull)
        ]
        counts: list[int] = torch.stack(by_weight).sum(0).tolist() if by_weight else [0, 0]
        moved, pulled = (sum(column) for column in zip(*world.all_gather(counts), strict=True))
        return moved / pulled if pulled else None


@torch.no_grad()
def _every(tensor: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th element of a whole tensor, restricted to this rank's shard."""
    start = 0
    if isinstance(tensor, DTensor):
        # Tensors are sharded along the first axis, so a rank's elements are contiguous in the whole tensor.
        axis = tensor.placements.index(Shard(0))
        rows = -(-tensor.shape[0] // tensor.device_mesh.size(axis))
        start = rows * tensor.device_mesh.get_local_rank(axis) * (tensor.numel() // tensor.shape[0])
        tensor = tensor.to_local()
    return tensor.detach().flatten()[-start % stride :: stride].clone()
