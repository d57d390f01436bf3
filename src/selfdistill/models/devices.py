"""The device and the number type of ``"auto"``, and how much memory a device has.

Only the functions that read a device or its memory query torch and the system; all others are pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from selfdistill.config.sections import Model, ModelConfig
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError

FAST_IN_BFLOAT16 = (8, 0)
"""CUDA compute capability from which bfloat16 has units of its own (Ampere). Older GPUs emulate it."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine. ``free`` and ``total`` are bytes; on a CPU both are the memory this process may use."""

    kind: str
    words: str
    free: int
    total: int
    capability: tuple[int, int] | None = None
    """CUDA's compute capability; None on other devices."""


def choose_device(gpus: Sequence[Device], mps_objection: str | None, *, ranks: int = 1) -> tuple[str, str]:
    """The device of ``"auto"``, and a warning about one that is skipped (empty: none).

    ``gpus`` are the CUDA devices by index. With several ranks each takes its own, which ``"cuda"`` names.
    ``mps_objection`` says why Apple's GPU cannot run this program; it is empty if it can, None if there is no such GPU.
    """
    if len(gpus) == 1 or (gpus and ranks > 1):
        return "cuda", ""
    if gpus:
        return f"cuda:{max(range(len(gpus)), key=lambda i: gpus[i].free)}", ""
    if mps_objection == "":
        return "mps", ""
    return "cpu", "" if mps_objection is None else f"mps is left out: {mps_objection}"


def choose_dtype(kind: str, capability: tuple[int, int] | None) -> Literal["float32", "bfloat16"]:
    """The number type of ``"auto"``: bfloat16 on a GPU that has units for it, else float32."""
    fast = kind == "cuda" and capability is not None and capability >= FAST_IN_BFLOAT16
    return "bfloat16" if fast else "float32"


def resolve_device(config: ModelConfig) -> tuple[Model, str]:
    """The model's config with device and number type decided, and a warning about a device that is skipped."""
    name, warning = config.device, ""
    if name == "auto":
        gpus = [gpu for i in range(torch.cuda.device_count()) if (gpu := read_device(f"cuda:{i}"))]
        name, warning = choose_device(gpus, mps_objection(), ranks=World.current().size)
    dtype = config.dtype
    if dtype == "auto":
        device = read_device(name)
        dtype = choose_dtype(name.partition(":")[0], None if device is None else device.capability)
    return Model(**{**dict(config), "device": name, "dtype": dtype}), warning


def on_gpu(config: ModelConfig) -> bool:
    """Whether the ranks of a run will train on CUDA devices, before their process group exists."""
    return torch.cuda.is_available() if config.device == "auto" else config.device != "cpu"


def mps_objection() -> str | None:
    """Why Apple's GPU cannot run this program; empty if it can, None if there is none."""
    if not torch.backends.mps.is_available():
        return None
    try:
        torch.zeros(1, dtype=torch.float64, device="mps")
    except (TypeError, RuntimeError):
        return "it has no float64, in which the log-probabilities of sampled tokens are kept"
    return ""


def read_device(name: str) -> Device | None:
    """The device of a name, ``"cuda"`` being this rank's own; None if it cannot be used here or is of another kind."""
    kind, _, index = name.partition(":")
    if kind == "cpu":
        memory = machine_memory()
        return None if memory is None else Device("cpu", "cpu", memory, memory)
    if kind == "mps" and torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory()
        return Device("mps", "Apple GPU", memory - torch.mps.current_allocated_memory(), memory)
    number = int(index) if index.isdigit() else World.current().local_rank
    if kind != "cuda" or number >= torch.cuda.device_count():
        return None
    free, total = torch.cuda.mem_get_info(number)
    words = torch.cuda.get_device_name(number)
    return Device("cuda", words, free, total, torch.cuda.get_device_capability(number))


def machine_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or less where a container or a job limits it.

    None if the system does not report it. The memory that is free now is not used, because it changes from run to run
    and a run's sizes should not.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([total, *_cgroup_limits()])


def _cgroup_limits(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """The limits in bytes of this process's control group and of those above it, in either version of cgroups."""
    limits = []
    try:
        # The name of a group may contain any bytes.
        lines = os.fsdecode(own.read_bytes()).splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, file = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        # Inside a container the group's own path may lie above the root that is mounted.
        directories = [base, *(base.joinpath(*Path(path).parts[1:n]) for n in range(2, len(Path(path).parts) + 1))]
        for directory in directories:
            try:
                text = (directory / file).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text.isdigit():
                limits.append(int(text))
    return limits


def parse_device(name: str) -> torch.device:
    """The torch device of a name. ``"cuda"`` is the GPU of this process's local rank.

    Raises:
        ConfigError: the device is unknown or missing on this machine.
    """
    try:
        device = torch.device(f"cuda:{World.current().local_rank}" if name == "cuda" else name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device {name!r} cannot be used here: {str(error).splitlines()[0]}; "
            "model.device=auto takes what there is"
        ) from error
    objection = mps_objection() if device.type == "mps" else None
    if objection:
        raise ConfigError(f"model.device {name!r} cannot be used: {objection}; write model.device=cpu")
    return device
