"""CEPO: RLSD whose evidence is the difference between the hindsight of a right and of a wrong answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import Recommended, gain
from selfdistill.methods.rlsd import RLSD
from selfdistill.types import Role, TokenSlice


class CEPO(RLSD):
    """A_{i,t} = A_i · [1 − λ + λ · clip(exp(sign(A_i) Δ_t), 1 − ε_w, 1 + ε_w)] in the clipped policy gradient.

    Δ = log P⁺(y) − log P⁻(y), detached (arXiv 2605.19436). P⁺ sees the final answer alone, and P⁻ sees the final answer
    of a wrong completion of the group in the same words. Both have live weights, so the effect of any answer at all
    cancels. λ falls from 0.5 to 0 in 25 steps. Without a wrong answer the released code has P⁻ = P⁺, so the completion
    keeps its plain advantage. The paper's text has P⁻ = S, which is RLSD: ``without_wrong = "student"``. The paper
    takes the completion of lowest reward. Ours takes a wrong completion other than the scored one, in a seeded order.
    The full-fine-tuning learning rate is GRPO's. The paper trains LoRA of rank 16.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=5e-6)

    name: Literal["cepo"] = "cepo"  # type: ignore[assignment]
    decay: int | None = Field(25, ge=1, description="Steps until λ is 0; unset: λ stays.")
    weight_clip: float = Field(0.5, gt=0, le=1, description="ε_w, how far a token's weight may leave 1.")
    clip_high: float = Field(0.28, gt=0, description="Upper clip of the probability ratio.")
    without_wrong: Literal["advantage", "student"] = Field(
        "advantage", description="Without a wrong answer: the plain advantage, or the student in the place of P⁻."
    )
    context: str = Field("answer_only", description="Template that P⁺ is shown.")
    wrong_context: str = Field("wrong_answer", description="Template that P⁻ is shown.")

    def roles(self) -> Mapping[str, Role]:
        """P⁺ and P⁻, both under live weights."""
        return {**super().roles(), "wrong": self.teacher(self.wrong_context, "live")}

    def evidence(self, tokens: TokenSlice) -> Tensor:
        """Δ [N], in nats; 0 where a context is missing."""
        right_N, wrong_N = tokens.target("teacher"), tokens.target("wrong")
        instead_N = gain(tokens) if self.without_wrong == "student" else torch.zeros_like(right_N)
        return torch.where(right_N.isnan() | wrong_N.isnan(), instead_N, right_N - wrong_N)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """RLSD's, and the share of tokens with both contexts."""
        both_N = tokens.has("teacher") & tokens.has("wrong")
        return {**super().metrics(tokens), "contrasted": both_N.to(tokens.target("teacher").dtype)}
