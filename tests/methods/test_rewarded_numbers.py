"""Methods in numbers by hand: their metrics, missing contexts, the bonus's bound, weights of tokens and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.methods import METHODS, build_method
from selfdistill.methods.base import BatchScores, State
from selfdistill.methods.cepo import CEPO
from selfdistill.methods.grpo import GRPO
from selfdistill.types import Role, Scores, TokenSlice, View, Weights

NONE = math.nan
HALF = (0.5, 0.5)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def view(*weights: float, reward: float = 0.0) -> View:
    n = len(weights)
    return View({"student": (1,)}, (5,) * n, weights, (0.0,) * n, 0.0, 0, 0, "student", reward)


def test_cepo_falls_back_wherever_either_answer_is_missing() -> None:
    student = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64).log()
    inputs = {
        "teacher": numbers(0.8, 0.8, math.nan, math.nan).log(),
        "wrong": numbers(0.2, math.nan, 0.2, math.nan).log(),
    }
    tokens = TokenSlice(torch.zeros(4, dtype=torch.long), {"student": student}, inputs)
    assert CEPO().evidence(tokens).tolist() == pytest.approx([math.log(4), 0.0, 0.0, 0.0])
    instead = CEPO(without_wrong="student").evidence(tokens).tolist()
    assert instead == pytest.approx([math.log(4), math.log(0.8 / 0.5), 0.0, 0.0])


def test_rlcsds_bonus_is_bounded() -> None:
    right, wrong = (Scores(numbers(*said).log(), numbers(0.0, 0.0)) for said in ((0.9, 0.1), (0.1, 0.9)))
    method = build_method("rlcsd", {"contrasts": 1, "strength": 0.5, "bonus_clip": 0.3})
    found = method.on_batch(None, BatchScores({"teacher": [right], "wrong_0": [wrong]}, [view(1.0, 1.0)]))
    assert isinstance(bonus := found["bonus"], Sequence) and bonus[0].tolist() == [0.3, -0.3]


def test_srpos_weights_have_a_mean_of_1_by_the_weights_of_the_tokens() -> None:
    entropies = (numbers(0.0, math.log(2)), numbers(math.log(4)))
    scores: list[Scores | None] = [Scores(torch.zeros_like(entropy), entropy) for entropy in entropies]
    found = build_method("srpo", {}).on_batch(None, BatchScores({"teacher": scores}, [view(0.5, 0.5), view(1.0)]))
    assert isinstance(distil := found["distil"], Sequence)
    # exp(−H) is 1, ½ and ¼; their mean is (½ · 1 + ½ · ½ + 1 · ¼) / 2 = ½.
    assert [weight.tolist() for weight in distil] == [pytest.approx([2.0, 1.0]), pytest.approx([0.5])]


# --- metrics ---------------------------------------------------------------------------------------------------------


def said(
    *ratios: float,
    roles: Mapping[str, Sequence[Sequence[float]]] | None = None,
    logs: Mapping[str, Sequence[float]] | None = None,
    inputs: Mapping[str, Sequence[float]] | None = None,
    values: Mapping[str, float] | None = None,
) -> TokenSlice:
    """Tokens 0 of a vocabulary of two to which the student gives ½, ``ratios`` times what it gave when it drew them.

    ``roles`` and ``logs`` hold probabilities: of every entry, and of the tokens alone.
    """
    every = {"student": [HALF] * len(ratios), **(roles or {})}
    distributions = {name: torch.tensor(rows, dtype=torch.float64).log() for name, rows in every.items()}
    given = {"old_logprob": [0.5 / ratio for ratio in ratios], **(logs or {})}
    numbers_of = {name: numbers(*row).log() for name, row in given.items()}
    rest = {name: numbers(*row) for name, row in (inputs or {}).items()}
    return TokenSlice(torch.zeros(len(ratios), dtype=torch.long), distributions, {**numbers_of, **rest}, values or {})


def softness(distance: float) -> float:
    """α of DemoPSD at α_max = 0.4 and β = 2."""
    return 0.8 * (1 / (1 + math.exp(-2 * distance)) - 0.5)


RATIO: Mapping[str, Sequence[float]] = {"ratio": [1.0, 1.1, 0.5, 1.5], "clip_share": [0.0, 0.0, 1.0, 1.0]}
SDPG_TOKENS = said(
    *RATIO["ratio"],
    roles={"teacher": [(0.8, 0.2), (0.8, 0.2), (0.8, 0.2), (0.98, 0.02)], "reference": [(0.2, 0.8)] * 4},
    inputs={"advantage": [1.0, -1.0, 1.0, 1.0], "has teacher": [1.0, 1.0, 0.0, 1.0]},
)
SDPG_SQUARED = TokenSlice(
    SDPG_TOKENS.target_N,
    {name: SDPG_TOKENS.roles[name] for name in ("student", "teacher")},
    {**SDPG_TOKENS.inputs, "reference": numbers(0.2, 0.2, 0.5, 0.8).log()},
)
MIDDLE = 0.65  # of ½ and 0.8
JSD = 0.5 * sum(p * math.log(p / m) for p, m in ((0.8, MIDDLE), (0.2, 0.35), (0.5, MIDDLE), (0.5, 0.35)))
DRIFTING = said(1.2, 2.5, roles={"teacher": [(0.8, 0.2), HALF], "bare": [(0.4, 0.6), (0.25, 0.75)]})
DRIFT = {"pmi": [math.log(2), math.log(2)], "weight_drift": [math.log(0.8), math.log(0.5)]}

METRICS: dict[str, tuple[Mapping[str, Any], TokenSlice, Mapping[str, Sequence[float]]]] = {
    # The weight is exp(sign(A) u), from ¾ to 1¼; 1 where nothing was shown.
    "rlsd": (
        {"weight_clip": 0.25},
        said(
            *RATIO["ratio"],
            logs={"teacher": [0.8, 0.8, 0.55, NONE]},
            inputs={"advantage": [2.0, -1.0, 2.0, 2.0]},
        ),
        {**RATIO, "credit_weight": [1.25, 0.75, 1.1, 1.0], "credit_weight_clipped": [1.0, 1.0, 0.0, 0.0]},
    ),
    "cepo": (
        {"weight_clip": 0.5, "clip_high": 0.2},
        said(
            *RATIO["ratio"],
            logs={"teacher": [0.8, 0.5, NONE, 0.8], "wrong": [0.2, 0.4, 0.4, NONE]},
            inputs={"advantage": [-1.0, 2.0, 2.0, 2.0]},
        ),
        {
            **RATIO,
            "credit_weight": [0.5, 1.25, 1.0, 1.0],
            "credit_weight_clipped": [1.0, 0.0, 0.0, 0.0],
            "contrasted": [1.0, 1.0, 0.0, 0.0],
        },
    ),
    "rlcsd": ({}, said(*RATIO["ratio"]), RATIO),
    # σ(2 log 1.6) = 1.6² / (1 + 1.6²); ½ at no gain, 0 where nothing was shown.
    "sdar": (
        {"sharpness": 2.0},
        said(*RATIO["ratio"], logs={"teacher": [0.8, 0.5, NONE, 0.25]}),
        {**RATIO, "pull_gate": [2.56 / 3.56, 0.5, 0.0, 0.2]},
    ),
    # KL(S‖T) = ½ log(½/0.8) + ½ log(½/0.2) = log 1¼, at most 0.3.
    "sdpg": (
        {"kl_clip": 0.3, "clip_high": 0.2},
        SDPG_SQUARED,
        {
            **RATIO,
            "teacher_kl": [math.log(1.25), math.log(1.25), 0.0, 0.3],
            "reference_gap": [
                math.log(2.5) ** 2 / 2,
                math.log(2.5) ** 2 / 2,
                0.0,
                math.log(1.6) ** 2 / 2,
            ],
        },
    ),
    "sdpg, praised, reverse": (
        {"kl_clip": 0.3, "clip_high": 0.2, "only_praised": True, "reference_form": "reverse_kl"},
        SDPG_TOKENS,
        {**RATIO, "teacher_kl": [math.log(1.25), 0.0, 0.0, 0.3], "reference_gap": [math.log(1.25)] * 4},
    ),
    "sdpg, forward": (
        {"kl_clip": 0.3, "clip_high": 0.2, "reference_form": "forward_kl"},
        SDPG_TOKENS,
        {
            **RATIO,
            "teacher_kl": [math.log(1.25), math.log(1.25), 0.0, 0.3],
            "reference_gap": [0.2 * math.log(0.4) + 0.8 * math.log(1.6)] * 4,
        },
    ),
    "sdpg, without a reference": (
        {"kl_clip": 0.3, "clip_high": 0.2, "reference_weight": 0.0},
        SDPG_TOKENS,
        {**RATIO, "teacher_kl": [math.log(1.25), math.log(1.25), 0.0, 0.3]},
    ),
    "srpo": ({}, said(*RATIO["ratio"]), RATIO),
    "sc_sdpo": ({}, said(1.2, 2.5), {"ratio": [1.2, 2.0], "ratio_capped": [0.0, 1.0]}),
    "paced": ({"weight_drift": True}, DRIFTING, DRIFT),
    "demopsd": (
        {"alpha_max": 0.4, "beta": 2.0},
        DRIFTING,
        {"ratio": [1.2, 2.0], "ratio_capped": [0.0, 1.0], **DRIFT, "alpha": [softness(JSD), 0.0]},
    ),
    # Uncertain: an entropy of log 2, but not one of about ⅓, nor one of exactly τ.
    "eopd": (
        {"threshold": 0.5},
        said(1.0, 1.0, roles={"teacher": [HALF, (0.9, 0.1)]}),
        {"teacher_uncertain": [1.0, 0.0]},
    ),
    "eopd, at its threshold": (
        {"threshold": 0.0, "weight_drift": True},
        said(1.0, 1.0, roles={"teacher": [HALF, (1.0, 0.0)], "bare": [(0.25, 0.75)] * 2}),
        {
            "teacher_uncertain": [1.0, 0.0],
            "pmi": [math.log(2), math.log(4)],
            "weight_drift": [math.log(0.5)] * 2,
        },
    ),
    # ρ (e^{−ℓ} − 1 + ℓ), ℓ = log S(y) − log T(y): S(y) is ½, that of the sampler ½ / ρ. It is 0 without a note.
    "skill_sd": (
        {},
        said(*RATIO["ratio"], logs={"teacher": [0.8, 0.5, NONE, 0.25]}),
        {
            **RATIO,
            "skill_kl": [
                RATIO["ratio"][0] * (0.6 - math.log(1.6)),
                0.0,
                0.0,
                RATIO["ratio"][3] * (-0.5 + math.log(2)),
            ],
        },
    ),
    # A quarter of the weight is the teacher's own, which GRPO's means leave out.
    "hdpo": (
        {},
        said(1.2, 1.5, 0.6, inputs={"distilled": [0.0, 0.0, 1.0]}, values={"distilled_share": 0.25}),
        {"ratio": [1.6, 2.0, 0.0], "clip_share": [0.0, 4 / 3, 0.0]},
    ),
    "hdpo, of the teacher alone": (
        {},
        said(1.2, 1.5, inputs={"distilled": [1.0, 1.0]}, values={"distilled_share": 1.0}),
        {"ratio": [0.0, 0.0], "clip_share": [0.0, 0.0]},
    ),
}


@pytest.mark.parametrize("case", METRICS)
def test_what_a_method_measures_of_each_token(case: str) -> None:
    hyperparameters, tokens, expected = METRICS[case]
    found = build_method(case.split(",")[0], hyperparameters).metrics(tokens)
    assert sorted(found) == sorted(expected)
    for name, values_N in found.items():
        assert values_N.tolist() == pytest.approx(expected[name]), name
        assert values_N.dtype == torch.float64


def test_each_clip_bound_of_eopd_is_on_its_own_side() -> None:
    tokens = said(1.4, 1.2, 0.8, 0.95, roles={"teacher": [(0.8, 0.2), (0.8, 0.2), (0.1, 0.9), (0.1, 0.9)]})
    method = build_method("eopd", {"clip_low": 0.1, "clip_high": 0.3, "strength": 0.0})
    # The advantage is log T − log S_old, and a ratio counts up to 1.3 where it is above 0, from 0.9 on below.
    praise, blame = math.log(0.8 / 0.5), math.log(0.1 / 0.5)
    assert method.loss(tokens).tolist() == pytest.approx(
        [
            -1.3 * (praise + math.log(1.4)),
            -1.2 * (praise + math.log(1.2)),
            -0.9 * (blame + math.log(0.8)),
            -0.95 * (blame + math.log(0.95)),
        ]
    )


# --- what a batch decides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rlsd", "cepo", "rlcsd", "sdpg", "srpo", "hdpo"])
def test_the_state_reaches_every_class_that_a_method_is_made_of(name: str) -> None:
    class Watching(GRPO):
        def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, Any]:
            return {"watched": float(batch.step), "state": state}

    both: Any = type("Both", (METHODS[name], Watching), {"__annotations__": {}, "__module__": __name__})
    state: Any = object()
    empty = BatchScores({"teacher": [], **{f"wrong_{k}": [] for k in range(4)}}, [], step=3)
    found = both().on_batch(state, empty)
    assert found["state"] is state and found["watched"] == 3.0
    assert set(build_method(name, {}).on_batch(None, empty)) == set(found) - {"state", "watched"}


def single(*logprobs: float, entropy: Sequence[float] = ()) -> Scores:
    """Scores in float32, as models give them; what is computed of them is to have no more error than that."""
    return Scores(torch.tensor(logprobs), torch.tensor(entropy or [0.0] * len(logprobs)))


def judged(*weights: float, source: str = "student", right: bool = False, **rest: Any) -> View:
    n = len(weights)
    return View({"student": (1,)}, (5,) * n, weights, (0.0,) * n, 0.0, 0, 0, source, correct=right, **rest)


TANH = [math.tanh(-0.5 - math.log((math.exp(-1) + math.exp(-2)) / 2)), 0.0, math.tanh(-2.0 + 0.25)]
HINTS: Mapping[str, list[Scores | None]] = {
    "teacher": [single(-0.5, -1.0, -2.0), single(-1.0), None],
    "wrong_0": [single(-1.0, -1.0, -0.25), None, single(-1.0)],
    "wrong_1": [single(-2.0, -1.0, -0.25), None, None],
}
UNSURE = single(-1.0, -1.0, -1.0, entropy=(0.75, 0.25, 0.25))
# exp(-H) over its greatest value, and its mean by weights of 0.1, 0.2 and 0.3.
SURE = [math.exp(-0.5), 1.0, 1.0]
SURE_MEAN = (0.1 * SURE[0] + 0.5) / 0.6
RATES = [judged(1.0, pass_rate=rate) for rate in (0.5, 0.2, 1.0, None)]

DECIDED: dict[str, tuple[Mapping[str, Any], BatchScores, Mapping[str, Any]]] = {
    # The first and the third token are selected: 0.4 of the weight of 0.6 that has hints, and of 1.7 in all.
    "rlcsd": (
        {"contrasts": 2, "sharpness": 1.0, "bonus_clip": 0.4, "selected_above": 0.1, "selected_weight": 3.0},
        BatchScores(HINTS, [judged(0.1, 0.2, 0.3), judged(0.4), judged(0.7)]),
        {
            "bonus": [[TANH[0] / 2, 0.0, -0.4], [0.0], [0.0]],
            "factor": [[3 * 1.7 / 0.4, 1.7 / 0.2, 3 * 1.7 / 0.4], [0.0], [0.0]],
            "selected": 0.4 / 0.6,
            "without_hints": 2.0,
        },
    ),
    "rlcsd, a bonus of exactly δ": (
        {"contrasts": 1, "bonus_clip": 0.25, "selected_above": 0.25},
        BatchScores({"teacher": [single(-0.5)], "wrong_0": [single(-3.0)]}, [judged(0.5)]),
        {"bonus": [[0.25]], "factor": [[1.0]], "selected": 0.0, "without_hints": 0.0},
    ),
    "rlcsd, without hints": (
        {"contrasts": 1},
        BatchScores({"teacher": [None], "wrong_0": [single(-1.0)]}, [judged(0.5)]),
        {"bonus": [[0.0]], "factor": [[0.0]], "selected": 0.0, "without_hints": 1.0},
    ),
    "srpo": (
        {},
        BatchScores(
            {"teacher": [UNSURE, single(-1.0), single(-1.0), None]},
            [
                judged(0.1, 0.2, 0.3, reward=0.0),
                judged(1.0, reward=1.0, right=True),
                judged(1.0),
                judged(0.5, reward=0),
            ],
        ),
        {
            "distil": [[w / SURE_MEAN for w in SURE], [0.0], [0.0], [0.0]],
            "routed": [1.0, 0.0, 0.0, 0.0],
            "routed_share": 0.25,
        },
    ),
    "srpo, of one completion": (
        {},
        BatchScores({"teacher": [single(-1.0, entropy=[0.5])]}, [judged(1.0, reward=0.0)]),
        {"distil": [[1.0]], "routed": [1.0], "routed_share": 1.0},
    ),
    "srpo, without a teacher": (
        {},
        BatchScores({}, [judged(0.5, reward=0.0)]),
        {"distil": [[0.0]], "routed": [0.0], "routed_share": 0.0},
    ),
    "srpo, of nothing": ({}, BatchScores(), {"distil": [], "routed": [], "routed_share": 0.0}),
    "sc_sdpo": (
        {},
        BatchScores({}, RATES),
        {"question_weight": [0.5 / 0.225, 0.4 / 0.225, 0.0, 0.0], "question_weight_mean": 0.225},
    ),
    "sc_sdpo, of nothing": ({}, BatchScores(), {"question_weight": [], "question_weight_mean": 0.0}),
    "paced": (
        {"alpha": 2.0},
        BatchScores({}, RATES, step=3, steps=4),
        {"question_weight": [0.125, 0.032, 0.0, 0.0], "question_weight_mean": 0.157 / 4, "reverse": 1.0},
    ),
    "paced, of nothing": ({}, BatchScores(), {"question_weight": [], "question_weight_mean": 0.0, "reverse": 0.0}),
    "hdpo": (
        {},
        BatchScores({}, [judged(0.1, 0.2), judged(0.5, source="teacher"), judged(0.3)]),
        {"distilled": [0.0, 1.0, 0.0], "distilled_share": 0.5 / 1.1},
    ),
    "hdpo, of nothing": ({}, BatchScores(), {"distilled": [], "distilled_share": 0.0}),
    "rlsd": ({"decay": 4}, BatchScores(step=2), {"strength": 0.375}),
    "rlsd, at its end": ({"decay": 1}, BatchScores(step=2), {"strength": 0.0}),
    "cepo": ({}, BatchScores(step=6), {"strength": 0.4}),
    "sdpg": ({"warmup": 4, "strength": 0.5}, BatchScores(step=3), {"strength": 0.25}),
}


def flat(value: Any) -> list[float]:
    """The numbers of what a batch decides, whose tensors are in float64."""
    if isinstance(value, float | int):
        return [value]
    if isinstance(value, Tensor):
        assert value.dtype == torch.float64
        return value.tolist()
    return [number for each in value for number in flat(each)]


@pytest.mark.parametrize("case", DECIDED)
def test_what_a_method_decides_of_a_batch(case: str) -> None:
    hyperparameters, batch, expected = DECIDED[case]
    found = build_method(case.split(",")[0], hyperparameters).on_batch(None, batch)
    assert sorted(found) == sorted(expected)
    for name, value in found.items():
        assert flat(value) == pytest.approx(flat(expected[name]), rel=1e-12), name


@pytest.mark.parametrize(
    ("reference", "compared", "scored"),
    [
        ({}, ["teacher"], ["reference"]),
        ({"reference_form": "reverse_kl"}, ["teacher", "reference"], []),
        ({"reference_form": "forward_kl"}, ["teacher", "reference"], []),
        ({"reference_form": "forward_kl", "reference_weight": 0.0}, ["teacher"], []),
        ({"reference_weight": 0.0}, ["teacher"], []),
    ],
)
def test_sdpg_compares_its_reference_where_it_needs_its_distribution(
    reference: Mapping[str, Any], compared: Sequence[str], scored: Sequence[str]
) -> None:
    method = build_method("sdpg", reference)
    assert (list(method.compared()), list(method.precompute())) == (compared, scored)


@pytest.mark.parametrize(
    ("name", "context", "weights"),
    [
        ("paced", "solution", "frozen"),
        ("eopd", "solution", "frozen"),
        ("demopsd", "sibling_or_feedback", "ema"),
        ("sc_sdpo", "sibling_or_feedback", "ema"),
    ],
)
def test_the_bare_teacher_has_the_teachers_weights(name: str, context: str, weights: Weights) -> None:
    roles = {"teacher": Role(context, weights), "bare": Role(None, weights)}
    assert build_method(name, {"weight_drift": True}).roles() == roles
