"""Sharded weights (FSDP2) and activation checkpointing.

A sharded module all-gathers its weights for a call and reshards them afterwards. The optimiser and the averaged
teacher work on shards. No other part of the library depends on sharding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from selfdistill.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parallel:
    """How the ranks share a model."""

    kind: Literal["none", "ddp", "fsdp2", "hsdp"] = "ddp"
    """``"ddp"``: every rank holds the whole model. ``"fsdp2"``: every rank holds a shard of every weight. ``"hsdp"``:
    every group of ``shards`` ranks holds one sharded copy. Gradients are summed over all ranks."""
    param_dtype: torch.dtype | None = None
    """Number type in which sharded weights are computed; None is their own."""
    reduce_dtype: torch.dtype | None = None
    """Number type of the gradient reduction of sharded weights; None is float32, or wider for wider weights."""
    activation_checkpointing: bool = False
    """Whether the backward pass recomputes the activations of each layer."""
    cpu_offload: bool = False
    """Whether shards and optimiser state stay in CPU memory."""
    shards: int | None = None
    """Ranks per sharded copy under ``"hsdp"``; None is the number of ranks of this machine."""

    @property
    def sharded(self) -> bool:
        """Whether the weights are sharded."""
        return self.kind in ("fsdp2", "hsdp")

    def check(self, size: int) -> None:
        """Refuse settings that do not fit each other or a world of ``size`` ranks.

        Raises:
            ConfigError: names the setting and what would be right.
        """
        if self.kind == "none" and size > 1:
            raise ConfigError(
                f'parallel.kind is "none", but {size} processes were started: set it to "ddp", "fsdp2" or "hsdp"'
            )
        given = {"param_dtype": self.param_dtype, "reduce_dtype": self.reduce_dtype, "cpu_offload": self.cpu_offload}
        for key, value in given.items():
            if value and not self.sharded:
                raise ConfigError(
                    f'parallel.{key} needs sharded weights: set parallel.kind to "fsdp2", or to "hsdp" '
                    "with parallel.shards = 1 for a whole copy on every rank"
                )
        if self.shards is not None and self.kind != "hsdp":
            raise ConfigError(f'parallel.shards is for parallel.kind = "hsdp", which is {self.kind!r} here')
        if self.kind == "hsdp" and size % self._shards(size):
            raise ConfigError(
                f"parallel.shards is {self._shards(size)}, which does not divide the number of processes, {size}"
            )

    def mesh(self, device: torch.device) -> DeviceMesh:
        """The device mesh: one axis for ``"fsdp2"``, replicas × shards for ``"hsdp"``.

        A single process gets a process group of size one first, because FSDP2 needs a group.
        """
        if not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        size = dist.get_world_size()
        if self.kind == "fsdp2":
            return init_device_mesh(device.type, (size,))
        shards = self._shards(size)
        return init_device_mesh(device.type, (size // shards, shards), mesh_dim_names=("replicate", "shard"))

    def _shards(self, size: int) -> int:
        return self.shards or int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))


def shard(
    module: nn.Module,
    layers: Sequence[nn.Module],
    parallel: Parallel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    doors: Sequence[str],
) -> None:
    """Shard each layer as one unit, and all remaining weights as another.

    Gradients are then summed over ranks, not averaged, because each rank's loss is its share of the total.
    ``doors`` are the methods besides ``forward`` that use weights. ``dtype`` is the number type of the model.

    Raises:
        ConfigError: this torch is too old.
    """
    if "reset_iter_state" not in vars(FSDPModule):
        raise ConfigError(f"parallel.kind = {parallel.kind!r} needs torch 2.13 or newer; this is {torch.__version__}")
    mesh = parallel.mesh(device)
    precision = MixedPrecisionPolicy(
        param_dtype=parallel.param_dtype,
        reduce_dtype=parallel.reduce_dtype or torch.promote_types(dtype, torch.float32),
    )
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if parallel.cpu_offload else OffloadPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision, offload_policy=offload)
    # The root module is called with token ids, log-probabilities and loss weights, which must not be rounded.
    whole_module = replace(precision, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=whole_module, offload_policy=offload)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # gloo has no scaled reduction, which FSDP2 would use for the divide factor.
            part.set_force_sum_reduction_for_comms(True)
    for name in doors:
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are sharded."""
    return isinstance(module, FSDPModule)


@contextmanager
def whole(module: nn.Module, probe: Callable[[], object]) -> Iterator[None]:
    """Keep a module unsharded on every rank, so that ranks may call it different numbers of times.

    ``probe`` is a small forward pass that all-gathers them. Every rank must enter. Each rank needs memory for the whole
    module.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.set_reshard_after_forward(False)
    try:
        with torch.no_grad():
            probe()
        yield
    finally:
        module.set_reshard_after_forward(True)
        # The root keeps its own weights after a forward pass: the loss uses the LM head until the backward is done.
        module.set_reshard_after_forward(False, recurse=False)
        release(module)


def release(module: nn.Module) -> None:
    """Reshard after forward passes without a backward; otherwise later passes would use stale weights."""
    if isinstance(module, FSDPModule):
        module.reset_iter_state()


def recompute(layers: Sequence[nn.Module]) -> None:
    """Checkpoint the activations of these layers. The layers use no random numbers, so no random state is kept."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip the gradients to a total norm over all shards; returns the norm before clipping."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


@torch.no_grad()
def put(room: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every rank has, into a whole or sharded tensor."""
    if isinstance(room, DTensor):
        value = distribute_tensor(value.to(room.device), room.device_mesh, room.placements, src_data_rank=None)
    room.copy_(value)


@torch.no_grad()
def gathered(module: nn.Module, *, keep: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict with whole tensors in CPU memory, on ranks that ``keep`` it; elsewhere the tensors are empty.

    Every rank must call, because shards are all-gathered. ``dtype`` is the number type of the parameters; None is their
    own.
    """
    whole_of: dict[int, Tensor] = {}
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        # Tied weights have two names and must stay one tensor, so that they are written once.
        if id(value) not in whole_of:
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if dtype is not None and isinstance(value, nn.Parameter):
                full = full.to(dtype)
            whole_of[id(value)] = full.detach().cpu() if keep else full.new_empty(0)
        state[name] = whole_of[id(value)]
    return state
