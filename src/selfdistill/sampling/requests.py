"""What an engine with weights of its own is asked and answers: one request a completion, tokens in and tokens out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy
from selfdistill.sampling.hf import Decoding
from selfdistill.seeds import derive
from selfdistill.types import Completion, Sampler


class Engine(Sampler, Protocol):
    """A sampler that holds a copy of the weights and must be told of new ones.

    Of several ranks the first one alone has to do with the engine; all must call :meth:`update`, where the weights may
    have to be put together.
    """

    def update(self, policy: Policy, version: int, world: World = ALONE) -> None:
        """Draw from these weights from now on; what is drawn afterwards is stamped with their version."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """One completion that is wanted: its prompt, and a seed that no other completion of the step has."""

    prompt: tuple[int, ...]
    seed: int


def questions(
    prompts: Sequence[Sequence[int]], *, count: int, seed: int, ordinals: Sequence[int] | None
) -> list[Question]:
    """``count`` questions for every prompt, one after another.

    Seeds follow from the step's seed, the prompt's ordinal and the completion's place, so that an answer does not
    depend on which server gives it or on what else it is asked.
    """
    places = range(len(prompts)) if ordinals is None else ordinals
    return [
        Question(tuple(prompt), derive(seed, place, k))
        for prompt, place in zip(prompts, places, strict=True)
        for k in range(count)
    ]


def by_prompt(completions: Sequence[Completion], count: int) -> list[list[Completion]]:
    """The answers to :func:`questions`, a list for every prompt."""
    return [list(completions[i : i + count]) for i in range(0, len(completions), count)]


def parameters(
    decoding: Decoding, *, stop_ids: Sequence[int], max_tokens: int, seed: int, padding: range
) -> dict[str, Any]:
    """vLLM's sampling parameters, every default of a server or a generation config overruled.

    ``padding`` are vocabulary rows that no token has: they are never drawn.
    """
    return {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": max_tokens,
        "seed": seed,
        # Only the ids that stop the Transformers sampler stop this one.
        "ignore_eos": True,
        "stop_token_ids": list(stop_ids),
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        **({"logit_bias": dict.fromkeys(padding, -100.0)} if padding else {}),
    }


def completion(
    ids: Sequence[int], logprobs: Sequence[float], *, stop_ids: Sequence[int], max_tokens: int, engine: str
) -> Completion:
    """An answer, checked.

    Raises:
        SamplerError: a log-probability is missing or not a number, or the engine has cut the completion too early.
    """
    if len(ids) != len(logprobs) or not all(math.isfinite(number) for number in logprobs):
        raise SamplerError(
            f"{engine} gave {len(logprobs)} log-probabilities to {len(ids)} tokens, or some that are not finite"
        )
    finished = bool(ids) and ids[-1] in stop_ids
    if not finished and len(ids) < max_tokens:
        raise SamplerError(
            f"{engine} cut a completion after {len(ids)} of {max_tokens} tokens: its max_model_len must hold the "
            "longest prompt and sampling.max_tokens"
        )
    return Completion(tuple(ids), tuple(logprobs), finished)


def padding_rows(policy: Policy) -> range:
    """Vocabulary rows of the head that no token has."""
    return range(policy.real_vocabulary, policy.causal_lm.get_output_embeddings().weight.shape[0])
