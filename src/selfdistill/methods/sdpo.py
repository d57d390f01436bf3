"""SDPO: match the averaged model that has seen a correct sibling or the environment's feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import (
    Divergence,
    DriftingTeacher,
    Full,
    JensenShannon,
    Recommended,
    TopK,
    on_support,
)
from selfdistill.types import STUDENT, Role, TokenSlice


class SDPO(DriftingTeacher):
    """Divergence from S to T(·|x, z, y_<t) on the student's top-K and a tail bin (arXiv 2601.20802).

    z is a correct completion of the same group other than the scored one, without its thinking. If there is none, z is
    the environment's feedback. Without feedback the completion leaves the loss and is counted. Each token's loss is
    multiplied by min(S / S_sampled, 2). T is a running average of the student. Defaults are those of the science and
    tool settings. The code setting is ``teacher_rate = 0.01`` with ``divergence = {kind = "reverse_kl", support = {kind
    = "top_k", k = 20}}``. There is no GRPO term.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-5, lora_learning_rate=1e-5)

    name: Literal["sdpo"] = "sdpo"
    teacher_rate: float = Field(
        0.05, ge=0, le=1, description="η of the averaged teacher: θ' ← (1−η)θ' + ηθ after each step."
    )
    divergence: Divergence = Field(
        default=JensenShannon(support=TopK(k=100)), description="How teacher and student are compared."
    )
    ratio_cap: float = Field(2.0, gt=0, description="Cap of the importance ratio S / S_sampled.")
    context: str = Field("sibling_or_feedback", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: averaged weights, sibling or feedback."""
        return {"teacher": self.teacher(self.context, "ema"), **self.bare("ema")}

    def compared_on(self) -> Full | TopK:
        """The tokens of the divergence."""
        return self.divergence.support

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence at each token, times the capped importance ratio."""
        student, teacher = on_support(tokens, self.divergence.support, "student", "teacher")
        return self._ratio(tokens) * self.divergence.between(student, teacher)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """Mean ratio, the share of tokens at its cap, and the parts of u."""
        ratio_N = self._ratio(tokens)
        return {
            **super().metrics(tokens),
            "ratio": ratio_N,
            "ratio_capped": (ratio_N >= self.ratio_cap).to(ratio_N.dtype),
        }

    def _ratio(self, tokens: TokenSlice) -> Tensor:
        return (tokens.target(STUDENT).detach() - tokens.inputs["old_logprob"]).exp().clamp_max(self.ratio_cap)
