"""Sharded weights (FSDP2) and activation checkpointing.

A sharded module all-gathers its weights for a call and reshards them afterwards. The optimiser and the averaged
teacher work on shards. No other part of the library depends on sharding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial

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

from selfdistill.config.sections import ParallelConfig
from selfdistill.errors import ConfigError


def check_parallel(config: ParallelConfig, size: int) -> None:
    """Refuse settings that do not fit each other or a world of ``size`` ranks.

    Raises:
        ConfigError: names the setting and what would be right.
    """
    if config.kind == "none" and size > 1:
        raise ConfigError(
            f'parallel.kind is "none", but {size} processes were started: set it to "ddp", "fsdp2" or "hsdp"'
        )
    for key in ("param_dtype", "reduce_dtype", "cpu_offload"):
        if getattr(config, key) and not config.sharded:
            raise ConfigError(
                f'parallel.{key} needs sharded weights: set parallel.kind to "fsdp2", or to "hsdp" '
                "with parallel.shards = 1 for a whole copy on every rank"
            )
    if config.shards is not None and config.kind != "hsdp":
        raise ConfigError(f'parallel.shards is for parallel.kind = "hsdp", which is {config.kind!r} here')
    if config.kind == "hsdp" and size % _shards(config, size):
        raise ConfigError(
            f"parallel.shards is {_shards(config, size)}, which does not divide the number of processes, {size}"
        )


def _mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh:
    """The device mesh: one axis for ``"fsdp2"``, replicas × shards for ``"hsdp"``.

    A single process gets a process group of size one first, because FSDP2 needs a group.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    size = dist.get_world_size()
    if config.kind == "fsdp2":
        return init_device_mesh(device.type, (size,))
    shards = _shards(config, size)
    return init_device_mesh(device.type, (size // shards, shards), mesh_dim_names=("replicate", "shard"))


def _shards(config: ParallelConfig, size: int) -> int:
    return config.shards or int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))


def shard(
    module: nn.Module,
    layers: Sequence[nn.Module],
    config: ParallelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    computes: torch.dtype | None,
    forward_methods: Sequence[str],
) -> None:
    """Shard each layer as one unit, and all remaining weights as another.

    Gradients are then summed over ranks, not averaged, because each rank's loss is its share of the total.
    ``forward_methods`` are the methods besides ``forward`` that use weights. ``dtype`` is the number type of the
    weights, and ``computes`` that of the forward pass where ``config.param_dtype`` is unset; None is their own.

    Raises:
        ConfigError: this torch is too old.
    """
    if "reset_iter_state" not in vars(FSDPModule):
        raise ConfigError(f"parallel.kind = {config.kind!r} needs torch 2.13 or newer; this is {torch.__version__}")
    mesh = _mesh(config, device)
    precision = MixedPrecisionPolicy(
        param_dtype=getattr(torch, config.param_dtype) if config.param_dtype else computes,
        reduce_dtype=getattr(torch, config.reduce_dtype)
        if config.reduce_dtype
        else torch.promote_types(dtype, torch.float32),
    )
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.cpu_offload else OffloadPolicy()
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
    for name in forward_methods:
        register_fsdp_forward_method(module, name)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's weights are sharded."""
    return isinstance(module, FSDPModule)


@contextmanager
def unsharded(module: nn.Module, probe: Callable[[], object]) -> Iterator[None]:
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


def checkpoint_activations(
    layers: Sequence[nn.Module], inside: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    """Checkpoint the activations of these layers. They are computed again in the context ``inside`` of the layer.

    The layers use no random numbers, so no random state is kept.
    """
    for layer in layers:
        # The forward pass is in the context already, its repetition in the backward pass is not.
        contexts = partial(lambda layer: (nullcontext(), inside(layer)), layer)
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )


def clip_grad_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Clip the gradients to a total norm over all shards; returns the norm before clipping."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


@torch.no_grad()
def copy_into(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every rank has, into a whole or sharded tensor."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


@torch.no_grad()
def full_state_dict(module: nn.Module, *, keep: bool, dtype: torch.dtype | None) -> dict[str, Tensor]:
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
