"""What a run will take, computed before its model is loaded: steps, tokens, memory by part, and where the limit is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfdistill.config.bits import MOMENTS_IN_8_BITS
from selfdistill.config.sampler import EngineConfig
from selfdistill.config.sections import LoraConfig, Parallel
from selfdistill.files.text import plural
from selfdistill.models.devices import Device, read_device
from selfdistill.models.fit import (
    KEPT_BACK,
    GivenSizes,
    choose_sizes,
    expected_bytes,
    peak,
    planned,
    read_shape,
)
from selfdistill.models.sizing import GIB, Plan, Shape, memory, resting
from selfdistill.training.counters import Counters
from selfdistill.training.problem import PROMPT_TOKENS, Problem, completions_of_step, engine_share, plan_for

LONGEST = 1 << 20
"""Tokens of a prompt and completion above which no limit is looked for."""
SMALL_SHARE = 0.02
"""Share of the memory below which a part is not named."""


def forecast(problem: Problem) -> dict[str, str]:
    """One line of text each: steps, tokens, memory and the limit of a run."""
    model = problem.config.model
    memory_and_limit = _memory_and_limit(problem, read_shape(model.path), read_device(model.device))
    return {"steps": _steps(problem), "tokens": _tokens(problem), **memory_and_limit}


def too_large(problem: Problem) -> str | None:
    """Why the model's weights cannot be loaded on the device; None if they can, or if their size is not known."""
    config = problem.config
    shape, device = read_shape(config.model.path), read_device(config.model.device)
    if shape is None or shape.approximate or device is None or config.parallel.sharded:
        return None
    terms = memory(shape, step_plan(problem, shape, _length(problem))[0])
    needed = terms["weights"] + terms["computed weights"] + terms["teacher copies"]
    left, words = learner_memory(problem, device)
    return None if needed <= left else f"its weights take {in_gib(needed)} and {config.model.device} has {words}"


def learner_memory(problem: Problem, device: Device) -> tuple[float, str]:
    """Bytes of a device that an engine of the run's own leaves to the learner, and words for what the device has."""
    taken = engine_share(problem.config.sampler) * device.total
    words = f", of which the engine takes {in_gib(taken)}" if taken else ""
    return device.total - taken, in_gib(device.total) + words


def step_plan(problem: Problem, shape: Shape, length: int) -> tuple[Plan, int]:
    """The memory plan of a step, and how many completions the learner decodes at once: none where an engine samples.

    ``length`` is the tokens of the longest prompt and completion.
    """
    config = problem.config
    sampling, limits = config.sampling, config.limits
    rows = sampling.prompts * (sampling.completions if problem.method.on_policy else 1)
    # A small step does not fill a micro-batch.
    micro = min(limits.max_tokens_per_microbatch, rows * length)
    plan = plan_for(problem.method, config, config.model, shape)
    recompute = config.parallel.activation_checkpointing
    plan = planned(config.model.device, plan, micro, limits.max_logits_per_chunk, recompute, length)
    return plan, 0 if isinstance(config.sampler, EngineConfig) else min(rows, sampling.max_batch_size)


def in_gib(number: float) -> str:
    """Bytes in GiB, or in MiB if they are few."""
    return f"{number / GIB:.1f} GiB" if number >= GIB / 2 else f"{number / 2**20:.0f} MiB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {plural(number, noun)}"


def _length(problem: Problem) -> int:
    return PROMPT_TOKENS + problem.config.sampling.max_tokens


def _planned(problem: Problem) -> int:
    """The steps that there are at most."""
    config = problem.config
    return Counters().planned(config.steps, config.max_completions, each=completions_of_step(config, problem.method))


def _steps(problem: Problem) -> str:
    config, examples = problem.config, len(problem.task.examples("train"))
    steps = _planned(problem)
    sampling, asked = config.sampling, steps * config.sampling.prompts
    most = "at most " if config.max_completions else ""
    each = f"{most}{_count(steps, 'step')} of {_count(sampling.prompts, 'prompt')}"
    if problem.method.on_policy:
        each += f" × {_count(sampling.completions, 'completion')}"
    if config.max_completions:
        each += f", {config.max_completions:,} completions in all"
    updates = _count(steps * config.optimiser.updates_per_batch, "update")
    passes = "1 pass" if asked == examples else f"{asked / examples:,.2g} passes"
    return f"{each}, {updates}; {passes} over {_count(examples, 'example')}"


def _tokens(problem: Problem) -> str:
    config, steps = problem.config, _planned(problem)
    sampling, evaluation = config.sampling, config.evaluation
    a_step = sampling.prompts * sampling.completions * sampling.max_tokens
    trained = (
        f"at most {a_step:,} sampled a step, {a_step * steps:,} in all"
        if problem.method.on_policy
        else "none sampled, the data's own responses are read"
    )
    # Before the first step, at every multiple, and after the last step.
    evaluations = 1 + -(-steps // evaluation.every)
    problems = min(evaluation.problems, len(problem.task.examples(evaluation.split)))
    drawn = problems * evaluation.samples * (evaluation.max_tokens or sampling.max_tokens)
    return f"{trained}; {evaluations:,} evaluations of at most {drawn:,}"


def _memory_and_limit(problem: Problem, shape: Shape | None, device: Device | None) -> Mapping[str, str]:
    if shape is None or shape.approximate:
        return {"memory": "not estimated: the config.json at model.path cannot be read, or describes no dense decoder"}
    length = _length(problem)
    plan, rows = step_plan(problem, shape, length)
    needed = expected_bytes(shape, plan, rows=rows, length=length)
    updating = peak(shape, plan)
    terms = memory(shape, plan)
    if needed > updating:
        at_rest = resting(shape, plan)
        parts = {"the model between updates": at_rest, f"{rows:,} completions decoded at once": needed - at_rest}
    else:
        parts = terms
    named = sorted(((size, name) for name, size in parts.items() if size > SMALL_SHARE * needed), reverse=True)
    when = "while sampling" if needed > updating else "in an update"
    shown = ", ".join(f"{name} {in_gib(size)}" for size, name in named)
    told = f"about {in_gib(needed)} {when}, with prompts of {PROMPT_TOKENS:,} tokens: {shown}"
    if device is None:
        return {"memory": told}
    left, words = learner_memory(problem, device)
    limit = (_room if needed <= left else _remedies)(problem, shape, left)
    return {"memory": told, "limit": f"{problem.config.model.device} has {words}; {limit}"}


def _room(problem: Problem, shape: Shape, left: float) -> str:
    """How long completions may become before a step does not fit any more, decoded one by one."""
    low, high = _length(problem), LONGEST
    while low < high:
        length = (low + high + 1) // 2
        plan, rows = step_plan(problem, shape, length)
        fits = expected_bytes(shape, plan, rows=min(rows, 1), length=length) <= left
        low, high = (length, high) if fits else (low, length - 1)
    tokens = low - PROMPT_TOKENS
    if low == LONGEST:
        return f"memory does not limit the completions up to {tokens:,} tokens"
    plan, _ = step_plan(problem, shape, low)
    terms = memory(shape, plan)
    return f"completions of up to {tokens:,} tokens fit, the largest part is then {max(terms, key=terms.__getitem__)}"


def _remedies(problem: Problem, shape: Shape, left: float) -> str:
    """Which settings would make a step fit, each with the sizes that a run chooses for itself."""
    config, length, fitting = problem.config, _length(problem), []
    decodes = not isinstance(config.sampler, EngineConfig)
    for words, changes in _alternatives(problem):
        other = config.model_copy(update=changes)
        plan = plan_for(problem.method, other, other.model, shape)
        sizes = choose_sizes(config.model.device, int(left), shape, plan, GivenSizes(), length=length)
        micro, chunk = sizes.max_tokens_per_microbatch, sizes.max_logits_per_chunk
        plan = planned(config.model.device, plan, micro, chunk, sizes.activation_checkpointing, length)
        needed = expected_bytes(shape, plan, rows=sizes.max_batch_size if decodes else 0, length=length)
        if needed <= left * (1 - KEPT_BACK):
            fitting.append(words)
    if fitting:
        return f"a step does not fit, and would with {', or with '.join(fitting)}"
    return (
        "a step does not fit, with an adapter on a base in 4 bits neither: take a smaller model, lower "
        'sampling.max_tokens, or cut it over several devices (parallel.kind = "fsdp2")'
    )


def _alternatives(problem: Problem) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other settings in words and as changes of the config, those that change least first."""
    config = problem.config
    whole = {"parallel": Parallel(kind="ddp")}
    yield "unset limits", {}
    adapter = config.model.lora
    if adapter is None:
        if not config.parallel.sharded and config.optimiser.kind != MOMENTS_IN_8_BITS:
            optimiser = config.optimiser.model_copy(update={"kind": MOMENTS_IN_8_BITS})
            yield f"optimiser.kind={MOMENTS_IN_8_BITS}", {"optimiser": optimiser}
        adapter = LoraConfig()
        model = config.model.model_copy(update={"lora": adapter})
        yield f"model.lora.rank={adapter.rank}", {"model": model}
    if config.model.quantisation is None:
        model = config.model.model_copy(update={"lora": adapter, "quantisation": "nf4"})
        words = "" if config.model.lora is not None else f"model.lora.rank={adapter.rank} and "
        yield f"{words}model.quantisation=nf4", {"model": model, **whole}
