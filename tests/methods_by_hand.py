"""Every method once more, written from the published definitions alone: loops over tokens, sums over the vocabulary.

Whole sequences go through ``model(...)``; a row is a list of scalars, one log-probability for each real vocabulary
entry. Nothing here imports the package, so agreement with it means something.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Row = list[Tensor]
ZERO = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion: its rows under student and teacher (None without a context), and what is known of it.

    ``others`` holds its rows under every further role, ``group`` and ``source`` say whose it is.
    """

    student: list[Row]
    teacher: list[Row] | None
    ids: Sequence[int]
    sampled: Sequence[float]
    advantage: float
    others: Mapping[str, list[Row]] = field(default_factory=dict)
    group: int = 0
    source: str = "student"
    reward: float | None = None


def rows(
    model: Any, prompt: Sequence[int], completion: Sequence[int], real: int, temperature: float = 1.0
) -> list[Row]:
    """log-softmax over the real entries at every position that predicts a completion token."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    result = []
    for t in range(len(completion)):
        scores = logits[len(prompt) - 1 + t, :real] / temperature
        result.append(list((scores - torch.log(torch.exp(scores).sum())).unbind()))
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
    p, q = torch.stack(first), torch.stack(second)
    return (torch.exp(p) * (p - q)).sum()


def jensen_shannon(student: Row, teacher: Row, weight: float = 0.5) -> Tensor:
    """w KL(T || M) + (1−w) KL(S || M), M = w T + (1−w) S, gradient through M included."""
    s, t = torch.stack(student), torch.stack(teacher)
    mixture = list(torch.log(weight * torch.exp(t) + (1 - weight) * torch.exp(s)).unbind())
    return weight * kl(teacher, mixture) + (1 - weight) * kl(student, mixture)


def clipped_forward_kl(student: Row, teacher: Row, clip: float) -> Tensor:
    """Σ_v min(T (log T − log S), τ)."""
    s, t = torch.stack(student), torch.stack(teacher)
    terms = torch.exp(t) * (t - s)
    return torch.where(terms.detach() < clip, terms, clip).sum()


def cut(student: Row, teacher: Row, k: int) -> tuple[Row, Row]:
    """Both on the student's k likeliest entries and one bin for the rest."""
    chosen = sorted(range(len(student)), key=torch.stack(student).tolist().__getitem__, reverse=True)[:k]

    def on(row: Row) -> Row:
        kept = [row[v] for v in chosen]
        return [*kept, torch.log(1 - torch.exp(torch.stack(kept)).sum())]

    return on(student), on(teacher)


def policy_gradient(
    logprob: Tensor,
    sampled: float,
    advantage: float,
    clip: float = 0.2,
    high: float | None = None,
    dual: float | None = None,
) -> Tensor:
    """−min(r A, clip(r) A), and for A < 0 at most −dual · A."""
    ratio = torch.exp(logprob - sampled)
    clipped = min(max(float(ratio.detach()), 1 - clip), 1 + (clip if high is None else high)) * advantage
    loss = ZERO - clipped if clipped < float(ratio.detach()) * advantage else -ratio * advantage
    bounded = dual is not None and advantage < 0 and float(loss.detach()) > -dual * advantage
    return ZERO - (dual or 0.0) * advantage if bounded else loss


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


def cispo(one: Scored, t: int, low: float, high: float) -> Tensor:
    """−clip(r) A log S, the ratio a number."""
    logprob = one.student[t][one.ids[t]]
    weight = min(max(math.exp(float(logprob.detach()) - one.sampled[t]), 1 - low), 1 + high)
    return -weight * one.advantage * logprob


def gspo(one: Scored, low: float, high: float) -> Tensor:
    """−min(s A, clip(s) A) of a completion, s = (Π_t S / S_sampled)^(1/length), gradient through the whole product."""
    logprobs = [row[i] for row, i in zip(one.student, one.ids, strict=True)]
    total = sum((logprob - sampled for logprob, sampled in zip(logprobs, one.sampled, strict=True)), ZERO)
    return policy_gradient(total / len(one.ids), 0.0, one.advantage, low, high)


def reference_penalty(one: Scored, t: int) -> Tensor:
    """q − log q − 1, q = reference / S."""
    log_q = one.others["reference"][t][one.ids[t]] - one.student[t][one.ids[t]]
    return torch.exp(log_q) - log_q - 1


def entropy(one: Scored, t: int) -> Tensor:
    """−Σ_v S log S."""
    return entropy_of(one.student[t])


def entropy_of(row: Row) -> Tensor:
    """−Σ_v P log P."""
    p = torch.stack(row)
    return -(torch.exp(p) * p).sum()


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


def antisd_variant(
    strength: float, *, ascend: str = "jensen_shannon", compose: str = "add", hindsight: bool = True
) -> Callable[[Scored, int], Tensor]:
    """The ablations: −u for −φ(u), A · max(0, 1 + signal) for A + signal, a uniform teacher; no gate."""

    def loss(one: Scored, t: int) -> Tensor:
        own = one.student[t]
        u = gain(one, t) if hindsight else -math.log(len(own)) - float(own[one.ids[t]].detach())
        phi = 0.5 * (math.log1p(math.exp(u)) - math.log(2))
        signal = strength * (-phi if ascend == "jensen_shannon" else -u)
        advantage = one.advantage + signal if compose == "add" else one.advantage * max(0.0, 1 + signal)
        return policy_gradient(own[one.ids[t]], one.sampled[t], advantage)

    return loss


def normalised(row: Row) -> Row:
    """log p minus the log of what exp log p sums to."""
    values = torch.stack(row)
    return list((values - torch.log(torch.exp(values).sum())).unbind())


def cut_all(rows_of: Sequence[Row], k: int | None) -> list[Row]:
    """All rows on the k likeliest entries of the first, and one bin for the rest."""
    return list(rows_of) if k is None else [cut(rows_of[0], row, k)[1] for row in rows_of]


def credit(
    divergence: Callable[[Row, Row], Tensor], strength: float, *, contrasts: int, k: int | None, cap: float = 2.0
) -> Callable[[Scored, int], Tensor]:
    """A divergence to Q ∝ T / Π_k N_k^(λ/C) on the student's support, times min(S / S_sampled, cap)."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        others = [one.others[f"contrast_{c}"][t] for c in range(contrasts)]
        student, teacher, *against = cut_all([one.student[t], one.teacher[t], *others], k)
        mean = sum(map(torch.stack, against)) / contrasts
        target = normalised(list((torch.stack(teacher) - strength * mean).unbind()))
        return capped_ratio(one.student[t][one.ids[t]], one.sampled[t], cap) * divergence(student, target)

    return loss


def generic(one: Scored, t: int, contrasts: int) -> float:
    """G_t(y_t): the mean over contrasts of the sampled token's log-probability."""
    return sum(float(one.others[f"contrast_{c}"][t][one.ids[t]]) for c in range(contrasts)) / contrasts


def credit_advantage(completions: Sequence[Scored], strength: float, *, contrasts: int) -> Tensor:
    """u − λ (G − Ḡ) in the clipped policy gradient, Ḡ over all tokens of all completions."""
    found = [generic(one, t, contrasts) for one in completions for t in range(len(one.ids))]
    centre = sum(found) / len(found)

    def loss(one: Scored, t: int) -> Tensor:
        advantage = gain(one, t) - strength * (generic(one, t, contrasts) - centre)
        return policy_gradient(one.student[t][one.ids[t]], one.sampled[t], advantage)

    return mean_over_tokens(completions, loss)


def purified(
    beta: float = 1.0, clip: float = 10.0, *, subtraction: bool = True, pmi_target: bool = True
) -> Callable[[Scored, int], Tensor]:
    """Jensen–Shannon to softmax(log B + c tanh(centred(log T − log R) / c) / β), or without one of its steps."""

    def loss(one: Scored, t: int) -> Tensor:
        assert one.teacher is not None
        if not subtraction and not pmi_target:
            return jensen_shannon(one.student[t], one.teacher[t])
        reference = one.others["reference_only" if subtraction else "base"][t]
        delta = torch.stack(one.teacher[t]) - torch.stack(reference)
        bent = clip * torch.tanh((delta - delta.mean()) / clip)
        base = torch.stack(one.others["base"][t]) if pmi_target else ZERO
        target = normalised(list((base + bent / beta).unbind()))
        return jensen_shannon(one.student[t], target)

    return loss


def whole(one: Scored, which: Sequence[Row] | None, mean: bool) -> Tensor:
    """log-probability of a completion: the sum over its tokens, or their mean."""
    assert which is not None
    total = sum((row[token] for row, token in zip(which, one.ids, strict=True)), ZERO)
    return total / len(one.ids) if mean else total


def pbsd(completions: Sequence[Scored], beta: float, *, mean: bool = False) -> Tensor:
    """Mean over pairs of −log σ(β [Δ(y⁺) − Δ(y⁻)]), Δ = log S − log T of whole completions."""
    losses = []
    for group in sorted({one.group for one in completions}):
        sides = [
            [one for one in completions if (one.group, one.source) == (group, side)] for side in ("teacher", "student")
        ]
        for plus, minus in zip(*sides, strict=True):
            gaps = [whole(one, one.student, mean) - whole(one, one.teacher, mean).detach() for one in (plus, minus)]
            losses.append(torch.log(1 + torch.exp(-beta * (gaps[0] - gaps[1]))))
    return sum(losses, ZERO) / len(losses)


def pbsd_reward(completions: Sequence[Scored], beta: float, *, mean: bool = False) -> Tensor:
    """Mean over prompts of −Σ_i softmax(r/β)_i log S(y_i)."""
    groups = sorted({one.group for one in completions})
    losses = []
    for group in groups:
        mine = [one for one in completions if one.group == group]
        weights = [math.exp((one.reward or 0.0) / beta) for one in mine]
        terms = [w / sum(weights) * whole(one, one.student, mean) for w, one in zip(weights, mine, strict=True)]
        losses.append(-sum(terms, ZERO))
    return sum(losses, ZERO) / len(groups)


def median_entropy(completions: Sequence[Scored]) -> float:
    """Median, over all tokens of all completions that have a context, of the teacher's entropy."""
    shown = [row for one in completions if one.teacher is not None for row in one.teacher]
    return statistics.median(float(entropy_of(row)) for row in shown)


def gradient(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Derivative of the loss by every trainable parameter."""
    named: Mapping[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    pairs = zip(named.items(), found, strict=True)
    return {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in pairs}
