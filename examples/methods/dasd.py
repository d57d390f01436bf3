"""Direction-adaptive self-distillation (arXiv 2605.22263): to the teacher where the student is sure, away elsewhere.

A_t = A + β ω_t δ_t, δ_t = log T(y_t) − log S(y_t), standardised within the completion,
ω_t = tanh((τ − H_t) / σ_H) · σ(|δ_t| − 1), H_t the student's entropy, τ its (1−ρ)-quantile in the completion, σ_H
its mean absolute deviation. β and the normaliser of δ are not known to us: 0.1 and the standard deviation are
our choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill import METHODS, Role, Scores, TokenSlice


class DASD(METHODS["grpo"]):
    name: Literal["dasd"] = "dasd"
    beta: float = Field(0.1, ge=0, description="β, weight of the signal beside the group advantage.")
    rho: float = Field(0.2, gt=0, lt=1, description="ρ, share of a completion's tokens that are pushed away.")
    context: str = Field("sibling_or_solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        return {**super().roles(), "teacher": self.teacher(self.context, "live")}

    def precompute(self) -> Sequence[str]:
        return tuple(dict.fromkeys((*super().precompute(), "student", "teacher")))

    def on_batch(self, state: Any, batch: Any) -> Mapping[str, Any]:
        pairs = zip(batch.scores["student"], batch.scores["teacher"], strict=True)
        push = [self._push(student, teacher) for student, teacher in pairs]
        return {**super().on_batch(state, batch), "push": push}

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        return tokens.inputs["advantage"] + self.beta * tokens.inputs["push"]

    def _push(self, student: Scores, teacher: Scores | None) -> Tensor:
        entropy = student.entropies.double()
        if teacher is None:
            return torch.zeros_like(entropy)
        gap = (teacher.logprobs - student.logprobs).double()
        gap = (gap - gap.mean()) / gap.std(unbiased=False).clamp_min(1e-6)
        spread = (entropy - entropy.mean()).abs().mean().clamp_min(1e-6)
        sure = torch.tanh((entropy.quantile(1 - self.rho) - entropy) / spread)
        return sure * torch.sigmoid(gap.abs() - 1) * gap
