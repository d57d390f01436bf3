"""Methods with more than one teacher's context, or more than one side that samples: CREDIT, Purified OPSD, PBSD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
from selfdistill.config.sections import Limits, LimitsConfig, LoraConfig, limits_on
from selfdistill.contexts.templates import Template
from support.engine import (
    QUESTIONS,
    SAID,
    distance,
    invent_groups,
    load_exact,
    make_bench,
    numbers_of,
    only_correct,
    size_of,
)
from support.hindsight import (
    other_question,
    question_alone,
    reference_only,
    rendered,
    scored,
    sibling_or_feedback,
    solution,
)
from support.measured import Measured, drawn_by_both
from support.tiny import save_tiny_model

LORA = LoraConfig(rank=3, alpha=6)
JSD_5 = {"kind": "jensen_shannon", "support": {"kind": "top_k", "k": 5}}
REVERSE = {"kind": "reverse_kl", "support": {"kind": "full"}}


# --- CREDIT ----------------------------------------------------------------------------------------------------------


def contrasts_of(measured: Measured) -> list[dict[int, int]]:
    """For each contrast, which other question each group was shown, read off the prompts that were scored."""
    found: list[dict[int, int]] = []
    for k in range(measured.bench.method.model_dump()["contrasts"]):
        shown: dict[int, int] = {}
        for view in measured.result.views:
            prompt = measured.chat.tokenizer.decode(view.prompts[f"contrast_{k}"]).strip()
            g, i = view.group, view.index
            options = [o for o in range(3) if prompt == str(other_question({g: o})(g, i)).strip()]
            assert len(options) == 1 and options != [g]
            assert shown.setdefault(g, options[0]) == options[0]
        found.append(shown)
    return found


CREDIT_CASES: dict[str, tuple[Mapping[str, Any], Any, int | None, int]] = {
    "one contrast": ({"strength": 0.3}, hand.jensen_shannon, None, 1),
    "one contrast, top 5": ({"divergence": JSD_5}, hand.jensen_shannon, 5, 1),
    "two contrasts, reverse KL": ({"contrasts": 2, "strength": 0.7, "divergence": REVERSE}, hand.kl, None, 2),
}


@pytest.mark.parametrize("case", CREDIT_CASES)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_credit_is_the_divergence_to_the_debiased_teacher(
    case: str, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters, divergence, k, count = CREDIT_CASES[case]
    measured = Measured(folder, templates, "credit", hyperparameters, lora=lora)
    shown = contrasts_of(measured)
    others = {f"contrast_{c}": other_question(shown[c]) for c in range(count)}
    completions = measured.scored(shown=sibling_or_feedback, others=others, drop=True)
    token_loss = hand.credit(divergence, float(hyperparameters.get("strength", 0.1)), contrasts=count, k=k)
    measured.compare(hand.mean_over_tokens(completions, token_loss))
    if count == 2:
        assert all(shown[0][g] != shown[1][g] for g in shown[0])


def test_the_sampled_token_form_of_credit_is_centred(folder: Path, templates: Mapping[str, Template]) -> None:
    measured = Measured(folder, templates, "credit", {"form": "advantage", "strength": 0.4, "contrasts": 2})
    shown = contrasts_of(measured)
    others = {f"contrast_{c}": other_question(shown[c]) for c in range(2)}
    completions = measured.scored(shown=sibling_or_feedback, others=others, drop=True)
    measured.compare(hand.credit_advantage(completions, 0.4, contrasts=2))


@pytest.mark.parametrize(
    "limits",
    [
        limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=1)),
        limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=70)),
        limits_on("cpu", LimitsConfig(max_logits_per_chunk=96)),
    ],
)
@pytest.mark.parametrize(
    ("name", "hyperparameters", "sides"),
    [
        ("credit", {"form": "advantage"}, False),
        ("credit", {"divergence": JSD_5}, False),
        ("purified", {}, False),
        ("pbsd", {}, True),
        ("pbsd_reward", {}, True),
    ],
)
def test_no_cut_changes_anything(
    name: str,
    hyperparameters: Mapping[str, Any],
    sides: bool,
    limits: Limits,
    folder: Path,
    templates: Mapping[str, Template],
) -> None:
    whole = Measured(folder, templates, name, hyperparameters, sides=sides)
    cut = Measured(folder, templates, name, hyperparameters, sides=sides, limits=limits)
    assert distance(cut.bench.gradient(), whole.bench.gradient()) < 1e-10
    assert cut.result.record.values == pytest.approx(dict(whole.result.record.values), rel=1e-10)


def test_credit_without_strength_is_sdpo(folder: Path, templates: Mapping[str, Template]) -> None:
    credit = Measured(folder, templates, "credit", {"strength": 0.0})
    sdpo = Measured(folder, templates, "sdpo", {})
    assert distance(credit.bench.gradient(), sdpo.bench.gradient()) < 1e-12


def test_a_contrast_follows_from_the_seed_and_the_example_and_never_from_the_order(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "credit", {})
    groups = invent_groups(policy, chat)

    def chosen(order: Sequence[int], step: int) -> dict[int, str]:
        views = bench.trainer.prepare([groups[g] for g in order], step=step).views
        shown = {order[view.group]: chat.tokenizer.decode(view.prompts["contrast_0"]) for view in views}
        return {g: next(q for q in QUESTIONS if q in text) for g, text in sorted(shown.items())}

    for step in range(1, 5):
        assert chosen([0, 1, 2], step) == chosen([2, 0, 1], step)
    seen = {step: tuple(chosen([0, 1, 2], step).values()) for step in range(1, 30)}
    assert len(set(seen.values())) == 8  # two choices for each of three groups


def test_the_wrong_siblings_contrast_shows_a_wrong_answer_other_than_the_scored_one(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "credit", {"contrast": "wrong_sibling"})
    views = bench.trainer.prepare(invent_groups(policy, chat), step=1).views
    for view in views:
        own = SAID[view.group][view.index][0].rpartition("</think>")[2].strip()
        wrong = {
            text.rpartition("</think>")[2].strip()
            for text, reward, _ in SAID[view.group]
            if reward is not None and reward < 1
        } - {own, ""}
        prompt = chat.tokenizer.decode(view.prompts["contrast_0"]).strip()
        options = {
            rendered(f"{QUESTIONS[view.group]} another attempt was correct : {text} . now solve the problem").strip()
            for text in wrong
        }
        assert prompt in options
    # In the third group the only wrong completion has no wrong sibling.
    assert {view.index for view in views if view.group == 2} == {0, 2}


# --- Purified OPSD ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"beta": 0.5, "clip": 0.7},
        {"subtraction": False, "beta": 0.5, "clip": 0.7},
        {"pmi_target": False, "beta": 0.5, "clip": 0.7},
        {"subtraction": False, "pmi_target": False},
    ],
    ids=["defaults", "clipped", "without subtraction", "without PMI target", "without both"],
)
def test_purified_is_jensen_shannon_to_the_target_without_the_reference(
    hyperparameters: dict[str, Any], lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "purified", hyperparameters, lora=lora)
    # A context that the target does not need is not scored.
    all_others = {"reference_only": reference_only, "base": question_alone}
    others = {name: shown for name, shown in all_others.items() if name in measured.bench.method.roles()}
    assert len(others) == hyperparameters.get("subtraction", True) + hyperparameters.get("pmi_target", True)
    completions = measured.scored(shown=solution, others=others, drop=True)
    measured.compare(hand.mean_over_tokens(completions, hand.purified(**hyperparameters)))


def test_purified_with_the_base_as_reference_is_distillation_to_the_teacher(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """R := B, c → ∞, β = 1: P ∝ B · T / B."""
    purified = Measured(folder, templates, "purified", {"reference_context": "bare", "clip": 1e9})
    opsd = Measured(folder, templates, "opsd", {"divergence": {"kind": "jensen_shannon"}, "score_temperature": 1.0})
    assert distance(purified.bench.gradient(), opsd.bench.gradient()) < 1e-6


def rows_of(one: hand.Scored) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Student's and teacher's distribution at every token of a completion, and the token."""
    assert one.teacher is not None
    rows = zip(one.student, one.teacher, one.ids, strict=True)
    return [(torch.stack(s).detach(), torch.stack(t).detach(), token) for s, t, token in rows]


def base_of(one: hand.Scored) -> list[torch.Tensor]:
    return [row[token].detach() for row, token in zip(one.others["base"], one.ids, strict=True)]


def test_the_decomposition_is_logged_as_means_over_tokens(folder: Path, templates: Mapping[str, Template]) -> None:
    measured = Measured(folder, templates, "purified", {})
    others = {"reference_only": reference_only, "base": question_alone}
    completions = measured.scored(shown=solution, others=others, drop=True)
    cosines, shares = [], []
    for one in completions:
        assert one.teacher is not None
        for s, t, r in zip(one.student, one.teacher, one.others["reference_only"], strict=True):
            student, teacher, reference = (torch.stack(row).detach() for row in (s, t, r))
            total, part = teacher - student, reference - student
            cosines.append(float(total @ part / (total.norm() * part.norm())))
            shares.append(float((teacher - reference).norm() / total.norm()))
    values = numbers_of(measured.result.record)
    # u splits into pMI under the frozen weights and their drift, which the student has moved away from.
    u = [float((t - s)[token]) for one in completions for s, t, token in rows_of(one)]
    assert values["pmi"] + values["weight_drift"] == pytest.approx(sum(u) / len(u), rel=1e-9)
    assert abs(values["weight_drift"]) > 1e-3
    drift = [
        float(b - s[token]) for one in completions for (s, _, token), b in zip(rows_of(one), base_of(one), strict=True)
    ]
    assert values["weight_drift"] == pytest.approx(sum(drift) / len(drift), rel=1e-9)
    assert values["cos_total_reference"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    assert values["norm_question_share"] == pytest.approx(sum(shares) / len(shares), rel=1e-9)


# --- PBSD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_pbsd_is_the_preference_loss_of_whole_pairs(
    length: str, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "pbsd", {"length": length, "beta": 0.3}, sides=True, lora=lora)
    completions = measured.scored(shown=solution)
    measured.compare(hand.pbsd(completions, 0.3, mean=length == "mean"))
    assert measured.result.record.values["pairs"] == 6.0


def test_pbsd_can_ask_for_right_teacher_samples(folder: Path, templates: Mapping[str, Template]) -> None:
    measured = Measured(folder, templates, "pbsd", {"reward_filter": "correct"}, sides=True)
    # The teacher's side of the first group is (right, 0.25), that of the second wrong, that of the third not judged.
    kept = [one for one in measured.scored(shown=solution) if one.group == 0]
    measured.compare(hand.pbsd([kept[0], kept[2]], 0.1))
    assert measured.result.record.values["pairs"] == 1.0
    assert measured.result.record.values["dropped"] == 10.0
    assert measured.result.record.skipped["left out by the method"] == 10


def test_a_batch_without_pairs_changes_nothing(folder: Path, templates: Mapping[str, Template]) -> None:
    measured = Measured(folder, templates, "pbsd", {}, sides=False)
    assert measured.result.record.loss == 0.0
    assert measured.result.record.values["dropped"] == 12.0


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_pbsd_reward_is_cross_entropy_to_the_tilted_teacher(
    length: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    measured = Measured(folder, templates, "pbsd_reward", {"length": length, "beta": 0.5}, sides=False)
    judged = [one for one in measured.scored(shown=solution) if one.reward is not None]
    assert len(judged) == 10
    measured.compare(hand.pbsd_reward(judged, 0.5, mean=length == "mean"))


# --- what they share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("sdft", {"context": "bare"}),
        ("credit", {"context": "bare", "strength": 0.0}),
        ("purified", {"context": "bare", "reference_context": "bare"}),
    ],
)
def test_a_teacher_that_sees_what_the_student_sees_teaches_nothing(
    name: str, hyperparameters: Mapping[str, Any], folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, name, hyperparameters)
    result = bench.step(only_correct(invent_groups(policy, chat)))
    assert result.record.loss == pytest.approx(0.0, abs=1e-14)
    assert size_of(bench.gradient()) < 1e-14


def test_at_the_start_pbsd_pushes_with_half_its_strength(folder: Path, templates: Mapping[str, Template]) -> None:
    """Equal contexts and weights: every margin is 0, the loss ln 2, and ∇ = −½ β mean(∇log S(y⁺) − ∇log S(y⁻))."""
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "pbsd", {"context": "bare"})
    groups = [drawn_by_both(group) for group in invent_groups(policy, chat)]
    result = bench.step(groups)
    assert result.record.loss == pytest.approx(float(torch.tensor(2.0, dtype=torch.float64).log()), rel=1e-12)
    assert result.record.values["margin"] == pytest.approx(0.0, abs=1e-12)
    completions = scored(policy.model, policy.model, groups, chat, policy.vocab_size, shown=question_alone)
    total = sum(
        ((1 if one.source == "teacher" else -1) * hand.whole(one, one.student, False) for one in completions), hand.ZERO
    )
    expected = hand.gradient(policy.model, -0.5 * 0.1 * total / 6)
    assert distance(bench.gradient(), expected) < 1e-8


def test_two_updates_on_a_batch_are_two_steps_and_one_look_at_the_gate(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    def moved(updates: int, calls: int) -> tuple[dict[str, torch.Tensor], Any]:
        policy, chat = load_exact(folder)
        bench = make_bench(policy, chat, templates, "antisd", {"warmup": 2})
        bench.trainer.updates_per_batch = updates
        bench.trainer.learning_rate = lambda step: 0.05
        groups = invent_groups(policy, chat)
        for step in range(calls):
            bench.step(groups, step=step + 1)
        return {n: p.detach().clone() for n, p in policy.model.named_parameters()}, bench.trainer.state

    twice, gate = moved(2, 1)
    stepwise, other = moved(1, 2)
    assert len(gate.state_dict()["recorded"]) == 1
    assert len(other.state_dict()["recorded"]) == 2
    assert distance(twice, stepwise) < 1e-12


def test_teacher_weights_may_be_those_of_another_model(
    folder: Path, templates: Mapping[str, Template], tmp_path: Path
) -> None:
    from selfdistill.models.policy import load_external
    from selfdistill.types import External
    from support.tiny import keep_float64

    other = save_tiny_model(tmp_path / "other", seed=8)
    policy, chat = load_exact(folder)
    dtype, device = torch.float64, torch.device("cpu")
    teacher = keep_float64(load_external(str(other), policy, chat, dtype=dtype, device=device)).double()
    hyperparameters = {"weights": {"kind": "external", "path": str(other)}, "score_temperature": 1.0}
    bench = make_bench(policy, chat, templates, "opsd", hyperparameters, external={External(str(other)): teacher})
    groups = invent_groups(policy, chat)
    bench.step(groups)
    completions = scored(policy.model, teacher.model, groups, chat, policy.vocab_size, shown=solution, drop=True)
    divergence = partial(hand.clipped_forward_kl, clip=0.05)
    loss = hand.mean_over_tokens(completions, hand.against_teacher(divergence))
    expected = hand.gradient(policy.model, loss)
    assert size_of(expected) > 1e-5
    assert distance(bench.gradient(), expected) < 1e-8
