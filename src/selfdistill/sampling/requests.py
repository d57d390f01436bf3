"""Requests to engines with their own copy of the weights: one request per completion, token ids in and out."""

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
    """A sampler with its own copy of the weights, which needs a weight sync after every update.

    Only rank 0 talks to the engine. All ranks must call :meth:`update`, because it may all-gather sharded weights.
    """

    def update(self, policy: Policy, version: int, world: World = ALONE) -> None:
        """Sync the weights. Completions sampled from now on carry this version."""
        ...

    def close(self) -> None:
        """Release the resources of the engine."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """Request for one completion: its prompt, and a seed that is unique within the step."""

    prompt: tuple[int, ...]
    seed: int


def questions(
    prompts: Sequence[Sequence[int]], *, count: int, seed: int, ordinals: Sequence[int] | None
) -> list[Question]:
    """``count`` requests for every prompt, prompt by prompt.

    Each seed is derived from the step's seed, the prompt's ordinal and the completion's index, so that a completion
    does not depend on the server or on its other requests.
    """
    places = range(len(prompts)) if ordinals is None else ordinals
    return [
        Question(tuple(prompt), derive(seed, place, k))
        for prompt, place in zip(prompts, places, strict=True)
        for k in range(count)
    ]


def by_prompt(completions: Sequence[Completion], count: int) -> list[list[Completion]]:
    """The completions of the requests of :func:`questions`, as one list per prompt."""
    return [list(completions[i : i + count]) for i in range(0, len(completions), count)]


def parameters(
    decoding: Decoding, *, stop_ids: Sequence[int], max_tokens: int, seed: int, padding: range
) -> dict[str, Any]:
    """vLLM's sampling parameters. They override every default of the server and of the generation config.

    ``padding`` are vocabulary rows without a token, which must never be sampled.
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
    """Check the tokens of an engine and return them as a completion.

    Raises:
        SamplerError: a log-probability is missing or not finite, or the engine stopped too early.
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
    """Rows of the LM head without a token."""
    return range(policy.real_vocabulary, policy.causal_lm.get_output_embeddings().weight.shape[0])
