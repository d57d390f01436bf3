"""What to say when memory does not suffice: in which part of the work, and what makes that part smaller."""

from __future__ import annotations

from selfdistill.errors import OutOfMemory

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
