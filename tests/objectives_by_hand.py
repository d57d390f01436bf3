"""The objectives once more, as loops over plain Python numbers, written from the definitions alone.

A row is a list of log-probabilities; −inf is a probability of zero, and 0 · anything is 0. Nothing here imports the
package, so agreement with it means something. Row functions come back as numbers; ``gradient`` differentiates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Row = Sequence[float]


def forward_kl(student: Row, teacher: Row) -> float:
    """Σ_v T (log T − log S)."""
    return sum(math.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True) if t > -math.inf)


def reverse_kl(student: Row, teacher: Row) -> float:
    """Σ_v S (log S − log T)."""
    return forward_kl(teacher, student)


def clipped_forward_kl(student: Row, teacher: Row, clip: float) -> float:
    """Σ_v min(T (log T − log S), clip)."""
    return sum(min(math.exp(t) * (t - s), clip) for s, t in zip(student, teacher, strict=True) if t > -math.inf)


def jensen_shannon(student: Row, teacher: Row, weight: float) -> float:
    """w KL(T || M) + (1−w) KL(S || M), M = w T + (1−w) S."""
    mixture = [
        math.log(mass) if (mass := weight * math.exp(t) + (1 - weight) * math.exp(s)) > 0.0 else -math.inf
        for s, t in zip(student, teacher, strict=True)
    ]
    return weight * forward_kl(mixture, teacher) + (1 - weight) * forward_kl(mixture, student)


def normalise(scores: Row) -> list[float]:
    """log-softmax."""
    largest = max(scores)
    total = largest + math.log(sum(math.exp(score - largest) for score in scores))
    return [score - total for score in scores]


def with_tail(row: Row) -> list[float]:
    """The row and log(1 − Σ p)."""
    return [*row, math.log(1.0 - math.fsum(math.exp(p) for p in row))]


def credit_target(teacher: Row, contrasts: Sequence[Row], weight: float) -> list[float]:
    """T exp(−λ mean_k log N_k), normalised over the entries that no input forbids."""
    scores = []
    for v, t in enumerate(teacher):
        column = [contrast[v] for contrast in contrasts]
        padded = min(t, *column) == -math.inf
        scores.append(-math.inf if padded else t - weight * sum(column) / len(column))
    return normalise(scores)


def purified_target(base: Row, teacher: Row, reference_only: Row, beta: float, clip: float) -> list[float]:
    """B exp(clip tanh(centred (log T − log R) / clip) / beta), normalised, padded rows left out."""
    rows = list(zip(base, teacher, reference_only, strict=True))
    real = [v for v, entry in enumerate(rows) if min(entry) > -math.inf]
    mean = sum(teacher[v] - reference_only[v] for v in real) / len(real)
    scores = [-math.inf] * len(rows)
    for v in real:
        delta = teacher[v] - reference_only[v] - mean
        scores[v] = base[v] + clip * math.tanh(delta / clip) / beta
    return normalise(scores)


def gradient(value: Callable[[list[float]], float], logits: Row) -> list[float]:
    """Derivative of ``value(log-softmax(logits))`` by each logit: central differences, extrapolated once (error h⁴)."""

    def difference(v: int, step: float) -> float:
        ends = []
        for sign in (1.0, -1.0):
            moved = list(logits)
            moved[v] += sign * step
            ends.append(value(normalise(moved)))
        return (ends[0] - ends[1]) / (2.0 * step)

    return [
        0.0 if score == -math.inf else (4.0 * difference(v, 1e-3) - difference(v, 2e-3)) / 3.0
        for v, score in enumerate(logits)
    ]


def random_logprobs(*shape: int, seed: int, padded: int = 0, spread: float = 2.0) -> Tensor:
    """Random float64 distributions along the last axis, whose last ``padded`` entries have probability zero."""
    scores = spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if padded:
        scores[..., -padded:] = -math.inf
    return torch.log_softmax(scores, -1)
