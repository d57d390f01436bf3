"""Advantages over turns: worked numbers, and gradients of a step by brute force turn by turn."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
import rewarded_by_hand as rewarded
from selfdistill.contexts.templates import Template
from selfdistill.errors import ConfigError
from selfdistill.files.records import RolloutLine
from selfdistill.methods import build_method
from selfdistill.objectives import advantages_within, group_advantages, returns_to_go
from selfdistill.sampling import environments
from selfdistill.sampling.environments import read_reply, read_start
from selfdistill.scoring.prepare import prepare
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.training.metrics import rollout_lines, signal_shares
from selfdistill.training.trainer import StepResult
from selfdistill.types import STUDENT, Reply, RolloutGroup, Start, StepRecord, Verdict
from support.engine import distance, load_exact, make_bench, perturb, size_of
from support.turns import Script, Spoken, by_hand, played, turn_advantages_by_hand

IN_GROUP = {"kind": "group_in_group", "discount": 0.5, "weight": 0.7}
TO_GO = {"kind": "reward_to_go", "discount": 0.5}
TokenLoss = Callable[[hand.Scored, int], torch.Tensor]
CASES: dict[str, tuple[str, dict[str, Any], TokenLoss]] = {
    "grpo to go": ("grpo", {"turn_advantage": TO_GO}, hand.grpo),
    "grpo in group": ("grpo", {"turn_advantage": IN_GROUP}, hand.grpo),
    # The sign of each turn's own advantage decides the direction of the weight.
    "rlsd in group": ("rlsd", {"turn_advantage": IN_GROUP, "decay": None}, rewarded.rlsd(0.5, 0.2)),
    "skill_sd in group": (
        "skill_sd",
        {"turn_advantage": IN_GROUP, "context": "solution", "weights": "live"},
        rewarded.skill_sd(0.1),
    ),
    "sdar to go": ("sdar", {"turn_advantage": TO_GO}, rewarded.sdar(0.1, 5.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_brute_force_with_each_turns_own_advantage(
    case: str, folder: Path, templates: Mapping[str, Template]
) -> None:
    name, hyperparameters, token_loss = CASES[case]
    policy, chat = load_exact(folder)
    bench = make_bench(policy, chat, templates, name, hyperparameters, move=perturb)
    groups = played(chat, Script(chat, policy))
    result = bench.step(groups)
    model = copy.deepcopy(policy.model)
    kind = hyperparameters["turn_advantage"]
    turns = []
    for view in result.views:
        tail, segments = by_hand(chat, view.group, view.index)
        own = [n for n, turn in enumerate(segments) if turn]
        given = turn_advantages_by_hand(view.group, kind["kind"], kind["discount"], kind.get("weight", 0.0))[view.index]
        assert view.turn_advantages == pytest.approx(given, rel=1e-12)
        whole = {role: hand.rows(model, prompt, tail, policy.vocab_size) for role, prompt in view.prompts.items()}
        of_role = {role: [column[n] for n in own] for role, column in whole.items()}
        sampled = groups[view.group].rollouts[view.index].logprobs
        # Each turn is a completion of its own with its own advantage: a token mean does not ask whose a token is.
        for turn, advantage in enumerate(given, 1):
            at = [k for k, n in enumerate(own) if segments[n] == turn]
            rows = {role: [column[k] for k in at] for role, column in of_role.items()}
            teacher = hand.frozen(rows["teacher"]) if "teacher" in rows else None
            ids, drawn = [tail[own[k]] for k in at], [sampled[k] for k in at]
            turns.append(hand.Scored(rows[STUDENT], teacher, ids, drawn, advantage))
    assert len(turns) == 11 and len({round(one.advantage, 9) for one in turns}) >= 4
    loss = hand.mean_over_tokens(turns, token_loss)
    assert result.record.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    expected = hand.gradient(model, loss)
    assert size_of(expected) > 1e-5
    assert distance(bench.gradient(), expected) < 1e-8


def test_returns_and_comparisons_in_numbers() -> None:
    rewards = torch.tensor([1.0, 0.0, 4.0]).double()
    assert returns_to_go(rewards).tolist() == [5.0, 4.0, 4.0]
    assert returns_to_go(rewards, discount=0.5).tolist() == [2.0, 2.0, 4.0]
    assert returns_to_go(rewards, discount=0.0).tolist() == rewards.tolist()
    assert returns_to_go(rewards[:0]).tolist() == []
    values, labels = torch.tensor([1.0, 5.0, 3.0, 9.0, torch.nan, 7.0]).double(), ["a", "b", "a", "c", "a", "b"]
    # a: 1 and 3, b: 5 and 7, c alone, and what is not judged is compared with none.
    root = 0.5**0.5
    assert advantages_within(values, labels).tolist() == pytest.approx([-root, -root, root, 0.0, 0.0, root])
    assert advantages_within(values, labels, scale="none").tolist() == [-1.0, -1.0, 1.0, 0.0, 0.0, 1.0]
    # ε is a floor of the standard deviation, here √2.
    assert advantages_within(values, labels, eps=1.0).tolist() == pytest.approx([-root, -root, root, 0.0, 0.0, root])
    assert advantages_within(values, labels, eps=2.0).tolist() == [-0.5, -0.5, 0.5, 0.0, 0.0, 0.5]
    assert advantages_within(values[:0], []).tolist() == []
    one = torch.tensor([0.0, 1.0, 2.0, 5.0]).double()
    assert advantages_within(one, [7] * 4).tolist() == group_advantages(one[None])[0].tolist()
    for wrong in (-0.1, 1.1, torch.nan):
        with pytest.raises(ValueError, match="discount must be from 0 to 1"):
            returns_to_go(rewards, discount=wrong)
    with pytest.raises(ValueError, match="2 labels for 1 values"):
        advantages_within(values[:1], ["a", "b"])


def group_of(chat: Any, number: int = 1) -> RolloutGroup:
    return played(chat, Script(chat))[number]


def test_defaults_are_gigpos_and_the_episode_and_limits_hold(folder: Path) -> None:
    _, chat = load_exact(folder)
    method = build_method("grpo", {})
    assert method.turn_advantages(group_of(chat), [1.0, -1.0, 0.0]) is None and not method.needs_turns()
    made = build_method("sdar", {"turn_advantage": {"kind": "group_in_group"}})
    assert made.needs_turns()
    dumped = {"kind": "group_in_group", "discount": 0.95, "weight": 1.0}
    assert made.model_dump()["turn_advantage"] == dumped
    assert build_method("grpo", {"turn_advantage": {"kind": "reward_to_go"}}).model_dump()["turn_advantage"] == {
        "kind": "reward_to_go",
        "discount": 1.0,
    }
    for table in (
        {"kind": "reward_to_go", "discount": 1.1},
        {"kind": "group_in_group", "weight": -1},
        {"kind": "reward_to_go", "weight": 1.0},
        {"kind": "turn"},
    ):
        with pytest.raises(ConfigError, match=r"method\.turn_advantage"):
            build_method("grpo", {"turn_advantage": table})


def test_a_turn_is_compared_with_those_of_the_same_named_state(folder: Path) -> None:
    _, chat = load_exact(folder)
    group = group_of(chat)
    method = build_method("grpo", {"scale": "none", "turn_advantage": {**IN_GROUP, "discount": 1.0, "weight": 1.0}})
    # Returns by turn: 1 1 1, 0 and 0.25 0.25. The second and the third turn of the first episode, and the second of
    # the last one, come after the same words.
    opening, words = (1 + 0 + 0.25) / 3, (1 + 1 + 0.25) / 3
    found = method.turn_advantages(group, [0.0, 0.0, 0.0])
    assert found is not None
    assert [number for row in found for number in row] == pytest.approx(
        [1 - opening, 1 - words, 1 - words, -opening, 0.25 - opening, 0.25 - words]
    )
    # A name parts what reads alike, joins what reads otherwise, and is never taken for words that are read.
    first, last = group.rollouts[0].episode, group.rollouts[2].episode
    assert first is not None and last is not None
    turns = (replace(first.turns[0], anchor="home"), *first.turns[1:])
    other = (replace(last.turns[0], anchor="home"), *last.turns[1:])
    named = replace(
        group,
        rollouts=(
            replace(group.rollouts[0], episode=replace(first, turns=turns)),
            replace(group.rollouts[1], episode=replace(group.rollouts[1].episode, anchor="home")),  # type: ignore[type-var]
            replace(group.rollouts[2], episode=replace(last, turns=other)),
        ),
    )
    found = method.turn_advantages(named, [0.0, 0.0, 0.0])
    assert found is not None
    home, start = (1 + 0 + 0.25) / 3, (1 + 0.25) / 2
    assert [number for row in found for number in row] == pytest.approx(
        [1 - start, 1 - home, 0.0, -home, 0.25 - start, 0.25 - home]
    )


def test_what_is_not_judged_or_sampled_by_another_role_is_compared_with_none(folder: Path) -> None:
    _, chat = load_exact(folder)
    group = group_of(chat)
    method = build_method("grpo", {"scale": "none", "turn_advantage": {"kind": "reward_to_go"}})
    unjudged = replace(group, verdicts=(Verdict(None), *group.verdicts[1:]))
    assert method.turn_advantages(unjudged, [0.0] * 3) == [[0.0, 0.0, 0.0], [-0.125], [0.125, 0.0]]
    drawn = replace(group, rollouts=(replace(group.rollouts[0], source="teacher"), *group.rollouts[1:]))
    assert method.turn_advantages(drawn, [0.0] * 3) == [[0.0, 0.0, 0.0], [-0.125], [0.125, 0.0]]
    # A single answer is an episode of one turn.
    single = replace(group, rollouts=tuple(replace(rollout, episode=None) for rollout in group.rollouts))
    found = method.turn_advantages(single, [0.0] * 3)
    assert found is not None and [len(row) for row in found] == [1, 1, 1]
    assert [row[0] for row in found] == pytest.approx([reward - 1.25 / 3 for reward in (1.0, 0.0, 0.25)])


def test_a_group_of_equal_episodes_has_a_signal_where_its_turns_differ(folder: Path) -> None:
    _, chat = load_exact(folder)
    group = group_of(chat)
    even = replace(group, verdicts=tuple(replace(verdict, reward=1.0) for verdict in group.verdicts))
    for kind, silent in (("episode", 1.0), ("reward_to_go", 0.0)):
        method = build_method("grpo", {"turn_advantage": {"kind": kind}})
        views = prepare([even], method, [[{}, {}, {}]]).views
        result = StepResult(StepRecord(1), views, {})
        assert signal_shares([even], result, needs_rewards=True)["no_signal"] == silent


def test_names_of_states_are_read_checked_and_kept(folder: Path) -> None:
    _, chat = load_exact(folder)
    assert read_reply(Reply("so", anchor=3)) == environments.Fault(  # type: ignore[arg-type]
        environments.NO_TEXT, "feedback, answer, anchor and note are texts"
    )
    assert getattr(read_start(Start(anchor=b"x")), "reason", None) == environments.NO_TEXT  # type: ignore[arg-type]
    assert getattr(read_start(Start(anchor="x" * 200_000)), "reason", None) == environments.TOO_LONG
    assert getattr(read_reply(Reply("so", anchor="x" * 200_000)), "reason", None) == environments.TOO_LONG

    class Named(Spoken):
        def start(self, example: Any) -> Start:
            return Start({"example": example.id}, anchor="door\ud800")

        def reply(self, state: object, text: str) -> Any:
            return replace(super().reply(state, text), anchor=f"after {text[:3]}")

    groups = played(chat, Script(chat), Named())
    episode = groups[1].rollouts[0].episode
    assert episode is not None
    assert episode.anchors == ((True, "door\ufffd"), (True, "after 9 <"), (True, "after may"))
    line = list(rollout_lines(groups, StepResult(StepRecord(1), [], {}), chat))[3]
    again = RolloutLine.from_json(json.loads(json.dumps(line.to_json())), "line").episode
    assert again is not None and again.anchors == episode.anchors


def test_countdown_names_the_attempts_that_are_left_and_what_was_said() -> None:
    task = CountdownTurnsTask()
    example = task.examples("train")[0]
    state = task.start(example).state
    first, second = task.reply(state, "answer : 1 + 1 ."), task.reply(state, "answer : 1 + 1 .")
    assert (first.anchor, second.anchor) == (f"2 left: {first.feedback}", f"1 left: {first.feedback}")
