"""One process of the loss benchmark: one path, forward and backward, with a clock and the peak of memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from loss_paths import PATHS, Problem, Unavailable, make_problem
from workload import peak_resident, resident

WARM_UP_TOKENS = 32
SAMPLED = 256
"""Entries of each gradient that are reported, evenly spread, so that two paths can be compared."""


def sample(gradient: Tensor | None) -> list[float]:
    """Some entries of a gradient."""
    assert gradient is not None
    flat = gradient.flatten()
    return flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].double().tolist()


def once(path: str, problem: Problem) -> dict[str, Any]:
    """Time of forward and backward, the loss, and the gradients' norms and samples."""
    problem.hidden_ND.grad = problem.weight_VD.grad = None
    wall, cpu = time.perf_counter(), time.process_time()
    loss = PATHS[path](problem)
    forward = time.perf_counter() - wall
    loss.backward()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    hidden, weight = problem.hidden_ND.grad, problem.weight_VD.grad
    assert hidden is not None and weight is not None
    return {
        "seconds": seconds,
        "forward_seconds": forward,
        "cpu_seconds": cpu_seconds,
        "loss": float(loss.detach()),
        "hidden_gradient": {"norm": float(hidden.norm()), "sample": sample(hidden)},
        "weight_gradient": {"norm": float(weight.norm()), "sample": sample(weight)},
    }


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Warm up on a few tokens, then measure ``repeats`` times; the peak is that of the whole."""
    path, repeats = spec["path"], spec["repeats"]
    sizes = {name: spec[name] for name in ("vocabulary", "width", "contexts", "divergence", "elements")}
    PATHS[path](make_problem(tokens=WARM_UP_TOKENS, **sizes)).backward()
    problem = make_problem(tokens=spec["tokens"], **sizes)
    loaded = resident()
    samples = [once(path, problem) for _ in range(repeats)]
    times = {name: median(s[name] for s in samples) for name in ("seconds", "forward_seconds", "cpu_seconds")}
    return {**samples[0], **times, "loaded_mib": loaded, "added_mib": peak_resident() - loaded}


def main(spec: dict[str, Any], target: Path) -> None:
    """Measure within a bound on memory, and write what came of it."""
    bound = int(spec["memory_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    try:
        report = {"outcome": "measured", **measure(spec)}
    except Unavailable as error:
        report = {"outcome": "not installed", "why": str(error)}
    except (MemoryError, RuntimeError) as error:
        # PyTorch raises a plain RuntimeError where the system gives no memory.
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        report = {"outcome": "out of memory"}
    target.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
