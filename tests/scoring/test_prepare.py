"""Who enters the loss and what the loss is given, decided once for training and the microscope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, cast

import pytest
import torch

from selfdistill.config.sections import Limits, limits_on
from selfdistill.contexts.templates import Template
from selfdistill.errors import ConfigError, ModelError
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.methods import Method, build_method
from selfdistill.methods.base import BatchScores, State
from selfdistill.methods.opsd import OPSD
from selfdistill.methods.sdpo import SDPO
from selfdistill.models.head import HeadInput, LossInputs, sliced_loss, token_metrics
from selfdistill.models.policy import Policy
from selfdistill.scoring.batching import MicroBatch, collate
from selfdistill.scoring.prepare import Rendered, batch_inputs, loss_inputs, prepare, render
from selfdistill.seeds import derive
from selfdistill.types import (
    Example,
    Message,
    Role,
    Rollout,
    RolloutGroup,
    Scores,
    Skipped,
    TokenSlice,
    Verdict,
    View,
    has_prompt,
)
from support.engine import invent_groups, load_exact, make_bench

KNOBS: Mapping[str, dict[str, Any]] = {
    "grpo": {},
    "antisd": {"gated": False},
    "sdpo": {},
    "credit": {},
    "credit in advantage form": {"form": "advantage"},
    "purified": {},
}


class Lenient(SDPO):
    """SDPO that would rather keep completions without a context, and compares whole distributions."""

    without_context: ClassVar[Literal["drop", "keep"]] = "keep"


class Marked(OPSD):
    """Numbers the views of a batch, and their tokens."""

    def on_batch(
        self, state: State | None, batch: BatchScores
    ) -> Mapping[str, float | torch.Tensor | Sequence[torch.Tensor]]:
        """1, 2, 3 … by view, how many there are, the share of the run, and … 3, 2, 1 by token."""
        return {
            "mark": torch.arange(1, len(batch.views) + 1),
            "count": float(len(batch.views)),
            "share": batch.step / (batch.steps or 1),
            "backwards": [torch.arange(len(view.completion_ids), 0, -1) for view in batch.views],
        }


class Masked(SDPO):
    """The teacher's cross-entropy where there is a teacher, and the token's own −log-probability elsewhere."""

    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "mask"

    def loss(self, tokens: TokenSlice) -> torch.Tensor:
        """Each token's own part."""
        compared_N = -(tokens.roles["teacher"].exp() * tokens.student.clamp_min(-1e3)).sum(-1)
        return torch.where(tokens.has("teacher"), compared_N, -tokens.target("student"))


class Twice(SDPO):
    """The teacher is scored before the loss and compared in it."""

    def precompute(self) -> Sequence[str]:
        """The teacher, whose entropies ``on_batch`` sees."""
        return ("teacher",)

    def compared(self) -> Sequence[str]:
        """The teacher again."""
        return ("teacher",)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, torch.Tensor]:
        """How far the two log-probabilities of the token are apart."""
        return {"apart": (tokens.inputs["teacher"] - tokens.target("teacher")).abs()}


class Hot(OPSD):
    """OPSD whose teacher is read at temperature 2: before the loss, or in it."""

    before: bool = False

    def roles(self) -> Mapping[str, Role]:
        """The teacher at temperature 2, and again at 1."""
        [role] = super().roles().values()
        return {"teacher": replace(role, temperature=2.0), "plain": role}

    def precompute(self) -> Sequence[str]:
        """The hot teacher, if asked."""
        return ("teacher",) if self.before else ()

    def metrics(self, tokens: TokenSlice) -> Mapping[str, torch.Tensor]:
        """How far the hot teacher is from the plain one's distribution, softened by hand."""
        softened_NV = torch.log_softmax(tokens.roles["plain"] / 2.0, -1)
        by_hand_N = softened_NV.gather(-1, tokens.target_N[:, None]).squeeze(-1)
        plain_N = tokens.target("plain")
        return {"apart": (tokens.target("teacher") - by_hand_N).abs(), "hot": (plain_N - by_hand_N).abs()}

    def loss(self, tokens: TokenSlice) -> torch.Tensor:
        """The student's own −log-probability: the metrics alone count here."""
        return -tokens.target("student")


@pytest.mark.parametrize("case", KNOBS)
def test_the_microscope_measures_what_a_training_step_measures(
    case: str, model: Path, templates: Mapping[str, Template]
) -> None:
    name, hyperparameters = case.partition(" ")[0], KNOBS[case]
    policy, chat = load_exact(model)
    # The microscope takes completions as just sampled by the student, whatever their log-probabilities were.
    groups, others = (invent_groups(policy, chat, off=off) for off in (0.0, 0.4))
    found = inspect_groups(
        policy, chat, others, plan({"m": build_method(name, hyperparameters)}, [], templates), templates,
        thinking=None, seed=derive(0, "contrast", 1),
    )  # fmt: skip
    trained = make_bench(policy, chat, templates, name, hyperparameters).step(groups)
    credit_N = torch.from_numpy(found.credits["m"])
    assert int((~credit_N.isnan()).sum()) == sum(len(view.completion_ids) for view in trained.views)
    assert found.metrics["m"]
    for metric, values in found.metrics["m"].items():
        entering_N = torch.from_numpy(values)[~credit_N.isnan()]
        assert float(entering_N.double().mean()) == pytest.approx(trained.record.values[metric], rel=1e-4, abs=1e-6)


def test_a_compared_context_that_is_missing_leaves_the_loss_even_if_the_method_could_do_without(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    results = [make_bench(policy, chat, templates, name, {}).step(groups) for name in ("test_prepare:Lenient", "sdpo")]
    lenient, plain = results
    assert lenient.record.values["dropped"] == plain.record.values["dropped"] == 3.0
    assert lenient.record.loss == plain.record.loss


def test_a_method_that_masks_keeps_completions_without_a_context_and_knows_which(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    bench = make_bench(policy, chat, templates, "test_prepare:Masked", {})
    views = bench.trainer.prepare(groups, step=1).views
    assert [("teacher" in view.prompts) for view in views].count(False) == 3
    assert len(views) == 12
    losses = []
    for view in views:
        teacher, student = (_logprobs(policy, view, role) for role in ("teacher", "student"))
        assert student is not None
        own_N = -student.gather(-1, torch.tensor(view.completion_ids)[:, None]).squeeze(-1)
        losses.append(own_N if teacher is None else -(teacher.exp() * student.clamp_min(-1e3)).sum(-1))
    # One completion a micro-batch: some hold no completion with a teacher at all.
    small = make_bench(
        policy, chat, templates, "test_prepare:Masked", {}, limits=replace_limits(max_tokens_per_microbatch=1)
    )
    norms = []
    for one in (bench, small):
        result = one.step(groups)
        assert result.record.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-12)
        assert [s is None for s in result.scores["teacher"]] == ["teacher" not in view.prompts for view in views]
        norms.append(result.record.grad_norm)
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    assert 0 < norms[0] < math.inf


def replace_limits(**changes: int) -> Limits:
    return limits_on("cpu").model_copy(update=changes)


def _logprobs(policy: Policy, view: View, role: str) -> torch.Tensor | None:
    """Log-probabilities [N, V] of a view's tokens under one role's prompt, or None without it."""
    if role not in view.prompts:
        return None
    alone = View({"student": view.prompts[role]}, view.completion_ids, (), (), 0.0, 0, 0)
    with torch.no_grad():
        return policy.head_input(collate([alone], "student", packed=policy.packs)).logprobs(slice(None))


def test_a_role_may_be_scored_before_the_loss_and_compared_in_it(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    plain = make_bench(policy, chat, templates, "sdpo", {}).step(groups)
    twice = make_bench(policy, chat, templates, "test_prepare:Twice", {}).step(groups)
    assert twice.record.loss == pytest.approx(plain.record.loss, rel=1e-12)
    assert twice.record.values["apart"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("before", [False, True])
def test_a_role_with_a_temperature_is_read_at_it_before_and_in_the_loss_and_by_the_microscope(
    before: bool, model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    knobs = {"before": before}
    wanted = plan({"m": build_method("test_prepare:Hot", knobs)}, [], templates)
    found = inspect_groups(policy, chat, groups, wanted, templates, thinking=None, seed=derive(0, "contrast", 1))
    assert float(torch.from_numpy(found.metrics["m"]["apart"]).nan_to_num().max()) < 1e-6
    values = make_bench(policy, chat, templates, "test_prepare:Hot", knobs).step(groups).record.values
    assert values["apart"] == pytest.approx(0.0, abs=1e-12)
    hot = values["hot"]
    assert isinstance(hot, float) and hot > 0.01


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(2, 2), r"'bad' of shape \(2, 2\): a tensor holds one number for each of the 2 views"),
        ([torch.zeros(2)], r"the list 'bad' with 1 tensors: it holds one tensor for each of the 2 views"),
        ([torch.zeros(2), torch.zeros(2)], "of one number for each of its tokens"),
    ],
)
def test_numbers_of_a_batch_that_fit_no_view_are_refused(returned: object, message: str) -> None:
    class Bad(OPSD):
        def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, Any]:
            return {"bad": returned}

    with pytest.raises(ConfigError, match=message):
        batch_inputs(Bad(), None, [view(2, 1.0, group=0), view(3, 1.0, group=1)], {})


def test_completions_outside_the_loss_come_along_with_weight_zero(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    method = build_method("sdpo", {})
    rendered = render(groups, method.roles(), templates, chat, thinking=None, seed=0)
    inside = prepare(groups, method, rendered)
    everyone = prepare(groups, method, rendered, with_left_out=True)
    assert [(view.group, view.index) for view in everyone.views] == [(g, i) for g in range(3) for i in range(4)]
    assert [view for view in everyone.views if any(view.weights)] == inside.views
    assert (everyone.skipped, everyone.dropped) == (inside.skipped, inside.dropped) == (inside.skipped, 3)
    assert {weight for view in everyone.views for weight in view.weights} == {0.0, 1.0}


def test_a_method_sees_only_completions_that_enter_and_the_loss_gets_its_numbers_per_token(model: Path) -> None:
    policy, _ = load_exact(model)
    views = [view(2, 1.0, group=0), view(3, 0.0, group=1), view(1, 1.0, group=2)]
    scores: list[Scores | None] = [Scores(torch.full((n,), -float(n)), torch.zeros(n)) for n in (2, 3, 1)]
    scores[1] = None
    batch = batch_inputs(Marked(), None, views, {"teacher": scores, "student": scores})
    assert (batch.values, batch.total_weight) == ({"count": 2.0, "share": 1.0}, 3.0)
    later = batch_inputs(Marked(), None, views, {"teacher": scores, "student": scores}, step=3, steps=4)
    assert later.values["share"] == 0.75
    micro_batch = MicroBatch([2, 1, 0])
    target_N = torch.arange(6)
    job = loss_inputs(Marked(), batch, micro_batch, target_N, {}, policy, max_logits_per_chunk=7)
    nan = math.nan
    assert job.inputs.keys() == {
        *("advantage", "old_logprob", "position", "length", "segment", "mark", "backwards", "teacher")
    }
    same(job.inputs["position"], [0, 0, 1, 2, 0, 1])
    same(job.inputs["length"], [1, 3, 3, 3, 2, 2])
    same(job.inputs["segment"], [1] * 6)
    same(job.inputs["backwards"], [1, nan, nan, nan, 2, 1])
    same(job.inputs["mark"], [2, nan, nan, nan, 1, 1])
    same(job.inputs["teacher"], [-1, nan, nan, nan, -2, -2])
    same(job.inputs["advantage"], [2, 1, 1, 1, 0, 0])
    same(job.weight_N, [1 / 3, 0, 0, 0, 1 / 3, 1 / 3])
    dummy = loss_inputs(
        Marked(), batch, MicroBatch([0], is_dummy=True), target_N[:2], {}, policy, max_logits_per_chunk=7
    )
    same(dummy.weight_N, [0, 0])


class Watching(OPSD):
    """Numbers the views of a batch, and hands on the update and the state that it is given."""

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, Any]:
        """What is asked for, and where the batch stands."""
        marks = torch.arange(1, len(batch.views) + 1)
        tokens = [torch.arange(len(view.completion_ids)) for view in batch.views]
        return {"mark": marks, "token": tokens, "update": batch.update, "open": getattr(state, "open", -1.0)}


def test_a_batch_knows_its_update_and_the_methods_state_and_keeps_whole_numbers_as_they_are() -> None:
    views = [replace(view(2, 1.0, group=0), weights=(1.0, 0.0)), view(3, 1.0, group=1)]
    batch = batch_inputs(Watching(), None, views, {})
    # A completion of which one token has weight 0 still enters.
    assert batch.per_view["mark"].tolist() == [1, 2] and batch.per_view["mark"].dtype == torch.int64
    assert [numbers.dtype for numbers in batch.per_token["token"]] == [torch.int64] * 2
    assert (batch.values, batch.total_weight) == ({"update": 0, "open": -1.0}, 4.0)
    state = cast(State, SimpleNamespace(open=1.0))
    assert batch_inputs(Watching(), state, views, {}, update=2).values == {"update": 2, "open": 1.0}


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("meta", torch.float32)])
def test_the_loss_gets_all_its_inputs_in_its_own_type_and_place_and_a_mask_only_where_a_context_is_missing(
    device: str, dtype: torch.dtype
) -> None:
    # bfloat16 weights have a loss in float32.
    weight = torch.zeros(1, dtype=torch.bfloat16 if device == "meta" else dtype, device=device)
    policy = cast(Policy, SimpleNamespace(device=weight.device, parameters=lambda: iter([weight])))
    with_both = replace(view(2, 1.0, group=0), prompts={"student": (1,), "teacher": (2,)})
    alone, head = view(1, 1.0, group=1), HeadInput(torch.zeros(3, 2), torch.zeros(5, 2), None, 5)

    def job(*views: View, scores: Sequence[bool] = (True, False)) -> LossInputs:
        scored = [
            Scores(torch.zeros(len(v.completion_ids)), torch.zeros(0)) if has else None
            for v, has in zip(views, scores, strict=True)
        ]
        batch = batch_inputs(Watching(), None, views, {"scored": scored})
        micro_batch = MicroBatch(list(range(len(views))))
        target_N = torch.zeros(sum(len(each.completion_ids) for each in views), dtype=torch.long)
        return loss_inputs(Watching(), batch, micro_batch, target_N, {"teacher": head}, policy, max_logits_per_chunk=7)

    masked = job(with_both, alone)
    assert masked.inputs.keys() - job(with_both, with_both).inputs.keys() == {has_prompt("teacher")}
    assert {"mark", "token", "scored"} < masked.inputs.keys()
    assert {(name, n.dtype, n.device.type) for name, n in masked.inputs.items()} == {
        (name, dtype, device) for name in masked.inputs
    }
    assert (masked.weight_N.dtype, masked.weight_N.device.type) == (dtype, device)
    assert (masked.target_N.device.type, masked.max_logits_per_chunk) == (device, 7)
    # Also where no view, or every view, has scores of the role.
    for scores in ((False, False), (True, True)):
        assert job(with_both, alone, scores=scores).inputs["scored"].dtype == dtype
    if device == "cpu":
        same(masked.inputs[has_prompt("teacher")], [1, 1, 0])
        same(masked.inputs["scored"], [0, 0, math.nan])


def test_a_step_without_groups_has_no_views() -> None:
    assert prepare([], Picky(), []).views == []


def view(length: int, weight: float, *, group: int) -> View:
    """A completion whose advantage is its group's number."""
    return View({"student": (1,)}, (5,) * length, (weight,) * length, (-1.0,) * length, float(group), group, 0)


def same(values_N: torch.Tensor, expected: Sequence[float]) -> None:
    torch.testing.assert_close(values_N.double(), torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_only_a_sampling_role_is_scored_under_the_prompt_that_it_sampled_from(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = [mark_prompt(group) for group in invent_groups(policy, chat)]
    roles = {"teacher": Role("solution")}
    [sampled, hindsight] = [
        render(groups, roles, templates, chat, thinking=None, seed=0, sampling_roles=sampling)[0][0]["teacher"]
        for sampling in (("student", "teacher"), ())
    ]
    assert sampled == (7, 8, 9)
    assert (
        hindsight == render(invent_groups(policy, chat), roles, templates, chat, thinking=None, seed=0)[0][0]["teacher"]
    )
    too_long = render(groups, roles, templates, chat, thinking=None, seed=0, room=chat.window)[0][0]["teacher"]
    assert isinstance(too_long, Skipped)


def test_a_sampling_role_that_drew_nothing_knows_the_example_alone(
    model: Path, templates: Mapping[str, Template]
) -> None:
    """No completion, and nothing that follows from one, was there when it would have sampled."""
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    roles = {name: Role(name) for name in ("solution", "sibling", "solution_verdict", "other_question_bare")}
    sampling = render(groups, roles, templates, chat, thinking=None, seed=0, sampling_roles=tuple(roles))
    scored = render(groups, roles, templates, chat, thinking=None, seed=0)
    for before, after in zip(sampling[0], scored[0], strict=True):
        assert before["solution"] == after["solution"]
        for name in ("sibling", "solution_verdict", "other_question_bare"):
            assert isinstance(before[name], Skipped)
            assert name == "sibling" or not isinstance(after[name], Skipped)
    # Another question that the row itself has is known before sampling.
    [group, *_] = groups
    group = replace(group, example=replace(group.example, fields={"other_question": "make 9 ."}))
    role = {"other": Role("other_question_bare")}
    [[prompts, *_]] = render([group], role, templates, chat, thinking=None, seed=0, sampling_roles=("other",))
    assert prompts["other"] == chat.encode((Message("user", "make 9 ."),))


def test_the_student_is_scored_under_the_prompt_that_it_sampled_from(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    [group, *_] = invent_groups(policy, chat)
    group = replace(group, rollouts=tuple(replace(r, prompt_ids=(5, 6, i)) for i, r in enumerate(group.rollouts)))
    [rendered] = render([group], {"student": Role(None), "base": Role(None)}, templates, chat, thinking=None, seed=0)
    assert [prompts["student"] for prompts in rendered] == [(5, 6, i) for i in range(len(group.rollouts))]
    assert {prompts["base"] for prompts in rendered} == {chat.encode(group.example.prompt)}


def test_the_seed_chooses_the_other_input_as_a_whole(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    said = ("feedback", "solution", "attempt")
    groups = [
        replace(group, example=replace(group.example, prompt=(Message("system", word), *group.example.prompt)))
        for group, word in zip(invent_groups(policy, chat), said, strict=True)
    ]
    inputs = {chat.encode(group.example.prompt) for group in groups[1:]}

    def contrast(seed: int) -> Any:
        roles = {"contrast": Role("other_question_bare")}
        return render(groups, roles, templates, chat, thinking=None, seed=seed)[0][0]["contrast"]

    # Each is the system message of the same example as the question, and none is always the same.
    assert {contrast(seed) for seed in range(12)} == inputs
    assert contrast(3) == contrast(3)


class Picky(OPSD):
    """Keeps every second completion, and has an advantage of its own for each turn."""

    weighting: ClassVar[Literal["token", "completion"]] = "completion"

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        """The second, the fourth …"""
        return [i % 2 == 1 for i in range(len(group.rollouts))]

    def advantages(self, rewards_PG: torch.Tensor) -> torch.Tensor:
        """The reward, and −1 where there is none."""
        return rewards_PG.nan_to_num(-1.0)

    def turn_advantages(self, group: RolloutGroup, advantages: Sequence[float]) -> Sequence[Sequence[float]]:
        """The advantage, and how many completions the group has."""
        return [[advantage, float(len(group.rollouts))] for advantage in advantages]


def test_a_view_holds_what_is_known_of_its_completion() -> None:
    def one(text: str, *ids: int, source: str = "student") -> Rollout:
        return Rollout((1, 2), ids, tuple(-float(n) for n in range(len(ids))), True, text, 0, source)

    rollouts = (one("a", 5), one("b", 5, 6), one("c", 5, 6, 7), one("d", 8, 9, source="teacher"), one("e", 4, 4))
    verdicts = (Verdict(1.0), Verdict(0.25), Verdict(None), Verdict(1.0), Verdict(1.0))
    groups = [
        RolloutGroup(Example("x", ()), rollouts, verdicts),
        RolloutGroup(Example("y", ()), rollouts[:2], verdicts[:2]),
    ]
    rendered: Rendered = [[{"teacher": (3,) if i != 1 else Skipped("t", ("solution",))} for i in range(5)]]
    rendered.append(rendered[0][:2])
    prepared = prepare(groups, Picky(), rendered, with_left_out=True)
    assert [(view.group, view.index) for view in prepared.views] == [*((0, i) for i in range(5)), (1, 0), (1, 1)]
    # Four are left out by the method, and the second of each group lacks its context.
    assert prepared.dropped == 6
    assert prepared.skipped == {"left out by the method": 4, Skipped("t", ("solution",)).reason: 2}
    second, fourth = prepared.views[1], prepared.views[3]
    assert fourth == View(
        prompts={"student": (1, 2), "teacher": (3,)},
        completion_ids=(8, 9),
        weights=(0.5, 0.5),
        old_logprobs=(0.0, -1.0),
        # Another role's sample has no reward of its own among the student's, and its group still has a pass rate:
        # of the student's judged completions two of three are right.
        advantage=-1.0,
        group=0,
        index=3,
        source="teacher",
        reward=1.0,
        correct=True,
        pass_rate=2 / 3,
        gaps={},
        turn_advantages=(-1.0, 5.0),
    )
    assert (second.weights, second.advantage, second.turn_advantages) == ((0.0, 0.0), 0.25, (0.25, 5.0))
    assert prepared.views[0].prompts == {"student": (1, 2)}
    assert (second.prompts, second.reward, second.correct) == ({"student": (1, 2)}, 0.25, False)
    # Without the views that are left out there is one.
    assert prepare(groups, Picky(), rendered).views == [fourth]
    unjudged = RolloutGroup(Example("z", ()), rollouts[:2], (Verdict(None), Verdict(None)))
    shown: Rendered = [[{"teacher": (3,)}, {"teacher": (3,)}]]
    [_, view] = prepare([unjudged], Picky(), shown, with_left_out=True).views
    assert (view.pass_rate, view.reward, view.correct) == (None, None, False)


def test_the_thinking_switch_reaches_every_role(model: Path, templates: Mapping[str, Template]) -> None:
    """This chat template has none, and says so."""
    policy, chat = load_exact(model)
    with pytest.raises(ModelError, match="has no enable_thinking switch"):
        render(invent_groups(policy, chat), {"t": Role("solution")}, templates, chat, thinking=True, seed=0)


def mark_prompt(group: Any) -> Any:
    """The same group, whose last rollout its teacher has sampled from a prompt of its own."""
    last = replace(group.rollouts[-1], source="teacher", role_prompt_ids=(7, 8, 9))
    return replace(group, rollouts=(*group.rollouts[:-1], last))


@pytest.mark.parametrize("max_logits", [1, 20, 1 << 20])
def test_metrics_of_each_token_add_up_to_the_weighted_sums_of_the_loss(max_logits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND, teacher_ND = (torch.randn(6, 4, generator=generator) for _ in range(2))
    weight_VD = torch.randn(5, 4, generator=generator)
    student, teacher = (HeadInput(hidden, weight_VD, None, 5) for hidden in (hidden_ND, teacher_ND))
    method: Method = build_method("sdpo", {})
    job = LossInputs(
        target_N=torch.tensor([0, 1, 2, 3, 4, 0]),
        weight_N=torch.tensor([0.25, 0.25, 0.0, 0.125, 0.125, 0.25]),
        loss=method.loss,
        metrics=method.metrics,
        head_inputs={"teacher": teacher},
        inputs={"old_logprob": torch.full((6,), -1.5)},
        max_logits_per_chunk=max_logits,
    )
    measured = token_metrics(student, job)
    sums = sliced_loss(student, job).metric_sums
    assert measured.keys() == sums.keys() == {"ratio", "ratio_capped"}
    for name, values_N in measured.items():
        assert values_N.isnan().tolist() == [False, False, True, False, False, False]
        assert float((values_N.nan_to_num() * job.weight_N).sum()) == pytest.approx(sums[name], rel=1e-6)
    ratio_N = (torch.log_softmax(hidden_ND @ weight_VD.T, -1)[torch.arange(6), job.target_N] + 1.5).exp().clamp_max(2)
    torch.testing.assert_close(measured["ratio"][[0, 1, 3, 4, 5]], ratio_N[[0, 1, 3, 4, 5]])
