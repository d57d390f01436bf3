"""Worker extension of vLLM: ``--worker-extension-cls selfdistill.sampling.vllm_worker.WorkerExtension``.

vLLM mixes the class into its worker. It imports nothing else of this package, so a server needs only its source.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

RELOAD = "vllm.model_executor.model_loader.reload.layerwise"
"""vLLM's logger of weights that are loaded again."""


class WorkerExtension:
    """Loads new weights from a directory, or from a process on the same machine."""

    def end_with(self, process: int) -> None:
        """End the worker's process as soon as another one has ended, by its number.

        vLLM's processes go on, with the GPU's memory, when the one that started them is killed.
        """
        if process == os.getpid() or not hasattr(os, "pidfd_open"):
            return
        try:
            descriptor = os.pidfd_open(process)
        except OSError:
            # A container may forbid this call.
            return
        threading.Thread(target=_end_with, args=(descriptor,), daemon=True).start()

    def receive_weights(self, path: str) -> str:
        """Load the directory's weights in place; returns the directory as an acknowledgement."""
        return self._load(path, weights_path=path)

    def receive_stream(self, path: str) -> str:
        """Load the weights that ``weight_stream.stream`` sends through this socket; returns the path."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            return self._load(path, weights_iterator=_received(connection))

    def _load(self, path: str, **weights: Any) -> str:
        worker: Any = self
        # A head that is tied, and tables of rotations, come with no weights of their own. vLLM would warn of both in
        # every step.
        config = getattr(worker.model_runner.get_model(), "config", None)
        tied = getattr(config, "tie_word_embeddings", False)
        with _without_warnings_of(("RotaryEmbedding", "ParallelLMHead") if tied else ("RotaryEmbedding",)):
            worker.reload_weights(**weights)
        # On a CPU vLLM packs the LM head's weight into a copy. A head tied to the embeddings is not loaded itself, so
        # the copy has to be packed again here.
        for module in worker.model_runner.get_model().modules():
            if type(module).__name__ == "ParallelLMHead":
                module.quant_method.process_weights_after_loading(module)
        return path


@contextmanager
def _without_warnings_of(endings: tuple[str, ...]) -> Iterator[None]:
    """Drop vLLM's warnings that a layer was given no weights, for classes whose names end so."""
    logger = logging.getLogger(RELOAD)

    def keeps(record: logging.LogRecord) -> bool:
        layer, _, what = record.getMessage().partition(":")
        return not (what.strip() == "Failed to load weights" and layer.endswith(endings))

    logger.addFilter(keeps)
    try:
        yield
    finally:
        logger.removeFilter(keeps)


def _end_with(descriptor: int) -> None:
    """Kill this process when the one of a descriptor has ended."""
    ended = select.poll()
    ended.register(descriptor, select.POLLIN)
    ended.poll()
    os.kill(os.getpid(), signal.SIGKILL)


GONE = "the process that sends the weights has ended"
"""Its connection is seen to be closed when a worker reads, or when it answers."""


def _received(connection: socket.socket) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and a copy of every tensor that is sent, until the sender says that there are no more."""
    memory: mmap.mmap | None = None
    while True:
        text, descriptors = b"", list[int]()
        while not text.endswith(b"\n"):
            part, more, _, _ = socket.recv_fds(connection, 1 << 16, 1)
            if not part:
                raise EOFError(GONE)
            text, descriptors = text + part, descriptors + more
        message = json.loads(text)
        if descriptors:
            memory = mmap.mmap(descriptors[0], message["memory"])
            os.close(descriptors[0])
        elif message["tensors"] is not None:
            for name, dtype, shape, offset in message["tensors"]:
                empty = torch.empty(shape, dtype=getattr(torch, dtype))
                if empty.numel():
                    # Copied, because vLLM may keep a tensor until the rest of its layer has come.
                    empty.copy_(
                        torch.frombuffer(memory, dtype=empty.dtype, count=empty.numel(), offset=offset).view(shape)
                    )
                yield name, empty
        try:
            connection.sendall(b"ok\n")
        except ConnectionError as error:
            raise EOFError(GONE) from error
        if not descriptors and message["tensors"] is None:
            return
