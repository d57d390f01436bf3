"""Every knob of a method at a value off its default, on tokens written by hand; and the defaults and limits themselves.

The engine's tests (test_methods.py) hold gradients against brute force at few settings; here a loss is a line of
arithmetic on probabilities in a vocabulary of three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.errors import ConfigError, TrainingError
from selfdistill.head import TokenSlice
from selfdistill.methods import METHODS, Method, build_method
from selfdistill.methods.base import Observation
from selfdistill.types import Rollout, RolloutGroup, Scores, Verdict, View

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


def loss(name: str, shown: TokenSlice, **knobs: Any) -> list[float]:
    found: list[float] = build_method(name, knobs).loss(shown).tolist()
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
        for knobs in (added, times):
            assert loss("antisd", taught(0.8, advantage, gate=0.0), **knobs) == pytest.approx([-advantage])


def test_a_product_never_turns_an_advantage_around() -> None:
    # 1 − 4 ln 1.6 is below 0.
    shown = taught(0.8, -2.0, gate=1.0)
    assert loss("antisd", shown, strength=4.0, ascend="reverse_kl", compose="multiply") == [0.0]


def test_without_hindsight_the_teacher_is_uniform_over_the_real_vocabulary() -> None:
    # The last entry is padding: two real ones, each 1/2 under a teacher that knows nothing.
    shown = tokens(student=[(0.8, 0.2, 0.0)], old_logprob=[LN(0.8)], advantage=[2.0], values={"gate": 1.0})
    expected = -(2.0 - 0.25 * phi(LN(0.5 / 0.8)))
    assert loss("antisd", shown, strength=0.25, hindsight=False) == pytest.approx([expected])
    method = build_method("antisd", {"hindsight": False})
    assert (dict(method.roles()), method.beforehand(), method.new_state()) == ({}, (), None)


def scores_of(*entropies: float) -> Scores:
    return Scores(torch.zeros(len(entropies)).double(), torch.tensor(entropies).double())


def test_the_gate_watches_the_median_entropy_once_a_batch() -> None:
    method = build_method("antisd", {"warmup": 2, "gate_ratio": 0.5})
    state = method.new_state()

    def seen(update: int, *entropies: float) -> dict[str, Any]:
        return dict(method.observe(state, Observation({"teacher": [scores_of(*entropies), None]}, (), update)))

    assert seen(0, 1.0, 3.0, 2.0) == {"gate": 0.0, "gate_entropy": 2.0}
    assert seen(1, 9.0, 9.0, 9.0) == {"gate": 0.0, "gate_entropy": 9.0}  # a second update on the batch: no news
    assert seen(0, 4.0) == {"gate": 0.0, "gate_entropy": 4.0}
    # Warm-up over, its median 3: open down to half of that, and again from 3 on.
    assert [seen(0, entropy)["gate"] for entropy in (1.5, 1.4, 2.9, 3.0)] == [1.0, 0.0, 0.0, 1.0]
    assert method.observe(state, Observation({"teacher": [None]})) == {"gate": 1.0}
    with pytest.raises(TrainingError, match=r"the teacher's entropy is nan"):
        seen(0, math.nan)
    ungated = build_method("antisd", {"gated": False})
    assert ungated.new_state() is None
    assert ungated.observe(None, Observation({"teacher": [scores_of(2.0)]})) == {"gate": 1.0, "gate_entropy": 2.0}


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
    assert loss(method, shown, divergence=table) == pytest.approx([by_hand(S, T)])
    two = {**table, "support": {"kind": "top_k", "k": 2}}
    assert loss(method, shown, divergence=two) == pytest.approx([by_hand(bins(S, (0, 1)), bins(T, (0, 1)))])
    one = {**table, "support": {"kind": "top_k", "k": 1}}
    assert loss(method, shown, divergence=one) == pytest.approx([by_hand(bins(S, (0,)), bins(T, (0,)))])


def softened(probs: Sequence[float], temperature: float) -> list[float]:
    powers = [p ** (1 / temperature) for p in probs]
    return [power / sum(powers) for power in powers]


def test_the_score_temperature_softens_both_sides() -> None:
    shown = tokens(roles={"teacher": [T]})
    knobs = {"score_temperature": 2.0, "divergence": {"kind": "reverse_kl"}}
    assert loss("opsd", shown, **knobs) == pytest.approx([kl(softened(S, 2.0), softened(T, 2.0))])


@pytest.mark.parametrize(("ratio", "weight", "capped"), [(1.2, 1.2, 0.0), (1.5, 1.5, 1.0), (3.0, 1.5, 1.0)])
def test_the_ratio_of_sdpo_is_capped(ratio: float, weight: float, capped: float) -> None:
    shown = tokens(roles={"teacher": [T]}, old_logprob=[LN(0.5 / ratio)])
    knobs = {"ratio_cap": 1.5, "divergence": {"kind": "reverse_kl"}}
    assert loss("sdpo", shown, **knobs) == pytest.approx([weight * kl(S, T)])
    found = build_method("sdpo", knobs).metrics(shown)
    assert (found["ratio"].tolist(), found["ratio_capped"].tolist()) == (pytest.approx([weight]), [capped])


def test_credit_takes_the_mean_of_its_contrasts_out_of_the_teacher() -> None:
    contrasts = {"contrast_0": [R], "contrast_1": [(0.4, 0.5, 0.1)]}
    shown = tokens(roles={"teacher": [T], **contrasts}, old_logprob=[LN(0.5 / 1.2)], said=[1])
    raw = [t * math.exp(-0.3 * (LN(a) + LN(b)) / 2) for t, a, b in zip(T, R, (0.4, 0.5, 0.1), strict=True)]
    target = [each / sum(raw) for each in raw]
    knobs = {"strength": 0.3, "contrasts": 2, "divergence": {"kind": "reverse_kl"}}
    # The said token, 1, has grown from 0.25 · 2: its ratio is 0.3 / (0.5 / 1.2).
    ratio = 0.3 / (0.5 / 1.2)
    assert loss("credit", shown, **knobs) == pytest.approx([ratio * kl(S, target)])
    found = build_method("credit", knobs).metrics(shown)
    generic = (LN(0.2) + LN(0.5)) / 2
    assert found["credit_generic"].tolist() == pytest.approx([generic])
    assert found["credit_specific"].tolist() == pytest.approx([LN(0.1) - generic])
    assert found["ratio"].tolist() == pytest.approx([ratio])


def test_the_sampled_token_form_of_credit_is_centred_by_the_batch() -> None:
    method = build_method("credit", {"form": "advantage", "strength": 0.5, "contrasts": 2})
    one, other = (Scores(torch.tensor(row).double(), torch.zeros(len(row))) for row in ([-1.0, -2.0], [-6.0]))
    mean = method.observe(None, Observation({"contrast_0": [one, None], "contrast_1": [other, None]}))
    assert mean == {"contrast_mean": -3.0}
    assert method.observe(None, Observation({"contrast_0": [None]})) == {}
    shown = tokens(old_logprob=[LN(0.5)], teacher=[LN(0.8)], contrast_0=[-1.0], contrast_1=[-4.0], values=mean)
    assert method.loss(shown).tolist() == pytest.approx([-(U - 0.5 * (-2.5 + 3.0))])
    assert method.beforehand() == ("teacher", "contrast_0", "contrast_1")
    assert [role.contrast for role in method.roles().values()] == [0, 0, 1]


def test_purified_bends_the_questions_part_and_tilts_the_base() -> None:
    base = (0.3, 0.3, 0.4)
    shown = tokens(roles={"teacher": [T], "reference_only": [R], "base": [base]})
    delta = [LN(t / r) for t, r in zip(T, R, strict=True)]
    bent = [0.5 * math.tanh((each - sum(delta) / 3) / 0.5) for each in delta]
    raw = [b * math.exp(each / 2.0) for b, each in zip(base, bent, strict=True)]
    target = [each / sum(raw) for each in raw]
    assert loss("purified", shown, beta=2.0, clip=0.5, teacher_weight=0.3) == pytest.approx([js(S, target, 0.3)])
    found = {name: value.item() for name, value in build_method("purified", {}).metrics(shown).items()}
    total, reference = ([LN(a / b) for a, b in zip(one, S, strict=True)] for one in (T, R))

    def dot(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def cosine(a: Sequence[float], b: Sequence[float]) -> float:
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    assert found == pytest.approx(
        {
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


# --- samples of both sides -------------------------------------------------------------------------------------------


def view(group: int, index: int, source: str, length: int, reward: float | None = None) -> View:
    ids = tuple(range(length))
    return View({"student": (1,)}, ids, (1.0,) * length, (0.0,) * length, 0.0, group, index, source, reward)


def summed(*logprobs: float) -> Scores:
    return Scores(torch.tensor(logprobs).double(), torch.zeros(len(logprobs)))


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_a_pair_prefers_the_teachers_sample(length: str) -> None:
    """m = β [(log S − log T)(y⁺) − (log S − log T)(y⁻)] for each pair, with its −log σ(m) and slope."""
    views = [view(0, 0, "student", 2), view(0, 1, "teacher", 1), view(3, 0, "teacher", 2), view(3, 1, "student", 1)]
    student = [summed(-1.0, -2.0), summed(-0.5), summed(-3.0, -1.0), summed(-0.25)]
    teacher = [summed(-2.0, -3.0), summed(-0.25), summed(-1.0, -1.0), summed(-4.0)]
    method = build_method("pbsd", {"beta": 0.5, "length": length})
    told = method.observe(None, Observation({"student": student, "teacher": teacher}, views))
    share = 0.5 if length == "mean" else 1.0  # of a completion of two tokens
    margins = [0.5 * (-0.25 - share * 2.0), 0.5 * (share * -2.0 - 3.75)]
    losses = [math.log1p(math.exp(-m)) for m in margins]
    slopes = [2 * 0.5 * -1 / (1 + math.exp(m)) for m in margins]
    long = 1 if length == "mean" else 2
    preference, slope = told["preference"], told["slope"]
    assert isinstance(preference, Tensor) and isinstance(slope, Tensor)
    assert preference.tolist() == pytest.approx([losses[0], losses[0], losses[1], losses[1]])
    assert slope.tolist() == pytest.approx([-long * slopes[0], slopes[0], long * slopes[1], -slopes[1]])
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
    student, teacher = [summed(-1.0)] * 4, [summed(-2.0), summed(-1.0), summed(-1.0), summed(-1.0)]
    told = build_method("pbsd", {}).observe(None, Observation({"student": student, "teacher": teacher}, views))
    assert (told["preferred"], told["pairs"]) == (0.5, 2.0)  # a margin of 0 prefers nothing
    nothing = build_method("pbsd", {}).observe(None, Observation({}, [view(0, 0, "other", 1)][:0]))
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
    asks = [build_method("pbsd", {"reward_filter": which}).needs_rewards() for which in ("off", "correct")]
    assert asks == [False, True]


@pytest.mark.parametrize("length", ["sum", "mean"])
def test_rewards_tilt_the_teachers_samples(length: str) -> None:
    """w_i = softmax(R / β) within the group, times the length for a sum, times completions over groups."""
    method = build_method("pbsd_reward", {"beta": 0.5, "length": length})
    views = [view(2, 0, "teacher", 3, 1.0), view(2, 1, "teacher", 1, 0.5), view(7, 0, "teacher", 2, 0.0)]
    told = method.observe(None, Observation({}, views))["tilt"]
    assert isinstance(told, Tensor)
    share = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0)), 1.0]
    lengths = [3, 1, 2] if length == "sum" else [1, 1, 1]
    assert told.tolist() == pytest.approx([w * n * 3 / 2 for w, n in zip(share, lengths, strict=True)])
    assert method.loss(tokens(tilt=[0.5], said=[1])).tolist() == pytest.approx([-0.5 * LN(0.3)])
    assert list(method.keep(drawn(("teacher", 1.0), ("teacher", None)))) == [True, False]
    assert (method.sources(), method.beforehand()) == (("teacher",), ("teacher",))


# --- what a method declares ------------------------------------------------------------------------------------------

KNOBS: dict[str, dict[str, tuple[Any, ...]]] = {
    # Default, a value at each open end that is refused.
    "grpo": {"scale": ("std",), "clip_low": (0.2, 0.0), "clip_high": (0.2, 0.0)},
    "sft": {},
    "opsd": {"score_temperature": (1.0, 0.0), "context": ("solution",)},
    "sdft": {"teacher_rate": (0.01, -0.01, 1.01), "context": ("solution",)},
    "sdpo": {"teacher_rate": (0.05, -0.01, 1.01), "ratio_cap": (2.0, 0.0), "context": ("sibling_or_feedback",)},
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
    },
    "pbsd": {"beta": (0.1, 0.0), "length": ("sum",), "reward_filter": ("off",), "context": ("solution",)},
    "pbsd_reward": {"beta": (0.1, 0.0), "length": ("sum",), "context": ("solution",)},
}
"""The papers' defaults (or ours, where the docstrings say so), and the limits of each knob."""


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_the_papers_and_the_limits_hold(name: str) -> None:
    method = build_method(name, {})
    assert getattr(method, "name") == name  # noqa: B009  (the base class has no name)
    for knob, (default, *refused) in KNOBS[name].items():
        assert getattr(method, knob) == default
        for value in refused:
            with pytest.raises(ConfigError, match=rf"^method\.{knob}: "):
                build_method(name, {knob: value})
    assert (method.weights, method.teacher_thinking) == (None, None)
    if "teacher_rate" not in KNOBS[name]:
        assert method.teacher_rate == 0.0
    # Both ends of a rate and of a strength are of use.
    for knob, ends in {"teacher_rate": (0.0, 1.0), "strength": (0.0,), "gate_ratio": (1.0,)}.items():
        for end in ends if knob in KNOBS[name] else ():
            assert getattr(build_method(name, {knob: end}), knob) == end


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
    if name in RECOMMENDED:
        r = method.recommended
        assert (
            r.learning_rate,
            r.lora_learning_rate,
            r.completions,
            r.max_tokens,
            r.temperature,
            r.top_p,
            r.top_k,
        ) == RECOMMENDED[name]


WEIGHTS = {
    "opsd": "frozen",
    "sdft": "ema",
    "sdpo": "ema",
    "credit": "ema",
    "sd": "live",
    "antisd": "live",
    "purified": "frozen",
    "pbsd": "frozen",
    "pbsd_reward": "frozen",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_teachers_role_has_the_methods_weights_unless_a_knob_names_others(name: str) -> None:
    def roles(**knobs: Any) -> Method:
        return build_method(name, knobs)

    for role, found in roles().roles().items():
        assert found.weights == WEIGHTS[name]
        assert found.thinking is None
        assert (found.context is None) == (role == "base")
    other = "live" if WEIGHTS[name] != "live" else "frozen"
    assert {role.weights for role in roles(weights=other).roles().values()} == {other}
    thinking = {role: found.thinking for role, found in roles(teacher_thinking=False).roles().items()}
    assert set(thinking.values()) - {None} == {False}
    assert roles(context="elsewhere").roles()["teacher"].context == "elsewhere"
