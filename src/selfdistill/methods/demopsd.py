"""DemoPSD: a teacher mixed with its own distribution without hindsight where it is far from the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BARE, Divergence, Recommended, ReverseKL, TopK, on_support
from selfdistill.methods.sdpo import SDPO
from selfdistill.objectives import difference, jensen_shannon
from selfdistill.types import STUDENT, TokenSlice


class DemoPSD(SDPO):
    """Reverse KL to Q ∝ T^(1−α) · B^α, α = 2 α_max (σ(β d) − ½), d = JSD(S, T) at each token (arXiv 2607.02502).

    T is the averaged model that sees a sibling or feedback, B has the same weights and sees neither. Where hindsight
    agrees with the student, α is near 0 and the target is SDPO's. Where they differ, B gets up to α_max of the target's
    exponent, which keeps the student's variety. d is detached, w = ½. α_max = 0 is SDPO with a reverse KL.

    The paper's β is 25 to 100 by domain. Our choices: β = 50; d and Q are taken on SDPO's support, the student's top
    100 and a tail; SDPO's importance ratio stays; the LoRA learning rate.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)

    name: Literal["demopsd"] = "demopsd"  # type: ignore[assignment]
    weight_drift: Literal[True] = Field(
        True, description="B is always scored, so u is always logged as pmi and weight_drift."
    )
    divergence: Divergence = Field(
        default=ReverseKL(support=TopK(k=100)), description="How the student and the target Q are compared."
    )
    alpha_max: float = Field(0.15, ge=0, le=1, description="α_max, the most of the target's exponent that B gets.")
    beta: float = Field(50.0, gt=0, description="β, how fast α grows with the divergence of S and T.")

    def precompute(self) -> Sequence[str]:
        """Nothing: the loss needs the whole distributions of T and B."""
        return ()

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence to Q at each token, times SDPO's capped importance ratio."""
        student, teacher, bare = on_support(tokens, self.divergence.support, STUDENT, "teacher", BARE)
        alpha_N1 = self._alpha(student, teacher)[:, None]
        target = torch.log_softmax(teacher + alpha_N1 * difference(bare, teacher), -1)
        return self._ratio(tokens) * self.divergence.between(student, target)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """SDPO's, and α."""
        alpha_N = self._alpha(*on_support(tokens, self.divergence.support, STUDENT, "teacher"))
        return {**super().metrics(tokens), "alpha": alpha_N}

    def _alpha(self, student_NS: Tensor, teacher_NS: Tensor) -> Tensor:
        distance_N = jensen_shannon(student_NS.detach(), teacher_NS.detach())
        return 2 * self.alpha_max * (torch.sigmoid(self.beta * distance_N) - 0.5)
