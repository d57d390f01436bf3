"""Five ways to the same loss: from hidden states and the head to a divergence per token, averaged.

Ours, ours with ``model.compile`` ("compiled"), plain PyTorch on all logits ("naive"), TRL's chunked divergence and
Liger's fused one. One context is compared by a divergence from the student to the teacher; with more, the target is
CREDIT's, the other contexts being contrasts. TRL's and Liger's take one context only.

Axis letters: N tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfdistill.errors import ModelError
from selfdistill.models.head import MAX_LOGITS_PER_CHUNK, HeadInput, LossInputs, sliced_loss
from selfdistill.objectives import credit_target, jensen_shannon, reverse_kl
from selfdistill.types import TokenSlice

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "jensen_shannon": jensen_shannon,
    "reverse_kl": reverse_kl,
}
WEIGHT_OF_TEACHER = {"jensen_shannon": 0.5, "reverse_kl": 1.0}
"""The number by which TRL and Liger choose between the two."""
CONTRAST_WEIGHT = 0.1


class Unavailable(RuntimeError):
    """A path that cannot run here, and why."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What every path is given. ``others_ND`` are the hidden states under the contexts, the teacher's first."""

    hidden_ND: Tensor
    weight_VD: Tensor
    others_ND: list[Tensor]
    target_N: Tensor
    divergence: str
    elements: int | None


def make_problem(
    *,
    tokens: int,
    vocabulary: int,
    width: int,
    contexts: int,
    divergence: str,
    elements: int | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Seeded hidden states whose logits have a standard deviation of 2; a context moves them by 0.3 of that."""
    generator = torch.Generator(device=device).manual_seed(0)

    def normal(rows: int, deviation: float) -> Tensor:
        drawn = torch.empty(rows, width, device=device, dtype=dtype)
        return drawn.normal_(0.0, deviation, generator=generator)

    hidden_ND = normal(tokens, 1.0)
    weight_VD = normal(vocabulary, 2.0 * width**-0.5)
    others_ND = [hidden_ND + normal(tokens, 0.3) for _ in range(contexts)]
    target_N = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    return Problem(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), others_ND, target_N, divergence, elements)


def _compare(divergence: str, student_NV: Tensor, others_NV: list[Tensor]) -> Tensor:
    teacher_NV, *contrasts_NV = others_NV
    if contrasts_NV:
        teacher_NV = credit_target(teacher_NV, torch.stack(contrasts_NV), weight=CONTRAST_WEIGHT)
    return DIVERGENCES[divergence](student_NV, teacher_NV)


def ours(problem: Problem, *, compiled: bool = False) -> Tensor:
    """Slice by slice through ``selfdistill.models.head``."""
    vocabulary = problem.weight_VD.shape[0]
    frozen = problem.weight_VD.detach()
    names = [f"context_{k}" for k in range(len(problem.others_ND))]

    def loss(tokens: TokenSlice) -> Tensor:
        return _compare(problem.divergence, tokens.student, [tokens.roles[name] for name in names])

    count = len(problem.target_N)
    job = LossInputs(
        target_N=problem.target_N,
        weight_N=torch.full((count,), 1.0 / count, device=problem.target_N.device),
        loss=loss,
        head_inputs={
            name: HeadInput(hidden, frozen, None, vocabulary)
            for name, hidden in zip(names, problem.others_ND, strict=True)
        },
        max_logits_per_chunk=problem.elements or MAX_LOGITS_PER_CHUNK,
    )
    return sliced_loss(HeadInput(problem.hidden_ND, problem.weight_VD, None, vocabulary, compiled=compiled), job).loss


def naive(problem: Problem) -> Tensor:
    """All logits at once, autograd for the rest; written so that nothing is held longer than autograd needs it."""
    with torch.no_grad():
        others_NV = [torch.log_softmax((h @ problem.weight_VD.T).float(), -1) for h in problem.others_ND]
    student_NV = torch.log_softmax((problem.hidden_ND @ problem.weight_VD.T).float(), -1)
    return _compare(problem.divergence, student_NV, others_NV).mean()


def trl(problem: Problem) -> Tensor:
    """TRL's ``ChunkedDivergenceFunction``."""
    (teacher_ND,) = problem.others_ND
    function = _imported("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    frozen, weight = problem.weight_VD.detach(), WEIGHT_OF_TEACHER[problem.divergence]
    divergence_N, _ = function.apply(problem.hidden_ND, problem.weight_VD, None, teacher_ND, frozen, None, weight)
    loss: Tensor = divergence_N.mean()
    return loss


def liger(problem: Problem) -> Tensor:
    """Liger's ``LigerFusedLinearJSDLoss``, without its cross-entropy term, in chunks of its default size."""
    (teacher_ND,) = problem.others_ND
    fused: Any = _imported("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=WEIGHT_OF_TEACHER[problem.divergence],
        # Its default; compiling needs Triton or a C++ compiler and is no gain where matrix products take the time.
        compiled=problem.hidden_ND.is_cuda,
    )
    loss: Tensor = fused(problem.hidden_ND, problem.weight_VD, teacher_ND, problem.weight_VD.detach(), problem.target_N)
    return loss


def compiled(problem: Problem) -> Tensor:
    """As :func:`ours`, with what is done with logits compiled."""
    try:
        return ours(problem, compiled=True)
    except ModelError as error:
        raise Unavailable(str(error)) from error


PATHS: dict[str, Callable[[Problem], Tensor]] = {
    "ours": ours,
    "compiled": compiled,
    "naive": naive,
    "trl": trl,
    "liger": liger,
}
ONE_CONTEXT = ("trl", "liger")
"""Paths that compare with one context only."""


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"{module} cannot be imported: {error}") from error
