"""The numbers of every token that an inspection computes, and the concatenation of several steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfdistill.types import STUDENT, RolloutGroup
from selfdistill.types.conversation import Gaps

Floats = NDArray[np.float32]


@dataclass(slots=True)
class Findings:
    """Numbers of every token of every completion, concatenated; NaN is missing.

    ``logprobs`` and ``entropies`` are by context, including ``"student"``; ``credits`` by method; ``metrics`` by method
    and name. ``alternatives`` has ids and log-probabilities [N, K] of the likeliest tokens under ``"student"`` and, if
    there is one, under the context ``teacher``. ``prompts`` are the prompt ids of each completion by context; ``gaps``
    are the texts between the turns of an episode, also by context.
    """

    groups: list[RolloutGroup]
    places: list[tuple[int, int]]
    contexts: list[str]
    teacher: str | None
    logprobs: dict[str, Floats]
    entropies: dict[str, Floats]
    credits: dict[str, Floats]
    metrics: dict[str, dict[str, Floats]]
    alternatives: dict[str, tuple[NDArray[np.int32], Floats]]
    prompts: list[dict[str, tuple[int, ...]]]
    gaps: list[dict[str, Gaps]]
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    pmi: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """The pMI of a context under the teacher's own weights, by context and kind of weights; see
    :mod:`selfdistill.inspection.drift`."""
    weight_drift: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """By the same names: how much likelier the student's prompt makes the token under the teacher's weights."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each completion."""
        return [len(self.groups[g].rollouts[i].completion_ids) for g, i in self.places]

    def gains(self) -> dict[str, NDArray[np.float64]]:
        """Return u [N] = log T(y) − log S(y), in nats, of every context except the student's own."""
        student = self.logprobs[STUDENT].astype(np.float64)
        return {name: self.logprobs[name].astype(np.float64) - student for name in self.contexts if name != STUDENT}


def columns(parts: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Concatenate named columns of several parts; NaN where a part lacks a column."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: torch.cat([part.get(name, torch.full((n,), math.nan)) for part, n in zip(parts, sizes, strict=True)])
        for name in names
    }


def _tensors(columns: Mapping[str, Floats]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def join(parts: Sequence[Findings]) -> Findings:
    """Concatenate the findings of several steps."""
    joined = replace(parts[0])
    for part in parts[1:]:
        shift = len(joined.groups)
        joined.places = [*joined.places, *((g + shift, i) for g, i in part.places)]
        joined.groups = [*joined.groups, *part.groups]
        sizes = [len(joined.logprobs[STUDENT]), len(part.logprobs[STUDENT])]
        joined.metrics = {
            name: {
                key: value.numpy()
                for key, value in columns([_tensors(left), _tensors(part.metrics[name])], sizes).items()
            }
            for name, left in joined.metrics.items()
        }
        joined.prompts = [*joined.prompts, *part.prompts]
        joined.gaps = [*joined.gaps, *part.gaps]
        joined.skipped = joined.skipped + part.skipped
        for name in ("logprobs", "entropies", "credits"):
            left, right = getattr(joined, name), getattr(part, name)
            setattr(joined, name, {key: np.concatenate([left[key], right[key]]) for key in left})
        joined.alternatives = {
            key: (np.concatenate([ids, part.alternatives[key][0]]), np.concatenate([p, part.alternatives[key][1]]))
            for key, (ids, p) in joined.alternatives.items()
        }
    return joined
