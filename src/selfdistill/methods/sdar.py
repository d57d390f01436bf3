"""SDAR: GRPO plus a pull towards sampled tokens that hindsight makes likelier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import gain
from selfdistill.methods.grpo import GRPO
from selfdistill.types import STUDENT, Role, TokenSlice


class SDAR(GRPO):
    """GRPO's loss + λ g_t (log T(y_t) − log S(y_t)), g = σ(β u) detached, u the same difference (arXiv 2605.15155).

    T is detached, so the second term's gradient is −λ g ∇log S. It pushes every sampled token up and none down. The
    push is strong where hindsight makes the token likelier and nearly zero where it makes it less likely. The paper
    trains agents over several turns under a prompt with retrieved skills: on a task that is played in turns, with
    ``context = "note"``, this is its form, over the model's own tokens of all turns. The default context and the live
    weights are our choice. λ is 0.1 by default in the released code and 0.01 in all of its scripts. A completion
    without the context has GRPO's loss alone and counts in the denominator. The learning rates are GRPO's.
    """

    name: Literal["sdar"] = "sdar"  # type: ignore[assignment]
    strength: float = Field(0.1, ge=0, description="λ, the weight of the pull beside GRPO's loss.")
    sharpness: float = Field(5.0, ge=0, description="β of the gate σ(β u), per nat.")
    context: str = Field("sibling_or_solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, hindsight context."""
        return {**super().roles(), "teacher": self.teacher(self.context, "live")}

    def precompute(self) -> Sequence[str]:
        """The sampled token's log-probability is enough."""
        return tuple(dict.fromkeys((*super().precompute(), *self.roles())))

    def gate(self, tokens: TokenSlice) -> Tensor:
        """g [N]; 0 where the context is missing."""
        return torch.sigmoid(self.sharpness * gain(tokens)) * tokens.has("teacher")

    def loss(self, tokens: TokenSlice) -> Tensor:
        """GRPO's loss and the gated gap."""
        student_N = tokens.target(STUDENT)
        # u as a number, with the student's gradient: where the context is missing u is 0, and so is the gate.
        gap_N = gain(tokens) - (student_N - student_N.detach())
        return super().loss(tokens) + self.strength * self.gate(tokens) * gap_N

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """GRPO's, and the mean gate."""
        return {**super().metrics(tokens), "pull_gate": self.gate(tokens)}
