"""What a step does to the weights: the gradient's clip, the rate, the averaged teacher, several updates; by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.config.sections import Limits, LimitsConfig, limits_on
from selfdistill.config.signal import SignalConfig
from selfdistill.contexts.templates import Template
from selfdistill.distributed.world import World
from selfdistill.errors import ConfigError, OutOfMemory, TrainingError
from selfdistill.methods import Method, build_method
from selfdistill.methods.base import BatchScores, State
from selfdistill.methods.sd import SD
from selfdistill.methods.sft import SFT
from selfdistill.models.head import LossInputs, LossOutput
from selfdistill.models.policy import Policy
from selfdistill.seeds import derive
from selfdistill.training import trainer as training
from selfdistill.training.clock import Clock
from selfdistill.training.shaping import Shaping
from selfdistill.training.trainer import StepResult, Trainer
from selfdistill.types import STUDENT, Role, Scores, StepRecord, TokenSlice
from support.engine import Bench, invent_groups, load_exact, make_bench, numbers_of, parameters, perturb

ETA = 0.25


def open_bench(model: Path, templates: Mapping[str, Template], name: str, hyperparameters: Mapping[str, Any]) -> Bench:
    """A student that has left its teachers behind, so that every method has a gradient."""
    policy, chat = load_exact(model)
    return make_bench(policy, chat, templates, name, hyperparameters, move=perturb)


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
    assert still.record.grad_norm == pytest.approx(norm, rel=1e-12)
    assert still.record.values["learning_rate"] == 0.0
    before = parameters(bench.policy.model)
    bench.trainer.clip_norm = share * norm
    bench.trainer.learning_rate = lambda step: 0.01 * step
    moved = bench.step(groups, step=3)
    expected = {name: before[name] - 0.03 * kept * gradient[name] for name in gradient}
    # torch divides by the norm plus 1e-6.
    assert far(parameters(bench.policy.model), expected) < 1e-5 * far(before, expected)
    # What is reported is the norm before the clip.
    assert moved.record.grad_norm == pytest.approx(norm, rel=1e-12)
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
    bench.trainer.updates_per_batch = updates
    bench.step(groups)
    for _ in range(updates):
        alone.step(groups)
        student = parameters(alone.policy.model)
        average = {name: (1 - ETA) * values + ETA * student[name] for name, values in average.items()}
    assert far(parameters(bench.policy.model), student) < 1e-12
    assert far(bench.trainer.teachers.state_dict(), average) < 1e-12
    assert far(student, average) > 1e-3


def test_a_step_renews_the_snapshots_of_its_number_after_its_update(
    model: Path, templates: Mapping[str, Template]
) -> None:
    bench = open_bench(model, templates, "sdpo", {"weights": {"kind": "snapshot", "every": 2}})
    bench.trainer.learning_rate = lambda step: 0.05
    groups = invent_groups(bench.policy, bench.chat)
    start = {name: values.clone() for name, values in bench.trainer.teachers.state_dict().items()}
    bench.step(groups, step=1)
    assert far(bench.trainer.teachers.state_dict(), start) == 0.0
    bench.step(groups, step=2)
    student, taken = parameters(bench.policy.model), bench.trainer.teachers.state_dict()
    assert far({name: next(taken[key] for key in taken if key.endswith(name)) for name in student}, student) == 0.0
    assert far(taken, start) > 1e-3


def test_the_weight_of_a_step_is_no_number_of_tokens(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "sft", {})
    bench.trainer.shaping = Shaping(SignalConfig(weight="variance"), 10)
    result = bench.step(invent_groups(bench.policy, bench.chat))
    assert result.record.tokens == sum(len(view.completion_ids) for view in result.views)
    weight = sum(sum(view.weights) for view in result.views)
    assert result.record.weight == pytest.approx(weight, rel=1e-12)
    assert 0 < weight < result.record.tokens


def test_of_several_updates_the_last_is_reported(model: Path, templates: Mapping[str, Template]) -> None:
    bench, alone = (open_bench(model, templates, "sft", {}) for _ in range(2))
    groups = invent_groups(bench.policy, bench.chat)
    for each in (bench, alone):
        each.trainer.learning_rate = lambda step: 0.05
    bench.trainer.updates_per_batch = 3
    reported = bench.step(groups, step=2).record
    losses = [alone.step(groups, step=2).record.loss for _ in range(3)]
    assert reported.loss == pytest.approx(losses[2], rel=1e-12)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)
    assert reported.step == 2


def test_a_step_reports_sums_and_counts_over_its_tokens(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "sd", {})
    groups = invent_groups(bench.policy, bench.chat)
    result = bench.step(groups)
    tokens = [len(view.completion_ids) for view in result.views]
    record = result.record
    assert set(record.roles) == {"student", "teacher"}
    assert record.roles["student"].u is None
    assert record.tokens == sum(tokens)
    assert record.weight == sum(sum(view.weights) for view in result.views)
    assert record.roles["student"].tokens == sum(tokens)
    student, teacher = result.scores["student"], result.scores["teacher"]
    assert all(scores is not None for scores in student)
    both = [(s, t) for s, t in zip(student, teacher, strict=True) if s is not None and t is not None]
    assert len(both) < len(student)
    assert record.roles["teacher"].tokens == sum(len(t.target_N) for _, t in both)
    gain = sum(float((t.target_N - s.target_N).sum()) for s, t in both)
    assert record.roles["teacher"].u == pytest.approx(gain, rel=1e-12)
    assert record.roles["teacher"].entropy == pytest.approx(sum(float(t.entropy_N.sum()) for _, t in both), rel=1e-12)
    whole = sum(float(s.entropy_N.sum()) for s in student if s is not None)
    assert record.roles["student"].entropy == pytest.approx(whole, rel=1e-12)


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
        return true(self, tokens) + (tokens.target(STUDENT) * 0.0).sqrt()

    before = parameters(bench.policy.model)
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "loss", steep)
        with pytest.raises(TrainingError, match=r"step 4: loss [0-9.]+ with gradient norm nan is not a number"):
            bench.step(groups, step=4)
    assert far(parameters(bench.policy.model), before) == 0.0
    # The next step is not spoilt.
    assert math.isfinite(bench.step(groups).record.loss)


@dataclass(frozen=True)
class Pair(World):
    """One of two ranks that are threads of this process, so that what they tell each other can be looked at."""

    size: int = 2
    told: dict[int, Any] = field(default_factory=dict)
    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))

    def all_gather(self, mine: Any) -> list[Any]:
        """Every rank's object, once both have come."""
        self.told[self.rank] = mine
        self.both.wait()
        found = [self.told[rank] for rank in range(2)]
        self.both.wait()
        return found

    def max(self, value: int) -> int:
        """The larger of two."""
        return int(max(self.all_gather(value)))

    def add_gradients(self, parameters: Any) -> None:
        """Sums in place of each rank's own."""
        parts = self.all_gather([None if p.grad is None else p.grad.clone() for p in parameters])
        for parameter, *grads in zip(parameters, *parts, strict=True):
            present = [grad for grad in grads if grad is not None]
            parameter.grad = sum(present[1:], present[0]) if present else None


@pytest.mark.parametrize("method", ["sd", "opsd", "grpo"])
@pytest.mark.parametrize("tokens", [16384, 90, 60])
def test_two_ranks_report_and_learn_what_one_does(
    method: str, tokens: int, model: Path, templates: Mapping[str, Template]
) -> None:
    alone, *ranks = (open_bench(model, templates, method, {}) for _ in range(3))
    groups = invent_groups(alone.policy, alone.chat)
    first = Pair(0)
    second = replace(first, rank=1)
    for bench, world in zip(ranks, (first, second), strict=True):
        bench.trainer.world, bench.trainer.limits = (
            world,
            limits_on("cpu", LimitsConfig(max_tokens_per_microbatch=tokens)),
        )
    expected = alone.step(groups)
    with ThreadPoolExecutor(1) as other:
        late = other.submit(ranks[1].step, groups)
        found = [ranks[0].step(groups), late.result(timeout=60)]
    for result, bench in zip(found, ranks, strict=True):
        assert numbers_of(result.record) == pytest.approx(numbers_of(expected.record), rel=1e-9)
        assert far(bench.gradient(), alone.gradient()) < 1e-12
        assert result.scores.keys() == expected.scores.keys()
        for role, column in expected.scores.items():
            for mine, theirs in zip(result.scores[role], column, strict=True):
                assert (mine is None) == (theirs is None)
                if mine is not None and theirs is not None:
                    torch.testing.assert_close(mine.target_N, theirs.target_N)
                    torch.testing.assert_close(mine.entropy_N, theirs.entropy_N)


@pytest.mark.parametrize("method", ["sd", "opsd", "sdpo"])
def test_micro_batches_add_up_to_the_whole_record(method: str, model: Path, templates: Mapping[str, Template]) -> None:
    whole, cut = (open_bench(model, templates, method, {}) for _ in range(2))
    groups = invent_groups(whole.policy, whole.chat)
    cut.trainer.limits = Limits(max_tokens_per_microbatch=60, max_logits_per_chunk=500)
    one, other = whole.step(groups).record, cut.step(groups).record
    assert numbers_of(other) == pytest.approx(numbers_of(one), rel=1e-9)
    assert (other.tokens, other.step) == (one.tokens, 1)


def test_what_was_left_out_is_counted_by_reason(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "sdpo", {})
    result = bench.step(invent_groups(bench.policy, bench.chat))
    record = result.record
    assert record.values["dropped"] == record.skipped.total() == 12 - len(result.views) > 0


def test_groups_may_differ_in_size_and_there_may_be_none(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "sd", {})
    first, second, third = invent_groups(bench.policy, bench.chat)
    pair = replace(first, rollouts=first.rollouts[:2], verdicts=first.verdicts[:2])  # rewards 0 and 1
    half = 0.5 / math.sqrt(0.5)
    for groups in ([pair, second, third], [second, third, pair]):
        result = bench.step(groups)
        assert len(result.views) == 10
        mine = [view.advantage for view in result.views if groups[view.group] is pair]
        assert mine == pytest.approx([-half, half], rel=1e-12)
    nothing = open_bench(model, templates, "opsd", {}).step([])
    assert (nothing.views, nothing.record.loss, nothing.record.tokens) == ([], 0.0, 0.0)
    # Teachers that are asked beforehand have then been asked about nothing, and the student not at all.
    unasked = open_bench(model, templates, "credit", {"form": "advantage"}).step([])
    assert unasked.record.roles["teacher"].tokens == 0.0


def test_a_rank_without_a_completion_adds_nothing(model: Path, templates: Mapping[str, Template]) -> None:
    """Of one completion the second rank has none, and goes along with a forward that does not count."""
    alone, *ranks = (open_bench(model, templates, "opsd", {}) for _ in range(3))
    [first, *_] = invent_groups(alone.policy, alone.chat)
    groups = [replace(first, rollouts=first.rollouts[:1], verdicts=first.verdicts[:1])]
    world = Pair(0)
    for bench, each in zip(ranks, (world, replace(world, rank=1)), strict=True):
        bench.trainer.world = each
    expected = alone.step(groups)
    with ThreadPoolExecutor(1) as other:
        late = other.submit(ranks[1].step, groups)
        found = [ranks[0].step(groups), late.result(timeout=60)]
    for result, bench in zip(found, ranks, strict=True):
        assert numbers_of(result.record) == pytest.approx(numbers_of(expected.record), rel=1e-9)
        assert far(bench.gradient(), alone.gradient()) < 1e-12


class Looking(SD):
    """SD that remembers what it was shown before each update, and marks every completion by its place."""

    def precompute(self) -> Sequence[str]:
        """The student too, before the teacher."""
        return (STUDENT, "teacher")

    def new_state(self) -> State:
        """A list in a state's clothes."""
        return Looks()

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """Nothing but the looking."""
        assert isinstance(state, Looks)
        assert list(batch.scores) == [STUDENT, "teacher"]
        state.updates.append((batch.step, batch.steps, batch.update))
        marks = [100.0 * view.group + view.index for view in batch.views]
        return {"looked": float(len(state.updates)), "mark": torch.tensor(marks, dtype=torch.float32)}

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """The marks, averaged over tokens, in the student's own type."""
        assert tokens.inputs["mark"].dtype == tokens.student.dtype
        return {"marks": tokens.inputs["mark"]}


class Looks:
    """The updates that were seen: the step, the run's length, and the update on the step's batch."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int | None, int]] = []

    def state_dict(self) -> dict[str, Any]:
        """Plain."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back."""
        self.updates = state["updates"]


def test_a_method_is_told_which_update_of_which_step_comes(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "test_training:Looking", {})
    bench.trainer.updates_per_batch, bench.trainer.steps = 3, 9
    groups = invent_groups(bench.policy, bench.chat)
    for step in (2, 5):
        reported = bench.step(groups, step=step).record
    assert bench.trainer.state is not None
    seen = [(step, 9, update) for step in (2, 5) for update in range(3)]
    assert bench.trainer.state.state_dict() == {"updates": seen}
    assert reported.values["looked"] == 6.0
    # A number a view reaches each of its tokens, and is no number of the step.
    marks = [
        100.0 * g + i for g, each in enumerate(groups) for i, r in enumerate(each.rollouts) for _ in r.completion_ids
    ]
    assert reported.values["marks"] == pytest.approx(sum(marks) / len(marks), rel=1e-12)
    assert "mark" not in reported.values


def test_all_that_the_loss_is_handed_lies_on_the_students_device(
    model: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that holds no numbers, with completions of another engine, at the first update and at a later one.

    Scores are single, and what is handed on and summed is double.
    """
    bench = open_bench(model, templates, "test_training:Looking", {})
    groups = invent_groups(bench.policy, bench.chat)

    def single(before: Scores | None, target: float) -> Scores | None:
        """Scores in float32, in which 2^24 and a 1 add up to 2^24."""
        if before is None:
            return None
        steep = torch.ones(len(before.target_N))
        steep[0] = 2.0**24
        return Scores(steep * target, steep)

    measured = bench.step(groups).scores
    scores = {
        role: [single(each, float(role == "teacher")) for each in measured[role]] for role in (STUDENT, "teacher")
    }
    lengths = [len(each.target_N) for each in scores["teacher"] if each is not None]
    jobs: list[LossInputs] = []

    def look(self: Policy, batch: object, job: LossInputs) -> LossOutput:
        jobs.append(job)
        return LossOutput(sum(((p * 0.0).sum() for p in self.trainable()), torch.zeros(())), {}, {})

    asked: list[dict[str, object]] = []

    def score_roles(*given: object, **named: object) -> dict[str, list[Scores | None]]:
        asked.append(named)
        return dict(scores)

    monkeypatch.setattr(training, "score_roles", score_roles)
    monkeypatch.setattr(Policy, "forward", look)
    monkeypatch.setattr(bench.policy, "device", torch.device("meta"))
    bench.trainer.importance_cap, bench.trainer.updates_per_batch = 2.0, 2
    # One completion at a time: some without any of the teacher's scores, the others with all.
    bench.trainer.limits, bench.trainer.world = Limits(max_tokens_per_microbatch=1, max_logits_per_chunk=777), Asked()
    clocks: list[torch.device] = []

    def timed(device: torch.device) -> Clock:
        clocks.append(device)
        return Clock()

    monkeypatch.setattr(training, "Clock", timed)
    record = bench.trainer.step(groups, step=1).record
    whole = sum(2.0**24 + length - 1 for length in lengths)
    assert (record.roles["teacher"].u, record.roles["teacher"].entropy) == (whole, whole)
    told = {"max_tokens": 1, "max_logits_per_chunk": 777, "world": bench.trainer.world}
    assert asked == [{"temperatures": {STUDENT: 1.0, "teacher": 1.0}, **told}] * 2
    assert asked[0]["world"] is bench.trainer.world
    assert clocks == [torch.device("meta")]
    assert len(jobs) == 2 * 12
    known = {*("advantage", "old_logprob", "position", "length", "segment", "mark", "teacher", "sampler_logprob")}
    assert [set(job.inputs) for job in jobs] == [known] * 12 + [{*known, "learner_logprob"}] * 12
    for job in jobs:
        handed = {**job.inputs, "weight": job.weight_N}
        assert {(values.device.type, values.dtype) for values in handed.values()} == {("meta", torch.float64)}
        assert job.target_N.device.type == "meta"
        assert job.max_logits_per_chunk == 777


def test_a_trainer_keeps_what_it_was_given(model: Path, templates: Mapping[str, Template]) -> None:
    bench = open_bench(model, templates, "grpo", {})
    given = {
        "clip_norm": 0.5,
        "limits": Limits(max_tokens_per_microbatch=7, max_logits_per_chunk=8),
        "thinking": False,
        "world": World.current(),
        "steps": 12,
        "shaping": Shaping(SignalConfig(weight="variance"), 10),
    }
    corrected = Trainer(
        bench.policy, bench.trainer.teachers, bench.method, templates, bench.chat, bench.trainer.optimiser,
        learning_rate=float, importance_cap=1.5, updates_per_batch=4, seed=9, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (corrected.importance_cap, corrected.updates_per_batch, corrected.seed) == (1.5, 4, 9)
    assert StepResult(StepRecord(step=1), []).scores == {}
    made = Trainer(
        bench.policy, bench.trainer.teachers, bench.method, templates, bench.chat, bench.trainer.optimiser,
        learning_rate=float, **given,  # type: ignore[arg-type]
    )  # fmt: skip
    assert {name: getattr(made, name) for name in given} == given
    assert (made.seed, made.updates_per_batch, made.importance_cap, made.learning_rate) == (0, 1, None, float)


def test_limits_follow_the_device_where_they_are_left_open() -> None:
    found = {device: limits_on(device) for device in ("cpu", "cpu:0", "cuda", "cuda:1")}
    small, large = (
        Limits(max_tokens_per_microbatch=4096, max_logits_per_chunk=1 << 26),
        Limits(max_tokens_per_microbatch=16384, max_logits_per_chunk=1 << 28),
    )
    assert found == {"cpu": small, "cpu:0": small, "cuda": large, "cuda:1": large}
    assert limits_on("cuda", LimitsConfig(max_tokens_per_microbatch=7)) == Limits(
        max_tokens_per_microbatch=7, max_logits_per_chunk=1 << 28
    )


def test_the_views_of_a_step_depend_on_its_seed_its_number_and_the_switch_of_thinking(
    model: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def render(*given: object, **named: Any) -> None:
        asked.append(named)
        raise LookupError("rendered nothing")

    monkeypatch.setattr(training, "render", render)
    bench = open_bench(model, templates, "credit", {})
    bench.trainer.seed, bench.trainer.thinking = 5, False
    groups = invent_groups(bench.policy, bench.chat)
    with pytest.raises(LookupError):
        bench.trainer.prepare(groups, step=3)
    with pytest.raises(LookupError):  # a step asks for the same
        bench.step(groups, step=4)
    same = {"thinking": False, "sampling_roles": ("student",)}
    assert asked == [{**same, "seed": derive(5, "contrast", step)} for step in (3, 4)]


def test_sharded_weights_are_let_go_and_their_gradients_left_to_the_shards(
    model: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards that no backward has followed keep weights whole: after the scores beforehand, and after the last."""
    calls: list[str] = []
    bench = open_bench(model, templates, "sd", {})
    monkeypatch.setattr(bench.trainer.teachers, "release", lambda: calls.append("release"))
    monkeypatch.setattr(World, "add_gradients", lambda self, parameters: calls.append("add"))
    groups = invent_groups(bench.policy, bench.chat)
    bench.step(groups)
    assert calls == ["release", "release", "add"]
    monkeypatch.setattr(Policy, "sharded", property(lambda self: True))
    bench.step(groups)
    assert calls[3:] == ["release", "release"]


def test_the_loss_that_is_reported_is_the_mean_over_tokens_in_double(
    model: Path, templates: Mapping[str, Template]
) -> None:
    bench = open_bench(model, templates, "grpo", {})
    result = bench.step(invent_groups(bench.policy, bench.chat))
    losses = []
    for view, scores in zip(result.views, result.scores["student"], strict=True):
        assert scores is not None
        for now, then in zip(scores.target_N.tolist(), view.old_logprobs, strict=True):
            ratio = math.exp(now - then)
            losses.append(-min(ratio * view.advantage, min(max(ratio, 0.8), 1.2) * view.advantage))
    assert result.record.loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_a_clock_adds_up_each_phase_and_waits_for_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 10.0, 10.5, 20.0, 24.0])
    waited: list[Any] = []
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    clock = Clock()
    for name in ("teacher", "student", "teacher"):
        with clock.phase(name):
            pass
    assert clock.seconds == {"teacher": 6.0, "student": 0.5}
    assert (waited, Clock(torch.device("cpu")).device) == ([], None)
    times = iter([0.0, 1.0])
    away = Clock(torch.device("meta"))
    with away.phase("update"):
        assert waited == []
    assert (waited, away.seconds) == ([torch.device("meta")], {"update": 1.0})


def test_a_phase_without_memory_is_named_and_other_mistakes_pass() -> None:
    clock = Clock()
    with pytest.raises(OutOfMemory) as caught, clock.phase("teacher"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "scor" in str(caught.value) or "teacher" in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^a bug$"), clock.phase("teacher"):
        raise RuntimeError("a bug")
    assert set(clock.seconds) == {"teacher"}


def test_the_seconds_of_a_step_have_four_names(model: Path, templates: Mapping[str, Template]) -> None:
    bench, clock = open_bench(model, templates, "sd", {}), Clock()
    bench.trainer.step(invent_groups(bench.policy, bench.chat), step=1, clock=clock)
    assert set(clock.seconds) == {"views", "teacher", "student", "update"}


@dataclass(frozen=True)
class Asked(World):
    """A world of one that counts what it is told."""

    told: list[Any] = field(default_factory=list)

    def all_gather(self, mine: Any) -> list[Any]:
        """The one object."""
        self.told.append(mine)
        return [mine]


def test_what_moves_is_counted_over_ranks_only_where_they_hold_shards(
    model: Path, templates: Mapping[str, Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, refreshed = open_bench(model, templates, "sdft", {"teacher_rate": ETA}), []
    monkeypatch.setattr(bench.policy, "refresh", lambda: refreshed.append(True))
    bench.trainer.learning_rate, bench.trainer.world = (lambda step: 0.05), Asked()
    groups = invent_groups(bench.policy, bench.chat)
    values = bench.step(groups).record.values
    assert (values["moved"], values["average_moved"]) == (1.0, 1.0)
    assert (bench.trainer.world.told, refreshed) == ([], [True])
    monkeypatch.setattr(Policy, "sharded", property(lambda self: True))
    bench.step(groups)
    numbers = sum(values.numel() for values in bench.policy.trainable())
    [moved, averaged] = bench.trainer.world.told
    assert moved[0] == moved[1] <= numbers
    assert averaged[0] == averaged[1] == numbers


def test_an_average_that_stands_still_has_moved_by_nothing(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    same = make_bench(policy, chat, templates, "sdft", {"teacher_rate": ETA})
    # A student that stands still moves by nothing; where it is the average, nothing was to move.
    values = same.step(groups).record.values
    assert values["moved"] == 0.0
    assert "average_moved" not in values
    # An average that never moves is not one that has failed to.
    fixed = open_bench(model, templates, "sdft", {"teacher_rate": 0.0})
    assert "average_moved" not in fixed.step(groups).record.values


def test_a_trainer_by_hand_makes_the_teachers_that_its_method_asks_for(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    optimiser = torch.optim.SGD(policy.trainable(), lr=0.0)

    def made(method: Method, **named: Any) -> Trainer:
        return Trainer(policy, None, method, templates, chat, optimiser, learning_rate=0.5, **named)

    plain = made(build_method("sdft", {"teacher_rate": 0.3}))
    assert (plain.teachers.policy, plain.teachers.rate, tuple(plain.teachers.copies)) == (policy, 0.3, ("ema",))
    assert (plain.learning_rate(1), plain.learning_rate(9), plain.clip_norm) == (0.5, 0.5, 1.0)
    assert (plain.world, plain.limits) == (World(), limits_on("cpu"))
    world = Asked()
    assert made(build_method("grpo", {}), world=world).world is world
    external = {"kind": "external", "path": "elsewhere"}
    for method in (build_method("sd", {"weights": external}), Mixed.model_validate({"weights": external})):
        with pytest.raises(ConfigError, match="another model as its teacher"):
            made(method)


class Mixed(SD):
    """SD with a second teacher, whose weights are the student's own."""

    def roles(self) -> Mapping[str, Role]:
        """One teacher of each kind."""
        return {**super().roles(), "other": Role(None)}
