"""One engine for everything that samples: the student in training and evaluation, and teachers with their weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfdistill.config.sampler import EngineConfig, SamplerConfig, ServerConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.loading import base_name, resolve_model
from selfdistill.models.policy import Policy
from selfdistill.models.served import CONCURRENCY, served_models, takes_weights
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.build import build_engine, check_teacher
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.memory import BatchSizeLimit
from selfdistill.sampling.requests import Engine
from selfdistill.sampling.served import ServedSampler, TeacherSampler
from selfdistill.tracking.progress import log
from selfdistill.types import Completion, External, Server, Snapshot, Weights


class Engines:
    """Gives a sampler of any weights: the model that has them, or an engine that is sent them first."""

    def __init__(
        self,
        chat: Chat,
        limit: BatchSizeLimit,
        *,
        engine: Engine | None = None,
        make: Callable[[External], Engine] | None = None,
        world: World = ALONE,
    ) -> None:
        """``engine`` samples from the student's weights and all teachers that follow it; None: the models do it.

        ``make`` builds a further engine for another model, which is started when it samples first. ``limit`` bounds the
        completions that a model decodes at once.
        """
        self.chat = chat
        self.limit = limit
        self.engine = engine
        self.make = make
        self.world = world
        self.version = 0
        """Updates that the student's weights have seen. Whoever updates them says so here."""
        self.ahead: Future[Any] | None = None
        """Completions that the engine samples in the background. Nothing else is asked of it meanwhile."""
        self._others: dict[External, Engine] = {}
        self._held: dict[External | None, tuple[Weights, int]] = {}
        self._synced: dict[str, float] = {}

    def of(self, policy: Policy, weights: Weights = "live") -> Sampler:
        """A sampler of these weights, which ``policy`` has. All ranks must call its ``sample``."""
        if self.engine is None:
            return policy_sampler(policy, self.chat, max_batch_size=self.limit)
        return _EngineSampler(self, policy, weights)

    @contextmanager
    def sampler(self, teachers: Teachers, weights: Weights) -> Iterator[Sampler]:
        """A sampler of a teacher's weights, for as long as they are selected."""
        if isinstance(weights, Server):
            yield TeacherSampler(teachers.served, weights, self.chat, concurrency=CONCURRENCY, log=log)
            return
        with teachers.weights(weights) as policy:
            yield self.of(policy, weights)

    def sync(self, policy: Policy, weights: Weights = "live") -> Engine:
        """The engine, once it holds these weights. All ranks must call: the weights may have to be gathered.

        Raises:
            SamplerError: the engine cannot take them.
        """
        assert self.engine is not None, "models sample with their own weights"
        if self.ahead is not None:
            wait([self.ahead])
        other = weights if isinstance(weights, External) else None
        if other is not None and other not in self._others:
            if self.make is None:
                raise SamplerError(
                    f"the servers serve the student, and the teacher {other.path} is another model: sample with hf"
                )
            self._others[other] = self.make(other)
        engine = self.engine if other is None else self._others[other]
        wanted = (weights, _version_of(weights, self.version))
        if self._held.get(other) != wanted:
            self._held.pop(other, None)
            self._update(engine, policy, wanted[1], weights)
            self._held[other] = wanted
        return engine

    def _update(self, engine: Engine, policy: Policy, version: int, weights: Weights) -> None:
        """Send an engine weights, and count what that took."""
        bytes_before, began = engine.synced, time.perf_counter()
        engine.update(policy, version, self.world, weights=weights)
        spent = {"sync_bytes": engine.synced - bytes_before, "sync_seconds": time.perf_counter() - began}
        self._synced = {name: self._synced.get(name, 0) + value for name, value in spent.items()}

    def take_synced(self) -> dict[str, float]:
        """Bytes and seconds of the weights sent to engines since the last call; empty if none were sent."""
        taken, self._synced = self._synced, {}
        return taken

    def close(self) -> None:
        """Stop the engines that were started, and remove the weights written for them."""
        if self.world.is_rank_zero:
            for engine in (self.engine, *self._others.values()):
                if engine is not None:
                    engine.close()


def _version_of(weights: Weights, version: int) -> int:
    """The updates that the weights of a teacher have seen once the student has seen ``version``."""
    if weights == "frozen" or isinstance(weights, External):
        return 0
    return version // weights.every * weights.every if isinstance(weights, Snapshot) else version


@dataclass(frozen=True, slots=True)
class _EngineSampler:
    """Samples from the weights of a policy with the engine that holds them, for all ranks together."""

    engines: Engines
    policy: Policy
    weights: Weights

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt of this rank, in order.

        Raises:
            SamplerError: the engine fails after all retries.
        """
        engine, world = self.engines.sync(self.policy, self.weights), self.engines.world
        # Rank 0 alone speaks with the engine. It asks for all ranks at once, each prompt under its own ordinal.
        ordinals = list(range(len(prompts)) if params.ordinals is None else params.ordinals)
        parts = world.all_gather((list(prompts), ordinals))
        asked = [prompt for part, _ in parts for prompt in part]
        whole = replace(params, ordinals=[ordinal for _, part in parts for ordinal in part])
        sampled = world.broadcast_from_rank_zero(lambda: engine.sample(asked, whole) if asked else [])
        begin = sum(len(part) for part, _ in parts[: world.rank])
        return sampled[begin : begin + len(prompts)]


def build_engines(
    config: SamplerConfig,
    policy: Policy,
    chat: Chat,
    limit: BatchSizeLimit,
    *,
    model: str,
    folder: Path | None,
    log: Callable[[str], None],
    world: World = ALONE,
    trains: bool = True,
) -> Engines:
    """The engines of a config, not started yet. ``model`` is the student's path.

    Weights are written for an engine into ``folder``; None uses no engine. A command that does not train also samples
    from servers that cannot be sent weights, if they have these weights already.

    Raises:
        UserError: the engine's package is missing, or it cannot run this student.
    """
    if folder is None or not isinstance(config, EngineConfig):
        return Engines(chat, limit, world=world)
    dtype = str(policy.dtype or next(policy.parameters()).dtype).removeprefix("torch.")

    if isinstance(config, ServerConfig) and not trains:
        servers = served_models(config)
        for server in servers:
            server.probe()
        if not takes_weights(servers):
            return Engines(
                chat,
                limit,
                engine=ServedSampler(servers, chat, concurrency=config.concurrency, log=log),
                world=world,
            )

    def make(external: External | None) -> Engine:
        if external is not None:
            check_teacher(config, external)
        own = folder if external is None else folder / "external"
        path = _whole_model(policy, model) if external is None else external.path
        return build_engine(config, policy, chat, model=path, dtype=dtype, folder=own, log=log, ranks=world.size)

    return Engines(chat, limit, engine=make(None), make=make, world=world)


def _whole_model(policy: Policy, model: str) -> str:
    """The model that an engine loads below the student's adapter, which stands beside a quantised base."""
    adapter = Path(resolve_model(model)) / "adapter_config.json"
    return base_name(adapter, model) if policy.quantisation is not None and adapter.is_file() else model


@contextmanager
def command_engines(
    config: SamplerConfig, policy: Policy, chat: Chat, *, model: str, max_batch_size: int
) -> Iterator[Engines]:
    """The engines of a command that trains nothing. They are stopped at the end, and nothing is left of their weights.

    Raises:
        UserError: as for :func:`build_engines`.
    """
    with TemporaryDirectory(prefix="selfdistill-") as folder:
        limit, place = BatchSizeLimit(max_batch_size, log), Path(folder) / "weights"
        engines = build_engines(config, policy, chat, limit, model=model, folder=place, log=log, trains=False)
        try:
            yield engines
        finally:
            engines.close()
