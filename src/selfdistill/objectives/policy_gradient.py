"""Group advantages and the clipped policy gradient of GRPO (arXiv 2402.03300).

Axis letters: ``P`` prompts, ``G`` completions of a prompt, ``N`` scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from selfdistill.objectives._checks import check_logprobs

LOG_RATIO_LIMIT = 20.0
"""Policy ratios are computed up to e^20. Beyond e^88 float32 overflows, and inf · 0 makes the gradient NaN."""


def group_advantages(rewards_PG: Tensor, *, scale: Literal["std", "none"] = "std", eps: float = 1e-6) -> Tensor:
    """Group advantages: (R − mean) / std, or R − mean.

    Takes and returns P×G, float. A NaN reward means "not judged": it gets advantage 0 and takes no part in mean and
    std. A group whose judged rewards are equal, or of which fewer than two are judged, gets exactly 0. ``scale="none"``
    leaves the std out (Dr. GRPO, arXiv 2503.20783).

    Our choices: the *sample* standard deviation (n − 1), as common GRPO code bases take it; ``eps`` is a floor on it,
    not a summand, so ordinary groups are scaled exactly.

    Raises ValueError for an unknown scale, an eps that is not positive, infinite rewards, or anything but a float P×G.
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    if not eps > 0.0:
        raise ValueError(f"eps must be positive, got {eps}")
    if rewards_PG.ndim != 2 or not rewards_PG.is_floating_point():
        raise ValueError(f"rewards must be a float P×G tensor, got {rewards_PG.dtype} {tuple(rewards_PG.shape)}")
    if rewards_PG.isinf().any():
        raise ValueError("rewards must not be infinite")
    unjudged_PG = rewards_PG.isnan()
    judged_P1 = (~unjudged_PG).sum(-1, keepdim=True)
    # Compare rewards, not advantages: the mean of three times 0.1 is not 0.1, and dividing by eps would inflate it.
    lowest_P1 = rewards_PG.masked_fill(unjudged_PG, math.inf).amin(-1, keepdim=True)
    highest_P1 = rewards_PG.masked_fill(unjudged_PG, -math.inf).amax(-1, keepdim=True)
    mean_P1 = rewards_PG.masked_fill(unjudged_PG, 0.0).sum(-1, keepdim=True) / judged_P1
    advantage_PG = (rewards_PG - mean_P1).masked_fill(unjudged_PG, 0.0)
    if scale == "std":
        variance_P1 = advantage_PG.square().sum(-1, keepdim=True) / (judged_P1 - 1)
        advantage_PG = advantage_PG / variance_P1.sqrt().clamp(min=eps)
    # A group with fewer than two judged rewards is among them: its mean or its variance may be 0/0.
    return advantage_PG.masked_fill(lowest_P1 >= highest_P1, 0.0)


def returns_to_go(rewards_N: Tensor, *, discount: float = 1.0) -> Tensor:
    """Σ_{j ≥ k} discount^(j − k) r_j at each turn k of an episode.

    Takes the rewards of the turns and returns N. Raises ValueError for a discount outside 0 to 1.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be from 0 to 1, got {discount}")
    returns = []
    after = rewards_N.new_zeros(())
    for reward in rewards_N.flip(0):
        after = reward + discount * after
        returns.append(after)
    return torch.stack(returns[::-1]) if returns else rewards_N


def advantages_within(
    values_N: Tensor, labels: Sequence[Hashable], *, scale: Literal["std", "none"] = "std", eps: float = 1e-6
) -> Tensor:
    """:func:`group_advantages` among the values that have the same label; takes and returns N.

    A value alone with its label gets 0. Raises ValueError as :func:`group_advantages` does, and for another number of
    labels.
    """
    if len(labels) != len(values_N):
        raise ValueError(f"{len(labels)} labels for {len(values_N)} values")
    if not labels:
        return torch.zeros_like(values_N)
    members: dict[Hashable, list[int]] = {}
    for n, label in enumerate(labels):
        members.setdefault(label, []).append(n)
    values_PG = values_N.new_full((len(members), max(map(len, members.values()))), math.nan)
    for p, indices in enumerate(members.values()):
        values_PG[p, : len(indices)] = values_N[indices]
    advantages_PG = group_advantages(values_PG, scale=scale, eps=eps)
    advantage_N = torch.zeros_like(values_N)
    for p, indices in enumerate(members.values()):
        advantage_N[indices] = advantages_PG[p, : len(indices)]
    return advantage_N


def clipped_policy_gradient(
    logprob_N: Tensor,
    old_logprob_N: Tensor,
    advantage_N: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """The clipped policy-gradient loss at each token: −min(r A, clamp(r, 1−clip_low, 1+clip_high) A).

    r = exp(log p − log p_old), computed up to e^20. Takes the learner's log-probability of the sampled token, its value
    when the completion was scored for the first time, and the advantage, each N; returns N, to be *minimised*. Gradient
    flows through ``logprob_N`` alone. With ``dual_clip`` c a token of negative advantage costs at most c |A|, without
    gradient at the bound (dual-clip PPO, arXiv 1912.09729). Raises ValueError for bounds outside 0 ≤ clip_low ≤ 1,
    clip_high ≥ 0, dual_clip > 1, for unequal shapes or types other than float32 and float64.
    """
    _check_clip(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip must be greater than 1, got {dual_clip}")
    check_logprobs(logprob_N, old_logprob_N, advantage_N)
    ratio_N = torch.exp((logprob_N - old_logprob_N.detach()).clamp(max=LOG_RATIO_LIMIT))
    advantage_N = advantage_N.detach()
    loss_N = _pessimistic(ratio_N, advantage_N, clip_low, clip_high)
    if dual_clip is None:
        return loss_N
    return torch.where(advantage_N < 0, torch.minimum(loss_N, -dual_clip * advantage_N), loss_N)


def sequence_policy_gradient(
    logprob_N: Tensor,
    log_ratio_N: Tensor,
    advantage_N: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """GSPO's loss at each token (arXiv 2507.18071): −min(s A, clamp(s, 1−clip_low, 1+clip_high) A).

    log s is the mean of log p − log p_old over the completion's tokens. ``log_ratio_N`` holds it at each of them, taken
    from scores of the learner as it is now. The value is that of s; the gradient of the mean over the completion's
    tokens is that of its s, because s · p(y_t) / sg[p(y_t)] stands for s (the paper's token form). Takes and returns N.
    Raises ValueError as :func:`clipped_policy_gradient` does.
    """
    _check_clip(clip_low, clip_high)
    check_logprobs(logprob_N, log_ratio_N, advantage_N)
    ratio_N = torch.exp(log_ratio_N.detach().clamp(max=LOG_RATIO_LIMIT) + logprob_N - logprob_N.detach())
    return _pessimistic(ratio_N, advantage_N.detach(), clip_low, clip_high)


def clipped_weight_policy_gradient(
    logprob_N: Tensor,
    old_logprob_N: Tensor,
    advantage_N: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 0.2,
) -> Tensor:
    """CISPO's loss at each token (arXiv 2506.13585): −sg[clamp(r, 1−clip_low, 1+clip_high)] A log p.

    The clipped ratio weighs every token, and no token loses its gradient. ``clip_low=1`` is no lower bound. Takes and
    returns N. Raises ValueError as :func:`clipped_policy_gradient` does.
    """
    _check_clip(clip_low, clip_high)
    check_logprobs(logprob_N, old_logprob_N, advantage_N)
    ratio_N = torch.exp((logprob_N - old_logprob_N).detach().clamp(max=LOG_RATIO_LIMIT))
    return -ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage_N.detach() * logprob_N


def reference_penalty(logprob_N: Tensor, reference_N: Tensor) -> Tensor:
    """GRPO's estimate of KL(p || reference) at each token: q − log q − 1, q = reference(y) / p(y), up to q = e^20.

    Never negative, and its mean over samples of p is the divergence. Gradient flows through ``logprob_N`` alone. Takes
    and returns N. Raises ValueError for unequal shapes or types other than float32 and float64.
    """
    check_logprobs(logprob_N, reference_N)
    log_q_N = (reference_N.detach() - logprob_N).clamp(max=LOG_RATIO_LIMIT)
    return torch.expm1(log_q_N) - log_q_N


def weighted_reverse_kl(logprob_N: Tensor, old_logprob_N: Tensor, teacher_N: Tensor) -> Tensor:
    """ρ (q − log q − 1) at each token, ρ = p(y) / p_old(y), q = teacher(y) / p(y), both up to e^20.

    Over samples of p_old its mean is KL(p || teacher), and the mean of its gradient is the divergence's, which
    :func:`reference_penalty` alone does not have: its gradient is that of KL(teacher || p) over samples of p. Gradient
    flows through ``logprob_N`` alone. Takes and returns N. Raises ValueError as :func:`reference_penalty` does.
    """
    # The penalty checks the teacher's.
    check_logprobs(logprob_N, old_logprob_N)
    ratio_N = (logprob_N - old_logprob_N.detach()).clamp(max=LOG_RATIO_LIMIT).exp()
    return ratio_N * reference_penalty(logprob_N, teacher_N)


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not 0.0 <= clip_low <= 1.0 or not clip_high >= 0.0:
        raise ValueError(f"clip bounds must satisfy 0 <= low <= 1 and high >= 0, got {clip_low} and {clip_high}")


def _pessimistic(ratio_N: Tensor, advantage_N: Tensor, clip_low: float, clip_high: float) -> Tensor:
    clipped_ratio_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio_N * advantage_N, clipped_ratio_N * advantage_N)


def truncated_importance_weight(learner_N: Tensor, sampler_N: Tensor, *, cap: float = 2.0) -> Tensor:
    """min(exp(log p_learner − log p_sampler), cap) at each token, detached: a factor on the loss.

    Corrects for completions sampled by another engine or by older weights. Weights equal to ``cap`` are
    counted. Takes and returns N. Raises ValueError for a cap that is not positive, unequal shapes or other types.
    """
    if not cap > 0.0:
        raise ValueError(f"cap must be positive, got {cap}")
    check_logprobs(learner_N, sampler_N)
    return torch.exp(learner_N.detach() - sampler_N.detach()).clamp(max=cap)
