"""Build the sampling engine of the ``[sampler]`` table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from selfdistill.config.sampler import EngineConfig, SamplerConfig, ServerConfig, VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.sampling.own_servers import OwnServers, server_devices
from selfdistill.sampling.requests import Engine
from selfdistill.sampling.server import ServerSampler
from selfdistill.sampling.vllm import VLLMSampler, require_vllm
from selfdistill.types import External, Weights


def check_teacher(config: SamplerConfig, weights: Weights) -> None:
    """Refuse a teacher of another model that is to sample on the student's servers, which cannot hold it.

    Raises:
        ConfigError: names the teacher.
    """
    if not isinstance(weights, External):
        return
    other = f"the teacher {weights.path} is another model, which samples too"
    if isinstance(config, ServerConfig):
        raise ConfigError(f"sampler.kind 'server' serves the student, and {other}: set sampler.kind = 'hf' or 'vllm'")
    if isinstance(config, VLLMConfig) and config.servers is not None:
        raise ConfigError(f"sampler.servers serve the student, and {other}: leave sampler.servers out")


def build_engine(
    config: EngineConfig,
    policy: Policy,
    chat: Chat,
    *,
    model: str,
    dtype: str,
    folder: Path,
    log: Callable[[str], None],
    ranks: int = 1,
) -> Engine:
    """The engine of a config, not started yet. Weights are written for it into ``folder``, logs into the one above.

    Raises:
        UserError: the engine's package is missing, or it cannot run this student.
    """
    if dtype == "float64":
        raise ConfigError('vLLM has no float64: with a sampler of its own model.dtype is "float32" or "bfloat16"')
    if policy.quantisation is not None and not policy.is_lora:
        raise ConfigError(
            f"an engine samples from the model as it is stored, not from one that is kept in {policy.quantisation}: "
            "leave out model.quantisation, or use sampler.kind 'hf'"
        )
    if policy.is_lora and (Path(resolve_model(model)) / "adapter_config.json").is_file():
        raise ConfigError(
            f"model.path {model} is itself an adapter, and vLLM takes one on a whole model: save them merged first, "
            "or train all weights"
        )
    if ranks > 1 and isinstance(config, VLLMConfig):
        _check_ranks(config, ranks)
    logs, folder = folder.parent, Path(config.folder) if config.folder else folder
    if isinstance(config, ServerConfig):
        return ServerSampler(chat, config, folder=folder, log=log)
    assert isinstance(config, VLLMConfig)
    require_vllm()
    if config.servers is not None:
        devices = server_devices(config, taken=_trained_on(policy, ranks), count=torch.cuda.device_count())
        return OwnServers(model, chat, config, dtype=dtype, folder=folder, logs=logs, devices=devices, log=log)
    return VLLMSampler(model, chat, config, dtype=dtype, folder=folder, log=log, ranks=ranks)


def _check_ranks(config: VLLMConfig, ranks: int) -> None:
    """Refuse engines that the ranks of a run cannot have on their own devices.

    Raises:
        ConfigError: names the remedy.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))
    if here != ranks:
        raise ConfigError(
            f"sampler.kind 'vllm' has its engines on one machine, and {ranks - here} of this run's {ranks} ranks are "
            "on others: start servers and use sampler.kind 'server'"
        )
    if config.servers is None and ranks % config.tensor_parallel_size:
        raise ConfigError(
            f"sampler.tensor_parallel_size {config.tensor_parallel_size} does not divide the {ranks} ranks of this "
            "run, over whose devices the engines are spread"
        )


def _trained_on(policy: Policy, ranks: int) -> list[int]:
    """The GPUs of this run's ranks, as indices of the visible ones."""
    if policy.device.type != "cuda":
        return []
    return list(range(ranks)) if ranks > 1 else [policy.device.index]
