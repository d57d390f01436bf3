"""The methods of examples/methods: numbers by hand, and two steps of a run on the tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill import Method, Rollout, RolloutGroup, Scores, TokenSlice, Verdict, View, build_method
from selfdistill.methods.base import BatchScores
from selfdistill.types import Example
from support.runs import metrics, tiny_run, train
from support.tiny import save_tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "methods"
CLASSES = {
    "dasd": "DASD",
    "ad_opsd": "ADOPSD",
    "avsd": "AVSD",
    "rlrt": "RLRT",
    "sd_zero": "SDZero",
    "u_opsd": "UOPSD",
    "oasis": "OASIS",
}


@pytest.fixture(autouse=True)
def _beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def method(name: str, **hyperparameters: Any) -> Method:
    return build_method(f"{name}:{CLASSES[name]}", hyperparameters)


def row(*probs: float) -> torch.Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def group(*said: tuple[int, str | None, bool]) -> RolloutGroup:
    """Completions of given lengths, answers and verdicts."""
    rollouts = tuple(Rollout((1,), (5,) * n, (0.0,) * n, True, "", 0) for n, _, _ in said)
    return RolloutGroup(Example("x", ()), rollouts, tuple(Verdict(float(right), answer=a) for _, a, right in said))


def test_each_is_named_here_and_short() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == CLASSES.keys()
    page = (EXAMPLES.parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
    assert all(f"`examples/methods/{name}.py`" in page for name in CLASSES)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) < 60 for path in EXAMPLES.glob("*.py"))


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("name", CLASSES)
def test_two_steps_of_training(name: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", seed=0, num_hidden_layers=1)
    # A random model does not end its thinking, so that there is no attempt to show.
    shown = ["method.context=solution_verdict"] if name == "sd_zero" else []
    train(tiny_run(model, f"{name}:{CLASSES[name]}", "steps=2", *shown), tmp_path / "run")
    found = metrics(tmp_path / "run")
    assert len(found) == 2 and all(math.isfinite(line["loss"]) for line in found)
    # Nor does it have answers that a majority could agree on.
    assert name == "u_opsd" or any(line["grad_norm"] > 0 for line in found)


def test_dasd_pulls_where_the_student_is_sure_and_pushes_elsewhere() -> None:
    student = Scores(numbers(-2.0, -2.0), numbers(0.5, 1.5))
    teacher = Scores(numbers(-1.0, -3.0), numbers(0.0, 0.0))  # gaps 1 and −1, of mean 0 and deviation 1
    found = method("dasd").on_batch(None, BatchScores({"student": [student, student], "teacher": [teacher, None]}))
    pushes = found["push"]
    assert isinstance(pushes, list)
    # τ = 0.5 + 0.8 · 1 = 1.3, mean absolute deviation ½; σ(1 − 1) = ½.
    assert pushes[0].tolist() == pytest.approx([math.tanh(1.6) / 2, math.tanh(-0.4) / 2 * -1])
    assert pushes[1].tolist() == [0.0, 0.0]


def test_ad_opsd_mixes_where_the_student_is_uncertain_and_nowhere_else() -> None:
    made = method("ad_opsd", divergence={"kind": "forward_kl"})
    roles = {"student": row(0.5, 0.5, 0.0), "teacher": row(0.8, 0.2, 0.0), "base": row(0.25, 0.75, 0.0)}
    tokens = TokenSlice(torch.tensor([0]), roles, {}, {"cut": 0.6})  # below ln 2
    u = [1 / (1 + math.exp(-0.5 * math.log(0.5 / q))) for q in (0.8, 0.2)]
    mixed = [a * b + (1 - a) * q for a, b, q in zip(u, (0.25, 0.75), (0.8, 0.2), strict=True)]
    target = [m / sum(mixed) for m in mixed]
    assert made.loss(tokens).tolist() == pytest.approx([sum(p * math.log(p / 0.5) for p in target)])
    tokens.values = {"cut": 0.7}
    assert made.loss(tokens).tolist() == pytest.approx([sum(p * math.log(p / 0.5) for p in (0.8, 0.2))])


def test_avsd_follows_its_teachers_as_far_as_they_agree() -> None:
    said = {"solution": 0.8, "solution_half": 0.4, "answer_only": 0.2}
    student = row(0.5, 0.5).requires_grad_()
    inputs = {name: numbers(math.log(p)) for name, p in said.items()}
    loss = method("avsd").loss(TokenSlice(torch.tensor([0]), {"student": student}, inputs))
    loss.sum().backward()
    logs = [math.log(p) for p in said.values()]
    geometric, j = sum(logs) / 3, math.log(1.4 / 3) - sum(logs) / 3
    gaps = [value - math.log(0.5) for value in logs]
    common = abs(sum(gaps) / 3)
    g = common / (sum(map(abs, gaps)) / 3) * common / (common + j)
    signal = geometric + g * j - math.log(0.5)
    assert loss.tolist() == pytest.approx([-signal * math.log(0.5)])
    assert student.grad is not None and student.grad.tolist() == [[pytest.approx(-signal), 0.0]]


def test_rlrt_rewards_what_the_reference_would_not_have_said() -> None:
    inputs = {"advantage": numbers(2.0), "teacher": numbers(math.log(0.45)), "right": numbers(1.0)}
    tokens = TokenSlice(torch.tensor([0]), {"student": row(0.5, 0.5)}, inputs)

    def advantage(**changed: float) -> float:
        tokens.inputs = {**inputs, **{name: numbers(value) for name, value in changed.items()}}
        return float(method("rlrt").token_advantage(tokens))  # type: ignore[attr-defined]

    assert advantage() == pytest.approx(2.0 / 0.9)
    assert advantage(advantage=-2.0) == pytest.approx(-1.8)
    assert advantage(teacher=math.log(0.1)) == pytest.approx(2.4)
    assert advantage(right=0.0) == advantage(teacher=math.nan) == 2.0
    views = [View({}, (5,), (1.0,), (0.0,), 0.0, 0, 0, correct=right) for right in (True, False)]
    right = method("rlrt").on_batch(None, BatchScores({}, views))["right"]
    assert isinstance(right, torch.Tensor) and right.tolist() == [1.0, 0.0]


def test_sd_zero_matches_the_reviser() -> None:
    roles = {"student": row(0.5, 0.5), "teacher": row(0.9, 0.1)}
    expected = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert method("sd_zero").loss(TokenSlice(torch.tensor([0]), roles, {})).tolist() == pytest.approx([expected])
    assert method("sd_zero").roles()["teacher"].context == "attempt_verdict"


def test_u_opsd_teaches_the_longest_that_disagree_with_the_majority() -> None:
    divided = group((3, "7", False), (2, "7", False), (4, "7", False), (5, "8", True), (9, None, False))
    assert list(method("u_opsd").keep(divided)) == [False, False, False, True, True]
    assert list(method("u_opsd", pupils=1).keep(divided)) == [False, False, False, False, True]
    even = group((3, "7", False), (2, "8", False))
    assert list(method("u_opsd").keep(even)) == list(method("u_opsd").keep(group((1, None, False), (1, None, True))))
    assert not any(method("u_opsd").keep(even))


def test_oasis_learns_from_the_shortest_right_completion_alone() -> None:
    assert list(method("oasis").keep(group((3, "7", True), (2, "7", True), (1, "8", False)))) == [False, True, False]
    assert list(method("oasis").keep(group((3, "7", False)))) == [False]
    assert method("oasis").roles()["teacher"].context == "attempts"
