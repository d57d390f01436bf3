"""Weights that are cut over ranks (FSDP2), and activations that are computed twice instead of kept.

Inside a call of a sharded module its weights are whole, outside each rank holds its shard. The optimiser and averaged
weights work on shards; nothing else in the library needs to know.
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
    """How the ranks share a model.

    ``"ddp"``: each holds all of it, gradients are summed. ``"fsdp2"``: each holds a shard of every weight. ``"hsdp"``:
    groups of ``shards`` ranks hold one copy each (unset: the ranks of a machine). ``param_dtype`` is what sharded
    weights are computed with and ``reduce_dtype`` what gradients are summed in, at least float32 where unset;
    ``cpu_offload`` keeps shards and optimiser in the machine's memory.
    """

    kind: Literal["none", "ddp", "fsdp2", "hsdp"] = "ddp"
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    activation_checkpointing: bool = False
    cpu_offload: bool = False
    shards: int | None = None

    @property
    def sharded(self) -> bool:
        """Whether weights are cut."""
        return self.kind in ("fsdp2", "hsdp")

    def check(self, size: int) -> None:
        """Refuse what cannot be, for a world of ``size`` ranks.

        Raises:
            ConfigError: one sentence.
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
        """The ranks as a line, or as groups of shards; a process on its own becomes a world of one."""
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
    """Cut every layer's weights, and the others' in one piece. Gradients are then summed over ranks, not averaged.

    ``doors`` are the methods besides ``forward`` that use weights; ``dtype`` is the model's own.

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
    # What the whole module is called with are ids, log-probabilities and weights of tokens: never to be rounded.
    whole_module = replace(precision, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh, mp_policy=whole_module, offload_policy=offload)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            # gloo knows no scaled sum, which a factor would else be made of.
            part.set_force_sum_reduction_for_comms(True)
    for name in doors:
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are cut."""
    return isinstance(module, FSDPModule)


@contextmanager
def whole(module: nn.Module, probe: Callable[[], object]) -> Iterator[None]:
    """All weights of a sharded module on every rank, so that each may call it as often as it likes.

    ``probe`` is a small forward pass. Every rank must enter. Costs the memory of the whole module.
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
        # The root's own weights stay after a forward: a head that was read is used until the backward is done.
        module.set_reshard_after_forward(False, recurse=False)
        release(module)


def release(module: nn.Module) -> None:
    """Back to shards, after forwards that no backward has followed: else later ones would meet stale weights."""
    if isinstance(module, FSDPModule):
        module.reset_iter_state()


def recompute(layers: Sequence[nn.Module]) -> None:
    """Keep no activations inside these layers, but compute them again in the backward. They draw no random numbers."""
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients down to a norm, that of all shards together; returns the norm before."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


@torch.no_grad()
def put(room: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every rank has, into a whole or sharded one."""
    if isinstance(room, DTensor):
        value = distribute_tensor(value.to(room.device), room.device_mesh, room.placements, src_data_rank=None)
    room.copy_(value)


@torch.no_grad()
def gathered(module: nn.Module, *, keep: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict with whole tensors, in the machine's memory, for ranks that ``keep`` it. Every rank must call.

    ``dtype`` is what parameters are written in; None: as they are.
    """
    whole_of: dict[int, Tensor] = {}
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        # Tied weights have two names; they are written once where they stay one tensor.
        if id(value) not in whole_of:
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if dtype is not None and isinstance(value, nn.Parameter):
                full = full.to(dtype)
            whole_of[id(value)] = full.detach().cpu() if keep else full.new_empty(0)
        state[name] = whole_of[id(value)]
    return state
