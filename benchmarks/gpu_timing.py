"""Seconds and memory of an action on a GPU, or on a CPU without the memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def device_words(device: str) -> str:
    """What the figures are of."""
    if device == "cpu":
        return "a CPU (no GPU: seconds and memory say nothing about one)"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def timed(action: Callable[[], Any], repeats: int, device: str) -> dict[str, Any]:
    """Median seconds after one run that is not counted, and the peak of allocated memory above the beginning (GPU)."""
    on_gpu = device != "cpu"
    seconds = []
    for number in range(repeats + 1):
        gc.collect()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_gpu else 0
        began = time.perf_counter()
        action()
        if on_gpu:
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - began)
    added = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None
    total = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    return {"seconds": median(seconds), "added_mib": added, "peak_mib": total}


def free_memory(device: str) -> None:
    """Drop what nobody refers to any more, and give torch's cached memory back to the device."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
