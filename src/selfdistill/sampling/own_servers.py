"""vLLM servers that a run starts, watches and ends (``sampler.servers``).

They are sent weights and requests as servers that a user started. A server that ended or no longer answers is started
again once. It then gets the current weights, and the requests that it left open are sent again with the same seeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from selfdistill.config.sampler import ServerConfig, VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import ConfigError, SamplerError
from selfdistill.files.http import BackOff
from selfdistill.files.text import counted
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.sampling.server import Failed, ServerSampler
from selfdistill.sampling.server_process import HOST, ServerProcess, end_all, free_ports, wait_for_health
from selfdistill.sampling.vllm import OF_A_RANK, VISIBLE, WORKER_EXTENSION, lora_rank, visible_devices
from selfdistill.types import Weights

STARTS = 2
"""How often a server is started in one run."""
MOMENT = 2.0
"""Seconds within which a server that broke a connection ends, if it does."""


class OwnServers(ServerSampler):
    """Samples from servers in processes of their own, which start with the first weights and end with the run."""

    remedy = "continue the run with --resume, which starts them again"

    def __init__(
        self,
        base: str,
        chat: Chat,
        config: VLLMConfig,
        *,
        dtype: str,
        folder: Path,
        logs: Path,
        devices: Sequence[Sequence[int]] | None,
        log: Callable[[str], None],
    ) -> None:
        """``base`` is the model that training starts from. Each server's output goes to a file in ``logs``.

        ``devices`` are the GPUs of each server, as indices of the visible ones; None on a machine without GPUs.
        """
        assert config.servers is not None, "sampler.servers asks for this engine"
        ports = free_ports(config.servers)
        names = [f"vLLM server {n} of {config.servers}" for n in range(1, config.servers + 1)]
        self.processes = [
            ServerProcess(name, port, logs / f"server-{n}.log")
            for n, (name, port) in enumerate(zip(names, ports, strict=True), 1)
        ]
        settings = ServerConfig(
            kind="server",
            urls=[process.url for process in self.processes],
            sleep=config.sleep,
            timeout=config.timeout,
            concurrency=config.max_num_seqs,
        )
        super().__init__(chat, settings, folder=folder, log=log)
        # Proxies of the environment are not for servers of this machine.
        self._session.trust_env = False
        self.base = resolve_model(base)
        self.engine = config
        self.dtype = dtype
        self.devices = devices
        self.adapter_rank = 0
        """vLLM's maximum rank of adapters; 0 without an adapter."""
        self.suspects: dict[str, Failed] = {}
        """The last failure of each server that has failed since it was last looked at."""

    def update(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> None:
        """Sync the weights to every server. The first call starts the servers, on rank 0.

        Raises:
            SamplerError: a server ended while it started, or for the second time, or none can load the weights.
        """
        self.adapter_rank = lora_rank(policy) if policy.is_lora else 0
        super().update(policy, version, world, weights=weights)

    def close(self) -> None:
        """End the servers and remove the weights written for them."""
        end_all(self.processes)
        super().close()

    def _ready(self) -> list[str]:
        self._mend()
        return super()._ready()

    def _recover(self, tries: BackOff) -> None:
        if not self._mend():
            super()._recover(tries)

    def _lost(self, url: str, failure: Failed) -> None:
        super()._lost(url, failure)
        self.suspects[url] = failure

    def _mend(self) -> bool:
        """Start the servers that do not run, and those that hang anew; returns whether there were any.

        Raises:
            SamplerError: one ended while it started, or must not be started again.
        """
        suspects, self.suspects = self.suspects, {}

        def is_broken(process: ServerProcess) -> bool:
            failure = suspects.get(process.url)
            if failure is None or failure.late:
                return failure is not None or process.ended
            return process.ends_within(MOMENT) or not process.healthy()

        broken = [process for process in self.processes if is_broken(process)]
        for process in broken:
            self._announce(process)
        # All of them at once: loading a model takes minutes.
        end_all(broken)
        for process in broken:
            self.loaded.pop(process.url, None)
            self.asleep.discard(process.url)
            process.start(self._command(process), self._environment(process))
        if broken:
            wait_for_health(broken, "starting")
        return bool(broken)

    def _announce(self, process: ServerProcess) -> None:
        """Say that a server is started, and why if it was before."""
        if not process.starts:
            self.log(f"{process.name} starts at {process.url}; its output is in {process.log}")
            return
        what = "ended" if process.ended else "no longer answers"
        if process.starts >= STARTS:
            raise SamplerError(
                f"{process.name} {what}, for the second time; a run is saved and goes on with --resume; the server "
                f"said last:{process.last_lines()}"
            )
        self.log(f"{process.name} {what}: it is started again, once")

    def _command(self, process: ServerProcess) -> list[str]:
        """The command that the documentation gives for servers of a user's own, with the config's values."""
        # vLLM cannot start with an adapter as its model, so it starts with the whole weights that were written.
        adapter = (Path(self.base) / "adapter_config.json").is_file()
        engine = self.engine
        options: dict[str, object] = {
            "model": self.path if adapter and self.path is not None else self.base,
            "host": HOST,
            "port": process.port,
            "dtype": self.dtype,
            "gpu-memory-utilization": engine.gpu_memory_utilization,
            "tensor-parallel-size": engine.tensor_parallel_size,
            "max-model-len": engine.max_model_len or self.chat.window,
            "max-num-seqs": engine.max_num_seqs,
            "worker-extension-cls": WORKER_EXTENSION,
            "logprobs-mode": "raw_logprobs",
            # Do not use the model's generation defaults, such as a temperature or a repetition penalty.
            "generation-config": "vllm",
            "max-lora-rank": self.adapter_rank or None,
        }
        switches = {
            "enable-scale-out": True,
            # One line for each request would bury what a server says when it fails.
            "disable-uvicorn-access-log": True,
            "enforce-eager": engine.enforce_eager,
            "enable-sleep-mode": engine.sleep,
            "enable-lora": bool(self.adapter_rank),
        }
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *(part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))),
            *(f"--{name}" for name, on in switches.items() if on),
        ]

    def _environment(self, process: ServerProcess) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        # The log is a file, and its last lines may be part of a message.
        own |= {"VLLM_SERVER_DEV_MODE": "1", "NO_COLOR": "1"}
        if self.adapter_rank:
            own["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.devices is not None:
            own[VISIBLE] = visible_devices(self.devices[self.processes.index(process)])
        return own


def server_devices(config: VLLMConfig, *, taken: Sequence[int], count: int) -> list[list[int]] | None:
    """The GPUs of each server, as indices of the ``count`` visible ones; None if there is none.

    Without ``sampler.devices`` they are the first ones that no rank has ``taken``.

    Raises:
        ConfigError: there are fewer GPUs than the servers need, or those of ``sampler.devices`` do not exist.
    """
    assert config.servers is not None, "sampler.servers asks for servers"
    each = config.tensor_parallel_size
    needed, chosen = config.servers * each, config.devices
    if chosen is not None and max(chosen) >= count:
        raise ConfigError(f"sampler.devices names GPU {max(chosen)}, and this machine has {counted(count, 'GPU')}")
    if not count:
        if config.sleep:
            raise ConfigError("sampler.sleep needs a GPU: vLLM's CPU engine cannot sleep")
        return None
    if chosen is None:
        chosen = [device for device in range(count) if device not in taken][:needed]
    if len(chosen) < needed:
        spread = f" of {each} GPUs each" if each > 1 else ""
        raise ConfigError(
            f"sampler.servers = {config.servers}{spread} is more than this machine has room for: of its "
            f"{counted(count, 'GPU')} the run itself trains on {len(taken)}; lower sampler.servers, name GPUs in "
            "sampler.devices (one may be named twice, and shared with training), or leave sampler.servers out, for "
            "engines that share the GPUs of the ranks"
        )
    return [chosen[n : n + each] for n in range(0, needed, each)]
