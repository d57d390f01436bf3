"""RLRT (arXiv 2605.10781): reward what succeeded *without* looking like the reference.

A_t = A · (S / T)^sign(A) on right completions, A elsewhere; T is the live model with the solution. Our choice: the
factor is clipped at 1 ± ε, ε = 0.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill import METHODS, Role, TokenSlice


class RLRT(METHODS["grpo"]):
    name: Literal["rlrt"] = "rlrt"
    epsilon: float = Field(0.2, gt=0, lt=1, description="ε, how far the factor may leave 1.")
    context: str = Field("solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        return {**super().roles(), "teacher": self.teacher(self.context, "live")}

    def precompute(self) -> Sequence[str]:
        return (*super().precompute(), "teacher")

    def on_batch(self, state: Any, batch: Any) -> Mapping[str, Any]:
        right = torch.tensor([view.correct for view in batch.views], dtype=torch.float64)
        return {**super().on_batch(state, batch), "right": right}

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        advantage = tokens.inputs["advantage"]
        surprise = (tokens.target("student").detach() - tokens.target("teacher")).nan_to_num(0.0)
        factor = (advantage.sign() * surprise).exp().clamp(1 - self.epsilon, 1 + self.epsilon)
        return advantage * torch.where(tokens.inputs["right"] > 0, factor, 1.0)
