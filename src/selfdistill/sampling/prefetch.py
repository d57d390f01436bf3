"""Completions of a step, sampled by an engine when they are needed or one step ahead (``overlap``).

With overlap, the engine samples the completions of step k + 2 with the weights of version k, while the learner makes
step k + 1. Examples, seeds and their order are the same as without overlap. A checkpoint includes the completions that
are being sampled when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from selfdistill.config.sampler import EngineConfig
from selfdistill.errors import SamplerError, TrainingError
from selfdistill.files.jsonl import write_json
from selfdistill.models.policy import Policy
from selfdistill.sampling.rollouts import RolloutWorker, Sampled
from selfdistill.seeds import derive
from selfdistill.tracking.progress import activity
from selfdistill.types import Completion, Example

PENDING = "pending.json"
"""The checkpoint's file of completions sampled ahead."""


@dataclass(slots=True)
class Pending:
    """Completions of a later step, sampled or being sampled with the weights of a version."""

    step: int
    version: int
    prompts: list[tuple[int, ...]]
    completions: Future[list[list[Completion]]]


class Prefetcher:
    """Samples the student's completions of every step with an engine, for the same step or one step ahead."""

    def __init__(self, policy: Policy, worker: RolloutWorker, config: EngineConfig, *, seed: int) -> None:
        """``worker`` renders the prompts, has the sampling parameters and the engine. ``seed`` is the run's."""
        self.policy = policy
        self.worker = worker
        self.config = config
        self.seed = seed
        self.pending: Pending | None = None
        self.pool = ThreadPoolExecutor(1)

    def sample(self, step: int, examples: Sequence[Example], following: Sequence[Example] | None) -> Sampled:
        """The completions of a step, on every rank; starts sampling the next step if overlap is on.

        The prompts are those that were sampled from: a template may show the date, so rendering again could differ.
        ``following`` are the examples of the next step; None after the last step.

        Raises:
            SamplerError: the engine fails after all retries.
            TrainingError: the completions are older than ``max_staleness`` allows.
        """
        version = self.worker.engines.version = step - 1
        ahead, self.pending = self.pending, None
        world = self.worker.world
        if ahead is not None and ahead.step == step:
            # Wait for the completions sampled ahead. The weights must not change in the middle of a completion.
            sampled = world.broadcast_from_rank_zero(
                lambda: Sampled(ahead.prompts, ahead.completions.result(), ahead.version)
            )
            self.worker.engines.sync(self.policy)
        else:
            # Sync the weights and sample with them.
            self.worker.engines.sync(self.policy)
            prompts = self.worker.prompts(examples)
            sampled = world.broadcast_from_rank_zero(lambda: Sampled(prompts, self._sample(step, prompts), version))
        staleness = version - sampled.version
        if staleness > self.config.max_staleness:
            raise TrainingError(
                f"step {step}: its completions were sampled by the weights of version {sampled.version}, {staleness} "
                f"updates ago; sampler.max_staleness is {self.config.max_staleness}"
            )
        # Start sampling the next step with the weights that this step is about to update.
        if self.config.overlap and following is not None:
            prompts = self.worker.prompts(following)
            self.pending = Pending(step + 1, version, prompts, self._submit(step + 1, prompts))
        return sampled

    def further(self, examples: Sequence[Example], *, seed: int, version: int) -> Sampled:
        """Completions of further examples of the same step, on every rank, from the weights of its :meth:`sample`.

        Raises:
            SamplerError: the engine fails after all retries.
        """
        engine, prompts = self.worker.engines.sync(self.policy), self.worker.prompts(examples)
        params = replace(self.worker.params, seed=seed)

        def sample() -> Sampled:
            with activity("sampling", len(prompts) * params.count, "completions"):
                return Sampled(prompts, engine.sample(prompts, params), version)

        return self.worker.world.broadcast_from_rank_zero(sample)

    def save(self, folder: Path) -> None:
        """Wait for the completions sampled ahead and save them. After a failure a resume samples them again."""
        if (
            not self.worker.world.is_rank_zero
            or self.pending is None
            or isinstance(self.pending.completions.exception(), SamplerError)
        ):
            return
        completions = [[asdict(completion) for completion in row] for row in self.pending.completions.result()]
        ahead = {"step": self.pending.step, "version": self.pending.version, "prompts": self.pending.prompts}
        write_json(folder / PENDING, {**ahead, "drawn": completions})

    def load(self, folder: Path) -> None:
        """Load the completions that :meth:`save` wrote."""
        path = folder / PENDING
        if not path.exists():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        future: Future[list[list[Completion]]] = Future()
        future.set_result([[_completion(entry) for entry in row] for row in stored["drawn"]])
        prompts = [tuple(ids) for ids in stored["prompts"]]
        self.pending = Pending(stored["step"], stored["version"], prompts, future)

    def close(self) -> None:
        """Drop completions that the engine is still sampling."""
        self.pool.shutdown(cancel_futures=True)

    def _submit(self, step: int, prompts: Sequence[tuple[int, ...]]) -> Future[list[list[Completion]]]:
        """A future of the completions on rank 0. Other ranks get the completions by broadcast when they are used."""
        if self.worker.world.is_rank_zero:
            self.worker.engines.ahead = self.pool.submit(self._sample, step, prompts)
            return self.worker.engines.ahead
        nothing: Future[list[list[Completion]]] = Future()
        nothing.set_result([])
        return nothing

    def _sample(self, step: int, prompts: Sequence[tuple[int, ...]]) -> list[list[Completion]]:
        engine = self.worker.engines.engine
        assert engine is not None, "a prefetcher is built where there is an engine"
        params = replace(self.worker.params, seed=derive(self.seed, "sampling", step))
        with activity("sampling", len(prompts) * params.count, "completions"):
            return engine.sample(prompts, params)


def _completion(stored: dict[str, Any]) -> Completion:
    return Completion(tuple(stored["ids"]), tuple(stored["logprobs"]), stored["finished"])
