"""The sliced LM head. Logits exist only in this file, for one slice of tokens at a time.

A role's forward pass ends in hidden states. For every slice of scored tokens this file computes the log-probabilities
of all roles, evaluates the loss, computes its gradient with respect to the student's logits at once, and accumulates
the gradients of hidden states and head weight. No [tokens, vocabulary] tensor of a whole batch exists, forward or
backward, for any number of roles.

Tokens are sliced twice. Matrix products are fast on many tokens: a *block* holds the logits of all roles for as many
tokens as ``max_logits_per_chunk`` allows. A loss makes a dozen passes over the vocabulary, which are fast on few
tokens: it runs on *pieces* of a block, and the gradient of each piece overwrites the piece's logits. Compilation fuses
those passes into two or three (:mod:`selfdistill.models.compile`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfdistill.models.compile import compiled
from selfdistill.models.products import linear, times
from selfdistill.objectives import entropy
from selfdistill.types import STUDENT, Scores, TokenLoss, TokenMetrics, TokenSlice

MAX_LOGITS_PER_CHUNK = 1 << 26
"""Default number of logits that exist at once."""
PIECE_ON_CPU = 1 << 22
"""Elements in one tensor of a loss, on a CPU. The allocator reuses 16 MiB of float32; it maps larger tensors anew each
time, which takes three times as long as the arithmetic (docs/performance.md)."""
PIECE = 1 << 25
"""The same on other devices: large enough that a GPU kernel runs longer than the launch of the next one."""


@dataclass(frozen=True, slots=True)
class HeadInput:
    """Hidden states of one role's scored tokens, and the LM head that maps them to logits.

    ``vocab_size`` is the number of real ids: ids at or beyond it are padding and have log-probability −inf.
    ``padded_vocab_size`` is the size of the log-probabilities' last axis, to match a model whose head is padded to
    another size; None: the head's own. ``compiled`` says whether the functions of the logits are compiled. Some
    families scale their logits, or cap them softly: ``cap`` · tanh(``scale`` · logit / ``cap``). ``temperature``
    divides the result.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    vocab_size: int
    padded_vocab_size: int | None = None
    compiled: bool = False
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    def logprobs(self, rows: slice) -> Tensor:
        """Log-probabilities [n, V] of the tokens in ``rows``, in float32 or wider."""
        return _logprobs(self.real_logits(rows), self.padded_vocab_size)

    def real_logits(self, rows: slice) -> Tensor:
        """Logits [n, V] of the tokens in ``rows``, −inf at padded ids."""
        logits = self.logits(rows)
        if self.vocab_size == logits.shape[-1]:
            return logits
        if logits.requires_grad:
            padded = torch.arange(logits.shape[-1], device=logits.device) >= self.vocab_size
            return logits.masked_fill(padded, float("-inf"))
        logits[:, self.vocab_size :] = float("-inf")
        return logits

    def logits(self, rows: slice) -> Tensor:
        """Logits [n, V] of the tokens in ``rows``, scaled and capped, padding included."""
        logits = linear(self.hidden_ND[rows], self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits = logits * self.scale
        logits = logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def slope(self, logits_nV: Tensor) -> Tensor | float:
        """Derivative of scaled and capped logits with respect to the linear map's output. The student's temperature,
        which alone has a gradient, is 1.
        """
        return self.scale if self.cap is None else self.scale * (1.0 - (logits_nV / self.cap) ** 2)


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Loss, metrics and their inputs for the scored tokens of a micro-batch.

    ``weight_N`` is each token's weight, already divided by the global denominator. A token of weight 0 is left out:
    its loss and gradient may be infinite or NaN. ``head_inputs`` are the other roles whose distributions the loss
    compares. ``inputs`` and ``values`` are passed to the loss unchanged. ``max_logits_per_chunk`` bounds the logits
    that exist at once, those of all roles together.
    """

    target_N: Tensor
    weight_N: Tensor
    loss: TokenLoss
    metrics: TokenMetrics | None = None
    head_inputs: Mapping[str, HeadInput] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    max_logits_per_chunk: int = MAX_LOGITS_PER_CHUNK


class LossOutput(NamedTuple):
    """The weighted loss (a scalar with gradient), the detached scores of every role, and weighted sums of metrics.

    It is a tuple because module wrappers such as FSDP look for tensors with gradient in the output of ``forward``.
    """

    loss: Tensor
    scores: dict[str, Scores]
    metric_sums: dict[str, float]


def score_head_input(head_input: HeadInput, target_N: Tensor, *, max_logits_per_chunk: int) -> Scores:
    """Log-probability and entropy (nats) of every token, without gradient, slice by slice."""
    scores = _empty_scores(head_input)
    score = compiled(_score_of_piece) if head_input.compiled else _score_of_piece
    with torch.no_grad():
        for block in token_slices(len(target_N), head_input.weight_VD.shape[0], max_logits_per_chunk):
            logits = head_input.real_logits(block)
            for rows in _pieces(logits):
                at = slice(block.start + rows.start, block.start + rows.stop)
                scores.target_N[at], scores.entropy_N[at] = score(logits[rows], target_N[at])
    return scores


def sliced_loss(student: HeadInput, job: LossInputs) -> LossOutput:
    """The loss of ``job`` summed over tokens, with gradient to the student's hidden states and head."""
    scores = {name: _empty_scores(head_input) for name, head_input in {STUDENT: student, **job.head_inputs}.items()}
    sums: dict[str, Tensor] = {}
    bias = student.bias_V if student.bias_V is not None else student.weight_VD.new_zeros(0)
    loss = _SlicedLoss.apply(  # type: ignore[no-untyped-call]
        student.hidden_ND, student.weight_VD, bias, student, job, scores, sums
    )
    assert isinstance(loss, Tensor)
    return LossOutput(loss, scores, {name: float(value) for name, value in sums.items()})


def token_metrics(student: HeadInput, job: LossInputs) -> dict[str, Tensor]:
    """The metrics of ``job`` at every token [N], without gradient, slice by slice; NaN for a token of weight 0."""
    measured: dict[str, list[Tensor]] = {}
    head_inputs = {STUDENT: student, **job.head_inputs}
    vocabulary = student.weight_VD.shape[0]
    with torch.no_grad():
        for rows in token_slices(len(job.target_N), len(head_inputs) * vocabulary, job.max_logits_per_chunk):
            roles = {name: head_input.logprobs(rows) for name, head_input in head_inputs.items()}
            inputs = {name: values_N[rows] for name, values_N in job.inputs.items()}
            tokens = TokenSlice(job.target_N[rows], roles, inputs, job.values)
            for name, value_N in (job.metrics(tokens) if job.metrics else {}).items():
                missing_N = job.weight_N[rows] == 0.0
                measured.setdefault(name, []).append(value_N.float().masked_fill(missing_N, float("nan")))
    return {name: torch.cat(parts) for name, parts in measured.items()}


def token_credit(loss: TokenLoss, tokens: TokenSlice) -> Tensor:
    """−∂loss/∂logit [N] of each sampled token. Positive: a gradient step makes the token likelier.

    It depends on the loss alone, so it is defined for every method. For a policy gradient it is the token's advantage
    times 1 − S(y); for a divergence, the share of the gradient that acts on the sampled token.
    """
    # Log-probabilities are valid logits: log-softmax leaves them unchanged, so this is the gradient of the logits.
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
        head_input: HeadInput,
        job: LossInputs,
        scores: Mapping[str, Scores],
        sums: dict[str, Tensor],
    ) -> Tensor:
        bias_V = bias if bias.numel() else None
        student = replace(head_input, hidden_ND=hidden_ND.detach(), weight_VD=weight_VD.detach(), bias_V=bias_V)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        total = hidden_ND.new_zeros((), dtype=wide)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_ND) if needs_hidden else None
        # Accumulate over slices in float32: a sum in bf16 would lose small terms.
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if needs_bias and bias.numel() else None
        roles = 1 + len(job.head_inputs)
        absent_N = job.weight_N == 0.0
        some_absent = bool(absent_N.any())
        for block in token_slices(len(job.target_N), roles * weight_VD.shape[0], job.max_logits_per_chunk):
            logits = student.real_logits(block)
            others = {name: head_input.real_logits(block) for name, head_input in job.head_inputs.items()}
            for rows in _pieces(logits):
                total += _piece_of_loss(student, block, rows, logits, others, job, scores, sums)
            if some_absent:
                # Zero times an infinite gradient is NaN, and the matrix products below would spread it to all weights.
                logits.masked_fill_(absent_N[block, None], 0.0)
            if grad_hidden is not None:
                grad_hidden[block] = times(logits, student.weight_VD)
            if grad_weight is not None:
                _add_product(grad_weight, logits.T, student.hidden_ND[block])
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            grad_weight.to(weight_VD.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
        )
        return total

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        # In place, because a copy of the head's gradient would be as large as the head.
        scaled = [None if grad is None else grad.mul_(grad_output.to(grad.dtype)) for grad in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _piece_of_loss(
    student: HeadInput,
    block: slice,
    rows: slice,
    logits: Tensor,
    others: Mapping[str, Tensor],
    job: LossInputs,
    scores: Mapping[str, Scores],
    sums: dict[str, Tensor],
) -> Tensor:
    """The loss of the tokens in ``rows`` of a block. Overwrites their logits with the loss's gradient."""
    at = slice(block.start + rows.start, block.start + rows.stop)
    leaf = logits[rows].requires_grad_()
    pieces = {STUDENT: leaf, **{name: values[rows] for name, values in others.items()}}
    sizes = {name: head.padded_vocab_size for name, head in {STUDENT: student, **job.head_inputs}.items()}
    inputs = {name: values[at] for name, values in job.inputs.items()}
    evaluate = compiled(_evaluate_piece) if student.compiled else _evaluate_piece
    with torch.enable_grad():
        loss, piece_scores, measured = evaluate(
            pieces, sizes, job.target_N[at], job.weight_N[at], inputs, job.values, job.loss, job.metrics
        )
    for role, (target_N, entropy_N) in piece_scores.items():
        scores[role].target_N[at], scores[role].entropy_N[at] = target_N, entropy_N
    for name, value in measured.items():
        sums[name] = sums[name] + value.double() if name in sums else value.double()
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss, leaf)
        logits[rows] = grad if student.scale == 1.0 and student.cap is None else grad * student.slope(leaf.detach())
        logits[rows, student.vocab_size :] = 0.0
    else:
        logits[rows] = 0.0
    return loss.detach()


def _evaluate_piece(
    logits: Mapping[str, Tensor],
    padded_vocab_sizes: Mapping[str, int | None],
    target_N: Tensor,
    weight_N: Tensor,
    inputs: Mapping[str, Tensor],
    values: Mapping[str, float],
    loss_of: TokenLoss,
    metrics_of: TokenMetrics | None,
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The weighted loss of a piece, the scores by role, and weighted sums of metrics.

    All operations on the piece's logits are in this one function, because it is the unit of compilation.
    """
    roles = {name: _logprobs(values_nV, padded_vocab_sizes[name]) for name, values_nV in logits.items()}
    tokens = TokenSlice(target_N, roles, inputs, values)
    loss = _weighted_sum(loss_of(tokens), weight_N)
    with torch.no_grad():
        scores = {role: (tokens.target(role).detach(), entropy(logprobs.detach())) for role, logprobs in roles.items()}
        measured = metrics_of(tokens) if metrics_of else {}
        return loss, scores, {name: _weighted_sum(value, weight_N) for name, value in measured.items()}


def _weighted_sum(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """Σ weight · value. A value of weight 0 is left out, also if it is infinite or NaN."""
    return (values_N.masked_fill(weight_N == 0.0, 0.0) * weight_N).sum()


def _score_of_piece(logits_nV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = _logprobs(logits_nV)
    return logprobs.gather(-1, target_N[:, None]).squeeze(-1), entropy(logprobs)


def _logprobs(logits_nV: Tensor, padded_vocab_size: int | None = None) -> Tensor:
    """Log-probabilities [n, V] in float32 or wider, with padded ids cut off or added to ``padded_vocab_size``."""
    logprobs = torch.log_softmax(logits_nV, -1, dtype=torch.promote_types(logits_nV.dtype, torch.float32))
    if padded_vocab_size is None or padded_vocab_size == logprobs.shape[-1]:
        return logprobs
    return torch.nn.functional.pad(logprobs, (0, padded_vocab_size - logprobs.shape[-1]), value=float("-inf"))


def _add_product(sum_VD: Tensor, grad_VN: Tensor, hidden_ND: Tensor) -> None:
    if sum_VD.dtype == grad_VN.dtype:
        sum_VD.addmm_(grad_VN, hidden_ND)
    else:
        sum_VD += grad_VN @ hidden_ND


def _pieces(logits_nV: Tensor) -> Iterator[slice]:
    tokens, vocabulary = logits_nV.shape
    return token_slices(tokens, vocabulary, PIECE_ON_CPU if logits_nV.device.type == "cpu" else PIECE)


def token_slices(tokens: int, vocabulary: int, max_logits_per_chunk: int) -> Iterator[slice]:
    """Slices of tokens such that no [slice, vocabulary] tensor has more than ``max_logits_per_chunk`` elements."""
    size = max(1, max_logits_per_chunk // vocabulary)
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _empty_scores(head_input: HeadInput) -> Scores:
    """Preallocate the scores. Allocating them between large temporaries would fragment the heap: 1.8 GiB instead of
    1.1 at 1024 tokens and a vocabulary of 151,936.
    """
    dtype = torch.promote_types(head_input.hidden_ND.dtype, torch.float32)
    target_N, entropy_N = (head_input.hidden_ND.new_empty(len(head_input.hidden_ND), dtype=dtype) for _ in range(2))
    return Scores(target_N, entropy_N)
