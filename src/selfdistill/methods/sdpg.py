"""SDPG: GRPO, a KL to the model in hindsight, and a KL to the weights of step 0."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, State
from selfdistill.methods.grpo import GRPO, REFERENCE
from selfdistill.objectives import forward_kl, reverse_kl
from selfdistill.types import STUDENT, Role, TokenSlice


class SDPG(GRPO):
    """GRPO's loss + β min(KL(S‖T), 20) + α f(S, S₀) at each token (arXiv 2606.04036).

    T is the live student that has seen the final answer, detached. S₀ has the weights of step 0 and the student's
    prompt. f is ½ (log S(y) − log S₀(y))² by default, whose gradient on samples of S is that of KL(S‖S₀). It can also
    be that KL or KL(S₀‖S) over the vocabulary. The code's fourth form (``ufkl``) is left out, since its definition was
    not recovered. β may rise from 0 over the first ``warmup`` steps and fall to 0 over the last ``decay``, both
    linearly. The loss of bad tokens is bounded (dual clip). A completion without the context has no second term. Our
    choices: a KL beyond its bound has no gradient; the clip range is GRPO's below and DAPO's above; the LoRA learning
    rate.
    """

    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "mask"

    name: Literal["sdpg"] = "sdpg"  # type: ignore[assignment]
    clip_high: float = Field(0.28, gt=0, description="Upper clip of the probability ratio.")
    dual_clip: float | None = Field(3.0, gt=1, description="Bound of a bad token's loss, in |A|; unset: none.")
    strength: float = Field(1e-3, ge=0, description="β, the weight of the KL to the teacher.")
    kl_clip: float = Field(20.0, gt=0, description="The most that one token's KL to the teacher counts, in nats.")
    warmup: int = Field(0, ge=0, description="Steps over which β rises from 0.")
    decay: int = Field(0, ge=0, description="Steps over which β falls to 0 at the end of the run.")
    only_praised: bool = Field(False, description="Whether only completions with a positive advantage are distilled.")
    reference_weight: float = Field(1e-3, ge=0, description="α, the weight of the pull back to the start.")
    reference_form: Literal["squared", "reverse_kl", "forward_kl"] = Field(
        "squared", description="f: half the squared log-ratio of the sampled token, KL(S‖S₀) or KL(S₀‖S)."
    )
    context: str = Field("answer_only", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, the answer. The reference: the weights of step 0, where α is not 0."""
        roles = {**super().roles(), "teacher": self.teacher(self.context, "live")}
        return {**roles, REFERENCE: Role(None, "frozen")} if self.reference_weight else roles

    def precompute(self) -> Sequence[str]:
        """The squared form needs no distribution of the reference."""
        squared = (REFERENCE,) if self.reference_weight and self.reference_form == "squared" else ()
        return tuple(dict.fromkeys((*super().precompute(), *squared)))

    def compared(self) -> Sequence[str]:
        """The teacher, and the reference where f is a KL."""
        compares_reference = self.reference_weight and self.reference_form != "squared"
        return ("teacher", REFERENCE) if compares_reference else ("teacher",)

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """β of this step."""
        rise = min(1.0, (batch.step - 1) / self.warmup) if self.warmup else 1.0
        left = math.inf if batch.steps is None else batch.steps - batch.step
        fall = min(1.0, left / self.decay) if self.decay else 1.0
        return {**super().on_batch(state, batch), "strength": self.strength * rise * fall}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """The three terms."""
        loss_N = super().loss(tokens) + tokens.values["strength"] * self._distilled(tokens)
        return loss_N + self.reference_weight * self._drift(tokens) if self.reference_weight else loss_N

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """GRPO's, and the two terms before their weights."""
        drift = {"reference_gap": self._drift(tokens)} if self.reference_weight else {}
        return {**super().metrics(tokens), "teacher_kl": self._distilled(tokens), **drift}

    def _distilled(self, tokens: TokenSlice) -> Tensor:
        """The bounded KL to the teacher; 0 for completions without a context and those that are excluded."""
        included_N = tokens.has("teacher")
        if self.only_praised:
            included_N = included_N & (tokens.inputs["advantage"] > 0)
        kl_N = reverse_kl(tokens.student, tokens.roles["teacher"]).clamp_max(self.kl_clip)
        return torch.where(included_N, kl_N, torch.zeros_like(kl_N))

    def _drift(self, tokens: TokenSlice) -> Tensor:
        """f, the distance of the student from the weights of step 0."""
        if self.reference_form == "squared":
            return 0.5 * (tokens.target(STUDENT) - tokens.target(REFERENCE)).square()
        between = reverse_kl if self.reference_form == "reverse_kl" else forward_kl
        return between(tokens.student, tokens.roles[REFERENCE])
