"""What a step does to the weights: the gradient's clip, the rate, the averaged teacher, several updates; by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from selfdistill.contexts.templates import Template
from selfdistill.errors import TrainingError
from selfdistill.methods.sft import SFT
from selfdistill.types import TokenSlice
from support.engine import Bench, invent_groups, load_exact, make_bench, parameters, perturb

ETA = 0.25


def open_bench(model: Path, templates: Mapping[str, Template], name: str, knobs: Mapping[str, Any]) -> Bench:
    """A student that has left its teachers behind, so that every method has a gradient."""
    policy, chat = load_exact(model)
    return make_bench(policy, chat, templates, name, knobs, move=perturb)


def far(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    return max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.25, 0.25), (4.0, 1.0), (0.0, 1.0)], ids=["beyond the clip", "below it", "no clip"]
)
def test_the_weights_move_by_the_rate_times_the_clipped_gradient(
    share: float, kept: float, model: Path, templates: Mapping[str, Template]
) -> None:
    bench = open_bench(model, templates, "grpo", {})
    groups = invent_groups(bench.policy, bench.chat)
    still = bench.step(groups)
    gradient = bench.gradient()
    norm = math.sqrt(sum(float(values.square().sum()) for values in gradient.values()))
    assert still.record.values["grad_norm"] == pytest.approx(norm, rel=1e-12)
    assert still.record.values["learning_rate"] == 0.0
    before = parameters(bench.policy.model)
    bench.trainer.clip_norm = share * norm
    bench.trainer.learning_rate = lambda step: 0.01 * step
    moved = bench.step(groups, step=3)
    expected = {name: before[name] - 0.03 * kept * gradient[name] for name in gradient}
    # torch divides by the norm plus 1e-6.
    assert far(parameters(bench.policy.model), expected) < 1e-5 * far(before, expected)
    # What is reported is the norm before the clip.
    assert moved.record.values["grad_norm"] == pytest.approx(norm, rel=1e-12)
    assert moved.record.values["learning_rate"] == 0.03


@pytest.mark.parametrize("updates", [1, 2])
def test_the_average_moves_by_its_rate_after_each_update(
    updates: int, model: Path, templates: Mapping[str, Template]
) -> None:
    """θ' ← (1−η)θ' + ηθ with the student as the update has left it; two updates are two moves of both."""
    bench, alone = (open_bench(model, templates, "sdft", {"teacher_rate": ETA}) for _ in range(2))
    groups = invent_groups(bench.policy, bench.chat)
    for each in (bench, alone):
        each.trainer.learning_rate = lambda step: 0.05
    average = {name: values.clone() for name, values in bench.trainer.teachers.state_dict().items()}
    bench.trainer.updates = updates
    bench.step(groups)
    for _ in range(updates):
        alone.step(groups)
        student = parameters(alone.policy.model)
        average = {name: (1 - ETA) * values + ETA * student[name] for name, values in average.items()}
    assert far(parameters(bench.policy.model), student) < 1e-12
    assert far(bench.trainer.teachers.state_dict(), average) < 1e-12
    assert far(student, average) > 1e-3


def test_of_several_updates_the_last_is_reported(model: Path, templates: Mapping[str, Template]) -> None:
    bench, alone = (open_bench(model, templates, "sft", {}) for _ in range(2))
    groups = invent_groups(bench.policy, bench.chat)
    for each in (bench, alone):
        each.trainer.learning_rate = lambda step: 0.05
    bench.trainer.updates = 3
    reported = bench.step(groups, step=2).record
    losses = [alone.step(groups, step=2).record.values["loss"] for _ in range(3)]
    assert reported.values["loss"] == pytest.approx(losses[2], rel=1e-12)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)
    assert reported.step == 2


def test_a_step_reports_sums_and_counts_over_its_tokens(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "sd", {})
    groups = invent_groups(bench.policy, bench.chat)
    result = bench.step(groups)
    tokens = [len(view.completion_ids) for view in result.views]
    record = result.record
    assert record.counts["tokens"] == sum(tokens)
    assert record.counts["weight"] == sum(sum(view.weights) for view in result.views)
    assert record.sums["student_tokens"] == sum(tokens)
    student, teacher = result.scores["student"], result.scores["teacher"]
    assert all(scores is not None for scores in student)
    both = [(s, t) for s, t in zip(student, teacher, strict=True) if s is not None and t is not None]
    assert len(both) < len(student)
    assert record.sums["teacher_tokens"] == sum(len(t.target_N) for _, t in both)
    gain = sum(float((t.target_N - s.target_N).sum()) for s, t in both)
    assert record.sums["teacher_u"] == pytest.approx(gain, rel=1e-12)
    assert record.sums["teacher_entropy"] == pytest.approx(sum(float(t.entropy_N.sum()) for _, t in both), rel=1e-12)
    whole = sum(float(s.entropy_N.sum()) for s in student if s is not None)
    assert record.sums["student_entropy"] == pytest.approx(whole, rel=1e-12)


def test_the_students_reward_alone_enters_the_advantage(model: Path, templates: Mapping[str, Template]) -> None:
    """Rewards 0, 1, 1, 0.25 in one group: mean 9/16, sample standard deviation √(0.796875 / 3)."""
    bench = open_bench(model, templates, "grpo", {})
    result = bench.step(invent_groups(bench.policy, bench.chat))
    deviation = math.sqrt((0.5625**2 + 2 * 0.4375**2 + 0.3125**2) / 3)
    expected = [(reward - 0.5625) / deviation for reward in (0.0, 1.0, 1.0, 0.25)]
    assert [view.advantage for view in result.views if view.group == 0] == pytest.approx(expected, rel=1e-12)
    plain = open_bench(model, templates, "grpo", {"scale": "none"}).step(invent_groups(bench.policy, bench.chat))
    assert [view.advantage for view in plain.views if view.group == 0] == [-0.5625, 0.4375, 0.4375, -0.3125]


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(
    model: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(model, templates, "sft", {})
    groups = invent_groups(bench.policy, bench.chat)
    bench.trainer.learning_rate = lambda step: 0.05
    true = SFT.loss

    def steep(self: SFT, tokens: TokenSlice) -> Tensor:
        """The same loss; the gradient of a root is infinite at 0."""
        return true(self, tokens) + (tokens.student.sum(-1) * 0.0).sqrt()

    before = parameters(bench.policy.model)
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "loss", steep)
        with pytest.raises(TrainingError, match=r"step 4: loss .* gradient norm nan is not a number"):
            bench.step(groups, step=4)
    assert far(parameters(bench.policy.model), before) == 0.0
    # The next step is not spoilt.
    assert math.isfinite(float(bench.step(groups).record.values["loss"] or 0.0))
