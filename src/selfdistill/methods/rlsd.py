"""RLSD: the reward decides the direction of every token, hindsight the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, State, gain
from selfdistill.methods.grpo import GRPO
from selfdistill.types import Role, TokenSlice


class RLSD(GRPO):
    """A_{i,t} = A_i · [1 − λ + λ · clip(exp(sign(A_i) u_t), 1 − ε_w, 1 + ε_w)] in the clipped policy gradient.

    u = log T(y) − log S(y), detached (arXiv 2604.03128, "Self-Distilled RLVR"). A token that hindsight makes likelier
    is praised more in a right completion and blamed less in a wrong one. Its sign is the reward's. λ falls linearly
    from ``strength`` at step 1 to 0 after ``decay`` steps. From then on the method is GRPO. Our choices: The teacher
    weights are live, as in two of three released codes. The third code copies the student every 10 steps: ``weights =
    {kind = "snapshot", every = 10}``. The paper's eq. 16 clips w A and not the usual ratio. The codes and this file
    clip both. A completion without the context keeps its plain advantage. The learning rates are GRPO's.
    """

    name: Literal["rlsd"] = "rlsd"  # type: ignore[assignment]
    strength: float = Field(
        0.5, ge=0, le=1, description="λ at step 1, the share of the advantage that hindsight sizes."
    )
    decay: int | None = Field(50, ge=1, description="Steps until λ is 0; unset: λ stays.")
    weight_clip: float = Field(0.2, gt=0, le=1, description="ε_w, how far a token's weight may leave 1.")
    context: str = Field("sibling_or_solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, hindsight context."""
        return {**super().roles(), "teacher": self.teacher(self.context, "live")}

    def precompute(self) -> Sequence[str]:
        """The sampled token's log-probability is enough."""
        return tuple(dict.fromkeys((*super().precompute(), *self.roles())))

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """λ of this step."""
        remaining = 1.0 if self.decay is None else max(0.0, 1 - (batch.step - 1) / self.decay)
        return {**super().on_batch(state, batch), "strength": self.strength * remaining}

    def evidence(self, tokens: TokenSlice) -> Tensor:
        """How much likelier [N] hindsight finds each token, in nats; 0 where a context is missing."""
        return gain(tokens)

    def token_weight(self, tokens: TokenSlice) -> Tensor:
        """w [N], between 1 − ε_w and 1 + ε_w."""
        sign_N = tokens.inputs["advantage"].sign()
        return (sign_N * self.evidence(tokens)).exp().clamp(1 - self.weight_clip, 1 + self.weight_clip)

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """The completion's advantage, weighted."""
        strength = tokens.values["strength"]
        return tokens.inputs["advantage"] * (1 - strength + strength * self.token_weight(tokens))

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """GRPO's, the mean weight, and the share of tokens whose weight is clipped."""
        weight_N = self.token_weight(tokens)
        clipped_N = (weight_N <= 1 - self.weight_clip) | (weight_N >= 1 + self.weight_clip)
        return {
            **super().metrics(tokens),
            "credit_weight": weight_N,
            "credit_weight_clipped": clipped_N.to(weight_N.dtype),
        }
