"""The ratios of GSPO and CISPO, the divergence to the reference and the entropy: gradients of a step by brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import methods_by_hand as hand
from selfdistill.contexts.templates import Template
from selfdistill.methods import build_method
from selfdistill.methods.grpo import GRPO
from selfdistill.types import Role, RolloutGroup
from support.engine import QUESTIONS, distance, invent_groups, load_exact, make_bench, perturb, size_of
from support.hindsight import rendered, scored, sibling_or_solution_verdict
from support.measured import Measured, nothing_wrong
from support.runs import outcome, tiny_run, train

Loss = Callable[[Sequence[hand.Scored]], Tensor]


def per_token(*terms: tuple[float, Callable[[hand.Scored, int], Tensor]]) -> Loss:
    """The mean over all tokens of a weighted sum."""

    def loss(completions: Sequence[hand.Scored]) -> Tensor:
        return hand.mean_over_tokens(
            completions, lambda one, t: sum((w * term(one, t) for w, term in terms), hand.ZERO)
        )

    return loss


def per_completion(low: float, high: float) -> Loss:
    return lambda completions: sum((hand.gspo(one, low, high) for one in completions), hand.ZERO) / len(completions)


CASES: dict[str, tuple[str, Mapping[str, Any], Loss]] = {
    "kl": ("grpo", {"kl": 0.3}, per_token((1, hand.grpo), (0.3, hand.reference_penalty))),
    "entropy": ("grpo", {"entropy": 0.2}, per_token((1, hand.grpo), (-0.2, hand.entropy))),
    "weight": (
        "grpo",
        {"ratio": "weight", "clip_low": 0.02, "clip_high": 0.01},
        per_token((1, partial(hand.cispo, low=0.02, high=0.01))),
    ),
    "sequence": ("grpo", {"ratio": "sequence", "clip_low": 0.5, "clip_high": 0.5}, per_completion(0.5, 0.5)),
    "sequence clipped": (
        "grpo",
        {"ratio": "sequence", "clip_low": 0.003, "clip_high": 0.004},
        per_completion(0.003, 0.004),
    ),
    "all of it": (
        "grpo",
        {"ratio": "weight", "clip_low": 1.0, "clip_high": 0.05, "kl": 0.1, "entropy": 0.1},
        per_token((1, partial(hand.cispo, low=1.0, high=0.05)), (0.1, hand.reference_penalty), (-0.1, hand.entropy)),
    ),
    "sd with kl": ("sd", {"kl": 0.3}, per_token((1, hand.sd(0.5)), (0.3, hand.reference_penalty))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_step_is_that_of_brute_force(
    case: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    name, hyperparameters, loss_of = CASES[case]
    policy, chat = load_exact(folder)
    start = copy.deepcopy(policy.model)
    bench = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
    groups = invent_groups(policy, chat)
    result = bench.step(groups)
    model = copy.deepcopy(start)
    model.load_state_dict(
        {n: p for n, p in policy.model.state_dict().items() if ".ema." not in n and ".frozen." not in n}
    )
    # The reference is the model before it was moved; SD's teacher is the live one.
    others = {"reference": lambda g, i: rendered(QUESTIONS[g])}
    completions = scored(model, start, groups, chat, policy.vocab_size, shown=None, others=others)
    if name == "sd":
        told = scored(model, model, groups, chat, policy.vocab_size, shown=sibling_or_solution_verdict)
        for one, other in zip(completions, told, strict=True):
            object.__setattr__(one, "teacher", other.teacher)
    loss = loss_of(completions)
    assert result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    expected = hand.gradient(model, loss)
    assert size_of(expected) > 1e-5
    assert distance(bench.gradient(), expected) < 1e-8


def test_each_of_them_changes_the_gradient(folder: Path, templates: Mapping[str, Template]) -> None:
    """Otherwise a knob that does nothing would agree with a hand version that forgets it."""
    gradients = {}
    for case, (name, hyperparameters, _) in {**CASES, "plain": ("grpo", {}, None)}.items():
        policy, chat = load_exact(folder)
        bench = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
        bench.step(invent_groups(policy, chat))
        gradients[case] = bench.gradient()
    for case in CASES:
        assert distance(gradients[case], gradients["plain"]) > 1e-3


def test_methods_on_top_of_grpo_have_its_roles_too() -> None:
    for name in ("sd", "antisd", "rlsd", "sdar", "skill_sd"):
        method = build_method(name, {"kl": 0.1, "ratio": "sequence"})
        assert dict(method.roles()).keys() == {"reference", "teacher"}
        assert method.roles()["reference"] == Role(None, "frozen")
        assert {"reference", "teacher", "student"} <= set(method.precompute())
        assert (method.compared(), method.weighting) == ([], "completion")
        assert set(build_method(name, {}).roles()) == {"teacher"}
    assert list(build_method("grpo", {}).roles()) == list(build_method("grpo", {}).precompute()) == []


PLAIN: dict[str, tuple[Mapping[str, Any], Callable[[RolloutGroup], RolloutGroup] | None]] = {
    # What leaves GRPO of a method: hyperparameters, and a change of the groups.
    "sd": ({"strength": 0.0}, None),
    "antisd": ({"strength": 0.0}, None),
    "rlsd": ({"strength": 0.0}, None),
    "cepo": ({"strength": 0.0, "clip_high": 0.2}, None),
    "rlcsd": ({"context": "bare", "wrong_context": "bare"}, None),
    "sdar": ({"strength": 0.0}, None),
    "skill_sd": ({"strength": 0.0, "context": "solution"}, None),
    "sdpg": ({"strength": 0.0, "reference_weight": 0.0, "clip_high": 0.2, "dual_clip": None}, None),
    "srpo": ({"dual_clip": None}, nothing_wrong),
    "hdpo": ({}, None),
}


@pytest.mark.parametrize("more", [{"kl": 0.3, "entropy": 0.2}, {"ratio": "sequence"}, {"ratio": "weight"}], ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_every_method_on_top_of_grpo_has_its_ratios_its_divergence_and_its_entropy(
    name: str, more: Mapping[str, Any], folder: Path, templates: Mapping[str, Template]
) -> None:
    hyperparameters, change = PLAIN[name]
    grpo = Measured(folder, templates, "grpo", more, change=change)
    other = Measured(folder, templates, name, {**hyperparameters, **more}, change=change)
    assert distance(other.bench.gradient(), grpo.bench.gradient()) < 1e-12
    # Without them GRPO's own gradient is another one.
    without = Measured(folder, templates, "grpo", {}, change=change)
    assert distance(without.bench.gradient(), grpo.bench.gradient()) > 1e-4


@pytest.mark.parametrize("form", ["squared", "reverse_kl"])
def test_sdpgs_reference_is_grpos(form: str, folder: Path, templates: Mapping[str, Template]) -> None:
    """One role serves both; the gradient is linear in the loss."""
    own = {"reference_weight": 0.4, "reference_form": form}

    def gradient(name: str, **hyperparameters: Any) -> dict[str, Tensor]:
        return Measured(folder, templates, name, hyperparameters).bench.gradient()

    added, plain = gradient("sdpg", kl=0.3, **own), gradient("sdpg", **own)
    penalised, grpo = gradient("grpo", kl=0.3), gradient("grpo")
    expected = {name: plain[name] + penalised[name] - grpo[name] for name in plain}
    assert distance(added, expected) < 1e-12


@pytest.mark.parametrize("knob", [{"kl": 0.1}, {"ratio": "sequence"}])
def test_a_method_that_leaves_grpos_roles_out_is_told_so(knob: Mapping[str, Any]) -> None:
    class Forgetful(GRPO):
        def roles(self) -> Mapping[str, Role]:
            return {}

        def precompute(self) -> Sequence[str]:
            return ()

    assert Forgetful(entropy=0.1, ratio="weight").roles() == {}
    with pytest.raises(ValueError, match=r"Forgetful leaves them out: add to what super\(\)"):
        Forgetful.model_validate(knob)


@pytest.mark.parametrize("left_out", [{"roles": lambda self: {}}, {"precompute": lambda self: ()}])
def test_a_reference_needs_a_role_and_a_score(left_out: Mapping[str, Any]) -> None:
    half = type("Half", (GRPO,), {**left_out, "__module__": __name__})
    with pytest.raises(ValueError, match="Half leaves them out"):
        half(kl=0.1)


@pytest.mark.parametrize("name", ["grpo", "antisd"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, folder: Path, tmp_path: Path) -> None:
    method = {"name": name, "ratio": "sequence", "kl": 0.1, "entropy": 0.01}
    config = tiny_run(folder, method, "optimiser.updates_per_batch=2")
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=3)
    train(config, tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
