"""A signal that fits each prompt: groups dropped, replaced and weighed, long completions, and a curriculum."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import parse_config
from selfdistill.config.signal import SignalConfig
from selfdistill.contexts.templates import Template
from selfdistill.errors import ConfigError
from selfdistill.sampling.resampling import has_equal_rewards, share_right
from selfdistill.scoring.prepare import Prepared
from selfdistill.training.order import Order
from selfdistill.training.shaping import EQUAL, OVERLONG, UNJUDGED, Shaping
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict, View
from support.engine import distance, invent_groups, load_exact, make_bench, size_of
from support.runs import METHODS, lines, open_run, outcome, tiny_run, train


def group(*rewards: float | None, name: str = "one", length: int = 4, finished: bool = True) -> RolloutGroup:
    rollout = Rollout((1,), (2,) * length, (0.0,) * length, finished, "", 0)
    return RolloutGroup(Example(name, ()), (rollout,) * len(rewards), tuple(Verdict(r) for r in rewards))


def views_of(groups: Sequence[RolloutGroup]) -> Prepared:
    return Prepared(
        [
            View({"student": r.prompt_ids}, r.completion_ids, (1.0,) * len(r.completion_ids), r.logprobs, 0.0, g, i)
            for g, one in enumerate(groups)
            for i, r in enumerate(one.rollouts)
        ]
    )


def shaped(groups: Sequence[RolloutGroup], **signal: Any) -> Prepared:
    return Shaping(SignalConfig.model_validate(signal), 10).shape(views_of(groups), groups)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_groups_weigh_by_p_times_one_minus_p_or_its_root() -> None:
    groups = [group(1.0, 0.0, 0.0, 0.0), group(1.0, 1.0, None), group(None, None), group(1.0, 0.5)]
    for weight, expected in (("variance", [3 / 16, 1 / 4]), ("deviation", [math.sqrt(3) / 4, 1 / 2])):
        result = shaped(groups, weight=weight)
        assert [view.weights for view in result.views] == [(expected[0],) * 4] * 4 + [(expected[1],) * 4] * 2
        assert result.skipped == {"group of weight 0, all right or all wrong": 3, UNJUDGED: 2}
        assert result.dropped == 5
    assert shaped(groups).views == views_of(groups).views


def test_a_verdict_of_its_own_says_what_is_right_and_other_roles_do_not_count() -> None:
    one = group(0.2, 0.4)
    right = replace(one, verdicts=(Verdict(0.2, success=True), Verdict(0.4, success=False)))
    assert (share_right(one), share_right(right), share_right(group(None))) == (0.0, 0.5, None)
    alone = replace(one, rollouts=tuple(replace(each, source="teacher") for each in one.rollouts))
    assert not has_equal_rewards(alone)
    teachers = replace(one, rollouts=(one.rollouts[0], replace(one.rollouts[1], source="teacher")))
    assert (has_equal_rewards(one), has_equal_rewards(teachers), has_equal_rewards(group(None, 1.0))) == (
        False,
        True,
        True,
    )


@pytest.mark.parametrize("name", ["grpo", "opsd", "sdft", "sd", "sdpo"])
def test_a_step_without_groups_of_equal_reward_is_the_step_of_the_others_alone(
    name: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    groups = invent_groups(policy, chat)
    groups = [replace(groups[0], verdicts=tuple(Verdict(1.0) for _ in groups[0].verdicts)), *groups[1:]]
    assert any(not has_equal_rewards(one) for one in groups)
    gradients = []
    for shaping, given in (
        (Shaping(SignalConfig(equal="drop"), 10), groups),
        (None, [one for one in groups if not has_equal_rewards(one)]),
        (None, groups),
    ):
        policy, chat = load_exact(folder)
        bench = make_bench(policy, chat, templates, name, {})
        bench.trainer.shaping = shaping
        result = bench.step(given)
        gradients.append(bench.gradient())
        if shaping:
            assert result.record.skipped[EQUAL] > 0
    assert size_of(gradients[1]) > 1e-6
    assert distance(gradients[0], gradients[1]) < 1e-12
    # Weighing tokens without advantage counts in the mean, so leaving them out is something else.
    assert distance(gradients[2], gradients[1]) > 1e-3


def test_a_step_in_which_every_group_is_left_out_changes_nothing(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    groups = [replace(one, verdicts=(Verdict(1.0),) * len(one.rollouts)) for one in invent_groups(policy, chat)]
    bench = make_bench(policy, chat, templates, "grpo", {})
    bench.trainer.shaping = Shaping(SignalConfig(equal="drop"), 10)
    result = bench.step(groups)
    assert (result.record.loss, result.record.grad_norm, result.views) == (0.0, 0.0, [])


# --- long completions ------------------------------------------------------------------------------------------------


def test_the_punishment_of_long_completions_is_dapos() -> None:
    """Its L_max is 20480 and its cache 4096 tokens, a fifth."""
    dapo = Shaping(SignalConfig(overlong="punish"), 20480)
    lengths = (1, 16384, 16385, 18432, 20480, 30000)
    assert [dapo.punishment(length) for length in lengths] == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0]
    short = Shaping(SignalConfig(overlong="punish", margin=4), 10)
    [punished] = short.punish([group(1.0, None, 0.0, length=8, finished=True)])
    assert [verdict.reward for verdict in punished.verdicts] == [0.5, None, -0.5]
    # What is right stays right.
    assert [verdict.correct for verdict in punished.verdicts] == [True, False, False]
    assert Shaping(SignalConfig(), 10).punish([group(1.0)]) == [group(1.0)]


def test_the_advantages_of_a_step_are_those_of_the_punished_rewards(
    folder: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, "grpo", {"scale": "none"})
    groups = invent_groups(policy, chat)
    longest = max(len(rollout.completion_ids) for one in groups for rollout in one.rollouts)
    shaping = Shaping(SignalConfig(overlong="punish", margin=longest - 1), longest)
    bench.trainer.shaping = shaping
    for view in bench.trainer.prepare(groups, step=1).views:
        one = groups[view.group]
        rewards = [
            None if v.reward is None else v.reward + shaping.punishment(len(r.completion_ids))
            for r, v in zip(one.rollouts, one.verdicts, strict=True)
        ]
        judged = [reward for reward in rewards if reward is not None]
        own = rewards[view.index]
        expected = 0.0 if own is None or len(set(judged)) < 2 else own - sum(judged) / len(judged)
        assert view.advantage == pytest.approx(expected, abs=1e-12)


def test_masked_completions_that_were_cut_leave_the_loss_and_stay_in_the_groups_mean() -> None:
    one = group(1.0, 0.0)
    cut = replace(one, rollouts=(one.rollouts[0], replace(one.rollouts[1], finished=False)))
    result = shaped([cut], overlong="mask")
    assert [view.index for view in result.views] == [0]
    assert (result.skipped, result.dropped) == ({OVERLONG: 1}, 1)
    assert len(shaped([cut]).views) == 2


# --- other prompts ---------------------------------------------------------------------------------------------------


def test_a_step_draws_other_prompts_for_groups_of_equal_reward_and_reports_what_it_cost(
    folder: Path, tmp_path: Path
) -> None:
    config = tiny_run(folder, "grpo", "signal.equal=resample", "signal.most=2.5")
    train(config, tmp_path / "run")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    for line in lines(tmp_path / "run" / "metrics.jsonl"):
        own = [row for row in rollouts if row["step"] == line["step"]]
        groups = [own[n : n + 3] for n in range(0, len(own), 3)]
        assert len({rows[0]["example"] for rows in groups}) == len(groups) <= 7
        further = [row for rows in groups[3:] for row in rows]
        assert line["resampled_prompts"] == len(groups) - 3
        assert line["resampled_completions"] == len(further)
        assert line["resampled_tokens"] == sum(len(row["ids"]) for row in further)
        unequal = [rows for rows in groups if len({row["reward"] for row in rows}) > 1]
        assert line["unequal_groups"] == len(unequal)
        # It stops when as many groups teach as were asked for, or at the bound of 7 of the 8 examples.
        assert len(unequal) == 3 or len(groups) == 7
        assert line["dropped"] == 3 * (len(groups) - len(unequal))
        assert line["generated"] == sum(len(row["ids"]) for row in own)
        assert "resampling" in line["phase_seconds"]
    assert sum(line["resampled_prompts"] for line in lines(tmp_path / "run" / "metrics.jsonl")) > 0


@pytest.mark.parametrize(
    ("method", "signal"),
    [
        ("grpo", "equal=resample"),
        ("grpo", "curriculum=true"),
        ("grpo", "overlong=punish"),
        ("sdpo", "weight=variance"),
        ("antisd", "curriculum=true"),
        ("pbsd_reward", "equal=resample"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(method: str, signal: str, folder: Path, tmp_path: Path) -> None:
    config = tiny_run(folder, METHODS[method], f"signal.{signal}")
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=1)
    train(config, tmp_path / "parts", resume=True, stop_after=3)
    train(config, tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


# --- curriculum ------------------------------------------------------------------------------------------------------

EXAMPLES = [Example(f"rows:{n}", (Message("user", str(n)),)) for n in range(6)]


def order(**signal: Any) -> Order:
    return Order(EXAMPLES, 2, 0, SignalConfig(curriculum=True, **signal))


def test_estimates_are_averages_of_the_shares_right_that_a_draw_two_steps_later_knows() -> None:
    one = order(curriculum_rate=0.25)
    for step, share in ((1, (1.0, 1.0)), (2, (1.0, 0.0)), (3, (0.0, 0.0))):
        numbers = one.record(step, [group(*share, name="rows:0"), group(None, name="rows:1")])
    after = [0.5, 0.75 * 0.5 + 0.25, 0.75 * 0.625 + 0.125, 0.75 * 0.59375]
    assert [one._estimates(step).get("rows:0", 0.5) for step in (3, 4, 5)] == after[1:]
    assert numbers == {"curriculum_known": 1 / 6, "curriculum_success": after[3]}
    assert "rows:1" not in one._estimates(9)


def test_what_was_always_or_never_solved_comes_last_and_what_is_at_the_edge_as_often_as_its_weight_says() -> None:
    one = order(curriculum_floor=0.05)
    one.success = {"rows:0": 0.0, "rows:1": 1.0, "rows:2": 0.1}
    counts: dict[str, int] = {}
    draws = 6000
    steps = one.steps(1)
    for _ in range(draws):
        first, second = next(steps)
        assert first.id != second.id
        counts[first.id] = counts.get(first.id, 0) + 1
    weights = [0.05, 0.05, 0.14, 0.3, 0.3, 0.3]
    for example, weight in zip(EXAMPLES, weights, strict=True):
        p = weight / sum(weights)
        assert abs(counts[example.id] - draws * p) < 4.5 * math.sqrt(draws * p * (1 - p))


def test_the_draws_of_a_run_do_not_depend_on_where_it_was_taken_up() -> None:
    """Also when the draw of the step after next was made before a step was left."""

    def outcomes(step: int) -> list[RolloutGroup]:
        return [group(float(step % 2), name=f"rows:{(step + n) % 6}") for n in range(2)]

    sharp = {"curriculum_rate": 1.0, "curriculum_floor": 1e-3}
    whole = order(**sharp)
    drawn, expected = pairwise(whole.steps(1)), []
    for step in range(1, 9):
        expected.append(next(drawn))
        whole.record(step, outcomes(step))
    for stop in range(1, 8):
        for left in (False, True):
            first = order(**sharp)
            draws = pairwise(first.steps(1))
            for step in range(1, stop + 1):
                assert next(draws) == expected[step - 1]
                first.record(step, outcomes(step))
            if left:
                next(draws)
            second = order(**sharp)
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
            draws = pairwise(second.steps(stop + 1))
            for step in range(stop + 1, 9):
                assert next(draws) == expected[step - 1]
                second.record(step, outcomes(step))
    # Outcomes matter: without them other prompts come.
    assert [next(order(**sharp).steps(n)) for n in range(3, 9)] != [pair[0] for pair in expected[2:]]


def test_without_a_curriculum_the_order_is_that_of_shuffled_epochs() -> None:
    plain = Order(EXAMPLES, 4, 0, SignalConfig())
    drawn = [next(plain.steps(1)), *([next(plain.steps(2))])]
    assert sorted(one.id for one in [*drawn[0], *drawn[1][:2]]) == [one.id for one in EXAMPLES]
    assert plain.record(1, [group(1.0)]) == {}


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("sft", ["signal.curriculum=true"], "signal.curriculum needs rewards .* 'sft' samples no completions"),
        ("sft", ["signal.equal=drop"], "signal.equal needs rewards of completions, but method 'sft' samples"),
        (
            "grpo",
            [
                "signal.equal=resample",
                "sampler.kind=server",
                "sampler.urls=['http://127.0.0.1:1']",
                "sampler.overlap=true",
            ],
            "with sampler.overlap the engine samples the next step by then",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(
    method: str, overrides: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_run(tiny_run(folder, method, *overrides), tmp_path / "run")


def test_a_margin_without_a_punishment_is_refused() -> None:
    with pytest.raises(ConfigError, match="margin is that of a punishment"):
        parse_config({"method": "grpo", "signal": {"margin": 5}}, "mine.toml")
