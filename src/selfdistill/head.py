"""The sliced head: the one file where logits exist, a slice of tokens at a time.

A role's forward pass ends in hidden states; this file reads them. For every slice of scored tokens it computes the
roles' log-probabilities, lets the loss look at them, takes the loss's gradient with respect to the student's logits on
the spot and folds it into gradients of hidden states and head weight. So no [tokens, vocabulary] tensor of a whole
batch exists, forward or backward, for any number of roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfdistill.objectives import entropy
from selfdistill.types import Scores

STUDENT = "student"


@dataclass(frozen=True, slots=True)
class Readout:
    """Hidden states of one role's scored tokens, and the head that turns them into logits.

    ``real_vocabulary`` cuts off padded vocabulary rows: ids at or beyond it have log-probability −inf. ``width`` is the
    number of rows that log-probabilities should have, where another model's head is padded to another number.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    real_vocabulary: int
    width: int | None = None

    def logprobs(self, rows: slice) -> Tensor:
        """Log-probabilities [n, V] of some tokens, in float32 at least."""
        logprobs = _log_softmax(self.logits(rows), self.real_vocabulary)
        if self.width is None or self.width == logprobs.shape[-1]:
            return logprobs
        # Only padded rows are cut off or added.
        return torch.nn.functional.pad(logprobs, (0, self.width - logprobs.shape[-1]), value=float("-inf"))

    def logits(self, rows: slice) -> Tensor:
        """Raw logits [n, V] of some tokens."""
        return torch.nn.functional.linear(self.hidden_ND[rows], self.weight_VD, self.bias_V)


@dataclass(slots=True)
class TokenSlice:
    """Some scored tokens as a loss sees them. N tokens, V vocabulary.

    ``roles`` maps a role to its log-probabilities [N, V]; gradient flows through ``"student"`` alone. ``inputs`` holds
    per-token numbers known beforehand (``advantage``, ``old_logprob``, and the token's log-probability under every
    role that was scored beforehand), ``values`` numbers of the whole step (a gate, a batch mean).
    """

    target_N: Tensor
    roles: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def student(self) -> Tensor:
        """The student's log-probabilities [N, V]."""
        return self.roles[STUDENT]

    def target(self, role: str) -> Tensor:
        """Log-probability [N] of each token under a role."""
        if role in self.roles:
            return self.roles[role].gather(-1, self.target_N[:, None]).squeeze(-1)
        return self.inputs[role]


TokenLoss = Callable[[TokenSlice], Tensor]
TokenMetrics = Callable[[TokenSlice], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class SliceJob:
    """What to do with every slice.

    ``weight_N`` is each token's weight already divided by the global denominator. ``readouts`` are the other roles
    whose distributions the loss compares; ``inputs`` and ``values`` are handed to the loss as they are.
    ``elements`` bounds the numbers in one [slice, vocabulary] tensor.
    """

    target_N: Tensor
    weight_N: Tensor
    loss: TokenLoss
    metrics: TokenMetrics | None = None
    readouts: Mapping[str, Readout] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    elements: int = 1 << 24


@dataclass(slots=True)
class SliceResult:
    """The weighted loss (a scalar with gradient), the detached scores of every role, and weighted sums of metrics."""

    loss: Tensor
    scores: dict[str, Scores]
    metric_sums: dict[str, float]


def score_readout(readout: Readout, target_N: Tensor, *, elements: int) -> Scores:
    """Log-probability and entropy (nats) of every token, without gradient, slice by slice."""
    targets, entropies = [], []
    with torch.no_grad():
        for rows in token_slices(len(target_N), readout.weight_VD.shape[0], elements):
            logprobs = readout.logprobs(rows)
            targets.append(logprobs.gather(-1, target_N[rows, None]).squeeze(-1))
            entropies.append(entropy(logprobs))
    return Scores(_join(targets, readout.hidden_ND), _join(entropies, readout.hidden_ND))


def sliced_loss(student: Readout, job: SliceJob) -> SliceResult:
    """The loss of ``job`` summed over tokens, with gradient to the student's hidden states and head."""
    collected: dict[str, list[tuple[Tensor, Tensor]]] = {}
    sums: dict[str, float] = {}
    bias = student.bias_V if student.bias_V is not None else student.weight_VD.new_zeros(0)
    loss = _SlicedLoss.apply(  # type: ignore[no-untyped-call]
        student.hidden_ND, student.weight_VD, bias, student.real_vocabulary, job, collected, sums
    )
    scores = {
        role: Scores(_join([t for t, _ in parts], student.hidden_ND), _join([e for _, e in parts], student.hidden_ND))
        for role, parts in collected.items()
    }
    assert isinstance(loss, Tensor)
    return SliceResult(loss, scores, sums)


def token_credit(loss: TokenLoss, tokens: TokenSlice) -> Tensor:
    """−∂loss/∂logit [N] of each sampled token: how hard the loss pushes the token that was sampled, and which way.

    The loss alone is asked, so this is defined for every method. Of a policy gradient it is the token's advantage
    times 1 − S(y); of a divergence it is how much of the pull towards the target falls on the sampled token.
    """
    # Log-probabilities are logits too: their log-softmax is themselves, and its gradient the logits'.
    logits = tokens.student.detach().requires_grad_()
    with torch.enable_grad():
        roles = {**tokens.roles, STUDENT: torch.log_softmax(logits, -1)}
        total = loss(TokenSlice(tokens.target_N, roles, tokens.inputs, tokens.values)).sum()
    (grad_NV,) = torch.autograd.grad(total, logits) if total.requires_grad else (torch.zeros_like(logits),)
    return -grad_NV.gather(-1, tokens.target_N[:, None]).squeeze(-1)


class _SlicedLoss(torch.autograd.Function):
    """Loss whose gradients are computed, slice by slice, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias: Tensor,
        real_vocabulary: int,
        job: SliceJob,
        collected: dict[str, list[tuple[Tensor, Tensor]]],
        sums: dict[str, float],
    ) -> Tensor:
        bias_V = bias if bias.numel() else None
        student = Readout(hidden_ND.detach(), weight_VD.detach(), bias_V, real_vocabulary)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = hidden_ND.new_zeros((), dtype=wide)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        # Many slices are added up: in bf16 their sum would lose the small ones.
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias.numel() else None
        for rows in token_slices(len(job.target_N), weight_VD.shape[0], job.elements):
            logits = student.logits(rows).requires_grad_()
            with torch.enable_grad():
                loss, seen = _slice_loss(logits, rows, real_vocabulary, job)
            (grad_logits,) = torch.autograd.grad(loss, logits) if loss.requires_grad else (torch.zeros_like(logits),)
            total += loss.detach()
            _collect(seen, job, rows, collected, sums)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_logits @ student.weight_VD
            if grad_weight is not None:
                grad_weight += grad_logits.T @ student.hidden_ND[rows]
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            grad_weight.to(weight_VD.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
        )
        return total

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        scaled = [None if grad is None else grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _slice_loss(logits: Tensor, rows: slice, real_vocabulary: int, job: SliceJob) -> tuple[Tensor, TokenSlice]:
    roles = {STUDENT: _log_softmax(logits, real_vocabulary)}
    with torch.no_grad():
        roles.update({name: readout.logprobs(rows) for name, readout in job.readouts.items()})
    inputs = {name: values[rows] for name, values in job.inputs.items()}
    seen = TokenSlice(job.target_N[rows], roles, inputs, job.values)
    return (job.loss(seen) * job.weight_N[rows]).sum(), seen


def _collect(
    seen: TokenSlice,
    job: SliceJob,
    rows: slice,
    collected: dict[str, list[tuple[Tensor, Tensor]]],
    sums: dict[str, float],
) -> None:
    with torch.no_grad():
        for role, logprobs in seen.roles.items():
            detached = logprobs.detach()
            collected.setdefault(role, []).append((seen.target(role).detach(), entropy(detached)))
        for name, value in (job.metrics(seen) if job.metrics else {}).items():
            sums[name] = sums.get(name, 0.0) + float((value * job.weight_N[rows]).sum())


def _log_softmax(logits: Tensor, real_vocabulary: int) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if real_vocabulary < wide.shape[-1]:
        padded = torch.arange(wide.shape[-1], device=wide.device) >= real_vocabulary
        wide = wide.masked_fill(padded, float("-inf"))
    return torch.log_softmax(wide, -1)


def token_slices(tokens: int, vocabulary: int, elements: int) -> Iterator[slice]:
    """Rows cut so that no [slice, vocabulary] tensor holds more than ``elements`` numbers."""
    size = max(1, elements // vocabulary)
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _join(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
