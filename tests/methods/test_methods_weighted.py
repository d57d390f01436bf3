"""SC-SDPO, PACED, DemoPSD, EOPD and HDPO: a step's value and gradient by brute force, and what they reduce to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import methods_by_hand as hand
import weighted_by_hand as weighted
from selfdistill.config.sections import LimitsConfig, LoraConfig, limits_on
from selfdistill.contexts.templates import Template
from selfdistill.methods import build_method
from selfdistill.methods.base import BatchScores
from selfdistill.types import RolloutGroup, TokenSlice, Verdict, View
from support.engine import SAID, distance, invent_groups, load_exact, make_bench, numbers_of, perturb, size_of
from support.hindsight import question_alone, sibling_or_feedback, solution
from support.measured import Measured

LORA = LoraConfig(rank=3, alpha=6)
UNEVEN: tuple[tuple[float | None, ...], ...] = ((0.0, 1.0, 0.0, 0.25), (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, None, 0.5))
"""Rewards with the pass rates ¼, 0 and ⅔, for contexts that do not depend on them."""
RATES = [weighted.pass_rate([reward for _, reward, _ in said]) for said in SAID]
JSD_5 = {"kind": "jensen_shannon", "support": {"kind": "top_k", "k": 5}}


@pytest.fixture(autouse=True)
def _share_short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The completions of these small groups share their prompts, gradient included."""
    monkeypatch.setattr("selfdistill.models.packing.SHARE_FROM", 1)


Make = Callable[..., Measured]


@pytest.fixture
def measure(folder: Path, templates: Mapping[str, Template]) -> Make:
    def made(
        name: str,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        rewards: Sequence[Sequence[float | None]] | None = None,
        with_teachers: bool = False,
        **how: Any,
    ) -> Measured:
        given = iter(rewards or ())

        def changed(group: RolloutGroup) -> RolloutGroup:
            if rewards is not None:
                group = replace(group, verdicts=tuple(map(Verdict, next(given))))
            failed = not any(verdict.correct for verdict in group.verdicts)
            return taught(group) if with_teachers and failed else group

        return Measured(folder, templates, name, hyperparameters or {}, change=changed, **how)

    return made


def taught(group: RolloutGroup) -> RolloutGroup:
    """A group with two more completions that the teacher has sampled, the second of them right."""
    more = tuple(replace(rollout, source="teacher") for rollout in group.rollouts[:2])
    return replace(group, rollouts=(*group.rollouts, *more), verdicts=(*group.verdicts, Verdict(0.25), Verdict(1.0)))


both = pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])

# --- weights of questions --------------------------------------------------------------------------------------------


@both
def test_sc_sdpo_weighs_sdpo_by_the_root_of_the_pass_rates_variance(measure: Make, lora: LoraConfig | None) -> None:
    measured = measure("sc_sdpo", {"divergence": JSD_5}, lora=lora)
    completions = measured.scored(shown=sibling_or_feedback, drop=True)
    # The only right completion of the third group has no sibling and leaves; its pass rate does not leave with it.
    assert (RATES, len(completions)) == ([0.5, 0.0, 0.5], 9)
    weights = {g: math.sqrt(p * (1 - p)) for g, p in enumerate(RATES)}
    mean = sum(weights[one.group] for one in completions) / len(completions)
    assert measured.result.record.values["question_weight_mean"] == pytest.approx(mean, rel=1e-12)
    token_loss = hand.sdpo(hand.jensen_shannon, k=5)
    measured.compare(hand.mean_over_tokens(completions, weighted.weighted(weights, token_loss, mean=mean)))


def test_sc_sdpo_without_normalising_and_with_another_power(measure: Make) -> None:
    hyperparameters = {"divergence": JSD_5, "context": "solution", "exponent": 1.5, "normalise": "none"}
    measured = measure("sc_sdpo", hyperparameters, rewards=UNEVEN)
    completions = measured.scored(shown=solution, drop=True)
    weights = {g: (p * (1 - p)) ** 1.5 for g, p in enumerate((1 / 4, 0.0, 2 / 3))}
    token_loss = hand.sdpo(hand.jensen_shannon, k=5)
    measured.compare(hand.mean_over_tokens(completions, weighted.weighted(weights, token_loss)))


def view_of(rate: float | None, *, source: str = "student", length: int = 1) -> View:
    return View({"student": (1,)}, (5,) * length, (1.0,) * length, (0.0,) * length, 0.0, 0, 0, source, pass_rate=rate)


def test_the_weights_of_a_batch_by_hand() -> None:
    views = [view_of(0.5), view_of(0.2), view_of(1.0), view_of(None)]
    found = build_method("sc_sdpo", {}).on_batch(None, BatchScores({}, views))
    assert isinstance(weights := found["question_weight"], Tensor)
    assert found["question_weight_mean"] == pytest.approx(0.225)  # (½ + 2/5 + 0 + 0) / 4
    assert weights.tolist() == pytest.approx([0.5 / 0.225, 0.4 / 0.225, 0.0, 0.0])
    plain = build_method("sc_sdpo", {"normalise": "none"}).on_batch(None, BatchScores({}, views))
    assert isinstance(weights := plain["question_weight"], Tensor)
    assert weights.tolist() == pytest.approx([0.5, 0.4, 0.0, 0.0])
    for nothing in ([], [view_of(0.0), view_of(1.0)]):
        found = build_method("sc_sdpo", {}).on_batch(None, BatchScores({}, nothing))
        assert isinstance(weights := found["question_weight"], Tensor)
        assert (weights.tolist(), found["question_weight_mean"]) == ([0.0] * len(nothing), 0.0)
    paced = build_method("paced", {"alpha": 2.0, "beta": 1.0})
    found = paced.on_batch(None, BatchScores({}, views))
    assert isinstance(weights := found["question_weight"], Tensor)
    assert weights.tolist() == pytest.approx([0.125, 0.032, 0.0, 0.0])
    assert found["question_weight_mean"] == pytest.approx(0.157 / 4)


def test_power_0_is_sdpo_and_so_are_equal_pass_rates(measure: Make) -> None:
    sdpo = measure("sdpo", {"divergence": JSD_5})
    assert (
        distance(measure("sc_sdpo", {"divergence": JSD_5, "exponent": 0.0}).bench.gradient(), sdpo.bench.gradient())
        < 1e-13
    )
    even = ((0.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    shown = {"divergence": JSD_5, "context": "solution"}
    gradients = [measure(name, shown, rewards=even).bench.gradient() for name in ("sc_sdpo", "sdpo")]
    assert distance(*gradients) < 1e-12


@pytest.mark.parametrize("name", ["sc_sdpo", "paced"])
def test_questions_that_are_always_or_never_solved_teach_nothing(name: str, measure: Make) -> None:
    certain = ((1.0,) * 4, (0.0,) * 4, (1.0,) * 4)
    measured = measure(name, {"context": "solution"}, rewards=certain)
    assert (measured.result.record.loss, size_of(measured.bench.gradient())) == (0.0, 0.0)


@pytest.mark.parametrize("reverse_from", [0.0, 1.0])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_paced_weighs_the_divergence_of_its_part(reverse_from: float, lora: LoraConfig | None, measure: Make) -> None:
    hyperparameters = {"alpha": 1.5, "beta": 0.5, "reverse_from": reverse_from}
    measured = measure("paced", hyperparameters, rewards=UNEVEN, lora=lora)
    completions = measured.scored(shown=solution, drop=True)
    weights = {g: p**1.5 * (1 - p) ** 0.5 for g, p in enumerate((1 / 4, 0.0, 2 / 3))}
    token_loss = hand.against_teacher(weighted.forward if reverse_from else hand.kl)
    measured.compare(hand.mean_over_tokens(completions, weighted.weighted(weights, token_loss)))


def test_paced_without_powers_is_plain_distillation(measure: Make) -> None:
    plain = measure("opsd", {"divergence": {"kind": "forward_kl"}, "score_temperature": 1.0}, rewards=UNEVEN)
    paced = measure("paced", {"alpha": 0.0, "beta": 0.0}, rewards=UNEVEN)
    assert distance(paced.bench.gradient(), plain.bench.gradient()) < 1e-13
    reverse = measure("sdft", {"weights": "frozen"}, rewards=UNEVEN)
    paced = measure("paced", {"alpha": 0.0, "beta": 0.0, "reverse_from": 0.0}, rewards=UNEVEN)
    assert distance(paced.bench.gradient(), reverse.bench.gradient()) < 1e-13


def test_paced_turns_at_its_share_of_the_run() -> None:
    def reversed_at(share: float, steps: int | None = 4) -> list[float]:
        method = build_method("paced", {"reverse_from": share})
        found = [method.on_batch(None, BatchScores({}, [], step=step, steps=steps))["reverse"] for step in range(1, 5)]
        return [float(value) for value in found if isinstance(value, float)]

    assert reversed_at(0.5) == [0.0, 0.0, 1.0, 1.0]
    assert (reversed_at(0.0), reversed_at(1.0)) == ([1.0] * 4, [0.0] * 4)
    assert reversed_at(0.75) == [0.0, 0.0, 0.0, 1.0]
    assert reversed_at(0.5, steps=None) == [0.0] * 4


# --- targets and gates of tokens -------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("k", [5, None])
def test_demopsd_is_the_divergence_to_the_softened_teacher(
    k: int | None, lora: LoraConfig | None, measure: Make
) -> None:
    support = {"kind": "full"} if k is None else {"kind": "top_k", "k": k}
    hyperparameters = {"divergence": {"kind": "reverse_kl", "support": support}, "alpha_max": 0.4, "beta": 30.0}
    measured = measure("demopsd", hyperparameters, lora=lora)
    completions = measured.scored(shown=sibling_or_feedback, others={"bare": question_alone}, drop=True)
    measured.compare(hand.mean_over_tokens(completions, weighted.demopsd(0.4, 30.0, k=k)))
    alpha = measured.result.record.values["alpha"]
    assert isinstance(alpha, float) and 0 < alpha < 0.4


def test_demopsd_without_room_is_sdpo_with_a_reverse_kl(measure: Make) -> None:
    reverse = {"divergence": {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 5}}}
    gradients = [
        measure(name, {**reverse, **more}).bench.gradient()
        for name, more in (("demopsd", {"alpha_max": 0.0}), ("sdpo", {}))
    ]
    assert distance(*gradients) < 1e-12


def test_alpha_1_everywhere_is_distillation_to_the_students_own_prompt(measure: Make) -> None:
    """σ → 1 for a large β where S and T differ at all: Q is then B."""
    reverse = {"divergence": {"kind": "reverse_kl", "support": {"kind": "full"}}}
    bent = measure("demopsd", {**reverse, "alpha_max": 1.0, "beta": 1e9}, rewards=((1.0,) * 4,) * 3)
    bare = measure("sdpo", {**reverse, "context": "bare"}, rewards=((1.0,) * 4,) * 3)
    assert bent.result.record.values["alpha"] == pytest.approx(1.0)
    assert distance(bent.bench.gradient(), bare.bench.gradient()) < 1e-10


@both
def test_eopd_adds_the_teachers_likeliest_where_it_is_uncertain(lora: LoraConfig | None, measure: Make) -> None:
    rows = [row for one in measure("eopd", {}).scored(shown=solution, drop=True) for row in one.teacher or []]
    entropies = sorted(float(hand.entropy_of(row)) for row in rows)
    # Completions share their first position: the threshold lies in the widest gap, not between two equal numbers.
    _, below = max((b - a, a) for a, b in pairwise(entropies[len(rows) // 4 : -len(rows) // 4]))
    middle = below + 1e-6
    measured = measure("eopd", {"threshold": middle, "k": 4, "strength": 0.7}, lora=lora)
    completions = measured.scored(shown=solution, drop=True)
    measured.compare(hand.mean_over_tokens(completions, weighted.eopd(middle, 4, 0.7)))
    if lora is None:
        share = sum(entropy > middle for entropy in entropies) / len(rows)
        assert measured.result.record.values["teacher_uncertain"] == pytest.approx(share)


def test_eopd_without_strength_and_with_an_endless_threshold_is_the_policy_gradient_alone(measure: Make) -> None:
    without = measure("eopd", {"strength": 0.0}).bench.gradient()
    never = measure("eopd", {"threshold": 100.0})
    assert never.result.record.values["teacher_uncertain"] == 0.0
    assert distance(never.bench.gradient(), without) < 1e-13


def test_eopd_with_the_whole_vocabulary_adds_the_forward_kl(measure: Make) -> None:
    """The gradient is linear in the loss: with all tokens uncertain the two terms' gradients add up."""
    whole = measure("eopd", {"threshold": 0.0, "k": 10_000}).bench.gradient()
    pulled = measure("eopd", {"strength": 0.0}).bench.gradient()
    divergence = measure("opsd", {"divergence": {"kind": "forward_kl"}, "score_temperature": 1.0}).bench.gradient()
    assert distance(whole, {name: pulled[name] + divergence[name] for name in pulled}) < 1e-12


# --- samples of the teacher ------------------------------------------------------------------------------------------


@both
def test_hdpo_adds_the_teachers_right_samples_to_grpo(lora: LoraConfig | None, measure: Make) -> None:
    measured = measure("hdpo", {"strength": 0.6, "divergence": JSD_5}, with_teachers=True, lora=lora)
    own = [hand.advantages([reward for _, reward, _ in said]) for said in SAID]
    completions: list[hand.Scored] = []
    for one in measured.scored(live=True, shown=solution):
        index = sum(one.group == other.group and one.source == other.source for other in completions)
        if one.source == "student":
            completions.append(replace(one, advantage=own[one.group][index]))
        elif one.reward == 1.0:
            completions.append(one)
    assert [one.source for one in completions].count("teacher") == 1 and len(completions) == 13
    measured.compare(weighted.hdpo(completions, 0.6, k=5))
    # The teacher's right sample is none of the student's.
    assert {view.group: view.pass_rate for view in measured.result.views} == dict(enumerate(RATES))
    values = measured.result.record.values
    taught_tokens = sum(len(one.ids) for one in completions if one.source == "teacher")
    assert values["distilled_share"] == pytest.approx(taught_tokens / sum(len(one.ids) for one in completions))
    assert measured.result.record.skipped["left out by the method"] == 1
    ratios = [
        math.exp(float(one.student[t][one.ids[t]].detach()) - one.sampled[t])
        for one in completions
        if one.source == "student"
        for t in range(len(one.ids))
    ]
    assert values["ratio"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-9)


def test_the_share_of_the_teachers_samples_is_that_of_their_weights() -> None:
    """A mean over completions weighs three tokens as it weighs one."""
    views = [replace(view_of(0.0, length=3), weights=(1 / 3,) * 3), view_of(0.0, source="teacher")]
    found = build_method("hdpo", {}).on_batch(None, BatchScores({}, views))
    assert found["distilled_share"] == pytest.approx(0.5)
    assert isinstance(distilled := found["distilled"], Tensor) and distilled.tolist() == [0.0, 1.0]
    assert build_method("hdpo", {}).on_batch(None, BatchScores({}, []))["distilled_share"] == 0.0


def test_hdpo_without_samples_of_the_teacher_or_without_strength_is_grpo(measure: Make) -> None:
    grpo = measure("grpo").bench.gradient()
    assert distance(measure("hdpo").bench.gradient(), grpo) < 1e-13
    assert distance(measure("hdpo", {"strength": 0.0}, with_teachers=True).bench.gradient(), grpo) < 1e-12


def test_hdpo_keeps_grpo_where_there_is_no_solution(folder: Path, templates: Mapping[str, Template]) -> None:
    gradients = []
    for name in ("hdpo", "grpo"):
        policy, chat = load_exact(folder)
        bench = make_bench(policy, chat, templates, name, {}, move=perturb)
        groups = invent_groups(policy, chat, solutions=False)
        assert bench.step(groups).record.values["dropped"] == 0
        gradients.append(bench.gradient())
    assert distance(*gradients) < 1e-13


def test_the_teacher_of_hdpo_samples_only_where_the_student_has_failed_and_was_judged(measure: Make) -> None:
    method, groups = build_method("hdpo", {}), measure("grpo").groups
    assert [method.samples_for("teacher", group) for group in groups] == [False, True, False]
    unjudged = replace(groups[1], verdicts=(Verdict(None),) * 4)
    assert not method.samples_for("teacher", unjudged)
    graded = replace(groups[1], verdicts=(Verdict(0.9, success=False), Verdict(None), Verdict(0.2), Verdict(0.0)))
    assert method.samples_for("teacher", graded)
    assert not method.samples_for(
        "teacher", replace(graded, verdicts=(Verdict(0.9, success=True), *graded.verdicts[1:]))
    )
    assert list(method.keep(taught(groups[1]))) == [True, True, True, True, False, True]
    assert (method.sampling_roles(), method.roles()["teacher"].weights) == (("student", "teacher"), "live")


# --- what none of them depends on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sc_sdpo", "paced", "demopsd", "eopd", "hdpo"])
def test_no_cut_changes_anything(name: str, measure: Make) -> None:
    whole = measure(name, with_teachers=name == "hdpo")
    for limits in (
        limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=1)),
        limits_on("cpu", LimitsConfig(max_logits_per_chunk=96)),
    ):
        cut = measure(name, with_teachers=name == "hdpo", limits=limits)
        assert distance(cut.bench.gradient(), whole.bench.gradient()) < 1e-10
        assert numbers_of(cut.result.record) == pytest.approx(numbers_of(whole.result.record), rel=1e-9)


@pytest.mark.parametrize(("name", "more"), [("sc_sdpo", {}), ("paced", {}), ("demopsd", {})])
def test_a_teacher_that_sees_what_the_student_sees_teaches_nothing(
    name: str, more: Mapping[str, Any], folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, name, {"context": "bare", **more})
    result = bench.step(invent_groups(policy, chat))
    assert result.record.loss == pytest.approx(0.0, abs=1e-14)
    assert size_of(bench.gradient()) < 1e-13


def test_an_entry_that_no_one_has_makes_no_target_undefined() -> None:
    """Ids beyond the vocabulary are −inf on every side, also where S = T and α is exactly 0."""
    row = torch.log_softmax(torch.tensor([[0.3, -0.2, -math.inf, 1.0]], dtype=torch.float64), -1)
    student = row.clone().requires_grad_()
    method = build_method("demopsd", {"divergence": {"kind": "reverse_kl", "support": {"kind": "full"}}})
    inputs = {"old_logprob": row[:, 0].detach()}
    tokens = TokenSlice(torch.tensor([0]), {"student": student, "teacher": row, "bare": row}, inputs)
    loss = method.loss(tokens)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0], abs=1e-15)
    assert student.grad is not None and not student.grad.isnan().any()
