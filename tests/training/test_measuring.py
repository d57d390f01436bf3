"""What a step's line of metrics says beside the loss, on groups and scores written by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.files.records import LINE_KEYS, RolloutLine, flatten
from selfdistill.methods import build_method
from selfdistill.training.metrics import (
    callback_record,
    episode_metrics,
    rollout_lines,
    rollout_metrics,
    separation,
    signal_shares,
    step_line,
)
from selfdistill.training.trainer import StepResult
from selfdistill.types import Example, Message, RoleSums, Rollout, RolloutGroup, Scores, StepRecord, Verdict, View
from selfdistill.types.conversation import DONE, Episode, Turn
from support.engine import load_exact

EXAMPLE = Example("three", (Message("system", "be brief"), Message("user", "make 9 .")), {})


def rollout(text: str, length: int, *, finished: bool = True, source: str = "student") -> Rollout:
    ids = tuple(range(8, 8 + length))
    return Rollout((3,), ids, tuple(-0.1234567 * n for n in range(length)), finished, text, 5, source)


def view(group: int, index: int, length: int, *, advantage: float = 0.0, taught: bool = True, **more: object) -> View:
    prompts = {"student": (3,), **({"teacher": (4,)} if taught else {})}
    ids = tuple(range(8, 8 + length))
    whole = View(prompts, ids, (1.0,) * length, (0.0,) * length, advantage, group, index)
    right = more.get("reward") in (1.0, 2.0)
    return replace(whole, **{"correct": right, **more})  # type: ignore[arg-type]


def scores(*logprobs: float) -> Scores:
    return Scores(torch.tensor(logprobs, dtype=torch.float64), torch.zeros(len(logprobs)))


def result(views: list[View], **roles: list[Scores | None]) -> StepResult:
    return StepResult(StepRecord(step=7), views, dict(roles))


GROUPS = [
    RolloutGroup(
        EXAMPLE,
        (rollout("wait , wait", 4), rollout("9", 2, finished=False), rollout("maybe", 3, source="teacher")),
        (Verdict(1.0), Verdict(0.25), Verdict(0.75)),
    ),
    RolloutGroup(EXAMPLE, (rollout("hmm 9", 6),), (Verdict(None, feedback="no answer"),)),
]


def test_what_a_source_drew_is_averaged_over_its_completions() -> None:
    # Three of the student's, two of them judged; "wait" twice and "hmm" once.
    assert rollout_metrics(GROUPS, "student") == {
        "reward": (1.0 + 0.25) / 2,
        "reward_low": 0.25,
        "reward_high": 1.0,
        "success": 1 / 2,
        "length": (4 + 2 + 6) / 3,
        "truncated": 1 / 3,
        "deliberation": 3 / 3,
        "leak": 0.0,
    }
    rewards = dict.fromkeys(("reward", "reward_low", "reward_high"), 0.75)
    lengths = {"length": 3.0, "truncated": 0.0, "deliberation": 1.0, "leak": 0.0}
    counts = {"completions": 1, "generated": 3}
    assert rollout_metrics(GROUPS, "teacher") == {**rewards, "success": 0.0, **lengths, **counts}
    nothing = {"completions": 0, "generated": 0}
    assert rollout_metrics(GROUPS, "nobody") == dict.fromkeys((*rewards, "success", *lengths)) | nothing
    assert rollout_metrics(GROUPS[1:], "student")["reward"] is None


def test_what_taught_and_what_was_left_out() -> None:
    # Of four completions three became views, one by a teacher, one by its advantage, and the last teaches nothing.
    views = [view(0, 0, 4), view(1, 0, 2, advantage=-0.5, taught=False), view(2, 0, 2, taught=False)]
    groups = [*GROUPS[1:], *GROUPS[1:], *GROUPS[1:], *GROUPS[1:]]
    assert signal_shares(groups, result(views), needs_rewards=True) == {"left_out": 0.25, "no_signal": 0.5}
    assert signal_shares(groups, result(views), needs_rewards=False) == {"left_out": 0.25, "no_signal": 0.25}
    assert signal_shares([], result([]), needs_rewards=True) == {"left_out": None, "no_signal": None}


def test_u_of_right_and_of_wrong_completions() -> None:
    """u = log T − log S a token: (0.5 + 0.25 − 1.5) / 3 of the right ones, −2 of the wrong one."""
    rows: list[tuple[View, Scores | None, Scores | None]] = [
        (view(2, 0, 1, reward=None), scores(-9.0), scores(-1.0)),
        (view(1, 1, 1, reward=1.0, source="teacher"), scores(-9.0), scores(-1.0)),
        (view(2, 1, 1, reward=0.0), scores(-9.0), None),
        (view(2, 2, 1, reward=0.0), None, scores(-1.0)),
        (view(0, 0, 2, reward=1.0), scores(-1.0, -1.0), scores(-0.5, -0.75)),
        (view(0, 1, 1, reward=0.99), scores(-1.0), scores(-3.0)),
        (view(1, 0, 1, reward=1.0), scores(-0.5), scores(-2.0)),
    ]
    views, student, teacher = ([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
    assert separation(result(views, student=student, teacher=teacher)) == {"u_correct": -0.25, "u_wrong": -2.0}
    few = result(views[4:5], student=student[4:5], teacher=teacher[4:5])
    assert separation(few) == {"u_correct": 0.375, "u_wrong": None}
    assert separation(result(views, student=student)) == {}
    assert separation(result(views, teacher=teacher)) == {}


def test_u_is_summed_in_float64() -> None:
    single = [Scores(torch.tensor(row), torch.zeros(2)) for row in ((0.0, 0.0), (2.0**24, 1.0))]
    found = separation(result([view(0, 0, 2, reward=1.0)], student=[single[0]], teacher=[single[1]]))
    assert found["u_correct"] == (2.0**24 + 1.0) / 2


def test_every_completion_is_written_down_with_its_u(model: Path) -> None:
    _, chat = load_exact(model)
    views = [view(0, 1, 2), view(1, 0, 6)]
    student: list[Scores | None] = [scores(-1.0, -1.0), scores(*[-1.0] * 6)]
    teacher: list[Scores | None] = [scores(-0.5, -2.1234567), None]
    lines = list(rollout_lines(GROUPS, result(views, student=student, teacher=teacher), chat))
    assert [(line.index, line.u) for line in lines] == [
        (0, None),
        (1, (0.5, -1.12346)),
        (2, None),
        (0, None),
    ]
    written = json.loads(json.dumps(lines[1].to_json()))
    assert written == {
        "step": 7,
        "example": "three",
        "index": 1,
        "source": "student",
        "prompt": "make 9 .",
        "text": "9",
        "ids": [8, 9],
        "tokens": chat.tokens((8, 9)),
        "logprobs": [0.0, -0.123457],
        "finished": False,
        "policy_version": 5,
        "reward": 0.25,
        "correct": False,
        "feedback": None,
        "u": [0.5, -1.12346],
    }
    assert list(written) == [*LINE_KEYS, "u"]
    assert RolloutLine.from_json(written, "here") == lines[1]
    assert (lines[2].source, lines[3].feedback, lines[3].reward) == ("teacher", "no answer", None)
    # Without a teacher there is no u at all.
    assert all("u" not in line.to_json() for line in rollout_lines(GROUPS, result(views, student=student), chat))
    assert all("u" not in line.to_json() for line in rollout_lines(GROUPS, result(views, teacher=teacher), chat))


def test_the_order_of_the_views_does_not_matter_to_their_lines(model: Path) -> None:
    _, chat = load_exact(model)
    views = [view(1, 0, 6), view(0, 1, 2)]
    both: list[Scores | None] = [scores(*[-1.0] * 6), scores(-1.0, -1.0)]
    other: list[Scores | None] = [scores(*[-2.0] * 6), scores(-0.5, -0.5)]
    lines = list(rollout_lines(GROUPS, result(views, student=both, teacher=other), chat))
    assert [line.u for line in lines] == [None, (0.5, 0.5), None, pytest.approx((-1.0,) * 6)]


def test_a_callback_sees_the_seconds_and_every_single_value_of_the_line() -> None:
    record = StepRecord(step=3, loss=0.5, tokens=7, values={"loss": 0.5, "reward": 0.0})
    line = {"step": 3, "reward": 0.25, "finished": None, "alarms": ["one"], "phase_seconds": {"student": 2.0}}
    seen = callback_record(record, line)
    assert seen.values == {"loss": 0.5, "step": 3, "reward": 0.25, "finished": None}
    assert (seen.step, seen.tokens, seen.seconds) == (3, 7, {"student": 2.0})


def test_a_steps_line_holds_means_by_role_and_then_the_other_numbers_in_order() -> None:
    record = StepRecord(
        step=2,
        loss=0.5,
        grad_norm=1.5,
        weight=3.0,
        tokens=4,
        skipped=Counter({"b": 1, "a": 2}),
        roles={
            "teacher": RoleSums(tokens=2, entropy=3.0, u=-1.0),
            "student": RoleSums(tokens=4, entropy=2.0),
            "other": RoleSums(tokens=4, entropy=1.0, u=2.0),
            "nobody": RoleSums(tokens=0, entropy=0.0, u=0.0),
        },
        values={"learning_rate": 0.25},
    )
    assert list(flatten(record).items()) == [
        ("step", 2),
        ("other_entropy", 0.25),
        ("other_u", 0.5),
        ("student_entropy", 0.5),
        ("teacher_entropy", 1.5),
        ("pmi", -0.5),
        ("tokens", 4.0),
        ("weight", 3.0),
        ("loss", 0.5),
        ("grad_norm", 1.5),
        ("learning_rate", 0.25),
        ("skipped", {"a": 2.0, "b": 1.0}),
        ("seconds", 0),
        ("phase_seconds", {}),
    ]


def test_a_steps_line_holds_its_budget_and_the_numbers_of_every_role() -> None:
    # PBSD's teacher samples too. Of two groups only the first has views, and its teacher scores one of them.
    views = [view(0, 0, 4, reward=1.0), view(0, 1, 2, reward=0.25, taught=False)]
    both = result(views, student=[scores(*[-1.0] * 4), None], teacher=[scores(*[-0.5] * 4), None])
    line = step_line(GROUPS, both, build_method("pbsd", {}), updates=2)
    own = {"reward": 0.625, "reward_low": 0.25, "reward_high": 1.0, "success": 0.5, "length": 4.0, "truncated": 1 / 3}
    taught = {**dict.fromkeys(("reward", "reward_low", "reward_high"), 0.75), "success": 0.0, "length": 3.0}
    taught |= {"truncated": 0.0, "deliberation": 1.0, "leak": 0.0, "completions": 1, "generated": 3}
    assert line == {
        "step": 7,
        "tokens": 0.0,
        "weight": 0.0,
        "loss": 0.0,
        "grad_norm": 0.0,
        "skipped": {},
        "seconds": 0,
        "phase_seconds": {},
        "generated": 15,
        "budget": {
            "completions": {"student": 3, "teacher": 1},
            "drawn": {"student": 12, "teacher": 3},
            "scored": {"student": 12, "teacher": 8},
            "trained": 12,
        },
        **own,
        "deliberation": 1.0,
        "leak": 0.0,
        **{f"teacher_{name}": value for name, value in taught.items()},
        "left_out": 0.5,
        "no_signal": 0.5,
        "u_correct": 0.5,
        "u_wrong": None,
    }


def test_a_steps_line_asks_the_method_whether_rewards_are_its_signal() -> None:
    untaught = result([view(0, 0, 4, taught=False)])
    shares = {
        name: step_line(GROUPS[:1], untaught, build_method(name, {}), updates=1)["no_signal"]
        for name in ("grpo", "sft")
    }
    assert shares == {"grpo": 1.0, "sft": 0.0}


def test_one_turn_with_an_advantage_is_a_signal() -> None:
    # A gap of one token after the second of four own tokens: two turns, of which the first has the advantage 0.
    turns = view(0, 0, 4, taught=False, gaps={"student": ((2, (9,)),)}, turn_advantages=(0.0, 0.5))
    assert turns.token_advantages == (0.0, 0.0, 0.5, 0.5)
    assert signal_shares(GROUPS[:1], result([turns]), needs_rewards=True)["no_signal"] == 0.0


def test_rewards_by_function_are_means_over_the_completions_that_it_judged() -> None:
    details = [{"reward/style": 0.5, "reward/length": 2.0}, {"reward/style": 1.0}, {"unchecked": 1.0}]
    verdicts = tuple(Verdict(1.0, details=each) for each in details)
    group = RolloutGroup(EXAMPLE, tuple(rollout("9", n) for n in (1, 2, 3)), verdicts)
    found = rollout_metrics([group], "student")
    assert (found["reward_style"], found["reward_length"], found["unchecked"]) == (0.75, 2.0, 1)


def test_leaks_are_counted_by_completion_and_not_of_texts_that_were_given() -> None:
    told = Example("told", (Message("user", "the expected"), Message("user", "answer is 9")), {})
    given = replace(rollout("as in the solution above", 2), logprobs=(math.nan, math.nan))
    texts = (
        rollout("the reference solution says 9", 2),
        rollout("the expected answer is 9", 2),
        rollout("9", 2),
        given,
    )
    verdicts = (Verdict(0.0),) * 4
    # "expected answer" spans two messages of the prompt, so it was shown; the given text is not asked.
    assert rollout_metrics([RolloutGroup(told, texts, verdicts)], "student")["leak"] == 1 / 3
    shown = Example("shown", (Message("user", "compare with the reference solution"),), {})
    assert rollout_metrics([RolloutGroup(shown, texts[2:3], verdicts[:1])], "student")["leak"] == 0.0
    # A text of which one token has no log-probability was not sampled as it stands.
    partly = replace(texts[0], logprobs=(-1.0, math.nan))
    assert rollout_metrics([RolloutGroup(told, (partly, *texts[1:]), verdicts)], "student")["leak"] == 0.0


def test_episodes_are_measured_by_turns() -> None:
    def turn(error: bool | None, said: int) -> Turn:
        return Turn(2, "9", ids=(5,) * said, error=error)

    episodes = (
        Episode(EXAMPLE.prompt, (turn(True, 4), turn(False, 3), turn(None, 0)), DONE),
        Episode(EXAMPLE.prompt, (turn(False, 0),), "time"),
    )
    own = [replace(rollout("9", 6), episode=episode) for episode in episodes]
    assert episode_metrics([*own, rollout("9", 1)]) == {
        "turns": 2.0,
        "environment_tokens": 3.5,
        "unended": 0.5,
        "tool_errors": 1 / 3,
        "ended": {DONE: 1.0, "time": 1.0},
    }
    silent = replace(own[0], episode=Episode(EXAMPLE.prompt, (turn(None, 1),), DONE))
    assert "tool_errors" not in episode_metrics([silent])
    assert episode_metrics([rollout("9", 1)]) == {}
    # They stand among the metrics of the role that played them, and in the written lines.
    group = RolloutGroup(EXAMPLE, tuple(own), (Verdict(1.0),) * 2)
    assert rollout_metrics([group], "student")["turns"] == 2.0


def test_a_written_line_has_the_episode_and_the_rewards_by_function(model: Path) -> None:
    _, chat = load_exact(model)
    episode = Episode(EXAMPLE.prompt, (Turn(2, "9"),), DONE)
    played = replace(rollout("9", 2), episode=episode)
    group = RolloutGroup(
        EXAMPLE, (played, rollout("9", 1)), (Verdict(0.5, details={"reward/style": 0.5}), Verdict(None))
    )
    first, second = rollout_lines([group], result([]), chat)
    assert (first.episode, first.rewards, first.correct) == (episode, {"style": 0.5}, False)
    # What was not judged is neither right nor wrong.
    assert (second.episode, second.rewards, second.correct) == (None, None, None)
