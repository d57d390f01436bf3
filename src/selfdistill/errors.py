"""Errors that a user can fix, and messages for running out of memory. Torch is not imported here.

The command line prints a ``UserError`` as one sentence, without a traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's input. The message says in one sentence what is wrong, where, and what would be right."""


class ConfigError(UserError):
    """A config that cannot be run."""


class DataError(UserError):
    """A row, a file or a field mapping that cannot be used."""


class ModelError(UserError):
    """A model, tokenizer or chat template that cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TrainingError(UserError):
    """A run that cannot continue, for example because the loss is not finite."""


class OutOfMemory(UserError):
    """A device or machine that ran out of memory."""


class SamplerError(UserError):
    """A sampling engine that cannot be used or no longer answers."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


DRAWING = (
    "not even one completion fits, so lower sampling.max_tokens, train an adapter (model.lora), or draw with vLLM "
    'servers (sampler.kind = "server")'
)
PASSES = (
    "lower limits.max_tokens_per_microbatch, the tokens of one forward pass, or limits.max_logits_per_chunk, the "
    "logits that exist at once, or set parallel.activation_checkpointing"
)
REMEDIES = {
    "generation": DRAWING,
    "evaluation": DRAWING,
    "teacher": PASSES,
    "student": PASSES,
    "update": 'train an adapter (model.lora), or cut the weights over several GPUs (parallel.kind = "fsdp2")',
}
"""Settings that reduce memory, by phase of a step."""
ANYWHERE = f"{PASSES}, or take a smaller model, another model.dtype or an adapter (model.lora)"


def is_full(error: BaseException) -> bool:
    """Whether an error means out of memory, on a GPU or a CPU.

    The class is compared by name, so that torch need not be imported. torch's CPU allocator raises a plain
    RuntimeError, which is known by its message.
    """
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "can't allocate memory" in str(error)


def out_of_memory(error: BaseException, phase: str | None = None) -> OutOfMemory:
    """An out-of-memory message: which phase ran out, and which setting reduces it."""
    where = f" in the phase {phase!r} of a step" if phase else ""
    remedy = REMEDIES.get(phase, ANYWHERE) if phase else ANYWHERE
    # Keep two sentences: torch appends long advice on its allocator.
    reason = ". ".join(str(error).strip().splitlines()[0].split(". ")[:2]) if str(error).strip() else "MemoryError"
    return OutOfMemory(f"not enough memory{where} ({reason}): {remedy}")
