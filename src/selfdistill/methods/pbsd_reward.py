"""PBSD with explicit rewards: distil to the reward-tilted teacher on the teacher's own samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Method, Recommended, State
from selfdistill.types import STUDENT, Role, RolloutGroup, TokenSlice

TEACHER = "teacher"


class PBSDReward(Method):
    """−Σ_i w_i log S(y_i|x), w = softmax(r/β) over the teacher's samples y_i of one prompt (arXiv 2605.05040).

    The optimum of max_π E_π[r] − β KL(π‖T) is π* ∝ T · exp(r/β). On samples of T its weights are a softmax of the
    rewards, and the cross-entropy to it needs no density of T. Only the teacher samples. Unjudged samples leave the
    loss. On K samples right answers weigh less than under π*, by a term of order 1/K. Most of this bias comes from
    groups without a right sample, which ``drop_wrong_groups`` leaves out. Our choices: β = 0.1, frozen teacher, eight
    samples per prompt, log-probabilities summed over the completion (``length = "mean"`` divides by its length), the
    learning rates.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)
    weighting: ClassVar[Literal["token", "completion"]] = "completion"

    name: Literal["pbsd_reward"] = "pbsd_reward"
    beta: float = Field(0.1, gt=0, description="β, how far rewards tilt the teacher.")
    length: Literal["sum", "mean"] = Field("sum", description="Whether log S is summed over tokens or their mean.")
    drop_wrong_groups: bool = Field(False, description="Whether a group without a right sample leaves the loss.")
    context: str = Field("solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: frozen weights, the solution."""
        return {TEACHER: self.teacher(self.context, "frozen")}

    def sampling_roles(self) -> Sequence[str]:
        """The teacher samples, the student does not."""
        return (TEACHER,)

    def precompute(self) -> Sequence[str]:
        """The loss needs no distribution of the teacher; its scores are for the record."""
        return (TEACHER,)

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        """Completions with a reward; with ``drop_wrong_groups`` only those of groups with a right sample."""
        if self.drop_wrong_groups and not any(verdict.correct for verdict in group.verdicts):
            return [False] * len(group.rollouts)
        return [verdict.reward is not None for verdict in group.verdicts]

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """Each completion's tilt, scaled so that the mean over completions is the mean over prompts of Σ w_i …"""
        tilt = torch.zeros(len(batch.views), dtype=torch.float64)
        groups = sorted({view.group for view in batch.views})
        for group in groups:
            indices = [index for index, view in enumerate(batch.views) if view.group == group]
            rewards = torch.tensor([batch.views[index].reward for index in indices], dtype=torch.float64)
            length = [len(batch.views[index].completion_ids) if self.length == "sum" else 1 for index in indices]
            share = len(batch.views) / len(groups)
            tilt[indices] = (rewards / self.beta).softmax(0) * torch.tensor(length, dtype=torch.float64) * share
        return {"tilt": tilt}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Weighted negative log-likelihood."""
        return -tokens.inputs["tilt"] * tokens.target(STUDENT)
