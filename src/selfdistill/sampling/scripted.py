"""A sampler that returns given completions, for tests and for replaying rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfdistill.types import Completion


class ScriptedSampler:
    """Returns prepared completions by prompt. Requests beyond the script are errors."""

    def __init__(self, script: Mapping[tuple[int, ...], Sequence[Completion]]) -> None:
        self.script = script

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        count: int,
        max_tokens: int,
        seed: int,
        ordinals: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """The first ``count`` prepared completions of each prompt, truncated at ``max_tokens``.

        Raises:
            KeyError: the script lacks a prompt.
            ValueError: the script has fewer than ``count`` completions of a prompt.
        """
        drawn = []
        for prompt in prompts:
            completions = self.script[tuple(prompt)][:count]
            if len(completions) < count:
                raise ValueError(
                    f"the script holds {len(completions)} completions for this prompt, {count} were asked for"
                )
            drawn.append([_cut(completion, max_tokens) for completion in completions])
        return drawn


def _cut(completion: Completion, max_tokens: int) -> Completion:
    if len(completion.ids) <= max_tokens:
        return completion
    return Completion(completion.ids[:max_tokens], completion.logprobs[:max_tokens], finished=False)
