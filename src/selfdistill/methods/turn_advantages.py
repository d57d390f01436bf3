"""Advantages of the turns of an episode: the episode's, rewards to go, or baselines of equal states."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from selfdistill.config.sections import Strict
from selfdistill.objectives.policy_gradient import advantages_within, returns_to_go
from selfdistill.types import STUDENT, RolloutGroup


class EpisodeReward(Strict):
    """Every turn has the advantage of its episode."""

    kind: Literal["episode"] = "episode"


class RewardToGo(Strict):
    """R_k = Σ_{j ≥ k} γ^(j − k) r_j of each turn k, compared with the k-th turns of the group's other episodes."""

    kind: Literal["reward_to_go"] = "reward_to_go"
    discount: float = Field(1.0, ge=0, le=1, description="γ, for every turn until a reward.")


class GroupInGroup(Strict):
    """The episode's advantage + ω · R_k compared with all turns of the group in the same anchor state (GiGPO)."""

    kind: Literal["group_in_group"] = "group_in_group"
    discount: float = Field(0.95, ge=0, le=1, description="γ, for every turn until a reward.")
    weight: float = Field(1.0, ge=0, description="ω, weight of the comparison within a state.")


TurnAdvantage = Annotated[EpisodeReward | RewardToGo | GroupInGroup, Field(discriminator="kind")]


def advantages_of_turns(
    kind: RewardToGo | GroupInGroup, group: RolloutGroup, advantages: Sequence[float], scale: Literal["std", "none"]
) -> list[list[float]]:
    """The advantage of each turn of each completion of a group. ``advantages`` are those of the completions.

    Completions without a verdict, and those that another role than the student sampled, have 0 and are compared with
    none. A single answer is an episode of one turn. ``scale`` is that of
    :func:`~selfdistill.objectives.group_advantages`.
    """
    returns: list[torch.Tensor] = []
    states: list[Hashable] = []
    counts = []
    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
        rewards, anchors = [verdict.reward or 0.0], [(False, "")]
        if rollout.episode is not None:
            rewards = [turn.reward or 0.0 for turn in rollout.episode.turns]
            anchors = list(rollout.episode.anchors)
        judged = verdict.reward is not None and rollout.source == STUDENT
        to_go = returns_to_go(torch.tensor(rewards, dtype=torch.float64), discount=kind.discount)
        returns.append(to_go if judged else torch.full_like(to_go, torch.nan))
        states += range(len(rewards)) if kind.kind == "reward_to_go" else anchors
        counts.append(len(rewards))
    compared = advantages_within(torch.cat(returns), states, scale=scale).split(counts)
    if kind.kind == "reward_to_go":
        return [within.tolist() for within in compared]
    pairs = zip(advantages, compared, strict=True)
    return [[advantage + kind.weight * number for number in within.tolist()] for advantage, within in pairs]
