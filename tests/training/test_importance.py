"""Truncated importance sampling: by hand on a token, and through a whole step of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.contexts.templates import Template
from selfdistill.models.policy import Policy
from selfdistill.training.importance import LEARNER, SAMPLER, corrected, gaps, metrics_of_learner
from selfdistill.types import RolloutGroup, Scores, TokenSlice, View
from support.engine import Bench, distance, invent_groups, load_exact, make_bench, numbers_of, perturb

METHODS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {},
    "antisd": {"gated": False},
    "sdpo": {},
    "opsd": {},
    "sdft": {},
    "credit": {},
    "purified": {},
}
LOG = math.log


# --- by hand ---------------------------------------------------------------------------------------------------------


def slice_of(learner: Sequence[float], **inputs: Sequence[float]) -> TokenSlice:
    """Tokens whose student gives them these probabilities, in a vocabulary of two."""
    student = torch.tensor([[p, 1 - p] for p in learner], dtype=torch.float64).log()
    numbers = {name: torch.tensor(values, dtype=torch.float64) for name, values in inputs.items()}
    return TokenSlice(torch.zeros(len(learner), dtype=torch.long), {"student": student}, numbers)


def old_logprob(tokens: TokenSlice) -> torch.Tensor:
    return tokens.inputs["old_logprob"]


def test_a_tokens_loss_is_weighted_by_learner_over_sampler_up_to_the_cap() -> None:
    sampler = [LOG(0.4), LOG(0.2), LOG(0.05), LOG(0.8), math.nan]
    tokens = slice_of([0.2, 0.3, 0.3, 0.2, 0.3], **{SAMPLER: sampler, "old_logprob": [0.0] * 5})
    loss = corrected(lambda seen: torch.tensor([1.0, 10.0, 1.0, 4.0, 7.0], dtype=torch.float64), cap=2.0)
    # .2/.4, .3/.2, .3/.05 cut to 2, .2/.8; the last was not drawn by another engine.
    assert loss(tokens).tolist() == pytest.approx([0.5, 15.0, 2.0, 1.0, 7.0])


def test_the_cap_is_the_one_that_was_given() -> None:
    sampler = (LOG(0.05),)
    tokens = slice_of([0.3], **{SAMPLER: sampler, "old_logprob": [0.0]})
    assert corrected(lambda seen: torch.ones(1, dtype=torch.float64), cap=3.0)(tokens).tolist() == [3.0]
    view, score = View({"student": (1,)}, (5,), (1.0,), sampler, 0.0, 0, 0), torch.tensor([LOG(0.3)]).double()
    found = gaps([view], [Scores(score, score)], cap=3.0)
    assert (found["importance"], found["importance_capped"]) == (3.0, 1.0)


def test_the_loss_and_its_metrics_see_the_learner_as_the_old_policy() -> None:
    numbers = {SAMPLER: [LOG(0.4), math.nan], "old_logprob": [LOG(0.4), LOG(0.9)]}
    first = slice_of([0.2, 0.3], **numbers)
    later = slice_of([0.25, 0.3], **numbers, **{LEARNER: [LOG(0.2), LOG(0.1)]})
    for tokens in (first, later):
        assert metrics_of_learner(lambda seen: {"old": old_logprob(seen)})(tokens)["old"].tolist() == [
            LOG(0.2),
            LOG(0.9),
        ]
    # The weight belongs to the policy before the first update, also where the student has moved since: .2/.4.
    weight = corrected(lambda seen: torch.ones(2, dtype=torch.float64), cap=2.0)
    assert weight(first).tolist() == weight(later).tolist() == pytest.approx([0.5, 1.0])


def test_no_gradient_flows_through_the_weight() -> None:
    tokens = slice_of([0.2], **{SAMPLER: [LOG(0.4)], "old_logprob": [0.0]})
    tokens.roles["student"].requires_grad_()
    corrected(lambda seen: seen.target("student"), cap=2.0)(tokens).sum().backward()
    assert tokens.roles["student"].grad is not None
    assert tokens.roles["student"].grad[0].tolist() == pytest.approx([0.5, 0.0])


def test_the_reported_gap_by_hand() -> None:
    view = View({"student": (1,)}, (5, 6, 7), (1.0,) * 3, (LOG(0.5), LOG(0.1), LOG(0.4)), 0.0, 0, 0)
    teachers = replace(view, source="teacher", old_logprobs=(0.0,) * 3)
    learner = torch.tensor([0.25, 0.3, 0.4], dtype=torch.float64).log()
    found = gaps([view, teachers], [Scores(learner, learner)] * 2, cap=2.0)
    assert found == pytest.approx(
        {
            "sampler_gap": (LOG(2) + LOG(3)) / 3,
            "sampler_gap_max": LOG(3),
            "importance": (0.5 + 2.0 + 1.0) / 3,
            "importance_capped": 1 / 3,
        }
    )
    assert gaps([teachers], [Scores(learner, learner)], cap=2.0) == {}


# --- through a step --------------------------------------------------------------------------------------------------


def shifted(groups: Sequence[RolloutGroup], by: float) -> list[RolloutGroup]:
    """The groups as an engine would have drawn them that gives every token e^by times its probability."""
    return [
        replace(g, rollouts=tuple(replace(r, logprobs=tuple(p + by for p in r.logprobs)) for r in g.rollouts))
        for g in groups
    ]


def bench_of(folder: Path, templates: Mapping[str, Template], name: str, cap: float | None, **changes: Any) -> Bench:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, name, METHODS[name], move=perturb)
    bench.trainer.importance_cap = cap
    for attribute, value in changes.items():
        setattr(bench.trainer, attribute, value)
    return bench


def measured(bench: Bench, off: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The gradient of a step, and its record, where the sampler is off by this much."""
    groups = shifted(invent_groups(bench.policy, bench.chat, off=0.0), off)
    values = numbers_of(bench.step(groups).record)
    return bench.gradient(), values


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("off", "weight"), [(0.0, 1.0), (-LOG(1.5), 1.5), (-LOG(3), 2.0), (LOG(4), 0.25)])
def test_every_methods_gradient_is_multiplied_by_the_weight_and_no_more(
    name: str, off: float, weight: float, folder: Path, templates: dict[str, Template]
) -> None:
    plain, before = measured(bench_of(folder, templates, name, None), 0.0)
    weighted, values = measured(bench_of(folder, templates, name, 2.0), off)
    assert distance(weighted, {key: weight * value for key, value in plain.items()}) < 1e-9
    assert values["loss"] == pytest.approx(weight * before["loss"], rel=1e-9)
    assert values["sampler_gap"] == pytest.approx(abs(off), abs=1e-9)
    assert values["importance"] == pytest.approx(weight)
    assert values["importance_capped"] == float(weight == 2.0)
    assert not {"sampler_gap", "importance"} & before.keys(), "nothing is corrected where the learner draws itself"
    assert before.keys() <= values.keys(), "the method measures what it measures without the correction"
    if "ratio" in values:
        assert values["ratio"] == pytest.approx(1.0), "the ratio measures updates, not engines"


def test_later_updates_on_a_batch_keep_the_weights_of_the_first(folder: Path, templates: dict[str, Template]) -> None:
    """Half the learning rate on twice the gradient moves the same way, twice in a row."""

    def moved(cap: float | None, off: float, rate: float) -> Policy:
        bench = bench_of(folder, templates, "grpo", cap, updates_per_batch=2, learning_rate=lambda step: rate)
        measured(bench, off)
        return bench.policy

    plain, weighted = moved(None, 0.0, 0.2), moved(2.0, -LOG(2), 0.1)
    for mine, theirs in zip(weighted.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    start, _ = load_exact(folder)
    perturb(start)
    far = [not torch.equal(a, b) for a, b in zip(plain.parameters(), start.parameters(), strict=True)]
    assert any(far)


def test_only_the_students_own_completions_are_weighted(folder: Path, templates: dict[str, Template]) -> None:
    """Every second completion is a teacher's: the loss is A·weight + B, with B > 0 that no weight touches."""
    losses = {}
    for weight in (1.0, 1.5, 2.0):
        bench = bench_of(folder, templates, "opsd", 2.0)
        groups = [
            replace(
                group,
                rollouts=tuple(replace(r, source=("student", "teacher")[i % 2]) for i, r in enumerate(group.rollouts)),
            )
            for group in invent_groups(bench.policy, bench.chat, off=0.0)
        ]
        values = numbers_of(bench.step(shifted(groups, -LOG(weight))).record)
        losses[weight] = values["loss"]
        assert values["importance"] == pytest.approx(weight)
    assert losses[2.0] - losses[1.5] == pytest.approx(losses[1.5] - losses[1.0], rel=1e-9)
    assert losses[1.0] < losses[2.0] < 1.9 * losses[1.0]
