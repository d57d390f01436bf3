"""Every hyperparameter of a method off its default, on tokens written by hand; and the defaults and limits.

The engine's tests (test_methods.py) hold gradients against brute force at few settings; here a loss is a line of
arithmetic on probabilities in a vocabulary of three.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from selfdistill.errors import ConfigError, TrainingError
from selfdistill.methods import METHODS, Method, build_method
from selfdistill.methods.base import (
    BatchScores,
    ClippedForwardKL,
    ForwardKL,
    Full,
    JensenShannon,
    ReverseKL,
    TopK,
    at_temperature,
    gain,
)
from selfdistill.types import Role, Rollout, RolloutGroup, Scores, Snapshot, TokenSlice, Verdict, View, Weights

LN = math.log
S = (0.5, 0.3, 0.2)
T = (0.6, 0.1, 0.3)
R = (0.2, 0.2, 0.6)


def tokens(
    *,
    student: Sequence[Sequence[float]] = (S,),
    said: Sequence[int] = (0,),
    roles: Mapping[str, Sequence[Sequence[float]]] | None = None,
    values: Mapping[str, float] | None = None,
    **inputs: Sequence[float],
) -> TokenSlice:
    """Tokens by the probabilities that each role gives to a vocabulary of three."""
    every = {"student": student, **(roles or {})}
    logprobs = {name: torch.tensor(rows, dtype=torch.float64).log() for name, rows in every.items()}
    numbers = {name: torch.tensor(row, dtype=torch.float64) for name, row in inputs.items()}
    return TokenSlice(torch.tensor(said), logprobs, numbers, values or {})


def loss(name: str, shown: TokenSlice, **hyperparameters: Any) -> list[float]:
    found: list[float] = build_method(name, hyperparameters).loss(shown).tolist()
    return found


# --- the clipped policy gradient and what is added to its advantage --------------------------------------------------


def by_ratio(ratio: float, advantage: float) -> TokenSlice:
    """One token whose probability is ``ratio`` times what it was when it was drawn."""
    return tokens(old_logprob=[LN(0.5 / ratio)], advantage=[advantage])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.2, 2.0, -2.4),
        (1.4, 2.0, -2.6),  # cut at 1.3
        (0.95, -2.0, 1.9),
        (0.8, -2.0, 1.8),  # cut at 0.9
        (1.4, -2.0, 2.8),  # neither bound holds back what makes things worse
        (0.8, 2.0, -1.6),
    ],
)
def test_each_clip_bound_is_on_its_own_side(ratio: float, advantage: float, expected: float) -> None:
    shown = by_ratio(ratio, advantage)
    assert loss("grpo", shown, clip_low=0.1, clip_high=0.3) == pytest.approx([expected])
    told = TokenSlice(shown.target_N, shown.roles, {**shown.inputs, "teacher": torch.tensor([LN(0.5)]).double()})
    assert loss("sd", told, clip_low=0.1, clip_high=0.3) == pytest.approx([expected])
    # CREDIT's advantage form: u = advantage, and no contrast.
    credit = tokens(
        old_logprob=[LN(0.5 / ratio)],
        teacher=[LN(0.5) + advantage],
        contrast_0=[-1.0],
        values={"contrast_mean": -1.0},
    )
    assert loss("credit", credit, form="advantage", clip_low=0.1, clip_high=0.3) == pytest.approx([expected])


def test_the_share_of_clipped_tokens_counts_both_sides() -> None:
    shown = tokens(student=[S] * 4, said=[0] * 4, old_logprob=[LN(0.5 / r) for r in (0.85, 0.95, 1.25, 1.35)])
    found = build_method("grpo", {"clip_low": 0.1, "clip_high": 0.3}).metrics(shown)
    assert found["clip_share"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert found["ratio"].tolist() == pytest.approx([0.85, 0.95, 1.25, 1.35])
    assert {value.dtype for value in found.values()} == {torch.float64}
    # A ratio on the bound itself is not clipped: 1/2 and 2, exact in binary.
    edge = tokens(student=[S] * 2, said=[0] * 2, old_logprob=[LN(0.5) + LN(2), LN(0.5) - LN(2)])
    found = build_method("grpo", {"clip_low": 0.5, "clip_high": 1.0}).metrics(edge)
    assert (found["ratio"].tolist(), found["clip_share"].tolist()) == ([0.5, 2.0], [0.0, 0.0])


def test_the_ratio_that_is_logged_is_the_one_of_the_loss_and_the_penalty_has_no_gradient() -> None:
    # The token's own ratio is 1, its completion's 1.5; q = ¼ / ½, so that q − log q − 1 = ln 2 − ½.
    shown = tokens(old_logprob=[LN(0.5)], sequence_log_ratio=[LN(1.5)], reference=[LN(0.25)])
    shown.roles["student"].requires_grad_()
    for ratio, expected in (("sequence", 1.5), ("weight", 1.0), ("token", 1.0)):
        found = build_method("grpo", {"ratio": ratio, "kl": 0.3}).metrics(shown)
        assert found["ratio"].item() == pytest.approx(expected, rel=1e-12)
        assert found["clip_share"].item() == float(ratio == "sequence")
        assert found["kl"].tolist() == pytest.approx([LN(2) - 0.5])
        assert not found["kl"].requires_grad
    assert build_method("grpo", {}).metrics(shown).keys() == {"clip_share", "ratio"}


def test_the_scale_of_grpo_divides_by_the_deviation_or_not() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0, 5.0]]).double()
    deviation = math.sqrt((4 + 1 + 0 + 9) / 3)
    for name in ("grpo", "sd", "antisd"):
        scaled = build_method(name, {}).advantages(rewards)
        assert scaled.tolist() == [pytest.approx([-2 / deviation, -1 / deviation, 0.0, 3 / deviation])]
        assert build_method(name, {"scale": "none"}).advantages(rewards).tolist() == [[-2.0, -1.0, 0.0, 3.0]]
    # A method that asks for no rewards has no advantages.
    assert build_method("opsd", {}).advantages(rewards).tolist() == [[0.0] * 4]


def taught(teacher: float, advantage: float, **values: float) -> TokenSlice:
    """One token at ratio 1 that a teacher gives a probability."""
    return tokens(old_logprob=[LN(0.5)], advantage=[advantage], teacher=[LN(teacher)], values=values)


def test_self_distillation_adds_strength_times_the_teachers_gain() -> None:
    assert loss("sd", taught(0.8, 2.0), strength=0.25) == pytest.approx([-(2.0 + 0.25 * LN(1.6))])
    # Without a context there is no gain: NaN stands for the missing score.
    shown = tokens(old_logprob=[LN(0.5)], advantage=[2.0], teacher=[math.nan])
    assert loss("sd", shown, strength=0.25) == pytest.approx([-2.0])
    assert build_method("sd", {}).precompute() == build_method("antisd", {}).precompute() == ("teacher",)


def test_a_gain_has_no_gradient() -> None:
    shown = taught(0.8, 2.0)
    shown.roles["student"].requires_grad_()
    assert not gain(shown).requires_grad


@pytest.mark.parametrize("name", ["opsd", "sdft", "sdpo", "credit"])
def test_the_bare_teacher_is_scored_before_the_loss_and_splits_u(name: str) -> None:
    method = build_method(name, {"weight_drift": True})
    assert list(method.precompute()) == ["bare"]
    assert "bare" not in method.compared()
    # It has the teacher's weights, whether they are the method's own or others.
    for kind in ({}, {"weights": "live"}, {"weights": "frozen"}, {"weights": "ema"}):
        roles = build_method(name, {"weight_drift": True, **kind}).roles()
        assert roles["bare"].weights == roles["teacher"].weights
    shown = tokens(roles={"teacher": [T], "contrast_0": [R]}, said=[1], bare=[LN(0.2)], old_logprob=[LN(0.3)])
    for role in ("student", "teacher"):
        shown.roles[role].requires_grad_()
    parts = {part: value for part, value in method.metrics(shown).items() if part in ("pmi", "weight_drift")}
    assert {part: value.item() for part, value in parts.items()} == pytest.approx(
        {"pmi": LN(0.1 / 0.2), "weight_drift": LN(0.2 / 0.3)}
    )
    assert not any(value.requires_grad for value in parts.values())


def test_cross_entropy_is_minus_the_log_probability_of_what_was_said() -> None:
    assert loss("sft", tokens(student=[S, T], said=[1, 2])) == pytest.approx([-LN(0.3), -LN(0.3)])
    assert list(build_method("sft", {}).keep(drawn(("student", 1.0), ("student", None)))) == [True, True]


def phi(u: float) -> float:
    return 0.5 * (math.log1p(math.exp(u)) - LN(2))


U = LN(0.8 / 0.5)
SIGNAL = {"jensen_shannon": -phi(U), "reverse_kl": -U}


@pytest.mark.parametrize("ascend", SIGNAL)
def test_the_signal_of_antisd_meets_the_advantage_behind_its_gate(ascend: str) -> None:
    signal = 0.25 * SIGNAL[ascend]
    added, times = ({"strength": 0.25, "ascend": ascend, "compose": how} for how in ("add", "multiply"))
    for advantage in (2.0, -2.0):
        assert loss("antisd", taught(0.8, advantage, gate=1.0), **added) == pytest.approx([-(advantage + signal)])
        assert loss("antisd", taught(0.8, advantage, gate=1.0), **times) == pytest.approx([-advantage * (1 + signal)])
        # A closed gate is GRPO, whichever way the signal is composed.
        for hyperparameters in (added, times):
            assert loss("antisd", taught(0.8, advantage, gate=0.0), **hyperparameters) == pytest.approx([-advantage])


def test_a_product_never_turns_an_advantage_around() -> None:
    # 1 − 4 ln 1.6 is below 0.
    shown = taught(0.8, -2.0, gate=1.0)
    assert loss("antisd", shown, strength=4.0, ascend="reverse_kl", compose="multiply") == [0.0]


def test_without_hindsight_the_teacher_is_uniform_over_the_real_vocabulary() -> None:
    # The last entry of the first is padding: two real ones, each 1/2 under a teacher that knows nothing.
    both: dict[str, Any] = {"old_logprob": [LN(0.8), LN(0.6)], "advantage": [2.0, -1.0]}
    shown = tokens(student=[(0.8, 0.2, 0.0), (0.6, 0.2, 0.2)], said=[0, 0], values={"gate": 1.0}, **both)
    expected = [-(2.0 - 0.25 * phi(LN(0.5 / 0.8))), -(-1.0 - 0.25 * phi(LN(1 / 3 / 0.6)))]
    assert loss("antisd", shown, strength=0.25, hindsight=False) == pytest.approx(expected, rel=1e-12)
    method = build_method("antisd", {"hindsight": False})
    assert (dict(method.roles()), method.precompute(), method.new_state()) == ({}, (), None)


def scores_of(*entropies: float) -> Scores:
    return Scores(torch.zeros(len(entropies)).double(), torch.tensor(entropies).double())


def test_the_gate_watches_the_median_entropy_once_a_batch() -> None:
    method = build_method("antisd", {"warmup": 2, "gate_ratio": 0.5})
    state = method.new_state()

    def seen(update: int, *entropies: float) -> dict[str, Any]:
        return dict(method.on_batch(state, BatchScores({"teacher": [scores_of(*entropies), None]}, (), update)))

    assert seen(0, 1.0, 3.0, 2.0) == {"gate": 0.0, "gate_entropy": 2.0}
    assert seen(1, 9.0, 9.0, 9.0) == {"gate": 0.0, "gate_entropy": 9.0}  # a second update on the batch: no news
    assert seen(0, 5.0, 1.0, 3.0, 8.0) == {"gate": 0.0, "gate_entropy": 4.0}  # of an even number, the middle of two
    # Warm-up over, its median 3: open down to half of that, and again from 3 on.
    assert [seen(0, entropy)["gate"] for entropy in (1.5, 1.4, 2.9, 3.0)] == [1.0, 0.0, 0.0, 1.0]
    assert method.on_batch(state, BatchScores({"teacher": [None]})) == {"gate": 1.0}
    assert method.precompute() == ("teacher",)
    with pytest.raises(TrainingError, match=r"the teacher's entropy is nan"):
        seen(0, 1.0, 2.0, 3.0, math.nan)
    ungated = build_method("antisd", {"gated": False})
    assert ungated.new_state() is None
    assert ungated.on_batch(None, BatchScores({"teacher": [scores_of(2.0)]})) == {"gate": 1.0, "gate_entropy": 2.0}


@pytest.mark.parametrize("hindsight", [True, False])
def test_the_gate_may_watch_the_student(hindsight: bool) -> None:
    for signal, name, expected in (
        ("student_entropy", "gate_entropy", 0.3),
        ("student_perplexity", "gate_perplexity", math.exp(0.75)),
    ):
        method = build_method("antisd", {"gate_signal": signal, "warmup": 1, "hindsight": hindsight})
        assert set(method.precompute()) == ({"teacher", "student"} if hindsight else {"student"})
        state = method.new_state()

        def seen(method: Method, state: Any, scale: float) -> dict[str, Any]:
            own = Scores(torch.tensor([-1.0, -0.5]).double() * scale, torch.tensor([0.2, 0.4]).double() * scale)
            return dict(method.on_batch(state, BatchScores({"teacher": [scores_of(9.0)], "student": [own, None]})))

        assert seen(method, state, 1.0) == {"gate": 0.0, name: pytest.approx(expected)}
        # Open at the level of the warm-up, closed below 0.93 of it.
        assert [seen(method, state, scale)["gate"] for scale in (1.0, 0.5)] == [1.0, 0.0]
        with pytest.raises(TrainingError, match=r"the student's .* is nan"):
            seen(method, state, math.nan)
        # Without a gate nothing is watched.
        assert "student" not in build_method("antisd", {"gate_signal": signal, "gated": False}).precompute()


def test_a_perplexity_is_taken_in_double() -> None:
    method = build_method("antisd", {"gate_signal": "student_perplexity"})
    # In float32 the sum would lose the second.
    single = Scores(torch.tensor([-1.0, -(2.0**-30)]), torch.zeros(2))
    found = method.on_batch(method.new_state(), BatchScores({"student": [single]}))["gate_perplexity"]
    assert found == pytest.approx(math.exp((1 + 2.0**-30) / 2), rel=1e-12, abs=0.0)


def test_the_ratio_of_a_completion_is_taken_in_double() -> None:
    method = build_method("grpo", {"ratio": "sequence"})
    # In float32 the scores' sum would lose the second, and −0.1 be another number.
    single = Scores(torch.tensor([-1.0, -(2.0**-30)]), torch.zeros(2))
    old = View({"student": (1,)}, (1, 2), (1.0, 1.0), (-0.1, -0.1), 0.0, 0, 0, "student", 1.0)
    told = method.on_batch(None, BatchScores({"student": [single]}, [old]))["sequence_log_ratio"]
    assert isinstance(told, Tensor) and told.dtype == torch.float64
    assert told.tolist() == pytest.approx([0.1 - (1 + 2.0**-30) / 2], rel=1e-12)


@pytest.mark.parametrize("gated", [True, False])
def test_antisd_has_the_ratio_of_the_completion_beside_its_gate(gated: bool) -> None:
    """Old log-probabilities of 0 and new ones of −1 and −3: the mean log-ratio is −2."""
    method = build_method("antisd", {"ratio": "sequence", "gated": gated})
    batch = BatchScores({"student": [summed(-1.0, -3.0)]}, [view(0, 0, "student", 2)])
    told = method.on_batch(method.new_state(), batch)
    ratio = told["sequence_log_ratio"]
    assert isinstance(ratio, Tensor)
    assert (ratio.tolist(), told["gate"]) == ([-2.0], float(not gated))


# --- divergences and their supports ----------------------------------------------------------------------------------


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * LN(a / b) for a, b in zip(p, q, strict=True) if a)


def js(student: Sequence[float], teacher: Sequence[float], w: float) -> float:
    middle = [w * t + (1 - w) * s for s, t in zip(student, teacher, strict=True)]
    return w * kl(teacher, middle) + (1 - w) * kl(student, middle)


def clipped(student: Sequence[float], teacher: Sequence[float], clip: float) -> float:
    return sum(min(t * LN(t / s), clip) for s, t in zip(student, teacher, strict=True))


def bins(probs: Sequence[float], chosen: Sequence[int]) -> list[float]:
    return [*(probs[i] for i in chosen), 1 - sum(probs[i] for i in chosen)]


DIVERGENCES: dict[str, tuple[Mapping[str, Any], Any]] = {
    "forward": ({"kind": "forward_kl"}, lambda s, t: kl(t, s)),
    "reverse": ({"kind": "reverse_kl"}, kl),
    "jensen_shannon": ({"kind": "jensen_shannon", "teacher_weight": 0.3}, lambda s, t: js(s, t, 0.3)),
    "clipped": ({"kind": "clipped_forward_kl", "clip": 0.02}, lambda s, t: clipped(s, t, 0.02)),
}


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("method", ["opsd", "sdft", "sdpo"])
def test_a_divergence_is_taken_on_the_support_that_the_student_chooses(method: str, kind: str) -> None:
    table, by_hand = DIVERGENCES[kind]
    shown = tokens(roles={"teacher": [T]}, old_logprob=[LN(0.5)])
    # OPSD alone divides its scores, by the temperature of its recipe.
    plain = {"score_temperature": 1.0} if method == "opsd" else {}
    assert loss(method, shown, divergence=table, **plain) == pytest.approx([by_hand(S, T)])
    two = {**table, "support": {"kind": "top_k", "k": 2}}
    assert loss(method, shown, divergence=two, **plain) == pytest.approx([by_hand(bins(S, (0, 1)), bins(T, (0, 1)))])
    one = {**table, "support": {"kind": "top_k", "k": 1}}
    assert loss(method, shown, divergence=one, **plain) == pytest.approx([by_hand(bins(S, (0,)), bins(T, (0,)))])


def softened(probs: Sequence[float], temperature: float) -> list[float]:
    powers = [p ** (1 / temperature) for p in probs]
    return [power / sum(powers) for power in powers]


def test_the_score_temperature_softens_both_sides() -> None:
    shown = tokens(roles={"teacher": [T]})
    hyperparameters = {"score_temperature": 2.0, "divergence": {"kind": "reverse_kl"}}
    assert loss("opsd", shown, **hyperparameters) == pytest.approx([kl(softened(S, 2.0), softened(T, 2.0))])
    # Unset it is what the recipe samples at, with and without the clip.
    del hyperparameters["score_temperature"]
    assert loss("opsd", shown, **hyperparameters) == pytest.approx([kl(softened(S, 1.1), softened(T, 1.1))])
    clipped = sum(min(t * LN(t / s), 0.05) for s, t in zip(softened(S, 1.1), softened(T, 1.1), strict=True))
    assert loss("opsd", shown) == pytest.approx([clipped])
    # A run sets it to its own temperature of sampling, unless the config names another.
    unset, named = build_method("opsd"), build_method("opsd", {"score_temperature": 1.3})
    assert unset.at_sampling_temperature(0.7) == build_method("opsd", {"score_temperature": 0.7})
    assert named.at_sampling_temperature(0.7) is named
    # Nothing else of the tokens changes, and nothing at all at temperature 1.
    told = tokens(roles={"teacher": [T]}, said=[2], values={"gate": 1.0}, advantage=[0.5])
    soft = at_temperature(told, 2.0)
    assert (soft.target_N.tolist(), soft.inputs, soft.values) == ([2], told.inputs, {"gate": 1.0})
    assert at_temperature(told, 1.0) is told


@pytest.mark.parametrize(("ratio", "weight", "capped"), [(1.2, 1.2, 0.0), (1.5, 1.5, 1.0), (3.0, 1.5, 1.0)])
def test_the_ratio_of_sdpo_is_capped(ratio: float, weight: float, capped: float) -> None:
    shown = tokens(roles={"teacher": [T]}, old_logprob=[LN(0.5 / ratio)])
    hyperparameters = {"ratio_cap": 1.5, "divergence": {"kind": "reverse_kl"}}
    assert loss("sdpo", shown, **hyperparameters) == pytest.approx([weight * kl(S, T)])
    found = build_method("sdpo", hyperparameters).metrics(shown)
    assert found["ratio"].tolist() == pytest.approx([weight])
    assert found["ratio_capped"].tolist() == [capped]
    assert found["ratio_capped"].dtype == torch.float64
    # The ratio is a factor: the gradient is that of the divergence, S (log S − log T + 1) at each entry.
    shown.roles["student"].requires_grad_()
    build_method("sdpo", hyperparameters).loss(shown).sum().backward()
    assert shown.roles["student"].grad is not None
    slope = [weight * s * (LN(s / t) + 1) for s, t in zip(S, T, strict=True)]
    assert shown.roles["student"].grad[0].tolist() == pytest.approx(slope)


def test_credit_takes_the_mean_of_its_contrasts_out_of_the_teacher() -> None:
    contrasts = {"contrast_0": [R], "contrast_1": [(0.4, 0.5, 0.1)]}
    shown = tokens(roles={"teacher": [T], **contrasts}, old_logprob=[LN(0.5 / 1.2)], said=[1])
    raw = [t * math.exp(-0.3 * (LN(a) + LN(b)) / 2) for t, a, b in zip(T, R, (0.4, 0.5, 0.1), strict=True)]
    target = [each / sum(raw) for each in raw]
    hyperparameters = {"strength": 0.3, "contrasts": 2, "divergence": {"kind": "reverse_kl"}}
    # The said token, 1, has grown from 0.25 · 2: its ratio is 0.3 / (0.5 / 1.2).
    ratio = 0.3 / (0.5 / 1.2)
    assert loss("credit", shown, **hyperparameters) == pytest.approx([ratio * kl(S, target)])
    found = build_method("credit", hyperparameters).metrics(shown)
    generic = (LN(0.2) + LN(0.5)) / 2
    assert found["credit_generic"].tolist() == pytest.approx([generic])
    assert found["credit_score"].tolist() == pytest.approx([LN(0.1 / 0.3) - 0.3 * generic])
    assert found["credit_specific"].tolist() == pytest.approx([LN(0.1) - generic])
    assert found["ratio"].tolist() == pytest.approx([ratio])


def test_the_sampled_token_form_of_credit_is_centred_by_the_batch() -> None:
    method = build_method("credit", {"form": "advantage", "strength": 0.5, "contrasts": 2})
    one, other = (Scores(torch.tensor(row).double(), torch.zeros(len(row))) for row in ([-1.0, -2.0], [-6.0]))
    mean = method.on_batch(None, BatchScores({"contrast_0": [one, None], "contrast_1": [other, None]}))
    assert mean == {"contrast_mean": -3.0}
    assert method.on_batch(None, BatchScores({"contrast_0": [None]})) == {}
    single = Scores(torch.tensor([-(2.0**24), -1.0]), torch.zeros(2))  # in float32 their sum would lose the 1
    assert method.on_batch(None, BatchScores({"contrast_0": [single]})) == {"contrast_mean": -(2.0**24 + 1) / 2}
    assert build_method("credit", {}).precompute() == ()
    shown = tokens(
        old_logprob=[LN(0.5)], teacher=[LN(0.8)], contrast_0=[-1.0], contrast_1=[-4.0], values={"contrast_mean": -3.0}
    )
    assert method.loss(shown).tolist() == pytest.approx([-(U - 0.5 * (-2.5 + 3.0))])
    assert method.precompute() == ("teacher", "contrast_0", "contrast_1")
    assert [role.contrast for role in method.roles().values()] == [0, 0, 1]


def test_purified_bends_the_questions_part_and_tilts_the_base() -> None:
    base = (0.3, 0.3, 0.4)
    shown = tokens(roles={"teacher": [T], "reference_only": [R], "base": [base]})
    delta = [LN(t / r) for t, r in zip(T, R, strict=True)]
    bent = [0.5 * math.tanh((each - sum(delta) / 3) / 0.5) for each in delta]
    raw = [b * math.exp(each / 2.0) for b, each in zip(base, bent, strict=True)]
    target = [each / sum(raw) for each in raw]
    switches = {"beta": 2.0, "clip": 0.5}
    even = [math.exp(each / 2.0) for each in bent]
    alone = [each / sum(even) for each in even]
    assert loss("purified", shown, pmi_target=False, **switches) == pytest.approx([js(S, alone, 0.5)])
    assert loss("purified", shown, pmi_target=False, subtraction=False) == pytest.approx([js(S, T, 0.5)])
    assert build_method("purified", {"subtraction": False, "pmi_target": False}).metrics(shown) == {}
    assert loss("purified", shown, beta=2.0, clip=0.5, teacher_weight=0.3) == pytest.approx([js(S, target, 0.3)])
    found = {name: value.item() for name, value in build_method("purified", {}).metrics(shown).items()}
    total, reference = ([LN(a / b) for a, b in zip(one, S, strict=True)] for one in (T, R))

    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    assert found == pytest.approx(
        {
            # The sampled token is the first: u splits into pMI and the drift of the weights.
            "pmi": LN(T[0] / base[0]),
            "weight_drift": LN(base[0] / S[0]),
            "cos_total_reference": cosine(total, reference),
            "cos_total_question": cosine(total, delta),
            "cos_reference_question": cosine(reference, delta),
            "norm_reference_share": math.sqrt(dot(reference, reference) / dot(total, total)),
            "norm_question_share": math.sqrt(dot(delta, delta) / dot(total, total)),
        }
    )
    # Where the two contexts agree with the student there is no direction: 0, not NaN.
    alike = tokens(roles={"teacher": [S], "reference_only": [S], "base": [S]})
    assert all(value.tolist() == [0.0] for value in build_method("purified", {}).metrics(alike).values())
    # A teacher that agrees with the student, a reference that does not: a share of nothing is no infinity either.
    split = build_method("purified", {}).metrics(tokens(roles={"teacher": [S], "reference_only": [R], "base": [S]}))
    assert split["norm_reference_share"].tolist() == split["norm_question_share"].tolist() == [0.0]


def test_each_step_of_purified_asks_only_for_its_own_context() -> None:
    whole, half = (0.3, 0.7, 0.0), (0.5, 0.5, 0.0)  # the last entry is padding
    shown = tokens(student=[half], roles={"teacher": [(0.6, 0.4, 0.0)], "base": [whole]})
    method = build_method("purified", {"subtraction": False})
    assert set(method.roles()) == {"teacher", "base"}
    # Δ = log T − log B, and its mean taken out: ± half of ln 2 − ln 4/7.
    tilt = (LN(0.6 / 0.3) - LN(0.4 / 0.7)) / 2
    raw = [b * math.exp(10 * math.tanh(sign * tilt / 10)) for b, sign in zip((0.3, 0.7), (1, -1), strict=True)]
    target = [each / sum(raw) for each in raw]
    assert method.loss(shown).tolist() == pytest.approx([js(half[:2], target, 0.5)])
    shown.roles["student"].requires_grad_()
    assert not any(value.requires_grad for value in method.metrics(shown).values())
    # The residual alone, over the real vocabulary.
    shown = tokens(student=[half], roles={"teacher": [(0.6, 0.4, 0.0)], "reference_only": [whole]})
    method = build_method("purified", {"pmi_target": False})
    assert set(method.roles()) == {"teacher", "reference_only"}
    raw = [math.exp(10 * math.tanh(sign * tilt / 10)) for sign in (1, -1)]
    assert method.loss(shown).tolist() == pytest.approx([js(half[:2], [each / sum(raw) for each in raw], 0.5)])


# --- samples of both sides -------------------------------------------------------------------------------------------


def view(group: int, index: int, source: str, length: int, reward: float | None = None) -> View:
    ids = tuple(range(length))
    return View({"student": (1,)}, ids, (1.0,) * length, (0.0,) * length, 0.0, group, index, source, reward)


def summed(*logprobs: float) -> Scores:
    return Scores(torch.tensor(logprobs).double(), torch.zeros(len(logprobs)))


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_a_pair_prefers_the_teachers_sample(length: str) -> None:
    """m = β [(log S − log T)(y⁺) − (log S − log T)(y⁻)] for each pair, with its −log σ(m) and slope."""
    # The two groups' completions lie between one another.
    views = [view(0, 1, "teacher", 1), view(3, 1, "student", 1), view(3, 0, "teacher", 2), view(0, 0, "student", 2)]
    student: list[Scores | None] = [summed(-0.5), summed(-0.25), summed(-3.0, -1.0), summed(-1.0, -2.0)]
    teacher: list[Scores | None] = [summed(-0.25), summed(-4.0), summed(-1.0, -1.0), summed(-2.0, -3.0)]
    method = build_method("pbsd", {"beta": 0.5, "length": length})
    told = method.on_batch(None, BatchScores({"student": student, "teacher": teacher}, views))
    share = 0.5 if length == "mean" else 1.0  # of a completion of two tokens
    margins = [0.5 * (-0.25 - share * 2.0), 0.5 * (share * -2.0 - 3.75)]
    losses = [math.log1p(math.exp(-m)) for m in margins]
    slopes = [2 * 0.5 * -1 / (1 + math.exp(m)) for m in margins]
    long = 1 if length == "mean" else 2
    preference, slope = told["preference"], told["slope"]
    assert isinstance(preference, Tensor) and isinstance(slope, Tensor)
    assert preference.tolist() == pytest.approx([losses[0], losses[1], losses[1], losses[0]])
    assert slope.tolist() == pytest.approx([slopes[0], -slopes[1], long * slopes[1], -long * slopes[0]])
    assert (told["pairs"], told["preferred"]) == (2.0, 0.0)
    assert told["margin"] == pytest.approx(sum(margins) / 2)
    # A token's loss is the pair's, its gradient the slope.
    shown = tokens(preference=[0.7], slope=[-0.3])
    shown.roles["student"].requires_grad_()
    value = method.loss(shown)
    value.sum().backward()
    assert value.tolist() == pytest.approx([0.7])
    assert shown.roles["student"].grad is not None
    assert shown.roles["student"].grad.tolist() == [[-0.3, 0.0, 0.0]]


def test_a_margin_above_nothing_is_a_preference() -> None:
    views = [view(0, 0, "teacher", 1), view(0, 1, "student", 1), view(1, 0, "teacher", 1), view(1, 1, "student", 1)]
    student: list[Scores | None] = [summed(-1.0)] * 4
    teacher: list[Scores | None] = [summed(-2.0), summed(-1.0), summed(-1.0), summed(-1.0)]
    told = build_method("pbsd", {}).on_batch(None, BatchScores({"student": student, "teacher": teacher}, views))
    assert (told["preferred"], told["pairs"]) == (0.5, 2.0)  # a margin of 0 prefers nothing
    # Sums of single precision are taken in double: the 1 is lost otherwise.
    ends = (torch.tensor([-(2.0**24), -1.0]), torch.tensor([-(2.0**24)]))
    far: list[Scores | None] = [Scores(end, torch.zeros(len(end))) for end in ends]
    wide = [view(0, 0, "teacher", 2), view(0, 1, "student", 1)]
    none: list[Scores | None] = [Scores(torch.zeros(len(end)), torch.zeros(len(end))) for end in ends]
    margin = build_method("pbsd", {"beta": 1.0}).on_batch(None, BatchScores({"student": far, "teacher": none}, wide))
    assert margin["margin"] == -1.0
    nothing = build_method("pbsd", {}).on_batch(None, BatchScores({}, []))
    assert {name: value.tolist() for name, value in nothing.items() if isinstance(value, Tensor)} == {
        "preference": [],
        "slope": [],
    }


def drawn(*sides: tuple[str, float | None]) -> RolloutGroup:
    from selfdistill.types import Example, Message

    rollouts = tuple(Rollout((1,), (2,), (0.0,), True, "", 0, source) for source, _ in sides)
    example = Example("q", (Message("user", "q"),), {})
    return RolloutGroup(example, rollouts, tuple(Verdict(reward) for _, reward in sides))


def test_pairs_are_kept_whole_and_with_the_filter_only_right_ones() -> None:
    group = drawn(("student", 1.0), ("teacher", 0.0), ("teacher", 1.0), ("student", 0.0), ("student", 0.0))
    assert build_method("pbsd", {}).keep(group) == [True, True, True, True, False]
    assert build_method("pbsd", {"reward_filter": "correct"}).keep(group) == [False, False, True, True, False]
    assert build_method("pbsd", {}).samples_for("teacher", group)
    asks = [build_method("pbsd", {"reward_filter": which}).needs_rewards() for which in ("off", "correct")]
    assert asks == [False, True]


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_rewards_tilt_the_teachers_samples(length: str) -> None:
    """w_i = softmax(R / β) within the group, times the length for a sum, times completions over groups."""
    method = build_method("pbsd_reward", {"beta": 0.5, "length": length})
    views = [
        view(2, 0, "teacher", 3, 1.0),
        view(7, 0, "teacher", 2, 0.0),
        view(2, 1, "teacher", 1, 0.4),
        view(8, 0, "teacher", 1, 0.0),
    ]
    told = method.on_batch(None, BatchScores({}, views))["tilt"]
    assert isinstance(told, Tensor)
    share = [1 / (1 + math.exp(-1.2)), 1.0, 1 / (1 + math.exp(1.2)), 1.0]
    lengths = [3, 2, 1, 1] if length == "sum" else [1, 1, 1, 1]
    expected = [w * n * 4 / 3 for w, n in zip(share, lengths, strict=True)]
    assert told.tolist() == pytest.approx(expected, rel=1e-12)
    assert method.loss(tokens(tilt=[0.5], said=[1])).tolist() == pytest.approx([-0.5 * LN(0.3)])
    assert list(method.keep(drawn(("teacher", 1.0), ("teacher", None)))) == [True, False]
    # A group without a right sample teaches what is wrong, unless it is left out.
    dropping = build_method("pbsd_reward", {"drop_wrong_groups": True})
    assert list(dropping.keep(drawn(("teacher", 1.0), ("teacher", 0.2), ("teacher", None)))) == [True, True, False]
    for asked, kept in ((method, True), (dropping, False)):
        assert list(asked.keep(drawn(("teacher", 0.0), ("teacher", 0.9)))) == [kept, kept]
    assert (method.sampling_roles(), method.precompute()) == (("teacher",), ("teacher",))


# --- what a method declares ------------------------------------------------------------------------------------------

KNOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    # Default, a value at each open end that is refused.
    "grpo": {
        "scale": ("std",),
        "ratio": ("token",),
        "clip_low": (0.2, 0.0, 1.01),
        "clip_high": (0.2, 0.0),
        "kl": (0.0, -0.01),
        "entropy": (0.0, -0.01),
        "dual_clip": (None, 1.0),
    },
    "sft": {},
    "opsd": {"score_temperature": (None, 0.0), "weight_drift": (False,), "context": ("solution",)},
    "sdft": {"teacher_rate": (0.01, -0.01, 1.01), "weight_drift": (False,), "context": ("solution",)},
    "sdpo": {
        "teacher_rate": (0.05, -0.01, 1.01),
        "ratio_cap": (2.0, 0.0),
        "weight_drift": (False,),
        "context": ("sibling_or_feedback",),
    },
    "credit": {
        "teacher_rate": (0.01, -0.01, 1.01),
        "strength": (0.1, -0.01),
        "contrasts": (1, 0),
        "contrast": ("other_question",),
        "form": ("target",),
        "clip_low": (0.2, 0.0),
        "clip_high": (0.2, 0.0),
        "context": ("sibling_or_feedback",),
    },
    "sd": {"strength": (0.5, -0.01), "context": ("sibling_or_solution_verdict",)},
    "antisd": {
        "strength": (0.5, -0.01),
        "warmup": (5, 0),
        "gate_ratio": (0.93, 0.0, 1.01),
        "gate_signal": ("teacher_entropy",),
        "gated": (True,),
        "ascend": ("jensen_shannon",),
        "compose": ("add",),
        "hindsight": (True,),
        "context": ("sibling_or_solution_verdict",),
    },
    "purified": {
        "beta": (1.0, 0.0),
        "clip": (10.0, 0.0),
        "teacher_weight": (0.5, 0.0, 1.0),
        "context": ("solution",),
        "reference_context": ("reference_only",),
        "subtraction": (True,),
        "pmi_target": (True,),
    },
    "pbsd": {"beta": (0.1, 0.0), "length": ("sum",), "reward_filter": ("off",), "context": ("solution",)},
    "pbsd_reward": {"beta": (0.1, 0.0), "length": ("sum",), "drop_wrong_groups": (False,), "context": ("solution",)},
    "sc_sdpo": {
        "teacher_rate": (0.05, -0.01, 1.01),
        "ratio_cap": (2.0, 0.0),
        "exponent": (0.5, -0.01),
        "normalise": ("batch",),
        "context": ("sibling_or_feedback",),
    },
    "paced": {
        "alpha": (1.0, -0.01),
        "beta": (1.0, -0.01),
        "reverse_from": (0.5, -0.01, 1.01),
        "context": ("solution",),
    },
    "demopsd": {
        "teacher_rate": (0.05, -0.01, 1.01),
        "ratio_cap": (2.0, 0.0),
        "weight_drift": (True, False),
        "alpha_max": (0.15, -0.01, 1.01),
        "beta": (50.0, 0.0),
        "context": ("sibling_or_feedback",),
    },
    "eopd": {
        "threshold": (0.8, -0.01),
        "k": (16, 0),
        "strength": (1.0, -0.01),
        "clip_low": (0.2, 0.0),
        "clip_high": (0.2, 0.0),
        "context": ("solution",),
    },
    "hdpo": {
        "scale": ("std",),
        "clip_low": (0.2, 0.0),
        "clip_high": (0.2, 0.0),
        "strength": (1.0, -0.01),
        "context": ("solution",),
    },
    "cepo": {
        "strength": (0.5, -0.01, 1.01),
        "decay": (25, 0),
        "weight_clip": (0.5, 0.0, 1.01),
        "clip_low": (0.2, 0.0),
        "clip_high": (0.28, 0.0),
        "without_wrong": ("advantage",),
        "context": ("answer_only",),
        "wrong_context": ("wrong_answer",),
    },
    "rlcsd": {
        "strength": (0.5, -0.01),
        "sharpness": (0.02, 0.0),
        "bonus_clip": (2.0, 0.0),
        "selected_above": (0.02, -0.01),
        "selected_weight": (1.0, -0.01),
        "contrasts": (4, 0),
        "context": ("random_sibling_or_solution",),
        "wrong_context": ("wrong_sibling",),
    },
    "rlsd": {
        "strength": (0.5, -0.01, 1.01),
        "decay": (50, 0),
        "weight_clip": (0.2, 0.0, 1.01),
        "context": ("sibling_or_solution",),
    },
    "sdar": {"strength": (0.1, -0.01), "sharpness": (5.0, -0.01), "context": ("sibling_or_solution",)},
    "skill_sd": {"strength": (0.1, -0.01), "context": ("note",)},
    "sdpg": {
        "clip_low": (0.2, 0.0),
        "clip_high": (0.28, 0.0),
        "dual_clip": (3.0, 1.0),
        "strength": (1e-3, -1e-4),
        "kl_clip": (20.0, 0.0),
        "warmup": (0, -1),
        "decay": (0, -1),
        "only_praised": (False,),
        "reference_weight": (1e-3, -1e-4),
        "reference_form": ("squared",),
        "context": ("answer_only",),
    },
    "srpo": {
        "teacher_rate": (0.05, -0.01, 1.01),
        "dual_clip": (3.0, 1.0),
        "entropy_weight": (1.0, -0.01),
        "ratio_cap": (2.0, 0.0),
        "context": ("sibling_or_feedback",),
    },
}
"""The papers' defaults (or ours, where the docstrings say so), and the limits of each hyperparameter."""


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_the_papers_and_the_limits_hold(name: str) -> None:
    method = build_method(name, {})
    assert getattr(method, "name") == name  # noqa: B009  (the base class has no name)
    for hyperparameter, (default, *refused) in KNOBS[name].items():
        assert getattr(method, hyperparameter) == default
        for value in refused:
            with pytest.raises(ConfigError, match=rf"^method\.{hyperparameter}: "):
                build_method(name, {hyperparameter: value})
    assert (method.weights, method.teacher_thinking) == (None, None)
    assert all(
        field.description for hyperparameter, field in type(method).model_fields.items() if hyperparameter != "name"
    )
    # The ends that are of use are allowed.
    ends = {
        "teacher_rate": (0.0, 1.0),
        "strength": (0.0,),
        "gate_ratio": (0.5, 1.0),
        "warmup": (1,),
        "contrasts": (1,),
        "dual_clip": (1.5,),
        **dict.fromkeys(("score_temperature", "beta", "ratio_cap", "clip", "clip_low", "clip_high"), (0.5,)),
    }
    for hyperparameter, allowed in ends.items():
        for end in allowed if hyperparameter in type(method).model_fields else ():
            assert getattr(build_method(name, {hyperparameter: end}), hyperparameter) == end


@pytest.mark.parametrize("name", [name for name in METHODS if "teacher_rate" not in KNOBS[name]])
def test_a_rate_is_a_share_and_0_where_a_method_has_none_of_its_own(name: str) -> None:
    assert build_method(name, {}).teacher_rate == 0.0
    for value in (-0.01, 1.01):
        with pytest.raises(ConfigError, match=r"^method\.teacher_rate: "):
            build_method(name, {"teacher_rate": value})


def test_a_divergences_defaults_and_limits() -> None:
    for kind in (ForwardKL, ReverseKL, JensenShannon, ClippedForwardKL):
        made = kind()
        assert (DIVERGENCES_BY_KIND[made.kind], made.support.kind) == (kind, "full")
    assert (Full().kind, TopK(k=1).kind) == ("full", "top_k")
    assert build_method("opsd", {}).divergence.model_dump() == {  # type: ignore[attr-defined]
        "kind": "clipped_forward_kl",
        "clip": 0.05,
        "support": {"kind": "full"},
    }
    assert build_method("sdft", {}).divergence.kind == "reverse_kl"  # type: ignore[attr-defined]
    assert build_method("sdpo", {}).divergence.model_dump() == {  # type: ignore[attr-defined]
        "kind": "jensen_shannon",
        "teacher_weight": 0.5,
        "support": {"kind": "top_k", "k": 100, "chosen_by": "student"},
    }
    refused: list[dict[str, Any]] = [
        {"kind": "clipped_forward_kl", "clip": 0.0},
        {"kind": "jensen_shannon", "teacher_weight": 0.0},
        {"kind": "jensen_shannon", "teacher_weight": 1.0},
        {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 0}},
        {"kind": "reverse_kl", "support": {"kind": "top_k"}},
        {"kind": "reverse_kl", "clip": 1.0},
        {"kind": "other"},
    ]
    for table in refused:
        with pytest.raises(ConfigError, match=r"^(unknown key )?method\.divergence"):
            build_method("opsd", {"divergence": table})


DIVERGENCES_BY_KIND = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jensen_shannon": JensenShannon,
    "clipped_forward_kl": ClippedForwardKL,
}


def test_purified_scores_three_contexts() -> None:
    roles = build_method("purified", {}).roles()
    shown = {"teacher": "solution", "reference_only": "reference_only", "base": None}
    assert {name: role.context for name, role in roles.items()} == shown


def test_a_knob_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build_method("grpo", {}).scale = "none"  # type: ignore[attr-defined]


def test_roles_and_observations_that_say_nothing_else() -> None:
    assert Role("solution") == Role("solution", "live", None, 0)
    assert BatchScores() == BatchScores({}, (), 0, 1, None)
    assert build_method("antisd", {}).on_batch(None, BatchScores()) == {"gate": 1.0}


def test_what_a_name_or_a_knob_was_meant_to_be() -> None:
    def refused(method: str, /, **hyperparameters: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            build_method(method, hyperparameters)
        return str(caught.value)

    assert refused("grpo", scal="none") == "unknown key method.scal for method 'grpo'; did you mean 'scale'?"
    known = "clip_high, clip_low, dual_clip, entropy, kl, ratio, scale, teacher_rate, teacher_thinking, turn_advantage"
    known += ", weights"
    assert refused("grpo", zzz=1) == f"unknown key method.zzz for method 'grpo'; known: {known}"
    # The name is not a hyperparameter, and is not offered as one.
    assert refused("grpo", name="grpo") == f"unknown key method.name for method 'grpo'; known: {known}"
    assert refused("grpo", nam="grpo").endswith(f"known: {known}")
    listed = f"known: {', '.join(sorted(METHODS))}; or module:Class"
    assert refused("grpp") == f"unknown method 'grpp'; did you mean 'grpo'? {listed}"
    assert refused("zzz") == f"unknown method 'zzz'; {listed}"
    wrong = "is not a subclass of selfdistill.methods.Method"
    assert refused("selfdistill.methods.base:Role") == f"method 'selfdistill.methods.base:Role' {wrong}"
    assert refused("selfdistill.methods.base:gain") == f"method 'selfdistill.methods.base:gain' {wrong}"
    assert refused(":Thing") == "method ':Thing' must be written 'package.module:Class'"
    found = build_method("selfdistill.methods.grpo:GRPO", {"scale": "none"})
    assert found == build_method("grpo", {"scale": "none"})
    bounds = "dual_clip bounds the ratio of each token, and ratio is"
    for ratio in ("sequence", "weight"):
        assert f"{bounds} {ratio!r}" in refused("grpo", ratio=ratio, dual_clip=3.0)
    assert refused("grpo", clip_low=0.0) == "method.clip_low: Input should be greater than 0 (got 0.0)"


@pytest.mark.parametrize(
    ("old", "new"),
    [("beforehand", "precompute()"), ("observe", "on_batch(state, batch)"), ("sources", "sampling_roles()")],
)
def test_a_hook_under_its_old_name_is_answered_by_the_new_one(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"older_{old}.py").write_text(
        f"from selfdistill import METHODS\n\nclass Mine(METHODS['sd']):\n    def {old}(self, *given): return ()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"method Mine: {old}() is now called {new}; rename it")):
        build_method(f"older_{old}:Mine", {})


RECOMMENDED = {
    # learning rate, with LoRA, completions, tokens, temperature, top-p, top-k
    "grpo": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "sft": (5e-6, 2e-4, 1, 1024, 1.0, 1.0, 0),
    "opsd": (5e-6, 5e-6, 1, 1024, 1.1, 0.95, 20),
    "sdft": (1e-5, 1e-4, 1, 1024, 1.0, 1.0, 0),
    "sdpo": (1e-5, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "credit": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "sd": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "antisd": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "purified": (5e-6, 5e-6, 1, 1024, 1.0, 1.0, 0),
    "pbsd": (1e-6, 1e-5, 4, 1024, 1.0, 1.0, 0),
    "pbsd_reward": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "sc_sdpo": (1e-5, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "paced": (5e-6, 5e-6, 8, 1024, 1.0, 1.0, 0),
    "demopsd": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "eopd": (1e-6, 1e-5, 1, 1024, 1.0, 1.0, 0),
    "hdpo": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "cepo": (1e-6, 5e-6, 8, 1024, 1.0, 1.0, 0),
    "rlcsd": (1e-6, 1e-5, 8, 1024, 1.0, 0.95, 20),
    "rlsd": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "sdar": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "skill_sd": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "sdpg": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
    "srpo": (1e-6, 1e-5, 8, 1024, 1.0, 1.0, 0),
}
DECLARED = {
    # on-policy, without a context, a mean over, one update, needs rewards
    "grpo": (True, "keep", "token", False, True),
    "sft": (False, "drop", "token", False, False),
    "opsd": (True, "drop", "token", False, False),
    "sdft": (True, "drop", "token", False, False),
    "sdpo": (True, "drop", "token", False, True),
    "credit": (True, "drop", "token", False, True),
    "sd": (True, "keep", "token", False, True),
    "antisd": (True, "keep", "token", False, True),
    "purified": (True, "drop", "token", False, False),
    "pbsd": (True, "drop", "completion", True, False),
    "pbsd_reward": (True, "drop", "completion", False, True),
    "sc_sdpo": (True, "drop", "token", False, True),
    "paced": (True, "drop", "token", False, True),
    "demopsd": (True, "drop", "token", False, True),
    "eopd": (True, "drop", "token", False, False),
    "hdpo": (True, "mask", "token", False, True),
    "cepo": (True, "keep", "token", False, True),
    "rlcsd": (True, "keep", "token", False, True),
    "rlsd": (True, "keep", "token", False, True),
    "sdar": (True, "keep", "token", False, True),
    "skill_sd": (True, "keep", "token", False, True),
    "sdpg": (True, "mask", "token", False, True),
    "srpo": (True, "mask", "token", False, True),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_declares_of_itself(name: str) -> None:
    method = build_method(name, {})
    assert (
        method.on_policy,
        method.without_context,
        method.weighting,
        method.one_update,
        method.needs_rewards(),
    ) == DECLARED[name]
    r = method.recommended
    sampling = (r.completions, r.max_tokens, r.temperature, r.top_p, r.top_k)
    assert (r.learning_rate, r.lora_learning_rate, *sampling) == RECOMMENDED[name]


WEIGHTS: dict[str, Weights] = {
    "opsd": "frozen",
    "sdft": "ema",
    "sdpo": "ema",
    "credit": "ema",
    "sd": "live",
    "antisd": "live",
    "purified": "frozen",
    "pbsd": "frozen",
    "pbsd_reward": "frozen",
    "sc_sdpo": "ema",
    "paced": "frozen",
    "demopsd": "ema",
    "eopd": "frozen",
    "hdpo": "live",
    "cepo": "live",
    "rlcsd": Snapshot(10),
    "rlsd": "live",
    "sdar": "live",
    "skill_sd": Snapshot(10),
    "srpo": "ema",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_teachers_role_has_the_methods_weights_unless_a_knob_names_others(name: str) -> None:
    def roles(**hyperparameters: Any) -> Method:
        return build_method(name, hyperparameters)

    for role, found in roles().roles().items():
        assert found.weights == WEIGHTS[name]
        assert found.thinking is None
        assert (found.context is None) == (role in ("base", "bare"))
    other: Weights = "live" if WEIGHTS[name] != "live" else "frozen"
    assert {role.weights for role in roles(weights=other).roles().values()} == {other}
    thinking = {role: found.thinking for role, found in roles(teacher_thinking=False).roles().items()}
    assert set(thinking.values()) - {None} == {False}
    assert roles(context="elsewhere").roles()["teacher"].context == "elsewhere"


def test_sdpgs_reference_stays_at_the_start_whatever_the_teacher_is() -> None:
    roles = build_method("sdpg", {"weights": "ema"}).roles()
    assert roles == {"teacher": Role("answer_only", "ema"), "reference": Role(None, "frozen")}
    assert list(build_method("sdpg", {"reference_weight": 0.0}).roles()) == ["teacher"]
    assert build_method("sdpg", {}).precompute() == ("reference",)
    assert tuple(build_method("sdpg", {"reference_form": "reverse_kl"}).compared()) == ("teacher", "reference")


def test_no_method_needs_turns_unless_it_asks_for_their_advantages() -> None:
    assert [name for name in METHODS if build_method(name, {}).needs_turns()] == []
