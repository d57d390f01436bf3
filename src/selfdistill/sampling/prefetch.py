"""Rollouts of a step, sampled when they are needed or one step ahead (``overlap``).

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

from selfdistill.errors import SamplerError, TrainingError
from selfdistill.files import write_json
from selfdistill.models.policy import Policy
from selfdistill.sampling.requests import Engine
from selfdistill.sampling.rollouts import Collector
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Completion, Example, RolloutGroup

PENDING = "pending.json"
"""The checkpoint's file of completions sampled ahead."""


@dataclass(slots=True)
class Pending:
    """Completions of a later step, sampled or being sampled with the weights of a version."""

    step: int
    version: int
    prompts: list[tuple[int, ...]]
    completions: Future[list[list[Completion]]]


class Drawer:
    """Samples the rollout groups of every step, with the current weights or those of one step before."""

    def __init__(
        self,
        collector: Collector,
        policy: Policy,
        engine: Engine | None,
        *,
        seed: int,
        overlap: bool = False,
        max_staleness: int = 0,
    ) -> None:
        """``engine`` None samples with the collector's own sampler, the learner itself. ``seed`` is the run's."""
        self.collector = collector
        self.policy = policy
        method = collector.method
        self.engine = engine if method.on_policy and STUDENT in method.sources() else None
        self.seed = seed
        self.overlap = overlap
        self.max_staleness = max_staleness
        self.pending: Pending | None = None
        self.pool = ThreadPoolExecutor(1)

    def groups(self, step: int, examples: Sequence[Example], following: Sequence[Example] | None) -> list[RolloutGroup]:
        """The verified rollout groups of a step; starts sampling the next step if overlap is on.

        ``following`` are the examples of the next step; None after the last step.

        Raises:
            SamplerError: the engine fails after all retries.
            TrainingError: the completions are older than ``max_staleness`` allows.
        """
        seed, version = derive(self.seed, "sampling", step), step - 1
        if self.engine is None:
            return self.collector.groups(examples, seed=seed, version=version)
        ahead, self.pending = self.pending, None
        engine, world = self.engine, self.collector.world
        if ahead is not None and ahead.step == step:
            version = ahead.version
            prompts, drawn = world.from_first(lambda: (ahead.prompts, ahead.completions.result()))
            # Update after sampling has finished: the weights must not change in the middle of a completion.
            engine.update(self.policy, step - 1, world)
        else:
            engine.update(self.policy, version, world)
            prompts = self._prompts(examples)
            prompts, drawn = world.from_first(lambda: (prompts, self._draw(engine, step, prompts)))
        if step - 1 - version > self.max_staleness:
            raise TrainingError(
                f"step {step}: its completions were drawn by the weights of version {version}, {step - 1 - version} "
                f"updates ago; sampler.max_staleness is {self.max_staleness}"
            )
        if self.overlap and following is not None:
            later = self._prompts(following)
            self.pending = Pending(step + 1, step - 1, later, self._ahead(engine, step + 1, later))
        # Reuse the prompts that were sampled from: a template may show the date, so rendering again could differ.
        return replace(self.collector, sampler=_Drawn(drawn)).groups(
            examples, seed=seed, version=version, prompts=prompts
        )

    def save(self, folder: Path) -> None:
        """Wait for the completions sampled ahead and save them. After a failure a resume samples them again."""
        if (
            not self.collector.world.first
            or self.pending is None
            or isinstance(self.pending.completions.exception(), SamplerError)
        ):
            return
        drawn = [[asdict(one) for one in row] for row in self.pending.completions.result()]
        ahead = {"step": self.pending.step, "version": self.pending.version, "prompts": self.pending.prompts}
        write_json(folder / PENDING, {**ahead, "drawn": drawn})

    def load(self, folder: Path) -> None:
        """Load the completions that :meth:`save` wrote."""
        path = folder / PENDING
        if not path.exists():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        future: Future[list[list[Completion]]] = Future()
        future.set_result([[_completion(one) for one in row] for row in stored["drawn"]])
        prompts = [tuple(ids) for ids in stored["prompts"]]
        self.pending = Pending(stored["step"], stored["version"], prompts, future)

    def close(self) -> None:
        """Stop the engine, and drop completions that it is still sampling."""
        self.pool.shutdown(cancel_futures=True)
        if self.engine is not None and self.collector.world.first:
            self.engine.close()

    def _prompts(self, examples: Sequence[Example]) -> list[tuple[int, ...]]:
        collector = self.collector
        return [collector.chat.encode(example.prompt, thinking=collector.thinking) for example in examples]

    def _ahead(self, engine: Engine, step: int, prompts: Sequence[tuple[int, ...]]) -> Future[list[list[Completion]]]:
        """A future of the completions on rank 0. Other ranks get the completions by broadcast when they are used."""
        if self.collector.world.first:
            return self.pool.submit(self._draw, engine, step, prompts)
        told: Future[list[list[Completion]]] = Future()
        told.set_result([])
        return told

    def _draw(self, engine: Engine, step: int, prompts: Sequence[tuple[int, ...]]) -> list[list[Completion]]:
        return engine.sample(
            prompts,
            count=self.collector.completions,
            max_tokens=self.collector.max_tokens,
            seed=derive(self.seed, "sampling", step),
        )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A sampler that returns completions sampled by the engine."""

    completions: list[list[Completion]]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        max_tokens: int,
        seed: int,
        ordinals: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """The completions of these prompts, by the prompts' indices in the step."""
        places = range(len(prompts)) if ordinals is None else ordinals
        return [self.completions[place] for place in places]


def _completion(stored: dict[str, Any]) -> Completion:
    return Completion(tuple(stored["ids"]), tuple(stored["logprobs"]), stored["finished"])
