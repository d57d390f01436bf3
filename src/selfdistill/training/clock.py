"""Wall-clock time of the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selfdistill.errors import is_full, out_of_memory


class Clock:
    """Wall-clock seconds per phase. Synchronises the device first, because CUDA kernels run asynchronously."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device if device is not None and device.type != "cpu" else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a phase.

        Raises:
            OutOfMemory: the block ran out of memory; the message names the phase and the settings that reduce it.
        """
        began = time.perf_counter()
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            raise out_of_memory(error, name) from error
        finally:
            if self.device is not None:
                torch.accelerator.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
