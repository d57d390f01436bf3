"""Build a run from its config in three steps: the problem, the models that learn it, and the parts of the loop.

All checks of config, data and model happen here, before a file is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from selfdistill.config.run import ResolvedConfig, RunConfig
from selfdistill.config.sampler import EngineConfig, ServerConfig
from selfdistill.config.sections import BestBy, ModelConfig
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import reference_text
from selfdistill.distributed.fsdp import check_parallel
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError
from selfdistill.evaluation.also import Also, build_also
from selfdistill.evaluation.best import best_by
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.methods import Method
from selfdistill.models.compile import check_compiler
from selfdistill.models.devices import parse_device, resolve_device
from selfdistill.models.policy import Policy, fingerprint, load_external, load_policy, parse_dtype
from selfdistill.models.quantised import check_learner, check_trainable
from selfdistill.models.served import ServedModel
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.engines import build_engines
from selfdistill.sampling.memory import BatchSizeLimit, log_to_stderr
from selfdistill.sampling.prefetch import Prefetcher
from selfdistill.sampling.probe import check_servers
from selfdistill.sampling.resampling import Resampler
from selfdistill.sampling.rollouts import RolloutWorker, fitting, fitting_solutions
from selfdistill.tasks.build import fitted
from selfdistill.tasks.reward import RewardedTask
from selfdistill.tasks.turns import environment_of
from selfdistill.tracking.progress import activity
from selfdistill.training.optimiser import build_optimiser, schedule
from selfdistill.training.order import Order
from selfdistill.training.problem import Problem, build_problem, needed_weights
from selfdistill.training.shaping import Shaping
from selfdistill.training.trainer import Trainer
from selfdistill.types import STUDENT, Example, External, Server, Task, Weights


@dataclass(slots=True, kw_only=True)
class Models(Problem):
    """A problem with the models that learn it, each in its place among the ranks."""

    policy: Policy
    chat: Chat
    teachers: Teachers
    origin: str
    """Fingerprint of all initial weights."""


@dataclass(slots=True, kw_only=True)
class Parts(Models):
    """A problem, its models, and the other parts of the training loop."""

    trainer: Trainer
    worker: RolloutWorker
    prefetcher: Prefetcher | None
    """None if the worker samples the student's completions: with the learner's own weights, or in turns."""
    examples: list[Example]
    resampler: Resampler | None
    """None unless groups of equal rewards are replaced."""
    order: Order
    """The examples of each step."""
    held_out: list[Example]
    final: list[Example]
    """Problems of ``evaluation.final``; empty without it."""
    best_by: BestBy
    """The metric that selects the best checkpoint."""
    references: ReferenceScorer | None
    """None if the task has a verifier and ``best_by`` needs no references."""
    also: Also
    """What is evaluated besides: false if there is nothing."""
    unfit: Counter[str]
    """Counts of the examples that do not fit the context window, by reason."""


def assemble(
    config: RunConfig,
    *,
    folder: Path | None = None,
    log: Callable[[str], None] = lambda message: None,
    task: Task | None = None,
    problem: Problem | None = None,
) -> Parts:
    """Build every part of a run.

    ``folder`` is the run folder, in which weights are written for a sampling engine; None uses no engine. ``log``
    receives messages for the user, such as a failing server. ``task`` replaces the task of ``config.task``,
    ``problem`` is the config's own if it has been built already.

    Raises:
        UserError: names the first problem of config, data or model.
    """
    problem = problem or build_problem(config, task)
    # Report a server that cannot sample before loading the model. Only rank 0 talks to servers.
    if folder is not None and isinstance(config.sampler, ServerConfig):
        servers = config.sampler
        longest, lora = problem.config.sampling.max_tokens, config.model.lora is not None
        World.current().broadcast_from_rank_zero(lambda: check_servers(servers, lora=lora, max_tokens=longest, log=log))
    judge = problem.task.judge if isinstance(problem.task, RewardedTask) else None
    if folder is not None and judge is not None:
        first = problem.task.examples("train")[0]
        judge.open(folder, log)
        World.current().broadcast_from_rank_zero(lambda: judge.check(first))
    models = build_models(problem)
    with activity("measuring the prompts"):
        examples, held_out, unfit = choose_examples(models)
        final, unfit_final = choose_final_examples(models)
    trainer = build_trainer(models)
    worker = build_rollout_worker(models, log, folder=folder)
    prefetcher = build_prefetcher(models.config, worker, models.policy)
    return Parts(
        **_fields(models),
        trainer=trainer,
        worker=worker,
        prefetcher=prefetcher,
        examples=examples,
        resampler=build_resampler(models.config, worker, prefetcher, examples),
        order=Order(examples, models.config.sampling.prompts, models.config.seed, models.config.signal),
        held_out=held_out,
        final=final,
        best_by=best_by(models.config.evaluation.best, models.task),
        references=build_references(models),
        also=build_also(
            models.config.evaluation,
            models.config.sampling,
            split=models.config.evaluation.split,
            seed=models.config.seed,
            teachers=models.teachers,
            start="frozen",
            chat=models.chat,
            limits=models.config.limits,
            world=World.current(),
        ),
        unfit=unfit + unfit_final,
    )


def build_models(problem: Problem) -> Models:
    """Load the student and the teachers of a problem's method, and place them on their device or shard them.

    Raises:
        UserError: the device, the ranks or a model cannot be used.
    """
    config = problem.config
    parallel, device = config.parallel, parse_device(config.model.device)
    check_parallel(parallel, World.current().size)
    if config.model.compile:
        check_compiler(device)
    # Load on the CPU before sharding, because the whole model may not fit on one device.
    loaded_on = config.model.model_copy(update={"device": "cpu"}) if parallel.sharded else config.model
    with activity("loading the model"):
        policy, chat = build_policy(loaded_on, seed=config.seed)
    check_trainable(policy, config.model.path)
    problem = replace(problem, task=fitted(problem.task, chat))
    teachers, origin = build_teachers(
        loaded_on,
        problem.method,
        needed_weights(problem.method, config.evaluation),
        policy,
        chat,
        place=lambda p: p.place(parallel, device),
    )
    policy.place(parallel, device)
    return Models(**_fields(problem), policy=policy, chat=chat, teachers=teachers, origin=origin)


def _fields(stage: Problem) -> dict[str, Any]:
    return {field.name: getattr(stage, field.name) for field in fields(stage)}


def build_policy(config: ModelConfig, *, seed: int) -> tuple[Policy, Chat]:
    """Load the student and its chat template. ``seed`` initialises a new LoRA adapter."""
    config, _ = resolve_device(config)
    policy, chat = load_policy(
        config.path,
        dtype=parse_dtype(config.dtype),
        device=parse_device(config.device),
        lora=config.lora,
        seed=seed,
        quantisation=config.quantisation,
    )
    policy.compiled = config.compile
    return policy, chat


def build_trainer(models: Models) -> Trainer:
    """The trainer. Its optimiser holds references to the placed weights."""
    config = models.config
    check_learner(models.policy)
    return Trainer(
        models.policy,
        models.teachers,
        models.method,
        models.templates,
        models.chat,
        build_optimiser(models.policy, config.optimiser),
        learning_rate=schedule(config.optimiser, config.steps),
        clip_norm=config.optimiser.clip_norm,
        limits=config.limits,
        thinking=config.sampling.thinking,
        world=World.current(),
        seed=config.seed,
        updates_per_batch=config.optimiser.updates_per_batch,
        importance_cap=config.sampler.importance_cap if isinstance(config.sampler, EngineConfig) else None,
        steps=config.steps,
        shaping=Shaping(config.signal, config.sampling.max_tokens),
    )


def build_rollout_worker(
    models: Models,
    log: Callable[[str], None] = lambda message: None,
    *,
    folder: Path | None = None,
    trains: bool = True,
) -> RolloutWorker:
    """The part that samples and verifies the rollouts of a step. Its sampler also serves evaluation.

    ``log`` receives messages for the user. Weights are written for an engine into ``folder``; None uses no engine.
    ``trains`` is as for :func:`build_engines`.

    Raises:
        UserError: the engine cannot run this student, or the teacher that samples.
    """
    config, sampling = models.config, models.config.sampling
    # Rank 0 logs through the run; other ranks report a smaller batch size on stderr.
    limit = BatchSizeLimit(sampling.max_batch_size, log if World.current().is_rank_zero else log_to_stderr)
    engines = build_engines(
        config.sampler,
        models.policy,
        models.chat,
        limit,
        model=config.model.path,
        folder=None if folder is None else folder / "weights",
        log=log,
        world=World.current(),
        trains=trains,
    )
    return RolloutWorker(
        task=models.task,
        method=models.method,
        templates=models.templates,
        chat=models.chat,
        teachers=models.teachers,
        engines=engines,
        sampler=engines.of(models.policy),
        params=SamplingParams(
            count=sampling.completions,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        ),
        thinking=sampling.thinking,
        world=World.current(),
    )


def build_references(models: Models) -> ReferenceScorer | None:
    """The scorer of held-out references; None if the task has a verifier and ``evaluation.best`` needs no references.

    Raises:
        ConfigError: ``evaluation.best`` names a number that this method or its data cannot have.
    """
    metric = best_by(models.config.evaluation.best, models.task)
    if models.task.has_verifier and metric in ("success", "reward", "last"):
        return None
    sampling_roles = models.method.sampling_roles()
    roles = [r for name, r in models.method.roles().items() if r.context is not None and name not in sampling_roles]
    if metric in ("teacher_gap", "teacher_shift") and not roles:
        raise ConfigError(f"evaluation.best = {metric!r}, but method {models.config.method['name']!r} has no teacher")
    held_out = models.task.examples(models.config.evaluation.split)
    if metric in ("loglikelihood", "teacher_gap") and reference_text(held_out[0]) is None:
        raise ConfigError(f"evaluation.best = {metric!r}, but example {held_out[0].id} has no response and no solution")
    return ReferenceScorer(
        teachers=models.teachers,
        chat=models.chat,
        limits=models.config.limits,
        # The student's completions are drawn with it, and the teacher reads the same ones.
        thinking=models.config.evaluation.thinking_after(models.config.sampling.thinking),
        teacher=next(iter(roles), None),
        templates=models.templates,
        world=World.current(),
    )


def build_prefetcher(config: ResolvedConfig, worker: RolloutWorker, policy: Policy) -> Prefetcher | None:
    """What asks the worker's engine for a step's completions, or None if the student does not sample them from one.

    Turns are sampled by the worker, because each waits for the environment's reply.
    """
    sampler = config.sampler
    if worker.engines.engine is None or not isinstance(sampler, EngineConfig):
        return None
    if not worker.method.on_policy or STUDENT not in worker.method.sampling_roles():
        return None
    if environment_of(worker.task) is not None:
        return None
    return Prefetcher(policy, worker, sampler, seed=config.seed)


def build_resampler(
    config: ResolvedConfig, worker: RolloutWorker, prefetcher: Prefetcher | None, examples: Sequence[Example]
) -> Resampler | None:
    """The resampler, which draws other prompts for groups of equal rewards; None unless the config asks for it."""
    if config.signal.equal != "resample":
        return None
    return Resampler(worker, prefetcher, examples, config.signal.most, config.seed)


def build_teachers(
    config: ModelConfig,
    method: Method,
    needed: Set[Weights],
    policy: Policy,
    chat: Chat,
    *,
    place: Callable[[Policy], None],
) -> tuple[Teachers, str]:
    """The teachers with the ``needed`` weights, and a fingerprint of all initial weights.

    ``place`` moves each teacher to its device, or shards it.

    Raises:
        UserError: a teacher of another model cannot be used with the student.
    """
    external = {
        kind: load_external(
            kind.path, policy, chat, dtype=parse_dtype(config.dtype), device=parse_device(config.device)
        )
        for kind in needed
        if isinstance(kind, External)
    }
    tops: dict[Server, int] = {}
    for name, role in method.roles().items():
        for server in role.weights.each if isinstance(role.weights, Server) else ():
            tops[server] = max(tops.get(server, 0), method.likeliest(name) or 0)
    served = {kind: ServedModel(str(kind.url), model=kind.model) for kind in tops}
    for kind, teacher in served.items():
        teacher.check_teacher(chat, top=tops[kind])
    origin = "+".join(fingerprint(model) for model in (policy, *external.values()))
    teachers = Teachers(policy, needed=needed, rate=method.teacher_rate, external=external, served=served, place=place)
    return teachers, origin


def choose_examples(models: Models) -> tuple[list[Example], list[Example], Counter[str]]:
    """Training and held-out examples that fit the context window, and counts of the others by reason.

    Raises:
        DataError: no example fits, or a method that learns from solutions finds none.
    """
    chat, evaluation = models.chat, models.config.evaluation
    max_tokens, thinking = models.config.sampling.max_tokens, models.config.sampling.thinking
    train, held_out = models.task.examples("train"), models.task.examples(evaluation.split)[: evaluation.problems]
    if models.method.on_policy:
        examples, excluded = fitting(train, chat, max_tokens=max_tokens, thinking=thinking)
    else:
        examples, excluded = fitting_solutions(train, chat, thinking=thinking)
    fitting_held_out, excluded_held_out = _fitting_held_out(models, held_out)
    return examples, fitting_held_out, excluded + excluded_held_out


def choose_final_examples(models: Models) -> tuple[list[Example], Counter[str]]:
    """The problems of ``evaluation.final`` that fit the context window, and counts of the others by reason.

    Raises:
        ConfigError: the final split is the one that is evaluated during training.
        DataError: no example fits.
    """
    evaluation = models.config.evaluation
    if evaluation.final is None:
        return [], Counter()
    if evaluation.final == evaluation.split:
        raise ConfigError(
            f"evaluation.final and evaluation.split are both {evaluation.split!r}: final problems are seen at the "
            'end only, so set evaluation.split = "validation"'
        )
    return _fitting_held_out(models, models.task.examples(evaluation.final)[: evaluation.problems])


def _fitting_held_out(models: Models, examples: Sequence[Example]) -> tuple[list[Example], Counter[str]]:
    evaluation, sampling = models.config.evaluation, models.config.sampling
    return fitting(
        examples,
        models.chat,
        max_tokens=evaluation.max_tokens or sampling.max_tokens,
        thinking=evaluation.thinking_after(sampling.thinking),
    )
