"""Sampling and weight sync for ``gpu.py``: the model itself, a vLLM engine of the run's own, and two vLLM servers.

All engines hold the same random weights and are given the same prompts of random ids. No completion stops early, so all
of them have the same length. Tokens a second are the completions' alone. Weights are sent through
:class:`~selfdistill.sampling.engines.Engines`, as a run sends them after every step: the first time starts the engine,
and the second is the sync that is measured.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from gpu_timing import free_memory, timed
from processes import log
from random_model import random_policy
from selfdistill.config.sampler import VLLMConfig
from selfdistill.config.sections import LoraConfig
from selfdistill.contexts.chat import Chat
from selfdistill.errors import UserError
from selfdistill.models.policy import Policy, load_policy, save_policy
from selfdistill.models.sizing import Shape
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.engines import Engines, build_engines
from selfdistill.sampling.memory import BatchSizeLimit

SERVERS = 2
LORA = LoraConfig(rank=64, alpha=64)
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
"""Environment of vLLM where the user has set nothing else. A GPU's cache does not follow from the first."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every engine is to sample: ``rows`` completions of ``tokens`` tokens each, of prompts of equal length."""

    rows: Sequence[int]
    prompt: int
    tokens: int
    vocabulary: int

    @property
    def window(self) -> int:
        """Tokens of a prompt and its completion; vLLM wants some more than the least."""
        return max(64, self.prompt + self.tokens)

    def prompts(self, rows: int, call: int) -> list[list[int]]:
        """Random ids, the same for every engine, and others in every call: vLLM computes no prompt twice."""
        numbers = random.Random(f"{rows} {call}")
        return [[numbers.randrange(self.vocabulary) for _ in range(self.prompt)] for _ in range(rows)]


@dataclass(frozen=True, slots=True)
class EngineCase:
    """An engine that is sent weights, and what is measured of it."""

    name: str
    config: VLLMConfig
    lora: bool = False
    """Whether it is sent an adapter of :data:`LORA` instead of all weights."""
    samples: bool = True


def sampling_cases(shape: Shape, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Tokens a second of each engine by rows, and bytes and seconds of a weight sync to each that is sent weights."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    work = Work(options.rows, options.prompt, options.sampled_tokens, shape.V)
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        policy, chat = random_policy(shape, options.device, dtype, work.window)
        save_policy(policy, chat, model)
        chat.stop_ids = ()
        yield from _speeds("hf", Engines(chat, BatchSizeLimit(max(work.rows))).of(policy), work, options.device)
        gpus = 0 if options.device == "cpu" else torch.cuda.device_count()
        for case in engine_cases(work, tiny=options.tiny, gpus=gpus):
            reason = missing(case, gpus=gpus)
            if reason is not None:
                log(f"  {case.name}: {reason}")
                yield {"engine": case.name, "outcome": reason}
                continue
            if case.lora:
                policy, _ = load_policy(str(model), dtype=dtype, device=policy.device, lora=LORA)
            yield from _measured(case, policy, chat, model, work)
            free_memory(options.device)


def engine_cases(work: Work, *, tiny: bool, gpus: int) -> list[EngineCase]:
    """The engines in the order in which they are measured. The adapter comes last, because it changes the policy."""
    engine = VLLMConfig(
        kind="vllm",
        # On a CPU this is a share of the machine's memory, and several engines may be there at once.
        gpu_memory_utilization=0.1 if tiny else 0.4,
        max_model_len=work.window,
        max_num_seqs=max(work.rows),
        enforce_eager=tiny,
    )
    # With two GPUs one of the servers shares its GPU with the policy.
    devices = list(range(SERVERS)) if gpus == SERVERS else None
    servers = engine.model_copy(update={"servers": SERVERS, "devices": devices})
    # An adapter is only sent, so nothing is compiled for it.
    eager = engine.model_copy(update={"enforce_eager": True})
    return [
        EngineCase("vllm", engine),
        EngineCase(f"{SERVERS} vllm servers", servers),
        EngineCase("vllm with an adapter", eager, lora=True, samples=False),
    ]


def missing(case: EngineCase, *, gpus: int) -> str | None:
    """Why an engine cannot be measured here; None if it can. Without a GPU all engines run on the CPU."""
    if find_spec("vllm") is None:
        return "not installed"
    return "one GPU" if case.config.servers is not None and gpus == 1 else None


def _measured(case: EngineCase, policy: Policy, chat: Chat, model: Path, work: Work) -> Iterator[dict[str, Any]]:
    """Start an engine, sample with it, and send it the next version of the weights."""
    device, said = str(policy.device), "adapter" if case.lora else "all weights"
    folder = model.parent / case.name.replace(" ", "-")
    folder.mkdir()
    try:
        engines = build_engines(
            case.config,
            policy,
            chat,
            BatchSizeLimit(max(work.rows)),
            model=str(model),
            folder=folder / "weights",
            log=log,
        )
        with closing(engines):
            engines.sync(policy)
            started = engines.take_synced()["sync_seconds"]
            if case.samples:
                yield from _speeds(case.name, engines.of(policy), work, device)
            engines.version += 1
            engines.sync(policy)
            sync: dict[str, Any] = {"outcome": "measured", "start_seconds": started, **engines.take_synced()}
    except UserError as error:
        sync = {"outcome": "failed", "why": str(error)}
    log(f"  sync, {case.name}, {said}: {sync}")
    yield {"engine": case.name, "weights": said, **sync}


def _speeds(engine: str, sampler: Sampler, work: Work, device: str) -> Iterator[dict[str, Any]]:
    """Tokens a second by the number of rows, each in one run after one that is not counted."""
    params = SamplingParams(count=1, max_tokens=work.tokens)
    for rows in work.rows:
        calls = count()

        def once(rows: int = rows, calls: Iterator[int] = calls) -> None:
            drawn = sampler.sample(work.prompts(rows, next(calls)), params)
            lengths = {len(completion.ids) for row in drawn for completion in row}
            assert lengths == {work.tokens}, f"{work.tokens} tokens each were asked for, not {sorted(lengths)}"

        case: dict[str, Any] = {"engine": engine, "rows": rows, "tokens": work.tokens}
        try:
            case |= {"outcome": "measured", **timed(once, 1, device)}
            case["tokens_a_second"] = rows * work.tokens / case["seconds"]
        except torch.OutOfMemoryError:
            case["outcome"] = "out of memory"
        log(f"  sampling, {engine}, {rows} rows: {case.get('tokens_a_second', case['outcome'])} tokens a second")
        yield case
