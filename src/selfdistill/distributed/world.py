"""The processes of a run: ranks, what is agreed on, gathered and summed. One process is a world of size one.

Everything small (completions, verdicts, per-token scores) is gathered, so that every rank knows the whole step and
decides alike; only forward passes are split.
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
"""Gradient numbers that are summed at once: 128 MB in float32, few enough to spare, many enough for the network."""


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among its peers. ``local_rank`` counts those of one machine, and names the device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def current(cls) -> World:
        """The initialised process group, or a world of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return cls()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this rank's; neighbours go to different ranks."""
        return range(self.rank, count, self.size)

    def gather(self, mine: T) -> list[T]:
        """Every rank's object, in the order of ranks, on every rank."""
        if self.size == 1:
            return [mine]
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found  # type: ignore[return-value]

    def merge(self, mine: Mapping[int, T], count: int) -> list[T]:
        """Things 0 to ``count`` − 1, each known to one rank, on every rank."""
        known = {place: thing for part in self.gather(mine) for place, thing in part.items()}
        return [known[place] for place in range(count)]

    def max(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def from_first(self, ask: Callable[[], T]) -> T:
        """What rank 0 finds, on every rank; where it finds a user's mistake, every rank raises it."""
        if self.size == 1:
            return ask()
        answer: list[T | UserError | None] = [None]
        if self.first:
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
        """Replace every gradient by its sum over the ranks; one that no rank has stays absent.

        Once a step, after the last micro-batch. Sums are taken in float32 at least.
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
"""One process on its own."""
SIGNS_OF_LOSS = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "remote process exited")
"""What gloo and NCCL say when another process is gone."""


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
def one_voice(*, resume: str) -> Iterator[None]:
    """Let one process of the run say what ends it, where the environment says that there are several.

    A user's mistake that all of them find is told once; so is the loss of a process, which all others notice.
    ``resume`` says how to go on. The processes that stay silent exit with code 2, or with :data:`LOST`.

    Raises:
        TrainingError: the processes do not find each other, or one was lost.
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
        if not _first_to_speak():
            raise SystemExit(2) from error
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        if LAUNCHED in os.environ or not _first_to_speak():
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
    """Join the processes that torchrun, ``--launch`` or a scheduler has started: as the environment says.

    ``timeout`` are the seconds after which a rank gives up waiting for the others. To be called in :func:`one_voice`.

    Raises:
        TrainingError: this machine has fewer devices than processes.
    """
    if _size() > 1:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if cuda and local >= torch.cuda.device_count():
            raise TrainingError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        if cuda:
            torch.cuda.set_device(local)
        dist.init_process_group(
            # Records and flags travel through the processors also where gradients do not.
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            timeout=timedelta(seconds=timeout),
            store=dist.PrefixStore("run", _Meeting.store),  # type: ignore[attr-defined]
            rank=int(os.environ["RANK"]),
            world_size=_size(),
        )
    return World.current()


class _Meeting:
    """Where the processes leave notes for each other before and after they are connected."""

    store: Any


def _size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _first_to_speak() -> bool:
    try:
        return bool(_Meeting.store.add("spoken", 1) == 1)
    except RuntimeError:
        # It was kept by the process that is lost. Our parent speaks, where there is one.
        return LAUNCHED not in os.environ


def is_lost(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer any more."""
    # gloo and NCCL have no error types of their own for it.
    return isinstance(error, dist.DistNetworkError) or any(word in str(error) for word in SIGNS_OF_LOSS)
