"""The problem of a run: its resolved config, its task, method and contexts, and the checks that need no model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.config.bits import check_bits
from selfdistill.config.evaluation import EvaluationConfig, General
from selfdistill.config.run import ResolvedConfig, RunConfig
from selfdistill.config.sampler import EngineConfig, SamplerConfig, VLLMConfig
from selfdistill.config.sections import Limits, Model, Optimiser, Parallel, Sampling
from selfdistill.contexts.fields import example_fields, missing_in_data, no_rewards, routed
from selfdistill.contexts.templates import HINDSIGHT, Template, apply, load_templates, may_show
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError, DataError
from selfdistill.evaluation.best import best_by
from selfdistill.methods import Method, build_method
from selfdistill.models.devices import read_device, resolve_device
from selfdistill.models.fit import GivenSizes, Sizes, choose_sizes, plan_of, read_shape
from selfdistill.models.loading import lasting_name
from selfdistill.models.sizing import Plan, Shape
from selfdistill.sampling.build import check_teacher
from selfdistill.sampling.rollouts import check_sampling_roles
from selfdistill.tasks.build import build_task
from selfdistill.tasks.judging import verify_all
from selfdistill.tasks.reward import RewardedTask
from selfdistill.tasks.turns import check_limits, environment_of
from selfdistill.tracking.progress import activity
from selfdistill.training.atomic import model_path
from selfdistill.types import STUDENT, Example, Message, Server, Skipped, Task, Weights

PROMPT_TOKENS = 1024
"""Tokens of a prompt for which memory is planned before the prompts are known."""


@dataclass(slots=True, kw_only=True)
class Problem:
    """All parts of a run that need no model."""

    config: ResolvedConfig
    task: Task
    method: Method
    templates: Mapping[str, Template]
    device_warning: str
    """Warning about a device that ``model.device = "auto"`` skipped; empty if it skipped none."""


def build_problem(config: RunConfig, task: Task | None = None) -> Problem:
    """Build the task, the method and the contexts of a config. ``task`` replaces the task of ``config.task``.

    Raises:
        UserError: names the first problem of config or data.
    """
    check_bits(config.model, config.optimiser, config.parallel)
    _, device_warning = resolve_device(config.model)
    config = resolve(config)
    method, name = method_of(config), str(config.method["name"])
    if task is None:
        with activity("reading the rows"):
            task = build_task(config.task, seed=config.seed, reward=config.reward)
    check_rewards(method, task, name)
    check_signal(config, method, task)
    check_turns(config, method, task)
    check_budget(config, method)
    best_by(config.evaluation.best, task)
    if config.reward is not None:
        # Call the user's reward functions once, so that a faulty one fails before anything is written.
        examples = task.examples("train")[:2]
        completions = [(example, example.fields.get("solution", ""), True) for example in examples]
        # No model is loaded yet, so one dummy id replaces the tokens. The judge is checked once, when the run is built.
        without_judge = task.without_judge() if isinstance(task, RewardedTask) else task
        verify_all(without_judge, completions, ids=[(0,)] * len(completions))
    # Refuse contexts that cannot be rendered.
    templates = load_templates(config.contexts or task.contexts)
    example = task.examples("train")[0]
    check_sampling_roles(method, templates, example, name=name)
    check_served(method, name, task.examples("train"))
    for role in {*method.sampling_roles()} - {STUDENT}:
        check_teacher(config.sampler, method.roles()[role].weights)
    check_contexts(method, templates, example, prompts=config.sampling.prompts)
    return Problem(config=config, task=task, method=method, templates=templates, device_warning=device_warning)


def method_of(config: RunConfig) -> Method:
    """The method with the hyperparameters of ``config.method``."""
    hyperparameters = {key: value for key, value in config.method.items() if key != "name"}
    return build_method(str(config.method["name"]), hyperparameters)


def resolve(config: RunConfig) -> ResolvedConfig:
    """Fill in unset keys from the method's recommended settings and the device.

    Raises:
        ConfigError: the method or one of its hyperparameters is unknown or out of range.
    """
    method = method_of(config)
    recommended = method.recommended
    rate = recommended.lora_learning_rate if config.model.lora else recommended.learning_rate
    sampling = {
        "completions": recommended.completions,
        "max_tokens": recommended.max_tokens,
        "temperature": recommended.temperature,
        "top_p": recommended.top_p,
        "top_k": recommended.top_k,
        **config.sampling.model_dump(exclude_none=True),
    }
    method = method.at_sampling_temperature(sampling["temperature"])
    # A run may start from another run's newest weights. Record the checkpoint, because the newest one changes.
    path = model_path(config.model.path)[0] if config.model.path.strip() else config.model.path
    model, _ = resolve_device(config.model)
    model = model.model_copy(update={"path": lasting_name(path)})
    sizes = _sizes(config, model, method, max_tokens=max(sampling["max_tokens"], config.evaluation.max_tokens or 0))
    decided = {
        "model": model,
        "method": {"name": config.method["name"], **{k: v for k, v in method.model_dump().items() if k != "name"}},
        "sampling": Sampling(**sampling | {"max_batch_size": sizes.max_batch_size}),
        "optimiser": Optimiser(**{"learning_rate": rate, **config.optimiser.model_dump(exclude_none=True)}),
        "limits": Limits(
            max_tokens_per_microbatch=sizes.max_tokens_per_microbatch,
            max_logits_per_chunk=sizes.max_logits_per_chunk,
        ),
        "parallel": Parallel(
            **config.parallel.model_dump() | {"activation_checkpointing": sizes.activation_checkpointing}
        ),
    }
    return ResolvedConfig(**{key: getattr(config, key) for key in RunConfig.model_fields} | decided)


def _sizes(config: RunConfig, model: Model, method: Method, *, max_tokens: int) -> Sizes:
    """Choose the sizes that the config leaves unset by the device's memory. They are the same on every rank."""
    shape, world, device = read_shape(model.path), World.current(), read_device(model.device)
    # Ranks of one machine share its memory, and all ranks must split a step in the same way.
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) if model.device.startswith("cpu") else 1
    share = engine_share(config.sampler)
    free = world.all_gather(None if device is None else device.free // shared - int(share * device.total))
    given = GivenSizes(
        config.limits.max_tokens_per_microbatch,
        config.limits.max_logits_per_chunk,
        config.parallel.activation_checkpointing,
        config.sampling.max_batch_size,
    )
    return choose_sizes(
        model.device,
        None if None in free else min(size for size in free if size is not None),
        shape,
        plan_for(method, config, model, shape),
        given,
        length=max_tokens + PROMPT_TOKENS,
    )


def engine_share(sampler: SamplerConfig) -> float:
    """Share of a device's memory that an engine of the run's own keeps while the learner trains."""
    return sampler.gpu_memory_utilization if isinstance(sampler, VLLMConfig) and not sampler.sleep else 0.0


def plan_for(method: Method, config: RunConfig, model: Model, shape: Shape | None) -> Plan:
    """The memory plan of training a model with a method. Its device and number type are decided."""
    compared = [name for name in method.roles() if name not in method.precompute()]
    return plan_of(
        shape,
        model,
        config.parallel,
        needed_weights(method, config.evaluation),
        roles=1 + len(compared),
        ranks=World.current().size,
        optimiser=config.optimiser,
    )


def needed_weights(method: Method, evaluation: EvaluationConfig) -> set[Weights]:
    """The weights of a method's roles, and those before training where evaluations compare with them."""
    general = any(isinstance(entry, General) for entry in evaluation.also)
    return {role.weights for role in method.roles().values()} | ({"frozen"} if general else set())


def check_rewards(method: Method, task: Task, name: str) -> None:
    """Refuse a method that needs rewards on a task that gives none.

    Raises:
        ConfigError: names the two settings that would give rewards.
    """
    if method.needs_rewards() and not task.has_verifier:
        raise ConfigError(no_rewards(name, task))


def check_signal(config: ResolvedConfig, method: Method, task: Task) -> None:
    """Refuse a ``[signal]`` that this method, task or sampler cannot give.

    Raises:
        ConfigError: names the key and what it needs.
    """
    signal, name = config.signal, config.method["name"]
    if signal.needs_rewards and not (task.has_verifier and method.on_policy):
        why = "the task has no verifier" if method.on_policy else f"method {name!r} samples no completions"
        keys = {"equal": "keep", "weight": "none", "overlong": "keep", "curriculum": False}
        named = next(key for key, off in keys.items() if getattr(signal, key) not in (off, "mask"))
        raise ConfigError(f"signal.{named} needs rewards of completions, but {why}")
    if signal.equal == "resample" and isinstance(config.sampler, EngineConfig) and config.sampler.overlap:
        raise ConfigError(
            "signal.equal = 'resample' draws further prompts once a step is judged, and with sampler.overlap the "
            "engine samples the next step by then: set one of them off"
        )


def check_served(method: Method, name: str, examples: Sequence[Example]) -> None:
    """Refuse a teacher behind a server of which the method reads more than a server gives, and rows without one.

    Raises:
        ConfigError: names the role and the setting.
        DataError: an example names none of the teachers.
    """
    for role, declared in method.roles().items():
        if not isinstance(declared.weights, Server):
            continue
        if method.likeliest(role) is None or declared.temperature != 1:
            raise ConfigError(
                f"method {name!r} reads the whole distribution of {role!r}, and a server gives log-probabilities of "
                "the sampled token and of the teacher's likeliest ones: choose a support { kind = 'top_k', k = …, "
                "chosen_by = 'teacher' } where the method has one, or weights = { kind = 'external', path = … }"
            )
        for example in examples:
            routed((), declared, example)


def check_turns(config: ResolvedConfig, method: Method, task: Task) -> None:
    """Refuse limits of an environment that are none, and what a task that is played in turns cannot be combined with.

    Raises:
        ConfigError: names the setting.
    """
    environment, name = environment_of(task), config.method["name"]
    if environment is None:
        if method.needs_turns():
            raise ConfigError(
                f"method {name!r} compares turns (method.turn_advantage), and task {task.name!r} has single answers: "
                "set method.turn_advantage.kind = 'episode', or choose a task that is played in turns"
            )
        return
    why = f"task {task.name!r} is played in turns"
    check_limits(environment, task.name)
    if isinstance(config.sampler, EngineConfig) and config.sampler.overlap:
        raise ConfigError(f"{why}, and sampler.overlap samples single answers ahead: set it to false")
    if method.on_policy and tuple(method.sampling_roles()) != (STUDENT,):
        raise ConfigError(f"{why} by the student alone, and method {name!r} lets another role sample")
    if config.signal.overlong == "punish":
        raise ConfigError(f"{why}, and signal.overlong = 'punish' is for single answers: use 'keep' or 'mask'")


def completions_of_step(config: ResolvedConfig, method: Method) -> int:
    """The completions that every step draws, all roles together; 0 for a method that learns from given solutions.

    Where a role samples on demand or further prompts are drawn, this is the least number: only the student's.
    """
    if not method.on_policy:
        return 0
    roles = 1 if method.samples_on_demand else len(method.sampling_roles())
    return roles * config.sampling.prompts * config.sampling.completions


def check_budget(config: ResolvedConfig, method: Method) -> None:
    """Refuse a ``max_completions`` that no step fits into, or of a method that draws nothing.

    Raises:
        ConfigError: names the number of completions of a step.
    """
    most, each = config.max_completions, completions_of_step(config, method)
    if most is None:
        return
    if not each:
        raise ConfigError(
            f"max_completions = {most}: method {config.method['name']!r} samples no completions; limit the run by steps"
        )
    if most < each:
        raise ConfigError(
            f"max_completions = {most}: the first step draws {each} completions, so set it to that or more"
        )


def reward_warnings(task: Task, method: Method, templates: Mapping[str, Template]) -> list[str]:
    """Warnings about custom rewards: what counts as right, and which context fields depend only on that."""
    if not isinstance(task, RewardedTask):
        return []
    verdict_fields = {
        field
        for role in method.roles().values()
        if role.context is not None
        for field in may_show(templates, role.context)
        if "sibling" in field or field in ("verdict", "wrong_answer")
    }
    # A weight of 1 says nothing.
    terms = zip(task.weights, task.names, strict=True)
    functions = " + ".join(name if weight == 1 else f"{weight:g} × {name}" for weight, name in terms)
    warnings = [f"a completion is right {task.right}" + (f"; the reward is {functions}" if functions else "")]
    if verdict_fields:
        fields = ", ".join(f"${name}" for name in sorted(verdict_fields))
        warnings.append(f"{fields} of the contexts depend on which completions are right, not on how large a reward is")
    return warnings


def check_contexts(method: Method, templates: Mapping[str, Template], example: Example, *, prompts: int) -> None:
    """Refuse a context that does not exist or can never be rendered.

    A context cannot be rendered when the data lacks a field, or when a step has too few questions to contrast.

    Raises:
        ConfigError, DataError: names the context and what it needs.
    """
    hindsight = dict.fromkeys((name for name in HINDSIGHT if name != "other_question"), "")
    for name, role in method.roles().items():
        if role.context is None:
            continue
        own = example_fields(example)
        fields = own if name in method.sampling_roles() else {**hindsight, **own}
        if name not in method.sampling_roles() and role.contrast < prompts - 1:
            fields["other_question"] = ""
        rendered = apply(templates, role.context, (Message("user", ""),), fields)
        if isinstance(rendered, Skipped) and "other_question" in rendered.missing:
            raise ConfigError(
                f"{rendered.reason}: contrast {role.contrast + 1} needs {role.contrast + 2} questions a step, "
                f"sampling.prompts is {prompts}"
            )
        if isinstance(rendered, Skipped):
            raise DataError(missing_in_data(rendered, example))


def epoch_examples(examples: Sequence[Example], indices: Sequence[int], *, first: int) -> list[Example]:
    """The examples of a step in the form of their epoch. ``first`` is the number of examples used by earlier steps."""
    return [examples[i].in_epoch((first + n) // len(examples)) for n, i in enumerate(indices)]
