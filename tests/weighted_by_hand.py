"""Methods that weigh questions, bend the target, gate tokens or add the teacher's samples, as loops from their papers.

As ``methods_by_hand``, this imports nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from methods_by_hand import (
    ZERO,
    Row,
    Scored,
    capped_ratio,
    cut_all,
    entropy_of,
    frozen,
    grpo,
    jensen_shannon,
    kl,
    normalised,
    policy_gradient,
)


def pass_rate(rewards: Sequence[float | None]) -> float:
    """Share of rewards of 1 among those that are given."""
    judged = [reward for reward in rewards if reward is not None]
    return sum(reward == 1 for reward in judged) / len(judged) if judged else 0.0


def weighted(
    weights: Mapping[int, float], token_loss: Callable[[Scored, int], Tensor], *, mean: float = 1.0
) -> Callable[[Scored, int], Tensor]:
    """A token's loss times the weight of its question, over a mean."""
    return lambda one, t: weights[one.group] / mean * token_loss(one, t)


def forward(student: Row, teacher: Row) -> Tensor:
    """KL(T || S)."""
    return kl(teacher, student)


def demopsd(
    alpha_max: float, beta: float, *, k: int | None, divergence: Callable[[Row, Row], Tensor] = kl, cap: float = 2.0
) -> Callable[[Scored, int], Tensor]:
    """A divergence to T^(1−α) B^α, normalised, α = 2 α_max (σ(β JSD) − ½), times min(S / S_sampled, cap)."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        student, teacher, bare = cut_all([one.student[t], one.teacher[t], one.others["bare"][t]], k)
        distance = float(jensen_shannon(frozen([student])[0], teacher))
        alpha = 2 * alpha_max * (1 / (1 + math.exp(-beta * distance)) - 0.5)
        target = normalised([(1 - alpha) * q + alpha * b for q, b in zip(teacher, bare, strict=True)])
        return capped_ratio(one.student[t][one.ids[t]], one.sampled[t], cap) * divergence(student, target)

    return loss


def eopd(threshold: float, k: int, strength: float = 1.0) -> Callable[[Scored, int], Tensor]:
    """Policy gradient with log T(y) − log S_old(y), plus the KL from T on its own k likeliest where T is uncertain."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        token, teacher = one.ids[t], one.teacher[t]
        gradient = policy_gradient(one.student[t][token], one.sampled[t], float(teacher[token]) - one.sampled[t])
        if float(entropy_of(teacher)) <= threshold:
            return gradient
        chosen = sorted(range(len(teacher)), key=lambda v: -float(teacher[v]))[:k]
        return gradient + strength * kl(normalised([teacher[v] for v in chosen]), [one.student[t][v] for v in chosen])

    return loss


def hdpo(completions: Sequence[Scored], strength: float, *, k: int) -> Tensor:
    """Mean GRPO over the student's tokens + λ mean JSD over the tokens that the teacher sampled."""
    rewarded, distilled = [], []
    for one in completions:
        for t in range(len(one.ids)):
            if one.source == "student":
                rewarded.append(grpo(one, t))
            else:
                assert one.teacher is not None
                student, teacher = cut_all([one.student[t], one.teacher[t]], k)
                distilled.append(jensen_shannon(student, teacher))
    return sum(rewarded, ZERO) / max(len(rewarded), 1) + strength * sum(distilled, ZERO) / max(len(distilled), 1)
