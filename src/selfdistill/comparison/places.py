"""How many runs of a comparison go at a time, and which GPUs each of them sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfdistill.config.run import ResolvedConfig
from selfdistill.config.sampler import EngineConfig, ServerConfig, VLLMConfig
from selfdistill.errors import ConfigError
from selfdistill.files.text import counted
from selfdistill.sampling.vllm import VISIBLE, visible_devices


@dataclass(frozen=True, slots=True)
class Places:
    """Places of runs that go at the same time: the GPUs of each as ``CUDA_VISIBLE_DEVICES``, None without a choice."""

    gpus: tuple[str | None, ...]

    @property
    def environments(self) -> list[dict[str, str]]:
        """What the environment of each place adds."""
        return [{} if gpus is None else {VISIBLE: gpus} for gpus in self.gpus]

    def told(self) -> str:
        """Which GPUs they have, as the end of a sentence; nothing where none were chosen."""
        chosen = [gpus for gpus in self.gpus if gpus is not None]
        return f", on GPUs {' and '.join(chosen)}" if len(chosen) > 1 else ""


def places(config: ResolvedConfig, *, jobs: int | None, runs: int, cores: int) -> Places:
    """Where ``runs`` runs of a comparison go. ``jobs`` is how many at a time, None leaves it to the machine.

    On a CPU that is one for each of its ``cores``, or one if an engine draws. On CUDA each run has the GPUs that it
    needs to itself, as long as there are enough. Other accelerators, and GPUs that the config names, have one run at a
    time.

    Raises:
        ConfigError: ``jobs`` runs of several GPUs each need more than there are.
    """
    device, _, number = config.model.device.partition(":")
    named = number or (isinstance(config.sampler, VLLMConfig) and config.sampler.devices is not None)
    if device != "cuda" or named:
        alone = device != "cpu" or isinstance(config.sampler, EngineConfig)
        return Places((None,) * min(jobs or (1 if alone else cores), runs))
    if isinstance(config.sampler, ServerConfig):
        # Runs at once would overwrite each other's weights on the servers.
        jobs = jobs or 1
    visible = visible_devices(range(torch.cuda.device_count())).split(",")
    return Places(tuple(shared_out(visible, gpus_of(config), jobs=jobs, runs=runs)))


def gpus_of(config: ResolvedConfig) -> int:
    """GPUs that one run needs: its own, and those of its engine or its servers."""
    sampler = config.sampler
    if not isinstance(sampler, VLLMConfig):
        return 1
    if sampler.servers is None:
        return sampler.tensor_parallel_size
    return 1 + sampler.servers * sampler.tensor_parallel_size


def shared_out(visible: Sequence[str], needed: int, *, jobs: int | None, runs: int) -> list[str]:
    """The GPUs of each run that goes at the same time, with commas between them.

    Several runs share a GPU if there are more of them than GPUs, which ``jobs`` must ask for.

    Raises:
        ConfigError: more runs of several GPUs each than there is room for.
    """
    room = max(1, len(visible) // needed)
    count = min(jobs or room, runs)
    if count > room and needed > 1:
        raise ConfigError(
            f"--jobs {jobs}: a run takes {needed} GPUs, and {counted(len(visible), 'GPU')} of this machine "
            f"{'has' if len(visible) == 1 else 'have'} room for {counted(room, 'run')} at a time"
        )
    parts = [",".join(visible[n * needed : (n + 1) * needed]) for n in range(room)]
    return [parts[n % room] for n in range(count)]
