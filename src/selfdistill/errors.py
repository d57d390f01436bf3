"""Errors that a user can mend: one sentence each, shown without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's input: what is wrong, where, and what would be right, in one sentence."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class DataError(UserError):
    """A row, a file or a field mapping that cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or chat template that cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TrainingError(UserError):
    """A run that cannot go on (for example a loss that is not a number)."""


class OutOfMemory(UserError):
    """A device or machine whose memory does not suffice."""


class SamplerError(UserError):
    """An engine that cannot be used, or no longer answers."""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


DRAWING = (
    "not even one completion fits, so lower sampling.max_tokens, train an adapter (model.lora), or draw with vLLM "
    'servers (sampler.kind = "server")'
)
PASSES = (
    "lower limits.tokens, the tokens of one forward pass, or limits.elements, the logits that exist at once, or set "
    "parallel.activation_checkpointing"
)
REMEDIES = {
    "generation": DRAWING,
    "evaluation": DRAWING,
    "teacher": PASSES,
    "student": PASSES,
    "update": 'train an adapter (model.lora), or cut the weights over several GPUs (parallel.kind = "fsdp2")',
}
"""By phase of a step."""
ANYWHERE = f"{PASSES}, or take a smaller model, another model.dtype or an adapter (model.lora)"


def is_full(error: BaseException) -> bool:
    """Whether an error says that there was no memory, on a GPU or for tensors of a CPU.

    Known by its name, so that nobody loads torch to ask. What the CPU's allocator raises has no name of its own.
    """
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "can't allocate memory" in str(error)


def out_of_memory(error: BaseException, phase: str | None = None) -> OutOfMemory:
    """The sentence for such an error."""
    where = f" in the phase {phase!r} of a step" if phase else ""
    remedy = REMEDIES.get(phase, ANYWHERE) if phase else ANYWHERE
    # torch goes on with pages of advice on its allocator.
    found = ". ".join(str(error).strip().splitlines()[0].split(". ")[:2]) if str(error).strip() else "MemoryError"
    return OutOfMemory(f"not enough memory{where} ({found}): {remedy}")
