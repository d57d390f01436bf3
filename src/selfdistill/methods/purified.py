"""Purified OPSD: distil to the effect of the solution on *this question*, without the effect of the solution alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import Method, Recommended
from selfdistill.objectives import decompose, jensen_shannon, purified_target
from selfdistill.types import STUDENT, Role, TokenSlice


class Purified(Method):
    """Jensen–Shannon to P ∝ B · exp(c tanh(Δ̄/c) / β), Δ = log T(·|x, r) − log R(·|r) (arXiv 2607.02234).

    log T − log S has a part that comes from the reference alone, log R − log S. The target leaves this part out.
    Teacher T, reference-only R and base B (the student's prompt) share the weights of step 0. With LoRA they are one
    network with the adapter off. The divergence uses the whole vocabulary, w = ½. The full-fine-tuning learning rate is
    our choice. The paper trains LoRA of rank 64. Each of the two steps can be left out. Without the subtraction, Δ is
    log T − log B. Without the PMI target, P is the residual alone, exp(c tanh(Δ̄/c) / β) normalised. Without both, P is
    T (OPSD).
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=5e-6, lora_learning_rate=5e-6, completions=1)

    name: Literal["purified"] = "purified"
    beta: float = Field(1.0, gt=0, description="β, temperature of the target against the base.")
    clip: float = Field(10.0, gt=0, description="c, where tanh bends the centred difference.")
    teacher_weight: float = Field(0.5, gt=0, lt=1, description="w of the Jensen–Shannon divergence.")
    context: str = Field("solution", description="Template that the teacher is shown.")
    reference_context: str = Field("reference_only", description="Template with the reference and no question.")
    subtraction: bool = Field(True, description="Whether what the reference alone induces is taken out.")
    pmi_target: bool = Field(True, description="Whether the residual corrects the base, or is the target by itself.")

    def needs_rewards(self) -> bool:
        """Solutions are enough."""
        return False

    def roles(self) -> Mapping[str, Role]:
        """Teacher, reference-only and base, all under frozen weights; the last two where the target needs them."""
        roles = {"teacher": self.teacher(self.context, "frozen")}
        if self.subtraction:
            roles["reference_only"] = self.teacher(self.reference_context, "frozen")
        if self.pmi_target:
            roles["base"] = Role(None, self.weights or "frozen")
        return roles

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence from the student to the purified target at each token."""
        teacher = tokens.roles["teacher"]
        target = teacher
        if self.subtraction or self.pmi_target:
            # Without the PMI target the base is even; the target leaves out what the teacher calls padding.
            base = tokens.roles["base"] if self.pmi_target else torch.zeros_like(teacher)
            reference = tokens.roles["reference_only"] if self.subtraction else base
            target = purified_target(base, teacher, reference, beta=self.beta, clip=self.clip)
        return jensen_shannon(tokens.student, target, teacher_weight=self.teacher_weight)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """How u splits into pMI and drift of the weights, and log T − log S into its parts.

        The parts are given as cosines, and by their norms as shares of the whole's.
        """
        split: dict[str, Tensor] = {}
        if self.pmi_target:
            student_N, base_N = tokens.target(STUDENT).detach(), tokens.target("base")
            split = {"pmi": tokens.target("teacher") - base_N, "weight_drift": base_N - student_N}
        if not self.subtraction:
            return split
        parts = decompose(tokens.student.detach(), tokens.roles["teacher"], tokens.roles["reference_only"])
        measured = {
            "cos_total_reference": parts.cosine_total_reference_N,
            "cos_total_question": parts.cosine_total_question_N,
            "cos_reference_question": parts.cosine_reference_question_N,
            "norm_reference_share": parts.norm_reference_N / parts.norm_total_N,
            "norm_question_share": parts.norm_question_N / parts.norm_total_N,
        }
        # If two contexts agree exactly, the cosine is undefined; such a token counts as 0.
        return {**split, **{name: value.nan_to_num(0.0, 0.0, 0.0) for name, value in measured.items()}}
