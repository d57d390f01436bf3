"""SDFT: match the averaged model that has seen a demonstration, one completion a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import (
    Divergence,
    DriftingTeacher,
    Full,
    Recommended,
    ReverseKL,
    TopK,
    on_support,
)
from selfdistill.types import STUDENT, Role, TokenSlice


class SDFT(DriftingTeacher):
    """KL(S || T) at each token of the student's own completions, T an average of its path that sees a demonstration.

    The method is self-distillation fine-tuning. The demonstration is the data's solution, η = 0.01, and the KL is over
    the whole vocabulary. The learning rates are our choice.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-5, lora_learning_rate=1e-4, completions=1)

    name: Literal["sdft"] = "sdft"
    teacher_rate: float = Field(
        0.01, ge=0, le=1, description="η of the averaged teacher: θ' ← (1−η)θ' + ηθ after each step."
    )
    divergence: Divergence = Field(default=ReverseKL(), description="How teacher and student are compared.")
    context: str = Field("solution", description="Template that the teacher is shown.")

    def needs_rewards(self) -> bool:
        """Demonstrations are enough."""
        return False

    def roles(self) -> Mapping[str, Role]:
        """The teacher: averaged weights, a demonstration."""
        return {"teacher": self.teacher(self.context, "ema"), **self.bare("ema")}

    def compared_on(self) -> Full | TopK:
        """The tokens of the divergence."""
        return self.divergence.support

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence at each token."""
        return self.divergence.between(*on_support(tokens, self.divergence.support, STUDENT, "teacher"))
