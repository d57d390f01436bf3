"""Every method through a whole training step: gradients by brute force, and what they must not depend on."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
from selfdistill.config.sections import Limits, LimitsConfig, LoraConfig, limits_on
from selfdistill.contexts.templates import Template
from selfdistill.models.policy import Policy
from selfdistill.types import RolloutGroup
from support.engine import (
    Bench,
    distance,
    invent_groups,
    load_exact,
    make_bench,
    numbers_of,
    only_correct,
    parameters,
    perturb,
    size_of,
)
from support.hindsight import Shown, scored, sibling_or_feedback, sibling_or_solution_verdict, sibling_verdict, solution
from support.memory import LargestOutput
from support.tiny import save_tiny_model

LORA = LoraConfig(rank=3, alpha=6)
REVERSE = {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 20}}
JSD_5 = {"kind": "jensen_shannon", "support": {"kind": "top_k", "k": 5}}
FIRST_RELEASE = {"divergence": {"kind": "jensen_shannon"}}


@pytest.fixture(autouse=True)
def _share_short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The completions of these small groups share their prompts, gradient included."""
    monkeypatch.setattr("selfdistill.models.packing.SHARE_FROM", 1)


# Name, hyperparameters, teacher's context, whether completions without it leave, weights, temperature, token loss.
Case = tuple[str, Mapping[str, Any], Shown | None, bool, str, float, Callable[[hand.Scored, int], torch.Tensor]]
TAU = partial(hand.clipped_forward_kl, clip=0.05)
CASES: dict[str, Case] = {
    "grpo": ("grpo", {}, None, False, "live", 1.0, hand.grpo),
    "sft": ("sft", {}, None, False, "live", 1.0, hand.sft),
    "opsd": ("opsd", {}, solution, True, "frozen", 1.1, hand.against_teacher(TAU)),
    "opsd first release": (
        "opsd",
        FIRST_RELEASE,
        solution,
        True,
        "frozen",
        1.1,
        hand.against_teacher(hand.jensen_shannon),
    ),
    "sdpo": ("sdpo", {}, sibling_or_feedback, True, "ema", 1.0, hand.sdpo(hand.jensen_shannon, k=None)),
    "sdpo top 5": (
        "sdpo",
        {"divergence": JSD_5},
        sibling_or_feedback,
        True,
        "ema",
        1.0,
        hand.sdpo(hand.jensen_shannon, k=5),
    ),
    "sdpo code": (
        "sdpo",
        {"divergence": REVERSE, "teacher_rate": 0.01},
        sibling_or_feedback,
        True,
        "ema",
        1.0,
        hand.sdpo(hand.kl, k=20),
    ),
    "sd": ("sd", {}, sibling_or_solution_verdict, False, "live", 1.0, hand.sd(0.5)),
    "antisd": ("antisd", {"warmup": 1}, sibling_or_solution_verdict, False, "live", 1.0, hand.antisd(0.5, 1.0)),
    "antisd without gate": (
        "antisd",
        {"gated": False, "strength": 0.3},
        sibling_or_solution_verdict,
        False,
        "live",
        1.0,
        hand.antisd_variant(0.3),
    ),
    "antisd reverse kl": (
        "antisd",
        {"gated": False, "ascend": "reverse_kl"},
        sibling_or_solution_verdict,
        False,
        "live",
        1.0,
        hand.antisd_variant(0.5, ascend="reverse_kl"),
    ),
    "antisd multiplied": (
        "antisd",
        {"gated": False, "compose": "multiply", "strength": 2.0},
        sibling_or_solution_verdict,
        False,
        "live",
        1.0,
        hand.antisd_variant(2.0, compose="multiply"),
    ),
    "antisd without teacher": (
        "antisd",
        {"hindsight": False},
        None,
        False,
        "live",
        1.0,
        hand.antisd_variant(0.5, hindsight=False),
    ),
    "sdft": ("sdft", {}, solution, True, "ema", 1.0, hand.against_teacher(hand.kl)),
    "sdpo frozen": (
        "sdpo",
        {"weights": "frozen"},
        sibling_or_feedback,
        True,
        "frozen",
        1.0,
        hand.sdpo(hand.jensen_shannon, k=None),
    ),
}


WITH_LORA = ("opsd", "sdpo top 5", "antisd")


@pytest.mark.parametrize(
    ("case", "lora"),
    [*((case, None) for case in CASES), *((case, LORA) for case in WITH_LORA)],
    ids=[*CASES, *(f"{case} with lora" for case in WITH_LORA)],
)
def test_the_gradient_of_a_step_is_that_of_brute_force(
    case: str, lora: LoraConfig | None, folder: Path, templates: Mapping[str, Template]
) -> None:
    name, hyperparameters, shown, drop, weights, temperature, token_loss = CASES[case]
    policy, chat = load_exact(folder, lora=lora)
    start = copy.deepcopy(policy.model)
    bench = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
    groups = invent_groups(policy, chat)
    result = bench.step(groups)
    if case == "antisd":
        assert result.record.values["gate"] == 0.0
        result = bench.step(groups, step=2)
        assert result.record.values["gate"] == 1.0
    moved = {n: p for n, p in policy.model.state_dict().items() if ".ema." not in n}
    model = copy.deepcopy(start)
    model.load_state_dict(moved)
    teacher = model if weights == "live" else start
    completions = scored(
        model, teacher, groups, chat, policy.vocab_size, shown=shown, temperature=temperature, drop=drop
    )
    loss = hand.mean_over_tokens(completions, token_loss)
    assert result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    assert result.record.values["dropped"] == 12 - len(completions)
    expected = hand.gradient(model, loss)
    assert size_of(expected) > 1e-5
    assert distance(bench.gradient(), expected) < 1e-8
    norm = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert result.record.grad_norm == pytest.approx(norm, rel=1e-8)


# --- what a gradient must not depend on ------------------------------------------------------------------------------


INVARIANT = ["grpo", "sft", "opsd", "sdpo top 5", "sd", "antisd"]
CUTS = {
    "one view a micro-batch": limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=1)),
    "some views a micro-batch": limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=70)),
    "one token a slice": limits_on("cpu", LimitsConfig(max_logits_per_chunk=1)),
    "five tokens a slice": limits_on("cpu", LimitsConfig(max_logits_per_chunk=5 * 96)),
}


def ready(folder: Path, templates: Mapping[str, Template], case: str, limits: Limits | None = None) -> Bench:
    name, hyperparameters, *_ = CASES[case]
    policy, chat = load_exact(folder)
    # A teacher that stands still, so that one bench can measure twice.
    bench = make_bench(
        policy, chat, templates, name, {**hyperparameters, "teacher_rate": 0.0}, limits=limits, move=perturb
    )
    if name == "antisd":  # beyond the warm-up
        bench.step(invent_groups(policy, chat))
    return bench


@pytest.mark.parametrize("case", INVARIANT)
def test_no_cut_into_micro_batches_and_slices_changes_anything(
    case: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    whole = ready(folder, templates, case)
    groups = invent_groups(whole.policy, whole.chat)
    expected = whole.step(groups).record
    for limits in CUTS.values():
        bench = ready(folder, templates, case, limits)
        record = bench.step(groups).record
        assert distance(bench.gradient(), whole.gradient()) < 1e-10
        assert numbers_of(record) == pytest.approx(numbers_of(expected), rel=1e-10)


@pytest.mark.parametrize("case", INVARIANT)
def test_neither_the_order_of_groups_nor_that_of_completions_matters(
    case: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    bench = ready(folder, templates, case)
    groups = invent_groups(bench.policy, bench.chat)
    if "sibling" in str(bench.method.model_dump().get("context")):
        # The sibling that is shown is the first correct one: keep one correct completion a group.
        groups = [keep_one_correct(group) for group in groups]
    bench.step(groups)
    expected = bench.gradient()
    shuffled = list(groups)
    random.Random(5).shuffle(shuffled)
    bench.step([permuted(group, seed) for seed, group in enumerate(shuffled)])
    assert distance(bench.gradient(), expected) < 1e-10


def keep_one_correct(group: RolloutGroup) -> RolloutGroup:
    right = [i for i, verdict in enumerate(group.verdicts) if verdict.correct]
    verdicts = tuple(
        replace(verdict, reward=0.0) if i in right[1:] else verdict for i, verdict in enumerate(group.verdicts)
    )
    return replace(group, verdicts=verdicts)


def permuted(group: RolloutGroup, seed: int) -> RolloutGroup:
    order = list(range(len(group.rollouts)))
    random.Random(seed).shuffle(order)
    return replace(
        group,
        rollouts=tuple(group.rollouts[i] for i in order),
        verdicts=tuple(group.verdicts[i] for i in order),
    )


def test_what_pads_a_batch_is_never_seen(
    folder: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = ready(folder, templates, "sdpo top 5")
    groups = invent_groups(bench.policy, bench.chat)
    bench.step(groups)
    expected = bench.gradient()
    # Ids in padded rows, places in packed ones.
    ones = partial(torch.nn.utils.rnn.pad_sequence, padding_value=1)
    monkeypatch.setattr("torch.nn.utils.rnn.pad_sequence", ones)
    for packs in (True, False):
        for policy in (bench.policy, *bench.trainer.teachers.copies.values()):
            policy.packs = packs
        bench.step(groups)
        assert distance(bench.gradient(), expected) < 1e-10


# --- a teacher that sees what the student sees ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("opsd", {"divergence": {"kind": "forward_kl"}}),
        ("opsd", FIRST_RELEASE),
        ("sdpo", {}),
        ("sdpo", {"divergence": JSD_5}),
        ("sdpo", {"divergence": REVERSE}),
        ("sdpo", {"weights": "frozen"}),
        ("sdpo", {"weights": "live"}),
        ("sd", {}),
        ("antisd", {"warmup": 1}),
    ],
)
def test_a_teacher_that_sees_what_the_student_sees_teaches_nothing(
    name: str, hyperparameters: Mapping[str, Any], folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, name, {**hyperparameters, "context": "bare"})
    groups = only_correct(invent_groups(policy, chat))
    bench.step(groups)
    result = bench.step(groups, step=2)
    assert result.record.values.get("gate", 1.0) == 1.0
    assert result.record.loss == pytest.approx(0.0, abs=1e-14)
    assert size_of(bench.gradient()) < 1e-14
    assert result.record.roles["teacher"].u == pytest.approx(0.0, abs=1e-12)
    assert result.record.roles["teacher"].entropy == pytest.approx(result.record.roles["student"].entropy, rel=1e-12)


def test_the_clipped_divergence_of_equal_distributions_is_zero_and_so_is_its_gradient(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    """Each entry's gradient −T is not 0, but they leave the softmax as T Σ T − T = 0."""
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "opsd", {"context": "bare"})
    result = bench.step(invent_groups(policy, chat))
    assert result.record.loss == 0.0
    assert size_of(bench.gradient()) < 1e-14


# --- the gate, missing contexts, nothing to learn from --------------------------------------------------------------


@pytest.mark.parametrize("name", ["antisd", "sd"])
def test_strength_zero_is_grpo(name: str, folder: Path, templates: Mapping[str, Template]) -> None:
    plain = ready(folder, templates, "grpo")
    groups = invent_groups(plain.policy, plain.chat)
    plain.step(groups)
    policy, chat = load_exact(folder)
    hyperparameters = {"strength": 0.0, **({"warmup": 1} if name == "antisd" else {})}
    other = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
    other.step(groups)
    assert distance(other.gradient(), plain.gradient()) < 1e-13
    other.step(groups, step=2)
    assert distance(other.gradient(), plain.gradient()) < 1e-13


def test_the_gate_stays_closed_for_the_warm_up_and_records_the_median_entropy(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    plain = ready(folder, templates, "grpo")
    groups = invent_groups(plain.policy, plain.chat)
    plain.step(groups)
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "antisd", {"warmup": 3}, move=perturb)
    gates = []
    for step in range(1, 6):
        record = bench.step(groups, step=step).record
        gates.append(record.values["gate"])
        same_as_grpo = distance(bench.gradient(), plain.gradient()) < 1e-13
        assert same_as_grpo == (step <= 3)
    assert gates == [0.0, 0.0, 0.0, 1.0, 1.0]
    with torch.no_grad():
        completions = scored(
            policy.model, policy.model, groups, chat, policy.vocab_size, shown=sibling_or_solution_verdict
        )
    assert record.values["gate_entropy"] == pytest.approx(hand.median_entropy(completions), rel=1e-12)


def test_sdpo_drops_and_counts_completions_without_a_context(folder: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sdpo", {})
    result = bench.step(invent_groups(policy, chat))
    # Of the second group, two have feedback; of the third, the correct one has no sibling and no feedback.
    assert result.record.values["dropped"] == 3.0
    assert result.record.skipped == {"context sibling_or_feedback: none of sibling, feedback can be rendered": 3}
    assert {(view.group, view.index) for view in result.views} == {
        *((0, i) for i in range(4)),
        (1, 0),
        (1, 2),
        (2, 0),
        (2, 2),
        (2, 3),
    }
    assert result.record.tokens == sum(len(view.completion_ids) for view in result.views)


def test_antisd_keeps_completions_without_a_context_with_their_plain_advantage(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    hyperparameters = {"warmup": 1, "context": "sibling_verdict"}
    bench = make_bench(policy, chat, templates, "antisd", hyperparameters, move=perturb)
    groups = invent_groups(policy, chat, solutions=False)
    bench.step(groups)
    result = bench.step(groups, step=2)
    assert result.record.values["gate"] == 1.0
    assert result.record.values["dropped"] == 0.0
    assert len(result.views) == 12
    # No sibling in the second group nor for the third group's only correct one; two of the third are not judged.
    missing = {(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)}
    pairs = zip(result.views, result.scores["teacher"], strict=True)
    assert {(view.group, view.index) for view, scores in pairs if scores is None} == missing
    completions = scored(policy.model, policy.model, groups, chat, policy.vocab_size, shown=sibling_verdict)
    loss = hand.mean_over_tokens(completions, hand.antisd(0.5, 1.0))
    expected = hand.gradient(policy.model, loss)
    assert distance(bench.gradient(), expected) < 1e-8


def test_a_step_without_any_context_changes_nothing_and_says_so(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "sdpo", {"context": "sibling"})
    groups = invent_groups(policy, chat)
    result = bench.step([replace(g, verdicts=tuple(replace(v, reward=0.0) for v in g.verdicts)) for g in groups])
    assert (result.record.loss, result.record.grad_norm) == (0.0, 0.0)
    assert (result.record.values["dropped"], result.record.tokens) == (12.0, 0.0)
    assert result.views == []


def test_a_step_ends_with_the_average_a_little_nearer_to_the_student(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    start = parameters(policy.model)
    bench = make_bench(policy, chat, templates, "sdpo", {"teacher_rate": 0.25}, move=perturb)
    bench.step(invent_groups(policy, chat))
    moved, average = parameters(policy.model), bench.trainer.teachers.state_dict()
    for name, before in start.items():
        torch.testing.assert_close(average[name], 0.75 * before + 0.25 * moved[name], rtol=1e-12, atol=1e-15)


def test_a_context_beyond_the_window_is_counted_and_never_cut(
    tmp_path: Path, templates: Mapping[str, Template]
) -> None:
    folder = save_tiny_model(tmp_path / "short", seed=3, max_position_embeddings=30)
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "opsd", {})
    groups = invent_groups(policy, chat)
    views = bench.trainer.prepare(groups, step=1)
    reason = "context solution: prompt and completion do not fit the window"
    assert views.skipped[reason] == views.dropped > 0
    assert len(views.views) + views.dropped == 12
    for view in views.views:
        prompt = chat.tokenizer.decode(view.prompts["teacher"])
        assert prompt.strip() == str(solution(view.group, view.index)).strip()
        assert len(view.prompts["teacher"]) + len(view.completion_ids) <= 30


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["grpo", "sdpo", "opsd", "antisd"])
def test_a_step_never_holds_all_tokens_times_the_vocabulary(
    case: str, tmp_path: Path, templates: Mapping[str, Template]
) -> None:
    vocabulary, max_logits = 4000, 4 * 4000
    policy, chat = load_exact(save_tiny_model(tmp_path / "wide", vocab_size=vocabulary, hidden_size=8))
    name, hyperparameters, *_ = CASES[case]
    bench = make_bench(
        policy,
        chat,
        templates,
        name,
        hyperparameters,
        limits=limits_on("cpu", LimitsConfig(max_logits_per_chunk=max_logits)),
        move=small_move,
    )
    groups = invent_groups(policy, chat)
    tokens = sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)
    watched = LargestOutput()
    with watched:
        result = bench.step(groups)
    assert result.record.grad_norm > 0
    # The largest things are the embedding's own gradient [V, D] and one slice [4, V].
    assert watched.numel == max(8 * vocabulary, max_logits)
    assert tokens * vocabulary > 2 * watched.numel


def small_move(policy: Policy) -> None:
    perturb(policy, size=0.01)
