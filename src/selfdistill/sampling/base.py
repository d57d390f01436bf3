"""The signature of sampling, which every engine shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar, runtime_checkable

from selfdistill.errors import ConfigError
from selfdistill.seeds import derive
from selfdistill.types import Completion

T = TypeVar("T")

RANGES: Mapping[str, tuple[type, Callable[[Any], bool], str]] = {
    "count": (Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "max_tokens": (Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "temperature": (Real, lambda value: 0 <= value < math.inf, "a number of at least 0"),
    "top_p": (Real, lambda value: 0 < value <= 1, "a number above 0 and at most 1"),
    "top_k": (Integral, lambda value: value >= 0, "a whole number of at least 0"),
    "seed": (Integral, lambda value: True, "a whole number"),
}
"""Type, check and description of the values of each parameter."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How many completions of every prompt to sample, how long, and from which distribution.

    Temperature 0 is greedy; ``top_p`` 1 and ``top_k`` 0 do not truncate the distribution.

    Raises:
        ConfigError: a parameter is out of its range.
    """

    count: int
    """Completions of every prompt."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    """The same seed samples the same completions."""
    ordinals: Sequence[int] | None = None
    """The prompts' indices among all prompts that share the seed, of which these may be one rank's share. None: the
    prompts are all of them."""

    def __post_init__(self) -> None:
        for name, (kind, fits, description) in RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
                raise ConfigError(f"{name} must be {description}, got {value!r}")

    def seeds(self, prompts: int) -> list[list[int]]:
        """A seed for each of the ``count`` completions of each prompt.

        A completion's seed is a function of ``seed``, its prompt's ordinal and its index among the prompt's
        completions. What is sampled therefore does not depend on the batch, the rank or the server.

        Raises:
            ConfigError: there is not one ordinal for every prompt.
        """
        ordinals = range(prompts) if self.ordinals is None else self.ordinals
        if len(ordinals) != prompts:
            raise ConfigError(f"ordinals must hold one index for each of the {prompts} prompts, got {len(ordinals)}")
        return [[derive(self.seed, ordinal, k) for k in range(self.count)] for ordinal in ordinals]


class Sampler(Protocol):
    """An engine that samples completions."""

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """``params.count`` completions for every prompt, in order."""
        ...


@runtime_checkable
class KeepsTurns(Protocol):
    """An engine that can keep what it has read between the turns of episodes. Engines with a prefix cache always do."""

    def in_turns(self) -> Sampler:
        """A sampler for episodes that are played together, while the weights stay the same."""
        ...


def for_turns(sampler: Sampler) -> Sampler:
    """The sampler for episodes that are played together: one that keeps what it has read, where there is one."""
    return sampler.in_turns() if isinstance(sampler, KeepsTurns) else sampler


def group_by_prompt(completions: Sequence[T], count: int) -> list[list[T]]:
    """Completions, or requests for them, that are ordered by prompt, ``count`` of each, as one list per prompt."""
    return [list(completions[i : i + count]) for i in range(0, len(completions), count)]
