"""Plain self-distillation inside the GRPO loss: the arm that AntiSD is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import gain
from selfdistill.methods.grpo import GRPO
from selfdistill.types import Role, TokenSlice


class SD(GRPO):
    """A_{i,t} = A_i + λ u_t, u_t = log T(y_t) − log S(y_t) ("default self-distillation" of arXiv 2605.11609).

    The teacher is the live student whose prompt shows a correct solution. Tokens that hindsight makes likelier are
    rewarded. A completion without a context keeps its plain GRPO advantage.
    """

    name: Literal["sd"] = "sd"  # type: ignore[assignment]
    strength: float = Field(0.5, ge=0, description="λ, the weight of u beside the group advantage.")
    context: str = Field("sibling_or_solution_verdict", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, hindsight context."""
        return {**super().roles(), "teacher": self.teacher(self.context, "live")}

    def precompute(self) -> Sequence[str]:
        """Only the sampled token's log-probability is needed."""
        return (*super().precompute(), "teacher")

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """Group advantage plus λ u."""
        return tokens.inputs["advantage"] + self.strength * gain(tokens)
