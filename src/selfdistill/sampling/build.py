"""Build the sampling engine of the ``[sampler]`` table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from selfdistill.config.sampler import EngineConfig, ServerConfig, VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.sampling.hf import Decoding
from selfdistill.sampling.requests import Engine
from selfdistill.sampling.server import ServedSampler, ServerOptions
from selfdistill.sampling.vllm import EngineOptions, VLLMSampler, require_vllm


def build_engine(
    config: EngineConfig,
    policy: Policy,
    chat: Chat,
    decoding: Decoding,
    *,
    model: str,
    dtype: str,
    folder: Path,
    say: Callable[[str], None],
    ranks: int = 1,
) -> Engine:
    """The engine of a config, not started yet. Weights are written for it into ``folder``.

    Raises:
        UserError: the engine's package is missing, or it cannot run this student.
    """
    _refuse_what_vllm_lacks(policy, model, dtype)
    if ranks > 1 and isinstance(config, VLLMConfig):
        raise ConfigError(
            f"sampler.kind 'vllm' is an engine of one process, and this run has {ranks}: start servers and use "
            "sampler.kind 'server'"
        )
    folder = Path(config.folder) if config.folder else folder
    if isinstance(config, ServerConfig):
        servers = ServerOptions(
            urls=tuple(config.urls),
            receiver=config.receiver,
            timeout=config.timeout,
            retries=config.retries,
            wait=config.wait,
            concurrency=config.concurrency,
            sleep=config.sleep,
        )
        return ServedSampler(chat, decoding=decoding, options=servers, folder=folder, say=say)
    assert isinstance(config, VLLMConfig)
    require_vllm()
    options = EngineOptions(
        dtype=dtype,
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        max_model_len=config.max_model_len or chat.window,
        max_num_seqs=config.max_num_seqs,
        enforce_eager=config.enforce_eager,
    )
    return VLLMSampler(model, chat, decoding=decoding, options=options, folder=folder, sleep=config.sleep)


def _refuse_what_vllm_lacks(policy: Policy, model: str, dtype: str) -> None:
    if dtype == "float64":
        raise ConfigError('vLLM has no float64: with a sampler of its own model.dtype is "float32" or "bfloat16"')
    if policy.is_lora and (Path(resolve_model(model)) / "adapter_config.json").is_file():
        raise ConfigError(
            f"model.path {model} is itself an adapter, and vLLM takes one on a whole model: save them merged first, "
            "or train all weights"
        )
