"""HDPO: GRPO, plus the teacher's right completions if all of the student's fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import (
    BatchScores,
    Divergence,
    Full,
    JensenShannon,
    Recommended,
    State,
    TopK,
    on_support,
)
from selfdistill.methods.grpo import GRPO
from selfdistill.types import STUDENT, Role, RolloutGroup, TokenSlice

TEACHER = "teacher"


class HDPO(GRPO):
    """GRPO on the student's completions + λ JSD(S, T) on ȳ ~ T(·|x, r), ȳ right (arXiv 2603.23871).

    The teacher is the live student that sees the solution. It samples only for questions without a right completion of
    the student and with at least one judged completion. The teacher's wrong samples leave the loss. Each of the two
    terms is a mean over its own tokens. The divergence is w = ½ on the student's top 64 and a tail.

    We do not know the paper's λ. Our choices: λ = 1; as many samples of the teacher as of the student; GRPO also for
    the failed completions of such a question, which have an advantage where rewards are graded. A question without a
    context keeps its GRPO loss. λ = 0 is GRPO at the cost of the teacher's samples.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)
    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "mask"

    name: Literal["hdpo"] = "hdpo"  # type: ignore[assignment]
    strength: float = Field(1.0, ge=0, description="λ, weight of the distillation beside GRPO.")
    divergence: Divergence = Field(
        default=JensenShannon(support=TopK(k=64)), description="How teacher and student are compared."
    )
    context: str = Field("solution", description="Template that the teacher is shown, and samples from.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, reference solution."""
        return {**super().roles(), TEACHER: self.teacher(self.context, "live")}

    def sampling_roles(self) -> Sequence[str]:
        """The student, then the teacher."""
        return (STUDENT, TEACHER)

    def samples_for(self, role: str, group: RolloutGroup) -> bool:
        """Whether completions were judged and all of them failed."""
        judged = [verdict.correct for verdict in group.verdicts if verdict.reward is not None]
        return bool(judged) and not any(judged)

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        """The student's completions, and the teacher's right ones."""
        pairs = zip(group.rollouts, group.verdicts, strict=True)
        return [rollout.source == STUDENT or verdict.correct for rollout, verdict in pairs]

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """A mask of the completions that the teacher sampled, and their share of the batch's weight."""
        from_teacher = [view.source == TEACHER for view in batch.views]
        weights = [math.fsum(view.weights) for view in batch.views]
        share = math.fsum(w for w, included in zip(weights, from_teacher, strict=True) if included) / (
            math.fsum(weights) or 1.0
        )
        distilled = torch.tensor(from_teacher, dtype=torch.float64)
        return {**super().on_batch(state, batch), "distilled": distilled, "distilled_share": share}

    def compared_on(self) -> Full | TopK:
        """The tokens of the divergence."""
        return self.divergence.support

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Each token's term over its term's share of the weight, so that the mean over all is the sum of two means."""
        share = tokens.values["distilled_share"]
        divergence_N = self.divergence.between(*on_support(tokens, self.divergence.support, STUDENT, TEACHER))
        # If a share is 0, no token has that term.
        reward_N, distilled_N = super().loss(tokens) / (1 - share or 1.0), divergence_N / (share or 1.0)
        return torch.where(tokens.inputs["distilled"] > 0, self.strength * distilled_N, reward_N)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """GRPO's, as means over the student's completions alone."""
        share = (1.0 - tokens.inputs["distilled"]) / (1 - tokens.values["distilled_share"] or 1.0)
        return {name: values_N * share for name, values_N in super().metrics(tokens).items()}
