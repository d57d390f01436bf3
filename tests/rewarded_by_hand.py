"""The methods in which the reward keeps a say, as loops over tokens, written from the published definitions alone.

Nothing here imports the package, so agreement with it means something.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from methods_by_hand import Row, Scored, gain, policy_gradient

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


def clipped(one: Scored, t: int, advantage: float, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """−min(r A, clip(r, 1 − low, 1 + high) A)."""
    own = one.student[t][one.ids[t]]
    ratio = (own - one.sampled[t]).exp()
    bounded = min(max(float(ratio.detach()), 1 - low), 1 + high) * advantage
    return -ratio * 0 - bounded if bounded < float(ratio.detach()) * advantage else -ratio * advantage
