"""EOPD: on-policy distillation by the sampled token, plus whole distributions where the teacher is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import DriftingTeacher, Recommended
from selfdistill.objectives import clipped_policy_gradient, entropy, forward_kl
from selfdistill.types import STUDENT, Role, TokenSlice


class EOPD(DriftingTeacher):
    """Policy gradient with log T(y) − log S_old(y), plus 1[H_T > τ] · KL(T_K || S) (arXiv 2603.07079).

    T_K is the teacher on its own K likeliest tokens, normalised there. S is not normalised there. The policy gradient
    uses the sampled token alone and pulls the student to one of the teacher's modes. Where the teacher is uncertain,
    the forward KL keeps the other modes. The KL is added and replaces nothing. K = 16, τ = 0.8 nats, clip 0.2.

    The paper's teacher is a larger model under the student's own prompt: ``weights = { kind = "external", path = … }``
    with ``context = "student"``. Our default teacher has the weights of step 0 and sees the solution, so that the
    method needs no second model. The learning rates and one completion per prompt are also our choices.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5, completions=1)

    name: Literal["eopd"] = "eopd"
    threshold: float = Field(0.8, ge=0, description="τ, the teacher's entropy in nats from which the KL is added.")
    k: int = Field(16, ge=1, description="K, how many of the teacher's likeliest tokens the KL compares.")
    strength: float = Field(1.0, ge=0, description="Weight of the KL; 0 leaves the policy gradient alone.")
    clip_low: float = Field(0.2, gt=0, description="Lower clip of the probability ratio.")
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio.")
    context: str = Field("solution", description="Template that the teacher is shown.")

    def needs_rewards(self) -> bool:
        """The teacher's probabilities are the reward."""
        return False

    def roles(self) -> Mapping[str, Role]:
        """The teacher: frozen weights, reference solution."""
        return {"teacher": self.teacher(self.context, "frozen"), **self.bare("frozen")}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Clipped policy gradient at each token, and the forward KL at the teacher's uncertain ones."""
        old_N = tokens.inputs["old_logprob"]
        gradient_N = clipped_policy_gradient(
            tokens.target(STUDENT),
            old_N,
            tokens.target("teacher") - old_N,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
        )
        teacher = tokens.roles["teacher"]
        likeliest, ids = teacher.topk(min(self.k, teacher.shape[-1]), -1)
        kl_N = forward_kl(tokens.student.gather(-1, ids), torch.log_softmax(likeliest, -1))
        return gradient_N + self.strength * self._uncertain(tokens) * kl_N

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """Share of tokens where the teacher is uncertain, and the parts of u."""
        return {**super().metrics(tokens), "teacher_uncertain": self._uncertain(tokens)}

    def _uncertain(self, tokens: TokenSlice) -> Tensor:
        teacher = tokens.roles["teacher"]
        return (entropy(teacher) > self.threshold).to(teacher.dtype)
