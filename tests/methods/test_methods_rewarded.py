"""Methods in which the reward decides the direction and hindsight the size, by brute force and by equalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
import rewarded_by_hand as by_hand
from selfdistill.config.sections import LimitsConfig, LoraConfig, limits_on
from selfdistill.contexts.templates import Template
from selfdistill.methods import build_method
from selfdistill.methods.base import BatchScores
from selfdistill.types import RolloutGroup
from support.engine import QUESTIONS, SAID, SOLUTIONS, distance, only_correct
from support.hindsight import question_alone, rendered, sibling, sibling_or_feedback, solution
from support.measured import Measured, nothing_wrong

LORA = LoraConfig(rank=3, alpha=6)
CUTS = {
    "one view a micro-batch": LimitsConfig(max_tokens_per_microbatch=1),
    "some views a micro-batch": LimitsConfig(max_tokens_per_microbatch=70),
    "one token a slice": LimitsConfig(max_logits_per_chunk=96),
}


def answer_shown(g: int, answer: str) -> str:
    return rendered(f"{QUESTIONS[g]} the answer is {answer} .")


def sibling_or_solution(g: int, i: int) -> str | None:
    shown = sibling(g, i)
    if shown is None:
        return solution(g, i)
    return rendered(f"{QUESTIONS[g]} another attempt was correct : {shown} . now solve the problem")


def say_more(group: RolloutGroup) -> RolloutGroup:
    """The same group, in which every wrong completion ends in an answer."""
    return replace(
        group,
        verdicts=tuple(
            replace(verdict, answer=verdict.answer or f"{i} + {i}") for i, verdict in enumerate(group.verdicts)
        ),
    )


# --- RLSD and CEPO ---------------------------------------------------------------------------------------------------

RLSD_CASES: dict[str, tuple[Mapping[str, Any], int, float, float]] = {
    # Hyperparameters, step, and by hand the strength of that step and the weight's clip.
    "first step": ({}, 1, 0.5, 0.2),
    "half way": ({"strength": 0.8, "decay": 10, "weight_clip": 0.6}, 6, 0.4, 0.6),
    "no decay": ({"strength": 1.0, "decay": None, "weight_clip": 1.0}, 70, 1.0, 1.0),
}


@pytest.mark.parametrize("case", RLSD_CASES)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_rlsd_weights_the_advantage_of_each_token(
    case: str, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters, step, strength, clip = RLSD_CASES[case]
    measured = Measured(folder, templates, "rlsd", hyperparameters, lora=lora, step=step)
    assert measured.result.record.values["strength"] == pytest.approx(strength)
    completions = measured.scored(live=True, shown=sibling_or_solution)
    measured.compare(hand.mean_over_tokens(completions, by_hand.rlsd(strength, clip)))


def test_rlsd_keeps_completions_without_a_context_with_their_plain_advantage(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "rlsd", {"context": "sibling", "weights": "frozen"})
    assert measured.result.record.values["dropped"] == 0.0
    completions = measured.scored(shown=lambda g, i: sibling_or_solution(g, i) if sibling(g, i) else None)
    assert any(one.teacher is None for one in completions) and any(one.teacher is not None for one in completions)
    measured.compare(hand.mean_over_tokens(completions, by_hand.rlsd(0.5, 0.2)))


@pytest.mark.parametrize("student_instead", [False, True])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_cepo_weights_by_the_right_answer_against_a_wrong_one(
    student_instead: bool, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters = {"without_wrong": "student" if student_instead else "advantage"}
    measured = Measured(folder, templates, "cepo", hyperparameters, lora=lora, change=say_more)
    wrong = measured.shown("wrong")
    for g, group in enumerate(measured.groups):
        for i in range(4):
            others = [
                answer_shown(g, str(group.verdicts[j].answer))
                for j in range(4)
                if j != i and group.verdicts[j].reward is not None and not group.verdicts[j].correct
            ]
            # A wrong completion that never ends its thoughts has no text to be told apart by.
            assert wrong(g, i) in [*others, None]
    completions = measured.scored(live=True, shown=lambda g, i: answer_shown(g, SOLUTIONS[g]), others={"wrong": wrong})
    contrasted = [len(one.ids) for one in completions if "wrong" in one.others]
    assert 0 < len(contrasted) < 12
    share = sum(contrasted) / sum(len(one.ids) for one in completions)
    assert measured.result.record.values["contrasted"] == pytest.approx(share)
    measured.compare(hand.mean_over_tokens(completions, by_hand.cepo(0.5, 0.5, student_instead=student_instead)))


@pytest.mark.parametrize(
    ("name", "hyperparameters", "step"),
    [
        ("rlsd", {"strength": 0.0}, 1),
        ("rlsd", {"decay": 4}, 5),
        ("rlsd", {"context": "bare"}, 1),
        ("cepo", {"strength": 0.0, "clip_high": 0.2}, 1),
        ("cepo", {"decay": 4, "clip_high": 0.2}, 9),
        ("cepo", {"wrong_context": "answer_only", "clip_high": 0.2}, 1),
    ],
)
def test_without_strength_or_without_evidence_it_is_grpo(
    name: str, hyperparameters: Mapping[str, Any], step: int, folder: Path, templates: Mapping[str, Template]
) -> None:
    grpo = Measured(folder, templates, "grpo", {})
    other = Measured(folder, templates, name, hyperparameters, step=step)
    assert distance(other.bench.gradient(), grpo.bench.gradient()) < 1e-12


@pytest.mark.parametrize("wrong", [None, "bare"])
def test_cepo_against_the_students_own_prompt_is_rlsd(
    wrong: str | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    """P⁻ = S, because no wrong answer is known, or because P⁻ is shown what the student is."""
    same = {"strength": 0.7, "decay": None, "weight_clip": 0.5, "clip_high": 0.2}
    mine = {"without_wrong": "student", "wrong_context": wrong or "wrong_sibling"}
    change = nothing_wrong if wrong is None else None
    rlsd = Measured(folder, templates, "rlsd", {**same, "context": "answer_only"}, change=change)
    cepo = Measured(folder, templates, "cepo", {**same, **mine}, change=change)
    assert distance(cepo.bench.gradient(), rlsd.bench.gradient()) < 1e-12


# --- RLCSD -----------------------------------------------------------------------------------------------------------

RLCSD: Mapping[str, Any] = {
    "strength": 0.9,
    "sharpness": 2.0,
    "selected_above": 0.15,
    "selected_weight": 0.4,
    "contrasts": 2,
}


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_rlcsd_is_two_means_of_advantages_with_a_bonus(
    lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "rlcsd", RLCSD, lora=lora)
    names = ["teacher", "wrong_0", "wrong_1"]
    right, *wrong = (measured.shown(name) for name in names)
    for g, i in ((g, i) for g in range(3) for i in range(4)):
        siblings: list[str | None] = [attempt(g, j) for j in range(4) if j != i and SAID[g][j][1] == 1.0]
        assert right(g, i) in (siblings or [solution(g, i)])
        mistakes = [
            attempt(g, j) for j in range(4) if j != i and (SAID[g][j][1] or 0.0) < 1 and SAID[g][j][1] is not None
        ]
        shown = [one(g, i) for one in wrong if one(g, i) is not None]
        assert set(shown) <= set(mistakes) and len(shown) == min(2, len(mistakes))
    completions = measured.scored(shown=right, others=dict(zip(names[1:], wrong, strict=True)))
    hinted = [one for one in completions if one.others]
    assert {len(one.others) for one in hinted} == {1, 2}
    assert measured.result.record.values["without_hints"] == 12 - len(hinted)
    measured.compare(by_hand.rlcsd(completions, strength=0.9, sharpness=2.0, above=0.15, eta=0.4, contrasts=2))


def attempt(g: int, i: int) -> str:
    said = SAID[g][i][0].rpartition("</think>")[2].strip()
    return rendered(f"{QUESTIONS[g]} another attempt was correct : {said} . now solve the problem")


def test_rlcsd_without_a_bonus_is_grpo_on_completions_with_hints(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "rlcsd", {**RLCSD, "strength": 0.0})
    hinted = [one for one in measured.scored(shown=None, others={"wrong": measured.shown("wrong_0")}) if one.others]
    measured.compare(hand.mean_over_tokens(hinted, hand.grpo))
    assert measured.result.record.values["selected"] == 0.0


def test_equal_hints_have_no_bonus(folder: Path, templates: Mapping[str, Template]) -> None:
    same = {**RLCSD, "context": "bare", "wrong_context": "bare"}
    measured = Measured(folder, templates, "rlcsd", same)
    grpo = Measured(folder, templates, "grpo", {})
    assert measured.result.record.values["selected"] == measured.result.record.values["without_hints"] == 0.0
    assert distance(measured.bench.gradient(), grpo.bench.gradient()) < 1e-12


def test_a_step_in_which_nobody_is_wrong_teaches_rlcsd_nothing(folder: Path, templates: Mapping[str, Template]) -> None:
    measured = Measured(folder, templates, "rlcsd", {}, change=nothing_wrong)
    assert measured.result.record.values["without_hints"] == 12.0
    assert (measured.result.record.loss, measured.result.record.grad_norm) == (0.0, 0.0)


# --- SDAR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_sdar_lifts_what_hindsight_likes(
    lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters = {"context": "sibling", "strength": 0.7, "sharpness": 3.0}
    measured = Measured(folder, templates, "sdar", hyperparameters, lora=lora)
    completions = measured.scored(live=True, shown=lambda g, i: sibling_or_solution(g, i) if sibling(g, i) else None)
    assert any(one.teacher is None for one in completions)
    measured.compare(hand.mean_over_tokens(completions, by_hand.sdar(0.7, 3.0)))


def test_sdar_under_the_students_own_prompt_is_grpo_and_half_the_log_likelihood(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """u = 0, so the gate is ½ for every token."""
    measured = Measured(folder, templates, "sdar", {"context": "bare", "strength": 0.4})
    completions = measured.scored(shown=None)
    grpo = hand.mean_over_tokens(completions, hand.grpo)
    lifted = hand.mean_over_tokens(completions, hand.sft)
    assert measured.result.record.loss == pytest.approx(float(grpo.detach()), rel=1e-9)
    expected = hand.gradient(measured.student, grpo + 0.4 * 0.5 * lifted)
    assert distance(measured.bench.gradient(), expected) < 1e-8


# --- SDPG ------------------------------------------------------------------------------------------------------------

SDPG_CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "defaults, larger": ({}, {}),
    "bounded": (
        {"kl_clip": 0.3, "dual_clip": 1.2, "only_praised": True},
        {"bound": 0.3, "dual": 1.2, "only_praised": True},
    ),
    "reverse": ({"reference_form": "reverse_kl"}, {"form": "reverse_kl"}),
    "forward": ({"reference_form": "forward_kl", "dual_clip": None}, {"form": "forward_kl", "dual": None}),
}


@pytest.mark.parametrize(
    ("case", "lora"), [*((case, None) for case in SDPG_CASES), ("reverse", LORA)], ids=[*SDPG_CASES, "with lora"]
)
def test_sdpg_is_grpo_with_two_divergences(
    case: str, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters, other = SDPG_CASES[case]
    given = {"context": "sibling", "strength": 0.6, "reference_weight": 0.3, **hyperparameters}
    measured = Measured(folder, templates, "sdpg", given, lora=lora)
    completions = measured.scored(live=True, shown=lambda g, i: sibling_or_solution(g, i) if sibling(g, i) else None)
    begin = measured.scored(shown=question_alone)
    completions = [
        replace(one, others={"reference": first.teacher or []}) for one, first in zip(completions, begin, strict=True)
    ]
    assert any(one.teacher is None for one in completions)
    measured.compare(hand.mean_over_tokens(completions, by_hand.sdpg(0.6, 0.3, **other)))


def test_sdpg_without_its_divergences_is_grpo(folder: Path, templates: Mapping[str, Template]) -> None:
    none = {"strength": 0.0, "reference_weight": 0.0, "clip_high": 0.2, "dual_clip": None}
    grpo = Measured(folder, templates, "grpo", {})
    assert distance(Measured(folder, templates, "sdpg", none).bench.gradient(), grpo.bench.gradient()) < 1e-12
    # The KL to a teacher that sees what the student sees has neither value nor gradient.
    same = {**none, "strength": 1.0, "context": "bare"}
    assert distance(Measured(folder, templates, "sdpg", same).bench.gradient(), grpo.bench.gradient()) < 1e-12


def test_the_weight_of_sdpgs_teacher_rises_and_falls() -> None:
    method = build_method("sdpg", {"strength": 0.6, "warmup": 3, "decay": 2})
    told = [method.on_batch(None, BatchScores(step=step, steps=8))["strength"] for step in range(1, 9)]
    assert told == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.6, 0.6, 0.3, 0.0])
    assert method.on_batch(None, BatchScores(step=100))["strength"] == 0.6


# --- SRPO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_srpo_routes_wrong_completions_to_the_teacher(
    lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    five = {"kind": "jensen_shannon", "support": {"kind": "top_k", "k": 5}}
    hyperparameters = {"divergence": five, "entropy_weight": 2.0, "dual_clip": 1.2}
    measured = Measured(folder, templates, "srpo", hyperparameters, lora=lora)
    completions = measured.scored(shown=sibling_or_feedback)
    # Wrong with a sibling or feedback: two of the first group, two of the second, one of the third.
    assert measured.result.record.values["routed_share"] == pytest.approx(5 / 12)
    assert measured.result.record.values["dropped"] == 0.0
    measured.compare(by_hand.srpo(completions, 2.0, k=5, dual=1.2))


def test_srpo_of_right_completions_is_grpo(folder: Path, templates: Mapping[str, Template]) -> None:
    grpo = Measured(folder, templates, "grpo", {}, change=nothing_wrong)
    srpo = Measured(folder, templates, "srpo", {"dual_clip": None}, change=nothing_wrong)
    assert distance(srpo.bench.gradient(), grpo.bench.gradient()) < 1e-12


def test_srpo_of_wrong_completions_without_entropy_weight_is_sdpo(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """With a context for every completion, all of them wrong."""
    sdpo = Measured(folder, templates, "sdpo", {"context": "solution"}, change=all_wrong)
    srpo = Measured(folder, templates, "srpo", {"context": "solution", "entropy_weight": 0.0}, change=all_wrong)
    assert srpo.result.record.values["routed_share"] == 1.0
    assert distance(srpo.bench.gradient(), sdpo.bench.gradient()) < 1e-12


def all_wrong(group: RolloutGroup) -> RolloutGroup:
    return replace(group, verdicts=tuple(replace(v, reward=0.1 * i) for i, v in enumerate(group.verdicts)))


def test_however_unsure_a_teacher_is_its_weights_have_a_mean_of_1(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "srpo", {"entropy_weight": 1e4})
    seen = BatchScores({"teacher": measured.result.scores["teacher"]}, measured.result.views)
    told = measured.bench.method.on_batch(None, seen)
    distil, routed = told["distil"], told["routed"]
    assert isinstance(distil, Sequence) and isinstance(routed, torch.Tensor)
    weights = torch.cat([weight for weight, chosen in zip(distil, routed.tolist(), strict=True) if chosen])
    assert float(weights.mean()) == pytest.approx(1.0)


# --- what a gradient must not depend on ------------------------------------------------------------------------------

INVARIANT: dict[str, Mapping[str, Any]] = {
    "rlsd": {},
    "cepo": {"without_wrong": "student"},
    "rlcsd": RLCSD,
    "sdar": {},
    "skill_sd": {"context": "sibling_or_solution"},
    "sdpg": {"strength": 0.6, "reference_weight": 0.3},
    "srpo": {},
}


@pytest.mark.parametrize("limits", CUTS)
@pytest.mark.parametrize("name", INVARIANT)
def test_no_cut_changes_anything(name: str, limits: str, folder: Path, templates: Mapping[str, Template]) -> None:
    whole = Measured(folder, templates, name, INVARIANT[name], change=say_more)
    cut = Measured(folder, templates, name, INVARIANT[name], change=say_more, limits=limits_on("cpu", CUTS[limits]))
    assert distance(cut.bench.gradient(), whole.bench.gradient()) < 1e-10
    assert cut.result.record.values == pytest.approx(dict(whole.result.record.values), rel=1e-10)


@pytest.mark.parametrize("name", ["rlsd", "cepo", "rlcsd", "srpo"])
def test_groups_of_equal_reward_teach_nothing(name: str, folder: Path, templates: Mapping[str, Template]) -> None:
    """The reward has no direction there, and hindsight gives none."""
    measured = Measured(folder, templates, name, INVARIANT[name], change=lambda group: only_correct([group])[0])
    assert measured.result.record.loss == 0.0
    assert measured.result.record.grad_norm == 0.0
