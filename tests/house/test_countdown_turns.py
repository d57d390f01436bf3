"""What hindsight does to ``countdown-base`` over several attempts: it leaks, as in single answers."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from selfdistill.config.tasks import CountdownTurnsConfig
from selfdistill.contexts.templates import apply, load_templates
from selfdistill.evaluation.words import deliberation_pattern
from selfdistill.models.policy import load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.types import Example, RolloutGroup, Skipped


def asked(task: CountdownTurnsTask, example: Example, context: str) -> Example:
    """The example with the opening of a context."""
    messages = apply(load_templates(task.contexts), context, example.prompt, example.fields)
    assert not isinstance(messages, Skipped)
    return replace(example, prompt=messages)


@pytest.fixture(scope="module")
def played() -> dict[str, list[RolloutGroup]]:
    """16 validation problems × 2 episodes, alone and with the solution in sight."""
    policy, chat = load_policy("countdown-base", dtype=torch.float32, device=torch.device("cpu"))
    task, params = CountdownTurnsTask(CountdownTurnsConfig(validation=16)), SamplingParams(count=2, max_tokens=200)
    problems = task.examples("validation")
    return {
        context: sample_and_verify(
            [asked(task, problem, context) for problem in problems], task, policy_sampler(policy, chat), chat, params
        )
        for context in ("student", "solution")
    }


def test_a_solution_in_sight_needs_no_second_attempt(played: dict[str, list[RolloutGroup]]) -> None:
    turns = {
        context: [len(rollout.episode.turns) for group in groups for rollout in group.rollouts if rollout.episode]
        for context, groups in played.items()
    }
    right = {
        context: fmean(verdict.reward or 0.0 for group in groups for verdict in group.verdicts)
        for context, groups in played.items()
    }
    assert fmean(turns["solution"]) < 1.2 < 1.5 < fmean(turns["student"])
    assert 0.4 < right["student"] < 0.9 <= right["solution"]


def test_a_solution_in_sight_ends_the_deliberation(played: dict[str, list[RolloutGroup]]) -> None:
    """Which is what leaks: the student cannot know what made deliberating superfluous."""
    words = {
        context: fmean(
            len(deliberation_pattern().findall(rollout.episode.turns[0].text))
            for group in groups
            for rollout in group.rollouts
            if rollout.episode
        )
        for context, groups in played.items()
    }
    assert words["student"] > 2 > 0.5 > words["solution"]
