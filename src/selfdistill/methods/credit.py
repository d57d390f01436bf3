"""CREDIT: SDPO minus the part of the signal that unrelated questions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Recommended, State, gain, on_support
from selfdistill.methods.sdpo import SDPO
from selfdistill.objectives import clipped_policy_gradient, credit_target
from selfdistill.types import STUDENT, Role, TokenSlice


class CREDIT(SDPO):
    """Distil to Q ∝ T · exp(−λ mean_k log N_k), N_k another question with this completion's hindsight (2605.11613).

    The paper's vocabulary-level advantage log T − log S − λ mean_k log N_k inside the reverse-KL gradient is the
    reverse KL to Q (our derivation). Any divergence on SDPO's support is therefore possible. The importance ratio is
    SDPO's. Questions are sampled from the batch with a seed, never the completion's own. ``contrast`` may name any
    template with ``$other_question`` or ``$wrong_sibling``: ``other_question_bare`` contrasts with another question
    without feedback, ``wrong_sibling`` with a wrong solution of the same question. λ = 0 is SDPO.

    ``form = "advantage"`` is the sampled-token form u − λ (G − Ḡ), with G = mean_k log N_k(y) and Ḡ its mean over the
    batch. G is never positive, so without the centring it would push every token up. The centring is our choice.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)

    name: Literal["credit"] = "credit"  # type: ignore[assignment]
    teacher_rate: float = Field(
        0.01, ge=0, le=1, description="η of the averaged teacher: θ' ← (1−η)θ' + ηθ after each step."
    )
    strength: float = Field(0.1, ge=0, description="λ, how much of the contrast is taken out.")
    contrasts: int = Field(1, ge=1, le=64, description="C, contrast contexts per completion, 64 at most.")
    contrast: str = Field("other_question", description="Template that the contrast is shown.")
    form: Literal["target", "advantage"] = Field("target", description="Whole distributions, or the sampled token.")
    clip_low: float = Field(0.2, gt=0, description="Lower clip of the probability ratio (advantage form).")
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio (advantage form).")

    def roles(self) -> Mapping[str, Role]:
        """The teacher and C contrasts, all under the averaged weights."""
        contrasts = {name: self.teacher(self.contrast, "ema", k) for k, name in enumerate(self._names())}
        return {**super().roles(), **contrasts}

    def precompute(self) -> Sequence[str]:
        """The sampled-token form needs no distributions."""
        return tuple(self.roles()) if self.form == "advantage" else super().precompute()

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """Ḡ, the mean of the contrasts' log-probabilities over all tokens (sampled-token form)."""
        contrasts = [scores.target_N for name in self._names() for scores in batch.scores.get(name, []) if scores]
        return {"contrast_mean": float(torch.cat(contrasts).double().mean())} if contrasts else {}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence to Q at each token times SDPO's ratio, or the clipped policy gradient."""
        if self.form == "advantage":
            return clipped_policy_gradient(
                tokens.target(STUDENT),
                tokens.inputs["old_logprob"],
                gain(tokens) - self.strength * (self._generic(tokens) - tokens.values["contrast_mean"]),
                clip_low=self.clip_low,
                clip_high=self.clip_high,
            )
        student, teacher, *contrasts = on_support(tokens, self.divergence.support, STUDENT, "teacher", *self._names())
        target = credit_target(teacher, torch.stack(contrasts), weight=self.strength)
        return self._ratio(tokens) * self.divergence.between(student, target)

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """SDPO's, the sampled token's score u − λG, and its parts: input-specific log T − G and input-generic G.

        Over a completion the score sums to CREDIT's sequence-level reward, and the input-specific part to its surrogate
        of a contrastive pMI: how much likelier the completion is under its own input than under the others.
        """
        generic_N, teacher_N = self._generic(tokens), tokens.target("teacher")
        score_N = teacher_N - tokens.target(STUDENT) - self.strength * generic_N
        parts = {"credit_score": score_N, "credit_specific": teacher_N - generic_N, "credit_generic": generic_N}
        return {**super().metrics(tokens), **parts}

    def _names(self) -> list[str]:
        return [f"contrast_{k}" for k in range(self.contrasts)]

    def _generic(self, tokens: TokenSlice) -> Tensor:
        return torch.stack([tokens.target(name) for name in self._names()]).mean(0)
