"""The part of the vocabulary that is compared: chosen by the student, the teacher, or both."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from objectives_by_hand import random_logprobs
from selfdistill.methods import build_method
from selfdistill.methods.base import Full, TopK, on_support
from selfdistill.objectives import reverse_kl
from selfdistill.types import TokenSlice

STUDENT = [0.5, 0.3, 0.1, 0.06, 0.04]
TEACHER = [0.05, 0.5, 0.05, 0.1, 0.3]


def tokens(student: Tensor, teacher: Tensor, **others: Tensor) -> TokenSlice:
    return TokenSlice(
        torch.zeros(len(student), dtype=torch.long), {"student": student, "teacher": teacher, **others}, {}
    )


def two(support: Full | TopK) -> list[list[float]]:
    """Probabilities of student and teacher on a support, sorted, without entries that are 0 on both sides."""
    student, teacher = (torch.tensor([row], dtype=torch.float64).log() for row in (STUDENT, TEACHER))
    found = on_support(tokens(student, teacher), support, "student", "teacher")
    pairs = sorted(zip(*(row.exp()[0].tolist() for row in found), strict=True))
    return [[round(s, 9), round(t, 9)] for s, t in pairs if s or t]


def test_each_side_chooses_its_likeliest_tokens_and_the_tail_holds_the_others() -> None:
    by_student = [[0.2, 0.45], [0.3, 0.5], [0.5, 0.05]]
    by_teacher = [[0.04, 0.3], [0.3, 0.5], [0.66, 0.2]]
    both = [[0.04, 0.3], [0.16, 0.15], [0.3, 0.5], [0.5, 0.05]]
    assert two(TopK(k=2)) == by_student
    assert two(TopK(k=2, chosen_by="teacher")) == by_teacher
    assert two(TopK(k=2, chosen_by="union")) == both


@pytest.mark.parametrize("chosen_by", ["student", "teacher", "union"])
def test_a_divergence_on_a_support_is_that_of_the_distributions_with_one_bin_for_the_rest(chosen_by: str) -> None:
    student, teacher = (random_logprobs(7, 12, seed=seed) for seed in (1, 2))
    leaf = student.clone().requires_grad_()
    support = TopK(k=4, chosen_by=chosen_by)  # type: ignore[arg-type]
    value = reverse_kl(*on_support(tokens(leaf, teacher), support, "student", "teacher"))
    value.sum().backward()
    for n in range(7):
        likeliest = [set(row[n].topk(4).indices.tolist()) for row in (student, teacher)]
        chosen = {"student": likeliest[0], "teacher": likeliest[1], "union": likeliest[0] | likeliest[1]}[chosen_by]
        ids = sorted(chosen)
        by_hand = student[n].clone().requires_grad_()
        bins = [torch.stack([*row[ids].exp(), 1 - row[ids].exp().sum()]) for row in (by_hand, teacher[n])]
        expected = (bins[0] * (bins[0] / bins[1]).log()).sum()
        expected.backward()
        assert float(value[n].detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
        torch.testing.assert_close(leaf.grad[n], by_hand.grad, rtol=1e-7, atol=1e-12)  # type: ignore[index]


def test_another_role_may_choose_and_a_union_of_everything_is_the_whole_vocabulary() -> None:
    student, teacher, other = (random_logprobs(3, 6, seed=seed) for seed in (1, 2, 3))
    slice_ = tokens(student, teacher, other=other)
    chosen = on_support(slice_, TopK(k=2, chosen_by="teacher"), "student", teacher="other")[0]
    ids = other.topk(2).indices
    assert sorted(chosen[0, :2].tolist()) == sorted(student[0, ids[0]].tolist())
    whole = reverse_kl(*on_support(slice_, TopK(k=9, chosen_by="union"), "student", "teacher"))
    torch.testing.assert_close(whole, reverse_kl(student, teacher), rtol=1e-6, atol=1e-7)
    assert on_support(slice_, Full(), "teacher")[0] is teacher
    assert math.isfinite(float(whole.sum()))


OWN = {"kind": "top_k", "k": 7, "chosen_by": "teacher"}
BOTH = {"kind": "top_k", "k": 7, "chosen_by": "union"}


def on(support: dict[str, object]) -> dict[str, object]:
    return {"divergence": {"kind": "jensen_shannon", "support": support}}


@pytest.mark.parametrize(
    ("name", "hyperparameters", "read"),
    [
        # The teacher's own top-k suffices; any other support needs the student's choice, or the whole distribution.
        *((name, on(OWN), 7) for name in ("sdft", "sdpo", "hdpo")),
        *((name, on(BOTH), None) for name in ("sdft", "sdpo", "hdpo", "opsd")),
        *((name, on({"kind": "top_k", "k": 7}), None) for name in ("sdft", "sdpo", "hdpo")),
        *((name, on({"kind": "full"}), None) for name in ("sdft", "sdpo", "hdpo")),
        ("paced", {"support": OWN}, 7),
        ("paced", {"support": BOTH}, None),
        ("paced", {"support": {"kind": "full"}}, None),
        # Another temperature than 1 divides the score of every token.
        ("opsd", {**on(OWN), "score_temperature": 1.0}, 7),
        ("opsd", {**on(OWN), "score_temperature": 1.1}, None),
        # What is not compared is read at the sampled token alone, unless a gate watches its entropy.
        ("grpo", {}, 0),
        ("antisd", {"gate_signal": "teacher_entropy"}, None),
        ("antisd", {"gate_signal": "student_perplexity"}, 0),
        ("antisd", {"gate_signal": "teacher_entropy", "gated": False}, 0),
    ],
)
def test_how_many_of_the_teachers_likeliest_tokens_a_method_reads(
    name: str, hyperparameters: dict[str, object], read: int | None
) -> None:
    method = build_method(name, hyperparameters)
    assert method.likeliest("teacher") == read
    assert method.likeliest("nobody") == 0


def test_of_any_other_role_that_is_compared_the_whole_distribution_is_read() -> None:
    method = build_method("purified", {})
    others = [role for role in method.compared() if role != "teacher"]
    assert others
    assert [method.likeliest(role) for role in others] == [None] * len(others)


def test_a_support_of_the_teacher_is_none_of_another_role() -> None:
    method = build_method("sdpo", on(OWN))
    object.__setattr__(method, "compared", lambda: ["teacher", "other"])
    assert (method.likeliest("teacher"), method.likeliest("other")) == (7, None)
