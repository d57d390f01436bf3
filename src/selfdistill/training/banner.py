"""The banner and the warnings of a run before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from selfdistill.config.sampler import EngineConfig, HFConfig, SamplerConfig
from selfdistill.distributed.world import World
from selfdistill.files.text import plural
from selfdistill.methods.grpo import GRPO
from selfdistill.models.devices import read_device
from selfdistill.models.fit import expected_bytes, shape_in
from selfdistill.models.policy import Policy
from selfdistill.models.quantised import BLOCK, QuantisedLayers, count, quantised_layers
from selfdistill.models.sizing import GIB
from selfdistill.sampling.rollouts import longest_prompt
from selfdistill.tasks.build import warnings_for
from selfdistill.tasks.turns import environment_of
from selfdistill.training.build import Parts
from selfdistill.training.forecast import in_gib, learner_memory, step_plan
from selfdistill.training.problem import reward_warnings
from selfdistill.types import External, Role, Server, Snapshot

HIGH_RATE = 0.01
"""AdamW moves a weight by about the learning rate a step, and most weights of language models are smaller than this."""
HIGH_TEMPERATURE = 2.0
"""Above it a run warns: samples are mostly noise."""


def banner(parts: Parts, folder: Path) -> dict[str, str]:
    """One line of text each: model, device, method, rows, batch, expected memory and folder of a run."""
    config, unfit = parts.config, sum(parts.unfit.values())
    sampling, limits = config.sampling, config.limits
    roles = {name: role for name, role in parts.method.roles().items() if role.context is not None}
    teachers = [f"{name}: {describe_role(role)}{_rate(role, parts)}" for name, role in roles.items()]
    if parts.method.on_policy:
        total = sampling.prompts * sampling.completions
        at_once = min(total, sampling.max_batch_size)
        batch = (
            f"{_count(sampling.prompts, 'prompt')} × {_count(sampling.completions, 'completion')} of at most "
            f"{_count(sampling.max_tokens, 'token')}, {at_once:,} of {total:,} decoded at once"
        )
    else:
        batch = f"{_count(sampling.prompts, 'prompt')} with the data's own responses"
    quantised = quantised_layers(parts.policy.model)
    checkpointing = ", activations computed again" if config.parallel.activation_checkpointing else ""
    return {
        "model": f"{parts.chat.name}, {describe_size(parts.policy)}",
        **({} if quantised is None else {"base": describe_quantised(quantised)}),
        "device": _device(parts),
        "method": f"{config.method['name']}; {'; '.join(teachers) or 'no teacher'}",
        "rows": f"{len(parts.examples):,} to train on, {len(parts.held_out):,} held out ({config.evaluation.split})"
        + (f"; {unfit:,} left out, as below" if unfit else ""),
        **({"besides": parts.also.describe()} if parts.also else {}),
        "batch": f"{batch}; micro-batches of {limits.max_tokens_per_microbatch:,} tokens{checkpointing}",
        "memory": _memory(parts),
        "output": str(folder),
    }


def warnings(parts: Parts) -> Iterator[str]:
    """Warnings about unusual data, models and methods, one sentence each."""
    config = parts.config
    for warning in warnings_for(parts.task):
        yield f"data: {warning}"
    for warning in reward_warnings(parts.task, parts.method, parts.templates):
        yield f"reward: {warning}"
    if parts.device_warning:
        yield f"device: {parts.device_warning}"
    if parts.policy.gguf_quantisation is not None:
        yield (
            f"model: its weights were quantised ({parts.policy.gguf_quantisation}) before they were converted from "
            "GGUF, so the start is not the original model"
        )
    yield from quantised_warnings(parts.policy, config.sampler)
    for warning in parts.chat.warnings([example.prompt for example in parts.examples]):
        yield f"model: {warning}"
    yield from _engine_warnings(parts)
    if not parts.teachers.pack:
        yield "model: its layers do not support packing, so batches are padded and no prompt is shared"
    if environment_of(parts.task) is not None:
        yield "turns: sampling.max_tokens is the limit of a turn, and every number of tokens counts the model's own"
        if parts.chat.rewrites_turns(parts.examples[0].prompt, thinking=config.sampling.thinking):
            yield (
                f"turns: the chat template of {parts.chat.name} renders earlier turns otherwise than they were sampled "
                "(it may leave out their thoughts): episodes go on from what was sampled and train on that"
            )
    if parts.unfit:
        yield f"left out: {', '.join(f'{n} × {reason}' for reason, n in sorted(parts.unfit.items()))}"
    prompts, available = config.sampling.prompts, len(parts.examples)
    if prompts > available:
        yield (
            f"data: sampling.prompts is {prompts:,} and there {plural(available, 'is', 'are')} "
            f"{_count(available, 'example')}, so {_count(prompts - available, 'prompt')} of every step "
            f"{plural(prompts - available, 'repeats', 'repeat')} an example of the same step"
        )
    compares = type(parts.method).advantages is GRPO.advantages and len(parts.method.sampling_roles()) == 1
    if compares and config.sampling.completions == 1:
        yield "reward: sampling.completions is 1, and a completion alone in its group has advantage 0"
    rate, temperature = config.optimiser.learning_rate, config.sampling.temperature
    if rate > HIGH_RATE:
        yield (
            f"optimiser: a learning rate of {rate:g} moves every weight by about as much in each step; usual are 1e-06 "
            "for all weights to 1e-04 for an adapter"
        )
    if parts.method.on_policy and temperature > HIGH_TEMPERATURE:
        yield f"sampling: at temperature {temperature:g} unlikely tokens are nearly as frequent as likely ones"
    if parts.method.one_update and config.optimiser.updates_per_batch > 1:
        yield (
            f"warning: {config.method['name']} is meant for one optimiser step a batch, "
            f"optimiser.updates_per_batch is {config.optimiser.updates_per_batch}"
        )


def _engine_warnings(parts: Parts) -> Iterator[str]:
    """Warnings about what samples, and about teachers behind servers."""
    for server, teacher in parts.teachers.served.items():
        if teacher.window is not None and teacher.window == parts.chat.window + 1:
            yield (
                f"teacher: {server.url} holds {teacher.window:,} tokens, so a prompt and its completion may have "
                f"{parts.chat.window:,} together (a larger --max-model-len of that server allows more)"
            )
    if parts.method.on_policy and isinstance(parts.config.sampler, HFConfig) and parts.policy.device.type == "cuda":
        yield (
            "sampler: the model samples its own completions, and vLLM is an engine that is made for sampling on GPUs: "
            'install it and set sampler.kind = "vllm"'
        )


def quantised_warnings(policy: Policy, sampler: SamplerConfig) -> Iterator[str]:
    """Warnings about a model whose linear layers are quantised, one sentence each."""
    if policy.quantisation is None:
        return
    yield f"model: its linear layers are kept in {policy.quantisation}, so it is not the original model"
    if isinstance(sampler, EngineConfig):
        yield (
            "sampler: the engine holds the model below the adapter as it is stored, not quantised, so it samples with "
            "other probabilities than are trained; with training, importance weights correct for it, and sampler_gap "
            "says by how much they differ"
        )


def describe_quantised(layers: QuantisedLayers) -> str:
    """Describe which layers of a model are quantised, and which weights stay as they are."""
    others = f"others {short(layers.others)}"
    if layers.others > layers.weights / 10:
        others += f", the largest {layers.largest}"
    if layers.uneven:
        others += (
            f"; {_count(layers.uneven, 'linear layer')} {plural(layers.uneven, 'stays', 'stay')} because "
            f"{plural(layers.uneven, 'its', 'their')} inputs are no multiple of {BLOCK}"
        )
    return (
        f"{layers.kind}: {_count(layers.layers, 'linear layer')} with {short(layers.weights)} weights; not quantised: "
        f"embedding and head {short(layers.tables)}, {others}"
    )


def describe_role(role: Role) -> str:
    """Describe the context and the weights of a role."""
    prompt = f"context {role.context}" if role.context else "the student's prompt"
    match role.weights:
        case External(path=path):
            return f"{prompt}, weights of {path}"
        case Server(column=None, url=url):
            return f"{prompt}, weights behind {url}"
        case Server(column=column, servers=servers):
            each = ", ".join(f"{server.url} ({name})" for name, server in servers.items())
            return f"{prompt}, weights behind the server that column {column!r} names: {each}"
        case Snapshot(every=every):
            return f"{prompt}, weights of a snapshot every {every} steps"
    return f"{prompt}, {role.weights} weights"


def describe_size(policy: Policy) -> str:
    """Describe how many weights a model has and how many of them are trained."""
    total, trained = (sum(map(count, weights)) for weights in (policy.parameters(), policy.trainable()))
    if total == trained:
        return f"{short(total)} weights, all trained"
    return f"{short(total)} weights, {short(trained)} of them trained"


def in_short(policy: Policy, name: str) -> str:
    """A loaded model in one line: its name, size, number type and device."""
    size = short(sum(map(count, policy.parameters())))
    dtype = str(policy.dtype or next(policy.parameters()).dtype).removeprefix("torch.")
    device = read_device(str(policy.device))
    words = "" if device is None or device.kind == "cpu" else f" ({device.words})"
    quantised = f", quantised ({policy.quantised})" if policy.quantised else ""
    return f"model: {name}, {size} weights{quantised}, {dtype} on {policy.device}{words}"


def short(number: float) -> str:
    """A number with a unit: ``1.7B``, ``560K``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _rate(role: Role, parts: Parts) -> str:
    return f" (rate {parts.method.teacher_rate:g})" if role.weights == "ema" else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {plural(number, noun)}"


def _device(parts: Parts) -> str:
    config, device = parts.config, read_device(str(parts.policy.device))
    name = config.model.device
    memory = ""
    if device is not None:
        words = "" if device.kind == "cpu" else f"{device.words}, {device.free / GIB:.1f} of "
        memory = f" ({words}{device.total / GIB:.1f} GiB)"
    ranks = World.current().size
    several = f", {ranks} processes ({config.parallel.kind})" if ranks > 1 else ""
    return f"{name}{memory}, {config.model.dtype}{several}"


def _memory(parts: Parts) -> str:
    """Describe the expected peak memory, computed with the actual lengths of the prompts."""
    config, policy = parts.config, parts.policy
    shape, device = shape_in(policy.causal_lm.config.to_dict()), read_device(str(policy.device))
    if shape is None or shape.approximate:
        return f"not estimated: the sizing model does not know {type(policy.causal_lm).__name__}"
    length = longest_prompt(parts.examples, parts.chat, config.sampling.thinking) + config.sampling.max_tokens
    plan, rows = step_plan(parts, shape, length)
    needed = expected_bytes(shape, plan, rows=rows, length=length)
    text = f"about {in_gib(needed)} at the peak of a step"
    if device is None:
        return text
    left, words = learner_memory(parts, device)
    text += f", of {words}"
    if needed > left:
        text += ": more than there is; train an adapter (model.lora), take a smaller model or lower sampling.max_tokens"
    return text
