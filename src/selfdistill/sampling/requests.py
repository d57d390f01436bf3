"""Requests to engines with their own copy of the weights: one request per completion, token ids in and out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import SamplerError
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.types import Completion, Weights


class Engine(Sampler, Protocol):
    """A sampler with its own copy of the weights, which needs a weight sync after every update.

    Only rank 0 talks to the engine. All ranks must call :meth:`update`, because it may all-gather sharded weights.
    """

    @property
    def synced(self) -> int:
        """Bytes of weights that the engine was sent so far."""
        ...

    def update(self, policy: Policy, version: int, world: World = ALONE, *, weights: Weights = "live") -> None:
        """Sync the student's weights, or a teacher's. Completions sampled from now on carry this version.

        ``policy`` computes with the ``weights``. With LoRA every teacher of the student's own is the student's policy:
        "frozen" is its base without an adapter, the others are further adapters.
        """
        ...

    def close(self) -> None:
        """Release the resources of the engine."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Request for one completion: its prompt, and a seed that is unique within the step."""

    prompt: tuple[int, ...]
    seed: int


def sampling_requests(prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[SamplingRequest]:
    """``params.count`` requests for every prompt, prompt by prompt."""
    seeds = params.seeds(len(prompts))
    return [SamplingRequest(tuple(prompt), seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]


def vllm_params(params: SamplingParams, *, stop_ids: Sequence[int], seed: int, padding: range) -> dict[str, Any]:
    """vLLM's parameters of one request. They override every default of the server and of the generation config.

    ``padding`` are vocabulary rows without a token, which must never be sampled.
    """
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": params.max_tokens,
        "seed": seed,
        # Only the ids that stop the Transformers sampler stop this one.
        "ignore_eos": True,
        "stop_token_ids": list(stop_ids),
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        **({"logit_bias": dict.fromkeys(padding, -100.0)} if padding else {}),
    }


def checked_completion(
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
    return range(policy.vocab_size, policy.causal_lm.get_output_embeddings().weight.shape[0])
