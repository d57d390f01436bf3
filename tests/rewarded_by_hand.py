"""The methods in which the reward keeps a say, as loops over tokens, written from the published definitions alone.

Nothing here imports the package, so agreement with it means something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from methods_by_hand import (
    ZERO,
    Row,
    Scored,
    capped_ratio,
    cut,
    entropy_of,
    gain,
    jensen_shannon,
    kl,
    mean_over_tokens,
    policy_gradient,
)

TokenLoss = Callable[[Scored, int], Tensor]


def logprob(one: Scored, rows: list[Row], t: int) -> float:
    """The sampled token's log-probability in some rows, without gradient."""
    return float(rows[t][one.ids[t]].detach())


def weighted(advantage: float, evidence: float, strength: float, clip: float) -> float:
    """A [(1 − λ) + λ clip(exp(sign(A) evidence), 1 − ε, 1 + ε)]."""
    sign = (advantage > 0) - (advantage < 0)
    weight = min(max(math.exp(sign * evidence), 1 - clip), 1 + clip)
    return advantage * ((1 - strength) + strength * weight)


def rlsd(strength: float, clip: float) -> TokenLoss:
    """The advantage weighted by the teacher's evidence."""

    def loss(one: Scored, t: int) -> Tensor:
        advantage = weighted(one.advantage, gain(one, t), strength, clip)
        return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], advantage)

    return loss


def cepo(strength: float, clip: float, *, student_instead: bool = False, clip_high: float = 0.28) -> TokenLoss:
    """The advantage weighted by the right answer's evidence against the wrong one's."""

    def loss(one: Scored, t: int) -> Tensor:
        wrong, evidence = one.others.get("wrong"), 0.0
        if one.teacher is not None and wrong is not None:
            evidence = logprob(one, one.teacher, t) - logprob(one, wrong, t)
        elif student_instead:
            evidence = gain(one, t)
        advantage = weighted(one.advantage, evidence, strength, clip)
        return clipped(one, t, advantage, high=clip_high)

    return loss


def clipped(
    one: Scored, t: int, advantage: float, *, low: float = 0.2, high: float = 0.2, dual: float | None = None
) -> Tensor:
    """−min(r A, clip(r, 1 − low, 1 + high) A), and for A < 0 at most −dual · A."""
    return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], advantage, low, high, dual)


def rlcsd(
    completions: Sequence[Scored], *, strength: float, sharpness: float, above: float, eta: float, contrasts: int
) -> Tensor:
    """Mean over unselected tokens + η · mean over selected ones, of completions with a right and a wrong hint."""
    losses: dict[bool, list[Tensor]] = {False: [], True: []}
    for one in completions:
        wrong = [one.others[f"wrong_{k}"] for k in range(contrasts) if f"wrong_{k}" in one.others]
        if one.teacher is None or not wrong:
            continue
        for t in range(len(one.ids)):
            mean = sum(math.exp(logprob(one, rows, t)) for rows in wrong) / len(wrong)
            bonus = strength * math.tanh((logprob(one, one.teacher, t) - math.log(mean)) / sharpness)
            bonus = min(max(bonus, -2.0), 2.0)
            moved = one.advantage + bonus
            if one.advantage == 0 or (moved > 0) != (one.advantage > 0):
                moved = 0.0
            losses[abs(bonus) > above].append(clipped(one, t, moved))
    assert losses[False] and losses[True]
    means = {which: sum(found, ZERO) / len(found) for which, found in losses.items()}
    return means[False] + eta * means[True]


def sdar(strength: float, sharpness: float) -> TokenLoss:
    """GRPO + λ σ(β u) (log T − log S), gate and teacher without gradient."""

    def loss(one: Scored, t: int) -> Tensor:
        plain = clipped(one, t, one.advantage)
        if one.teacher is None:
            return plain
        gate = 1 / (1 + math.exp(-sharpness * gain(one, t)))
        return plain + strength * gate * (logprob(one, one.teacher, t) - one.student[t][one.ids[t]])

    return loss


def skill_sd(strength: float) -> TokenLoss:
    """GRPO + λ ρ (e^{−ℓ} − 1 + ℓ), ℓ = log S − log T, the teacher without gradient."""

    def loss(one: Scored, t: int) -> Tensor:
        plain = clipped(one, t, one.advantage)
        if one.teacher is None:
            return plain
        student = one.student[t][one.ids[t]]
        gap = student - logprob(one, one.teacher, t)
        return plain + strength * torch.exp(student - one.sampled[t]) * (torch.exp(-gap) - 1 + gap)

    return loss


def sdpg(
    beta: float,
    alpha: float,
    *,
    form: str = "squared",
    bound: float = 20.0,
    dual: float | None = 3.0,
    only_praised: bool = False,
) -> TokenLoss:
    """GRPO + β min(KL(S‖T), bound) + α f(S, S₀)."""

    def loss(one: Scored, t: int) -> Tensor:
        found = clipped(one, t, one.advantage, high=0.28, dual=dual)
        if one.teacher is not None and (one.advantage > 0 or not only_praised):
            distance = kl(one.student[t], one.teacher[t])
            found = found + beta * (distance if float(distance.detach()) < bound else ZERO + bound)
        if not alpha:
            return found
        reference = one.others["reference"]
        if form == "squared":
            return found + alpha * (one.student[t][one.ids[t]] - logprob(one, reference, t)) ** 2 / 2
        pair = (one.student[t], reference[t])
        return found + alpha * (kl(*pair) if form == "reverse_kl" else kl(*pair[::-1]))

    return loss


def srpo(completions: Sequence[Scored], beta: float, *, k: int, dual: float | None = 3.0) -> Tensor:
    """GRPO on right and unjudged completions and on those without a teacher, SDPO × exp(−βH)/mean on the others."""

    def routed(one: Scored) -> bool:
        return one.teacher is not None and one.reward is not None and one.reward < 1

    weights = [
        math.exp(-beta * float(entropy_of(row))) for one in completions if routed(one) for row in one.teacher or []
    ]
    mean = sum(weights) / len(weights)

    def loss(one: Scored, t: int) -> Tensor:
        if not routed(one):
            return clipped(one, t, one.advantage, dual=dual)
        assert one.teacher is not None
        weight = math.exp(-beta * float(entropy_of(one.teacher[t]))) / mean
        ratio = capped_ratio(one.student[t][one.ids[t]], one.sampled[t], 2.0)
        return weight * ratio * jensen_shannon(*cut(one.student[t], one.teacher[t], k))

    return mean_over_tokens(completions, loss)
