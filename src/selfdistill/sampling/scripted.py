"""A sampler that returns given completions, for tests and for replaying rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfdistill.sampling.base import SamplingParams
from selfdistill.types import Completion


class ScriptedSampler:
    """Returns prepared completions by prompt. Requests beyond the script are errors."""

    def __init__(self, script: Mapping[tuple[int, ...], Sequence[Completion]]) -> None:
        self.script = script

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """The first ``params.count`` prepared completions of each prompt, truncated at ``params.max_tokens``.

        Raises:
            KeyError: the script lacks a prompt.
            ValueError: the script has fewer than ``params.count`` completions of a prompt.
        """
        sampled = []
        for prompt in prompts:
            completions = self.script[tuple(prompt)][: params.count]
            if len(completions) < params.count:
                raise ValueError(
                    f"the script holds {len(completions)} completions for this prompt, {params.count} were asked for"
                )
            sampled.append([_truncated(completion, params.max_tokens) for completion in completions])
        return sampled


def _truncated(completion: Completion, max_tokens: int) -> Completion:
    if len(completion.ids) <= max_tokens:
        return completion
    return Completion(completion.ids[:max_tokens], completion.logprobs[:max_tokens], finished=False)
