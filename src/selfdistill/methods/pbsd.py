"""PBSD: prefer the teacher's samples to the student's, instead of matching their distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Method, Recommended, State
from selfdistill.objectives import preference_loss, preference_margin, preference_slope
from selfdistill.types import STUDENT, Role, RolloutGroup, TokenSlice, View

TEACHER = "teacher"


class PBSD(Method):
    """−log σ(m), m = β [Δ(y⁺) − Δ(y⁻)], Δ(y) = log S(y|x) − log T(y|x, c), y⁺ ~ T(x, c), y⁻ ~ S(x) (2605.05040).

    The teacher samples under its context as often as the student samples, and the i-th samples form a pair. A pass
    without gradient gives m. Since ∇[−log σ(m)] = −σ(−m) ∇m, every token then has a constant weight, so a pair need not
    fit into one micro-batch. The paper's settings are unknown. Our choices: summed Δ, β = 0.1, frozen teacher, four
    pairs per prompt, the learning rates. ``length = "mean"`` divides Δ by the length, which is another objective: the
    student term is then no zero-mean control variate. An exact solution overshoots, so take one optimiser step per
    batch.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5, completions=4)
    weighting: ClassVar[Literal["token", "completion"]] = "completion"
    one_update: ClassVar[bool] = True

    name: Literal["pbsd"] = "pbsd"
    beta: float = Field(0.1, gt=0, description="β, scale of the margin.")
    length: Literal["sum", "mean"] = Field("sum", description="Whether Δ is summed over tokens or their mean.")
    reward_filter: Literal["off", "correct"] = Field("off", description='"correct": only pairs whose y⁺ is right.')
    context: str = Field("solution", description="Template that the teacher is shown.")

    def needs_rewards(self) -> bool:
        """Only the filter asks for verdicts."""
        return self.reward_filter == "correct"

    def roles(self) -> Mapping[str, Role]:
        """The teacher: frozen weights, the solution."""
        return {TEACHER: self.teacher(self.context, "frozen")}

    def sampling_roles(self) -> Sequence[str]:
        """Both sides sample."""
        return (STUDENT, TEACHER)

    def precompute(self) -> Sequence[str]:
        """Both sides score both samples before the loss."""
        return (STUDENT, TEACHER)

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        """Whole pairs, and with the filter those whose teacher sample is right."""
        indices: set[int] = set()
        for plus, minus in zip(_of(group, TEACHER), _of(group, STUDENT), strict=False):
            if self.reward_filter == "off" or group.verdicts[plus].correct:
                indices |= {plus, minus}
        return [index in indices for index in range(len(group.rollouts))]

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """Each pair's loss, and the weight that its tokens carry."""
        pairs = _pairs(batch.views)
        loss_of, weight_of = torch.zeros(2, len(batch.views), dtype=torch.float64)
        if not pairs:
            return {"preference": loss_of, "slope": weight_of}
        plus, minus = ([pair[side] for pair in pairs] for side in (0, 1))
        deltas = [(self._total(batch, STUDENT, side), self._total(batch, TEACHER, side)) for side in (plus, minus)]
        margin_P = preference_margin(*deltas[0], *deltas[1], beta=self.beta)
        # A completion's tokens share the weight 1/|y|, and pairs are half as many as completions.
        slope_P = 2.0 * self.beta * preference_slope(margin_P)
        for side, sign in ((plus, 1.0), (minus, -1.0)):
            length = [len(batch.views[i].completion_ids) if self.length == "sum" else 1 for i in side]
            loss_of[side] = preference_loss(margin_P)
            weight_of[side] = sign * slope_P * torch.tensor(length, dtype=torch.float64)
        logged = {"margin": float(margin_P.mean()), "preferred": float((margin_P > 0).double().mean())}
        return {"preference": loss_of, "slope": weight_of, "pairs": float(len(pairs)), **logged}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """The pair's −log σ(m), with its gradient at this token."""
        logprob_N = tokens.target(STUDENT)
        return tokens.inputs["preference"] + tokens.inputs["slope"] * (logprob_N - logprob_N.detach())

    def _total(self, batch: BatchScores, role: str, side: Sequence[int]) -> Tensor:
        """log-probability [P] of each completion of one side: summed, or its mean."""
        scores = [batch.scores[role][i] for i in side]
        logprobs = [score.target_N.double() for score in scores if score is not None]
        # One number per completion: the rest is about pairs and runs on the CPU.
        return torch.stack(
            [logprob_N.sum() if self.length == "sum" else logprob_N.mean() for logprob_N in logprobs]
        ).cpu()


def _of(group: RolloutGroup, source: str) -> list[int]:
    return [index for index, rollout in enumerate(group.rollouts) if rollout.source == source]


def _pairs(views: Sequence[View]) -> list[tuple[int, int]]:
    """Indices (y⁺, y⁻) of each pair's views."""
    sides_of: dict[int, dict[str, list[int]]] = {}
    for index, view in enumerate(views):
        sides_of.setdefault(view.group, {TEACHER: [], STUDENT: []})[view.source].append(index)
    return [pair for sides in sides_of.values() for pair in zip(sides[TEACHER], sides[STUDENT], strict=True)]
