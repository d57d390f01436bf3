"""Ranks and their collectives: all-gather, broadcast, all-reduce. A single process is a world of size one.

Completions, verdicts and per-token scores are small, so they are all-gathered: every rank knows the whole step and
takes the same decisions. Only forward and backward passes are split over ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from selfdistill.distributed.signals import LAUNCHED, LOST
from selfdistill.errors import TrainingError, UserError

T = TypeVar("T")

BUCKET = 1 << 25
"""Gradient elements per all-reduce: 128 MB in float32. That costs little memory and still uses the full bandwidth."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's rank. ``local_rank`` is the rank within its machine, which is also the index of its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> World:
        """The world of the initialised process group, or a world of one without a group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return cls()

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0. Only rank 0 writes files and logs."""
        return self.rank == 0

    def shard_indices(self, count: int) -> range:
        """Indices of this rank's share of ``count`` items. Neighbouring items go to different ranks."""
        return range(self.rank, count, self.size)

    def all_gather(self, item: T) -> list[T]:
        """All-gather one object per rank; returns them in the order of ranks, on every rank."""
        if self.size == 1:
            return [item]
        items: list[T | None] = [None] * self.size
        dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def all_gather_by_index(self, own: Mapping[int, T], count: int) -> list[T]:
        """All-gather items by index: each rank gives those that it made. Returns items 0 to ``count`` − 1."""
        items = {index: item for part in self.all_gather(own) for index, item in part.items()}
        return [items[index] for index in range(count)]

    def max(self, value: int) -> int:
        """The maximum over the ranks."""
        if self.size == 1:
            return value
        maximum = torch.tensor(value)
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
        return int(maximum)

    def broadcast_from_rank_zero(self, ask: Callable[[], T]) -> T:
        """The result of ``ask`` on rank 0, broadcast. A ``UserError`` that it raises is raised on every rank."""
        if self.size == 1:
            return ask()
        answer: list[T | UserError | None] = [None]
        if self.is_rank_zero:
            try:
                answer[0] = ask()
            except UserError as error:
                answer[0] = error
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], UserError):
            raise answer[0]
        return answer[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """All-reduce the gradients: each becomes its sum over the ranks. A gradient that no rank has stays None.

        Called once per update, after the last micro-batch. The sum is taken in float32 or wider.
        """
        if self.size == 1 or not parameters:
            return
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        dist.all_reduce(present, dist.ReduceOp.MAX)
        bucket: list[Tensor] = []
        for parameter, somewhere in zip(parameters, present.tolist(), strict=True):
            if not somewhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and sum(grad.numel() for grad in bucket) + parameter.numel() > BUCKET:
                _add(bucket)
                bucket = []
            bucket.append(parameter.grad)
        _add(bucket)


ALONE = World()
"""A single process."""
SIGNS_OF_LOSS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "remote process exited")
"""Parts of the error messages of gloo and NCCL when a peer is gone."""


def _add(grads: Sequence[Tensor]) -> None:
    if not grads:
        return
    dtype = torch.float32
    for grad in grads:
        dtype = torch.promote_types(dtype, grad.dtype)
    flat = torch.cat([grad.flatten().to(dtype) for grad in grads])
    dist.all_reduce(flat)
    for grad, total in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(total.view_as(grad))


@contextmanager
def report_error_once(*, resume: str) -> Iterator[None]:
    """Report a fatal error from one rank only.

    All ranks find the same user error, and all surviving ranks notice a lost peer; the user reads one message. The
    other ranks exit silently, with code 2 or with :data:`LOST`. ``resume`` tells the user how to continue. A single
    process is left alone.

    Raises:
        TrainingError: the rendezvous failed, or a rank was lost.
    """
    if _size() == 1:
        yield
        return
    try:
        _Meeting.store, _, _ = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TrainingError(f"the {_size()} processes do not meet at {where}: {str(error).splitlines()[0]}") from error
    try:
        yield
    except UserError as error:
        if not _is_first_to_report():
            raise SystemExit(2) from error
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        if LAUNCHED in os.environ or not _is_first_to_report():
            # Not sys.exit: gloo's destructors can abort the interpreter's shutdown when a peer is gone, and this rank
            # would then look like the one that was killed.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(LOST)
        lost = f"rank {os.environ['RANK']} has lost another process of the run, which ended or was killed"
        raise TrainingError(f"{lost}; {resume}") from error
    if dist.is_initialized():
        dist.destroy_process_group()


def connect(*, cuda: bool, timeout: float) -> World:
    """Initialise the process group from the environment that torchrun, ``--launch`` or a scheduler has set.

    Returns this process's world. ``timeout`` is in seconds: how long a rank waits in a collective for the others. Must
    be called inside :func:`report_error_once`, which makes the rendezvous.

    Raises:
        TrainingError: this machine has fewer GPUs than processes.
    """
    if _size() > 1:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if cuda and local >= torch.cuda.device_count():
            raise TrainingError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        if cuda:
            torch.cuda.set_device(local)
        dist.init_process_group(
            # Gradients use NCCL on GPUs. Records and flags are CPU objects and always use gloo.
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timedelta(seconds=timeout),
            store=dist.PrefixStore("run", _Meeting.store),  # type: ignore[attr-defined]
            rank=int(os.environ["RANK"]),
            world_size=_size(),
        )
    return World.current()


class _Meeting:
    """The rendezvous store. Ranks share keys in it even before and after the process group exists."""

    store: Any


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _is_first_to_report() -> bool:
    try:
        return bool(_Meeting.store.add("spoken", 1) == 1)
    except RuntimeError:
        # The lost process hosted the store. The launcher reports the error, where there is one.
        return LAUNCHED not in os.environ


def is_lost(error: RuntimeError) -> bool:
    """Whether an error means that a peer no longer answers."""
    # gloo and NCCL have no error type for it, so the message decides.
    return isinstance(error, dist.DistNetworkError) or any(word in str(error) for word in SIGNS_OF_LOSS)
