"""Methods in which the reward decides the direction and hindsight the size, by brute force and by equalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods_by_hand as hand
import rewarded_by_hand as by_hand
from selfdistill.config.sections import LimitsConfig, LoraConfig, limits_on
from selfdistill.contexts.templates import Template
from selfdistill.types import RolloutGroup
from support.engine import QUESTIONS, SOLUTIONS, distance, only_correct
from support.hindsight import rendered, sibling, solution
from support.measured import Measured

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
    completions = measured.scored(
        live=True, shown=lambda g, i: answer_shown(g, SOLUTIONS[g]), others={"wrong": wrong}
    )
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
    rlsd = Measured(folder, templates, "rlsd", {**same, "context": "answer_only"})
    mine = {"without_wrong": "student", "wrong_context": wrong or "wrong_sibling"}
    unknown = {"change": nothing_wrong} if wrong is None else {}
    rlsd = Measured(folder, templates, "rlsd", {**same, "context": "answer_only"}, **unknown)
    cepo = Measured(folder, templates, "cepo", {**same, **mine}, **unknown)
    assert distance(cepo.bench.gradient(), rlsd.bench.gradient()) < 1e-12


def nothing_wrong(group: RolloutGroup) -> RolloutGroup:
    """Graded rewards of which all count as right."""
    return replace(
        group,
        verdicts=tuple(replace(v, success=True, reward=v.reward if v.reward is not None else 0.3) for v in group.verdicts),
    )


# --- what a gradient must not depend on ------------------------------------------------------------------------------

INVARIANT: dict[str, Mapping[str, Any]] = {
    "rlsd": {},
    "cepo": {"without_wrong": "student"},
}


@pytest.mark.parametrize("limits", CUTS)
@pytest.mark.parametrize("name", INVARIANT)
def test_no_cut_changes_anything(name: str, limits: str, folder: Path, templates: Mapping[str, Template]) -> None:
    whole = Measured(folder, templates, name, INVARIANT[name], change=say_more)
    cut = Measured(folder, templates, name, INVARIANT[name], change=say_more, limits=limits_on("cpu", CUTS[limits]))
    assert distance(cut.bench.gradient(), whole.bench.gradient()) < 1e-10
    assert cut.result.record.values == pytest.approx(dict(whole.result.record.values), rel=1e-10)


@pytest.mark.parametrize("name", INVARIANT)
def test_groups_of_equal_reward_teach_nothing(name: str, folder: Path, templates: Mapping[str, Template]) -> None:
    """The reward has no direction there, and hindsight gives none."""
    measured = Measured(folder, templates, name, INVARIANT[name], change=lambda group: only_correct([group])[0])
    assert measured.result.record.loss == 0.0
    assert measured.result.record.grad_norm == 0.0
