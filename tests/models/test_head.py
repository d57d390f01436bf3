"""The sliced head: value and gradients of the whole computation, without its memory.

Axis letters: N tokens, V vocabulary rows, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.models import head
from selfdistill.models.head import HeadInput, LossInputs, LossOutput, score_head_input, sliced_loss
from selfdistill.types import TokenSlice
from support.memory import LargestOutput

N, V, D = 7, 11, 5
SLICES = {"one token": V, "three tokens": 3 * 3 * V, "everything": 3 * N * V}
"""Logits at once, of three roles together."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def head_input(seed: int, *, real: int = V, dtype: torch.dtype = torch.float64, bias: bool = True) -> HeadInput:
    parts = random(N, D, seed=seed, dtype=dtype), random(V, D, seed=seed + 1, dtype=dtype)
    offset = random(V, seed=seed + 2, dtype=dtype).requires_grad_() if bias else None
    return HeadInput(parts[0].requires_grad_(), parts[1].requires_grad_(), offset, real)


def targets(real: int = V) -> Tensor:
    return torch.randint(real, (N,), generator=torch.Generator().manual_seed(9))


def odd_loss(tokens: TokenSlice) -> Tensor:
    """Uses all that a loss can see: two more roles, inputs, a value, the token and the whole distribution."""
    near, far = tokens.roles["near"], tokens.roles["far"]
    there = near.exp() > 0
    gap_NV = (near - tokens.student).masked_fill(~there, 0.0)
    mixed_NV = (near.exp() + 0.3 * far.exp()) * gap_NV
    return mixed_NV.sum(-1) * tokens.inputs["advantage"] - tokens.values["gate"] * tokens.target("student").exp()


def job(max_logits: int, *, real: int = V, dtype: torch.dtype = torch.float64) -> LossInputs:
    wide = torch.promote_types(dtype, torch.float32)
    return LossInputs(
        target_N=targets(real),
        weight_N=random(N, seed=3, dtype=wide).abs(),
        loss=odd_loss,
        metrics=lambda tokens: {"probability": tokens.target("student").exp(), "far": tokens.target("far")},
        head_inputs={name: head_input(seed, real=real, dtype=dtype) for name, seed in (("near", 20), ("far", 30))},
        inputs={"advantage": random(N, seed=4, dtype=wide)},
        values={"gate": 0.7},
        max_logits_per_chunk=max_logits,
    )


def whole(student: HeadInput, work: LossInputs) -> tuple[Tensor, TokenSlice]:
    """The same loss in one piece, by plain autograd on all logits."""

    def logprobs(role: HeadInput) -> Tensor:
        logits = role.hidden_ND @ role.weight_VD.T
        logits = role.scale * (logits if role.bias_V is None else logits + role.bias_V)
        logits = logits if role.cap is None else role.cap * torch.tanh(logits / role.cap)
        keep = torch.arange(logits.shape[-1]) < role.vocab_size
        return torch.log_softmax(logits.masked_fill(~keep, -math.inf), -1)

    roles = {"student": logprobs(student), **{name: logprobs(one).detach() for name, one in work.head_inputs.items()}}
    tokens = TokenSlice(work.target_N, roles, work.inputs, work.values)
    return (odd_loss(tokens) * work.weight_N).sum(), tokens


def leaves(student: HeadInput) -> list[Tensor]:
    return [t for t in (student.hidden_ND, student.weight_VD, student.bias_V) if t is not None]


@pytest.mark.parametrize("real", [V, V - 3], ids=["all rows real", "three padded rows"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("max_logits", SLICES.values(), ids=SLICES.keys())
def test_value_and_gradients_are_those_of_the_whole_computation(max_logits: int, bias: bool, real: int) -> None:
    student = head_input(10, real=real, bias=bias)
    expected, tokens = whole(student, job(max_logits, real=real))
    # 3 · loss: the gradients stored by the forward pass must still be multiplied by what comes from above.
    expected_gradients = torch.autograd.grad(3 * expected, leaves(student))
    result = sliced_loss(student, job(max_logits, real=real))
    gradients = torch.autograd.grad(3 * result.loss, leaves(student))
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-13)
    weight_N = job(max_logits).weight_N
    wanted_sums = {
        "probability": float((tokens.target("student").exp() * weight_N).sum().detach()),
        "far": float((tokens.target("far") * weight_N).sum()),
    }
    assert result.metric_sums == pytest.approx(wanted_sums, rel=1e-12)


@pytest.mark.parametrize(("scale", "cap"), [(0.5, None), (1.0, 2.0), (3.0, 2.0)])
def test_scaled_and_capped_logits_have_the_gradients_of_the_whole_computation(scale: float, cap: float | None) -> None:
    student = replace(head_input(10, real=V - 3), scale=scale, cap=cap)
    work = job(3 * 3 * V, real=V - 3)
    work = replace(
        work, head_inputs={**work.head_inputs, "near": replace(work.head_inputs["near"], scale=scale, cap=cap)}
    )
    expected, _ = whole(student, work)
    wanted = torch.autograd.grad(expected, leaves(student))
    result = sliced_loss(student, work)
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=0)
    for actual, one in zip(torch.autograd.grad(result.loss, leaves(student)), wanted, strict=True):
        torch.testing.assert_close(actual, one, rtol=1e-11, atol=1e-13)


def test_a_loss_that_sees_pieces_of_a_block_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five tokens (the last of two) in pieces of two."""
    monkeypatch.setattr(head, "PIECE_ON_CPU", 2 * V)
    student = head_input(10, real=V - 3)
    expected, tokens = whole(student, job(3 * 5 * V, real=V - 3))
    wanted = torch.autograd.grad(expected, leaves(student))
    result = sliced_loss(student, job(3 * 5 * V, real=V - 3))
    for actual, one in zip(torch.autograd.grad(result.loss, leaves(student)), wanted, strict=True):
        torch.testing.assert_close(actual, one, rtol=1e-11, atol=1e-13)
    for role, scores in result.scores.items():
        torch.testing.assert_close(scores.target_N, tokens.target(role).detach(), rtol=1e-12, atol=0)


def test_a_second_backward_is_refused_instead_of_scaling_the_gradients_twice() -> None:
    result = sliced_loss(head_input(10), job(3 * V))
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


@pytest.mark.parametrize("max_logits", SLICES.values(), ids=SLICES.keys())
def test_scores_of_every_role_come_in_the_order_of_the_tokens(max_logits: int) -> None:
    student = head_input(10, real=V - 3)
    work = job(max_logits, real=V - 3)
    _, tokens = whole(student, work)
    result = sliced_loss(student, work)
    assert set(result.scores) == {"student", "near", "far"}
    for role, scores in result.scores.items():
        probs_NV = tokens.roles[role].exp()
        entropy_N = torch.stack([-sum((p * p.log() for p in row if p > 0), torch.tensor(0.0)) for row in probs_NV])
        torch.testing.assert_close(scores.target_N, tokens.target(role).detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(scores.entropy_N, entropy_N.detach(), rtol=1e-12, atol=0)
        # A third of the logits for one role of three: slices of the same tokens.
        alone = score_head_input(
            {"student": student, **work.head_inputs}[role], work.target_N, max_logits_per_chunk=max_logits // 3
        )
        assert torch.equal(alone.target_N, scores.target_N)
        assert torch.equal(alone.entropy_N, scores.entropy_N)
        assert not scores.target_N.requires_grad


def test_padded_rows_have_probability_zero_and_gradient_exactly_zero() -> None:
    real = V - 3
    student = head_input(10, real=real)
    with torch.no_grad():
        student.weight_VD[real:] += 50.0  # unmasked, these rows would take all the probability
    logprobs_NV = student.logprobs(slice(None))
    assert (logprobs_NV[:, real:] == -math.inf).all()
    torch.testing.assert_close(logprobs_NV[:, :real].exp().sum(-1), torch.ones(N, dtype=torch.float64))
    sliced_loss(student, job(3 * V, real=real)).loss.backward()
    assert student.weight_VD.grad is not None and student.bias_V is not None and student.bias_V.grad is not None
    assert (student.weight_VD.grad[real:] == 0).all()
    assert (student.bias_V.grad[real:] == 0).all()
    assert student.weight_VD.grad[:real].abs().min() > 0


def test_a_frozen_head_gets_no_gradient_and_hidden_states_still_do() -> None:
    student = head_input(10)
    frozen = replace(student, weight_VD=student.weight_VD.detach(), bias_V=None)
    expected, _ = whole(frozen, job(3 * V))
    (wanted,) = torch.autograd.grad(expected, [frozen.hidden_ND])
    sliced_loss(frozen, job(3 * V)).loss.backward()
    assert frozen.weight_VD.grad is None
    torch.testing.assert_close(frozen.hidden_ND.grad, wanted, rtol=1e-11, atol=1e-13)


def test_a_loss_that_ignores_the_student_has_gradient_zero() -> None:
    student = head_input(10)
    work = replace(job(3 * V), loss=lambda tokens: tokens.inputs["advantage"], metrics=None)
    result = sliced_loss(student, work)
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx(float((work.inputs["advantage"] * work.weight_N).sum()))
    for leaf in leaves(student):
        assert leaf.grad is not None and leaf.grad.abs().max() == 0


@pytest.mark.parametrize("absent", [math.inf, -math.inf, math.nan])
def test_a_token_of_weight_0_takes_no_part_whatever_its_loss(absent: float) -> None:
    """A surprise of ln 4 at weight 1, and beside it one that has no weight, whose loss and its slope are not finite."""

    def explosive(tokens: TokenSlice) -> Tensor:
        return -tokens.target("student") * tokens.inputs["factor"]

    student = HeadInput(
        torch.tensor([[0.0], [2.0]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[0.5], [-0.5], [1.0], [0.0]], dtype=torch.float64, requires_grad=True),
        torch.zeros(4, dtype=torch.float64, requires_grad=True),
        4,
    )
    work = LossInputs(
        target_N=torch.tensor([0, 1]),
        weight_N=torch.tensor([1.0, 0.0], dtype=torch.float64),
        loss=explosive,
        metrics=lambda tokens: {"loss": explosive(tokens)},
        inputs={"factor": torch.tensor([1.0, absent], dtype=torch.float64)},
    )
    result = sliced_loss(student, work)
    result.loss.backward()
    assert float(result.loss.detach()) == pytest.approx(math.log(4), rel=1e-15)
    assert result.metric_sums == pytest.approx({"loss": math.log(4)}, rel=1e-15)
    # S − onehot = (−3, 1, 1, 1)/4 at the logits of the first token: times its hidden state 0 for the head's rows,
    # times the head for the hidden state, (−3 · 0.5 − 0.5 + 1)/4.
    hidden, weight, bias = (leaf.grad for leaf in leaves(student))
    assert hidden is not None and weight is not None and bias is not None
    assert hidden.flatten().tolist() == pytest.approx([-0.25, 0.0])
    assert weight.flatten().tolist() == [0.0] * 4
    assert bias.tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])
    # Alone the token is as absent as beside another one: in a slice of its own, or where no token has weight.
    cut = sliced_loss(student, replace(work, max_logits_per_chunk=4))
    assert (cut.loss, cut.metric_sums) == (result.loss, result.metric_sums)
    for grad, one in zip(torch.autograd.grad(cut.loss, leaves(student)), (hidden, weight, bias), strict=True):
        torch.testing.assert_close(grad, one)
    nothing = sliced_loss(student, replace(work, weight_N=torch.zeros(2, dtype=torch.float64)))
    assert (float(nothing.loss.detach()), nothing.metric_sums) == (0.0, {"loss": 0.0})
    for grad in torch.autograd.grad(nothing.loss, leaves(student)):
        assert grad.abs().max() == 0.0


def test_an_infinite_loss_that_has_weight_stays_infinite() -> None:
    work = replace(job(3 * V), loss=lambda tokens: -tokens.target("student") * math.inf, metrics=None)
    assert float(sliced_loss(head_input(10), work).loss.detach()) == math.inf


def test_no_tokens_are_a_loss_of_zero() -> None:
    student = HeadInput(torch.zeros(0, D, requires_grad=True), random(V, D, seed=1, dtype=torch.float32), None, V)
    nothing = torch.zeros(0, dtype=torch.long)
    work = LossInputs(nothing, torch.zeros(0), loss=lambda tokens: -tokens.target("student"))
    result = sliced_loss(student, work)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert score_head_input(student, nothing, max_logits_per_chunk=V).target_N.shape == (0,)


def test_bf16_adds_up_slices_in_float32() -> None:
    """512 tokens that each push one weight by 1: bf16 cannot count beyond 256, float32 can."""
    tokens = 512
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    work = LossInputs(
        target_N=torch.zeros(tokens, dtype=torch.long),
        weight_N=torch.full((tokens,), 2.0),
        loss=lambda seen: -seen.target("student"),
        max_logits_per_chunk=2,
    )
    result = sliced_loss(HeadInput(hidden, weight, None, 2), work)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert float(result.loss.detach()) == pytest.approx(2 * tokens * math.log(2), rel=1e-5)
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [-512.0, 512.0]


def test_bf16_log_probabilities_are_float32_of_the_bf16_logits() -> None:
    student = head_input(10, dtype=torch.bfloat16, bias=False)
    logits_NV = (student.hidden_ND @ student.weight_VD.T).float()
    expected_NV = torch.log_softmax(logits_NV, -1).detach()
    actual_NV = student.logprobs(slice(None)).detach()
    assert actual_NV.dtype == torch.float32
    assert torch.equal(actual_NV, expected_NV)


def wide_loss(tokens: TokenSlice) -> Tensor:
    return (tokens.roles["near"].exp() * (tokens.roles["near"] - tokens.student)).sum(-1)


@pytest.mark.parametrize("slice_tokens", [1, 4])
def test_no_tensor_of_all_tokens_and_the_vocabulary_exists(slice_tokens: int) -> None:
    tokens, vocabulary, width = 128, 1000, 8

    def wide_head_input(seed: int) -> HeadInput:
        hidden, weight = random(tokens, width, seed=seed), random(vocabulary, width, seed=seed + 1)
        return HeadInput(hidden.requires_grad_(), weight.requires_grad_(), None, vocabulary - 10)

    student = wide_head_input(0)
    work = LossInputs(
        target_N=torch.zeros(tokens, dtype=torch.long),
        weight_N=torch.ones(tokens, dtype=torch.float64),
        loss=wide_loss,
        head_inputs={"near": wide_head_input(2)},
        max_logits_per_chunk=2 * slice_tokens * vocabulary,
    )
    finished = run_watched(lambda: sliced_loss(student, work))
    # The head's own gradient [V, D] is the largest thing where a slice is smaller than it.
    assert finished == max(slice_tokens, width) * vocabulary < tokens * vocabulary
    watched = LargestOutput()
    with watched:
        score_head_input(student, work.target_N, max_logits_per_chunk=slice_tokens * vocabulary)
    assert watched.numel == slice_tokens * vocabulary


def run_watched(make: Callable[[], LossOutput]) -> int:
    watched = LargestOutput()
    with watched:
        result: Any = make()
        result.loss.backward()
    return watched.numel
