"""What is measured of episodes: turns, tokens, errors of tools and ends, with intervals, in evaluations and steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.cli.evaluate import describe_evaluation
from selfdistill.evaluation.evaluate import summarise
from selfdistill.evaluation.statistics import average
from selfdistill.inspection import tables
from selfdistill.sampling.environments import read_reply
from selfdistill.training.metrics import episode_metrics
from selfdistill.types import Reply, RolloutGroup
from support.engine import load_exact
from support.turns import Script, Spoken, by_hand, played

CHAT: list[Any] = []


class Erring(Spoken):
    """Says of every turn whether its answer was a number above 3, which is an error here."""

    def reply(self, state: object, text: str) -> Any:
        reply = super().reply(state, text)
        last = text.split()[-1]
        return replace(reply, error=np.bool_(last.isdecimal() and int(last) > 3))


def erring(folder: Path) -> list[RolloutGroup]:
    _, chat = load_exact(folder)
    return played(chat, Script(chat), Erring())


def test_an_evaluation_has_means_of_an_episode_with_intervals(folder: Path) -> None:
    groups = erring(folder)
    found = summarise(groups, samples=3, plain=True)
    own = [[float(sum(map(bool, by_hand_turns(g, i)))) for i in range(3)] for g in range(2)]
    # Last words: 4 and 4, 4 and 4, 3 | 2, 4 and 9, 8, 1 and "wait".
    errors = [[2.0, 2.0, 0.0], [2.0, 1.0, 0.0]]
    assert found.turns == average([[2.0, 2.0, 1.0], [3.0, 1.0, 2.0]], seed=0)
    assert found.episode_tokens == average(own, seed=0)
    assert found.tool_errors == average(errors, seed=0)
    plain = found.to_json()
    assert plain["tool_errors"]["value"] == pytest.approx((4 / 3 + 1) / 2) and plain["ended"] == {"done": 6}
    assert json.loads(json.dumps(plain)) == plain
    of_run = {**plain, "weights": "x", "checkpoint": None, "step": None, "skipped": {}, "warnings": []}
    said = [line for line in describe_evaluation(of_run) if "turns" in line or "ended" in line]
    assert said == [
        f"an episode has 1.83 turns [1.67, 2.00], {found.episode_tokens.value:.2f} tokens "
        f"[{found.episode_tokens.low:.2f}, {found.episode_tokens.high:.2f}], 1.17 errors of tools [1.00, 1.33]",
        "ended: 6 × done",
    ]


def by_hand_turns(group: int, episode: int) -> tuple[int, ...]:
    return by_hand(CHAT[0], group, episode)[1]


@pytest.fixture(autouse=True)
def _chat(folder: Path) -> None:
    CHAT[:] = [load_exact(folder)[1]]


def test_what_an_environment_does_not_say_is_missing_and_not_none(folder: Path) -> None:
    chat = CHAT[0]
    silent = summarise(played(chat, Script(chat)), samples=3, plain=True)
    assert silent.tool_errors is None and "tool_errors" not in silent.to_json()
    metrics = episode_metrics([r for group in played(chat, Script(chat)) for r in group.rollouts])
    assert "tool_errors" not in metrics and metrics["unended"] == 0.0
    # A problem of which nothing was said has no part in the mean.
    groups = erring(folder)
    quiet = [replace(r, episode=mute(r.episode)) for r in groups[1].rollouts]
    found = summarise([groups[0], replace(groups[1], rollouts=tuple(quiet))], samples=3, plain=True)
    assert found.tool_errors is not None and found.tool_errors.value == pytest.approx(4 / 3)
    single = [replace(g, rollouts=tuple(replace(r, episode=None) for r in g.rollouts)) for g in groups]
    assert (
        not {"turns", "episode_tokens", "tool_errors", "ended"}
        & summarise(single, samples=3, plain=True).to_json().keys()
    )


def mute(episode: Any) -> Any:
    return replace(episode, turns=tuple(replace(turn, error=None) for turn in episode.turns))


def test_a_step_counts_errors_by_turn_and_episodes_that_were_not_ended(folder: Path) -> None:
    groups = erring(folder)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = episode_metrics(rollouts)
    assert (metrics["tool_errors"], metrics["unended"]) == (7 / 11, 0.0)
    chat = CHAT[0]
    cut = played(chat, Script(chat, cut="wait wait"))
    assert episode_metrics([r for group in cut for r in group.rollouts])["unended"] == 1 / 6
    # An error is whatever is true of numpy's numbers too, and is kept as a plain one.
    read = read_reply(Reply("so", error=np.bool_(True)))  # type: ignore[arg-type]
    assert isinstance(read, tuple) and read[0].error is True


def test_the_table_by_turn_is_that_of_each_turns_tokens() -> None:
    values, turns = np.array([1.0, 3.0, -2.0, np.nan, 4.0]), np.array([1, 1, 2, 2, 4])
    rows = tables.by_turn(values, turns)
    assert [(row["name"], row["tokens"], row["mean"]) for row in rows] == [
        ("turn 1", 2, 2.0),
        ("turn 2", 1, -2.0),
        ("turn 3", 0, None),
        ("turn 4", 1, 4.0),
    ]
    assert [row["share"] for row in rows] == [0.4, 0.2, 0.0, 0.4]
