"""Every method once more, as loops over tokens and vocabulary entries, written from the published definitions alone.

Whole sequences go through ``model(...)``; a row is a list of scalars, one log-probability for each real vocabulary
entry. Nothing here imports the package, so agreement with it means something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = list[Tensor]
ZERO = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion: its rows under student and teacher (None without a context), and what is known of it."""

    student: list[Row]
    teacher: list[Row] | None
    ids: Sequence[int]
    sampled: Sequence[float]
    advantage: float


def rows(
    model: Any, prompt: Sequence[int], completion: Sequence[int], real: int, temperature: float = 1.0
) -> list[Row]:
    """log-softmax over the real entries at every position that predicts a completion token."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    result = []
    for t in range(len(completion)):
        scores = [logits[len(prompt) - 1 + t, v] / temperature for v in range(real)]
        total = torch.log(sum((torch.exp(score) for score in scores), ZERO))
        result.append([score - total for score in scores])
    return result


def frozen(given: list[Row]) -> list[Row]:
    """The same numbers without gradient."""
    return [[value.detach() for value in row] for row in given]


def advantages(rewards: Sequence[float | None]) -> list[float]:
    """(R − mean) / sample standard deviation over the judged; 0 for the unjudged and where all are equal."""
    judged = [reward for reward in rewards if reward is not None]
    if len(set(judged)) < 2:
        return [0.0] * len(rewards)
    mean = sum(judged) / len(judged)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in judged) / (len(judged) - 1))
    return [0.0 if reward is None else (reward - mean) / deviation for reward in rewards]


def kl(first: Row, second: Row) -> Tensor:
    """Σ_v P (log P − log Q)."""
    return sum((torch.exp(p) * (p - q) for p, q in zip(first, second, strict=True)), ZERO)


def jensen_shannon(student: Row, teacher: Row, weight: float = 0.5) -> Tensor:
    """w KL(T || M) + (1−w) KL(S || M), M = w T + (1−w) S, gradient through M included."""
    pairs = zip(student, teacher, strict=True)
    mixture = [torch.log(weight * torch.exp(t) + (1 - weight) * torch.exp(s)) for s, t in pairs]
    return weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture)


def clipped_forward_kl(student: Row, teacher: Row, clip: float) -> Tensor:
    """Σ_v min(T (log T − log S), τ)."""
    terms = [torch.exp(t) * (t - s) for s, t in zip(student, teacher, strict=True)]
    return sum((term if float(term.detach()) < clip else ZERO + clip for term in terms), ZERO)


def cut(student: Row, teacher: Row, k: int) -> tuple[Row, Row]:
    """Both on the student's k likeliest entries and one bin for the rest."""
    chosen = sorted(range(len(student)), key=lambda v: -float(student[v].detach()))[:k]

    def on(row: Row) -> Row:
        kept = [row[v] for v in chosen]
        return [*kept, torch.log(1 - sum((torch.exp(p) for p in kept), ZERO))]

    return on(student), on(teacher)


def policy_gradient(logprob: Tensor, sampled: float, advantage: float, clip: float = 0.2) -> Tensor:
    """−min(r A, clip(r) A)."""
    ratio = torch.exp(logprob - sampled)
    clipped = min(max(float(ratio.detach()), 1 - clip), 1 + clip) * advantage
    return -clipped * (ZERO + 1) if clipped < float(ratio.detach()) * advantage else -ratio * advantage


def capped_ratio(logprob: Tensor, sampled: float, cap: float) -> float:
    """min(S / S_sampled, cap)."""
    return min(math.exp(float(logprob.detach()) - sampled), cap)


def mean_over_tokens(completions: Sequence[Scored], token_loss: Callable[[Scored, int], Tensor]) -> Tensor:
    """Σ loss / number of tokens, over all completions."""
    losses = [token_loss(one, t) for one in completions for t in range(len(one.ids))]
    return sum(losses, ZERO) / len(losses)


def grpo(one: Scored, t: int) -> Tensor:
    """The clipped policy gradient with the completion's advantage."""
    return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], one.advantage)


def sft(one: Scored, t: int) -> Tensor:
    """−log S(y_t)."""
    return -one.student[t][one.ids[t]]


def against_teacher(divergence: Callable[[Row, Row], Tensor]) -> Callable[[Scored, int], Tensor]:
    """A divergence from student to teacher at every token."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        return divergence(one.student[t], one.teacher[t])

    return loss


def sdpo(
    divergence: Callable[[Row, Row], Tensor], *, k: int | None, cap: float = 2.0
) -> Callable[[Scored, int], Tensor]:
    """A divergence on the student's top k and the tail, times min(S / S_sampled, cap)."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        student, teacher = one.student[t], one.teacher[t]
        if k is not None:
            student, teacher = cut(student, teacher, k)
        return capped_ratio(one.student[t][one.ids[t]], one.sampled[t], cap) * divergence(student, teacher)

    return loss


def gain(one: Scored, t: int) -> float:
    """u = log T(y) − log S(y); 0 where there is no context."""
    if one.teacher is None:
        return 0.0
    return float(one.teacher[t][one.ids[t]].detach()) - float(one.student[t][one.ids[t]].detach())


def sd(strength: float) -> Callable[[Scored, int], Tensor]:
    """A + λ u in the clipped policy gradient."""

    def loss(one: Scored, t: int) -> Tensor:
        advantage = one.advantage + strength * gain(one, t)
        return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], advantage)

    return loss


def antisd(strength: float, gate: float) -> Callable[[Scored, int], Tensor]:
    """A − λ g φ(u), φ(u) = ½ (softplus(u) − ln 2), in the clipped policy gradient."""

    def loss(one: Scored, t: int) -> Tensor:
        phi = 0.5 * (math.log1p(math.exp(gain(one, t))) - math.log(2))
        return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], one.advantage - strength * gate * phi)

    return loss


def median_entropy(completions: Sequence[Scored]) -> float:
    """Lower median, over all tokens of all completions that have a context, of the teacher's entropy."""
    shown = [row for one in completions if one.teacher is not None for row in one.teacher]
    entropies = sorted(-sum(math.exp(float(p)) * float(p) for p in row) for row in shown)
    return entropies[(len(entropies) - 1) // 2]


def gradient(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Derivative of the loss by every trainable parameter."""
    named: Mapping[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in pairs}
