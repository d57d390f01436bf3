"""Weights to an engine on this machine without the disk: through a piece of shared memory, some layers at a time.

The memory has no name and belongs to the processes that hold it, so nothing is left of it when they end, however they
end. It holds as many layers as fit into :data:`PIECE`, at least one tensor. A sharded model is gathered tensor by
tensor, so no process holds a second whole model.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy

PIECE = 1 << 28
"""Bytes of shared memory. A larger tensor is given as many as it needs."""
ALIGNMENT = 64
"""Every tensor begins at a multiple of these bytes."""
LAYER = re.compile(r"^(.*?\.\d+)\.")
"""A weight's name up to the number of its layer."""


def can_stream() -> str | None:
    """Why weights cannot be streamed on this system; None if they can."""
    if not hasattr(os, "memfd_create"):
        return "this system has no anonymous shared memory (memfd_create)"
    return None


def whole_layers(policy: Policy) -> Iterator[dict[str, Tensor]]:
    """Yield the weights under the names and in the form of a checkpoint, one layer at a time.

    Shards are gathered, so all ranks must iterate. Tied weights are yielded once.
    """
    first_of: dict[int, tuple[str, Tensor]] = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        first_of.setdefault(id(value), (name, value))
    for _, layer in groupby(first_of.values(), key=lambda named: LAYER.findall(named[0])):
        # A checkpoint holds the experts of a layer apart, for example, and transformers keeps them in one tensor.
        whole = {name: _whole(policy, value) for name, value in layer}
        yield revert_weight_conversion(policy.model, whole)


def _whole(policy: Policy, value: Tensor) -> Tensor:
    """A weight without its shards, in the number type that it is saved in."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    converts = policy.dtype is not None and isinstance(value, nn.Parameter)
    return (whole.to(policy.dtype) if converts else whole).detach()


def stream(
    layers: Iterable[Mapping[str, Tensor]], receive: Callable[[str], object], receivers: int, *, piece: int = PIECE
) -> int:
    """Send weights to the workers of an engine on this machine; returns the number of bytes.

    ``receive`` is given the path of a socket. It makes all ``receivers`` workers call
    :meth:`~selfdistill.sampling.vllm_worker.WorkerExtension.receive_stream` with it, and returns when they have or
    when one cannot.

    Raises:
        SamplerError: a worker ended in the middle.
        Exception: whatever ``receive`` raises.
    """
    with TemporaryDirectory(prefix="selfdistill-") as folder, ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        path = str(Path(folder) / "weights")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(path)
        listener.listen(receivers)
        listener.settimeout(0.2)
        asked: Future[object] = pool.submit(receive, path)
        sender = _Sender()
        try:
            for _ in range(receivers):
                sender.add(stack.enter_context(_accepted(listener, asked)))
            for layer in layers:
                for name, tensor in layer.items():
                    sender.put(name, tensor, piece)
            sender.flush()
            sender.end()
        except (OSError, EOFError) as error:
            # The other workers wait for more, and the engine for them, until they are hung up on.
            sender.close()
            # The workers' own error says more than that they hung up.
            asked.result()
            raise SamplerError("a worker of the engine ended while it was sent weights") from error
        finally:
            sender.close()
        asked.result()
        return sender.sent


def _accepted(listener: socket.socket, asked: Future[object]) -> socket.socket:
    """The connection of one more worker. Raises what the request raised if it ended before."""
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if asked.done():
                asked.result()
                raise SamplerError("the engine has fewer workers than it was given") from None
            continue
        connection.setblocking(True)
        return connection


@dataclass(slots=True)
class _Sender:
    """Shared memory, what it holds, and the workers that read it."""

    connections: list[socket.socket] = field(default_factory=list)
    lines: list[IO[bytes]] = field(default_factory=list)
    tensors: list[tuple[str, str, tuple[int, ...], int]] = field(default_factory=list)
    """Name, number type, shape and offset of each tensor in the memory."""
    memory: mmap.mmap | None = None
    used: int = 0
    sent: int = 0

    def add(self, connection: socket.socket) -> None:
        """Count a worker in."""
        self.connections.append(connection)
        self.lines.append(connection.makefile("rb"))

    def put(self, name: str, tensor: Tensor, piece: int) -> None:
        """Copy a tensor into the memory, once there is room for it."""
        size = tensor.numel() * tensor.element_size()
        if self.memory is None or self.used + size > len(self.memory):
            self.flush()
        if self.memory is None or size > len(self.memory):
            self._share(max(size, piece))
        assert self.memory is not None
        if size:
            held = torch.frombuffer(self.memory, dtype=torch.uint8, count=size, offset=self.used)
            held.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self.tensors.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), self.used))
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        self.sent += size

    def flush(self) -> None:
        """Let the workers read what the memory holds, and wait until they have."""
        if self.tensors:
            self._say({"tensors": self.tensors})
        self.tensors, self.used = [], 0

    def end(self) -> None:
        """Tell the workers that all weights were sent."""
        self._say({"tensors": None})

    def close(self) -> None:
        """Hang up, and give the memory back."""
        for line in self.lines:
            line.close()
        for connection in self.connections:
            connection.close()
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def _share(self, size: int) -> None:
        """Make the memory, and hand it to the workers."""
        if self.memory is not None:
            self.memory.close()
        descriptor = os.memfd_create("selfdistill-weights")
        try:
            os.ftruncate(descriptor, size)
            self.memory = mmap.mmap(descriptor, size)
            for connection in self.connections:
                socket.send_fds(connection, [json.dumps({"memory": size}).encode() + b"\n"], [descriptor])
        finally:
            os.close(descriptor)
        self._heard()

    def _say(self, message: Mapping[str, object]) -> None:
        text = json.dumps(message).encode() + b"\n"
        for connection in self.connections:
            connection.sendall(text)
        self._heard()

    def _heard(self) -> None:
        """Wait for every worker's answer. Raises EOFError if one has hung up."""
        for line in self.lines:
            if line.readline() != b"ok\n":
                raise EOFError
