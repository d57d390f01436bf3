"""Skill-SD: GRPO plus a reverse KL to a teacher that reads a note from earlier episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.grpo import GRPO
from selfdistill.objectives import weighted_reverse_kl
from selfdistill.types import STUDENT, Role, Snapshot, TokenSlice


class SkillSD(GRPO):
    """GRPO's loss + λ ρ (e^{−ℓ} − 1 + ℓ), ℓ = log S(y) − log T(y), ρ = S(y) / S_sampled(y) (arXiv 2604.10674).

    T is detached. The gradient flows through ρ and ℓ: over the tokens that S_sampled draws, the mean of the term is
    KL(S || T), and the mean of its gradient that of KL(S || T). Both exponents stop at 20. The teacher reads a note
    from an earlier episode (``$note``); the student reads the question alone, in training and after it. In the paper
    another model writes the notes. Here an environment writes them, or else a note is a right episode of an earlier
    step. Our choices, because the paper's were not recovered: λ = 0.1, and a teacher that copies the student every 10
    steps. A completion without a note has GRPO's loss alone and counts in the denominator. The learning rates are
    GRPO's.
    """

    name: Literal["skill_sd"] = "skill_sd"  # type: ignore[assignment]
    strength: float = Field(0.1, ge=0, description="λ, the weight of the divergence beside GRPO's loss.")
    context: str = Field("note", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: the last copy of the student, a note."""
        return {**super().roles(), "teacher": self.teacher(self.context, Snapshot(10))}

    def precompute(self) -> Sequence[str]:
        """The sampled token's log-probability is enough."""
        return tuple(dict.fromkeys((*super().precompute(), *self.roles())))

    def divergence(self, tokens: TokenSlice) -> Tensor:
        """ρ (e^{−ℓ} − 1 + ℓ) [N]; 0 where the context is missing."""
        student_N, shown_N = tokens.target(STUDENT), tokens.has("teacher")
        # A missing context has NaN, whose gradient would be NaN under a weight of 0 too.
        teacher_N = torch.where(shown_N, tokens.target("teacher"), student_N)
        return weighted_reverse_kl(student_N, tokens.inputs["old_logprob"], teacher_N) * shown_N

    def loss(self, tokens: TokenSlice) -> Tensor:
        """GRPO's loss and the divergence."""
        return super().loss(tokens) + self.strength * self.divergence(tokens)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """GRPO's, and the divergence."""
        return {**super().metrics(tokens), "skill_kl": self.divergence(tokens)}
