"""SRPO: right completions learn from the reward, wrong ones from the model in hindsight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Divergence, JensenShannon, State, TopK, on_support
from selfdistill.methods.grpo import GRPO
from selfdistill.types import STUDENT, Role, TokenSlice


class SRPO(GRPO):
    """GRPO's loss on right completions, SDPO's times an entropy weight on wrong ones (arXiv 2604.02288).

    A completion is routed to SDPO if it is wrong and its teacher has a context. All others have GRPO's loss with a dual
    clip. w_t = exp(−β H_t) / mean over all routed tokens, where H is the teacher's entropy: tokens on which the teacher
    is unsure weigh less. The loss is one mean over all tokens. T is a running average of the student. A wrong
    completion is one that was judged and is not right. An unjudged one is not routed (our choice), and its advantage is
    0. The context is SDPO's. A second-hand note gives (1 − H / log V)^α for w and a cross-entropy. The released code
    does not, and this file follows the code. Our choice: the LoRA learning rate.
    """

    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "mask"

    name: Literal["srpo"] = "srpo"  # type: ignore[assignment]
    teacher_rate: float = Field(
        0.05, ge=0, le=1, description="η of the averaged teacher: θ' ← (1−η)θ' + ηθ after each step."
    )
    dual_clip: float | None = Field(3.0, gt=1, description="Bound of a bad token's loss, in |A|; unset: none.")
    entropy_weight: float = Field(1.0, ge=0, description="β, how much an unsure teacher counts less, per nat.")
    divergence: Divergence = Field(
        default=JensenShannon(support=TopK(k=100)), description="How teacher and student are compared."
    )
    ratio_cap: float = Field(2.0, gt=0, description="Cap of the importance ratio S / S_sampled.")
    context: str = Field("sibling_or_feedback", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: averaged weights, sibling or feedback."""
        return {**super().roles(), "teacher": self.teacher(self.context, "ema")}

    def precompute(self) -> Sequence[str]:
        """The teacher, because the entropy weight needs the mean over the batch."""
        return (*super().precompute(), "teacher")

    def compared(self) -> Sequence[str]:
        """The teacher's distributions as well."""
        return ("teacher",)

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """A mask of the completions that are routed to SDPO, and the weight of each of their tokens."""
        teachers = batch.scores.get("teacher", [None] * len(batch.views))
        routed = [
            scores is not None and view.reward is not None and not view.correct
            for view, scores in zip(batch.views, teachers, strict=True)
        ]
        entropies = [scores.entropy_N.cpu().double() if scores else torch.empty(0).double() for scores in teachers]
        # Relative to the lowest entropy, so that no weight underflows; dividing by the mean cancels the factor.
        surest = min((float(entropies[i].min()) for i, chosen in enumerate(routed) if chosen), default=0.0)
        unscaled = [(self.entropy_weight * (surest - entropy_N)).exp() for entropy_N in entropies]
        masses = [torch.tensor(view.weights, dtype=torch.float64) for view in batch.views]
        pairs = [(w, mass) for w, mass, chosen in zip(unscaled, masses, routed, strict=True) if chosen]
        mean = sum(float((w * mass).sum()) for w, mass in pairs) / (math.fsum(float(m.sum()) for _, m in pairs) or 1.0)
        return {
            **super().on_batch(state, batch),
            "distil": [
                w / mean if chosen else torch.zeros_like(mass)
                for w, mass, chosen in zip(unscaled, masses, routed, strict=True)
            ],
            "routed": torch.tensor(routed, dtype=torch.float64),
            "routed_share": sum(routed) / max(1, len(routed)),
        }

    def loss(self, tokens: TokenSlice) -> Tensor:
        """SDPO's loss with the entropy weight on routed completions, GRPO's on the others."""
        student, teacher = on_support(tokens, self.divergence.support, STUDENT, "teacher")
        ratio_N = (tokens.target(STUDENT).detach() - tokens.inputs["old_logprob"]).exp().clamp_max(self.ratio_cap)
        distilled_N = tokens.inputs["distil"] * ratio_N * self.divergence.between(student, teacher)
        return torch.where(tokens.inputs["routed"] > 0, distilled_N, super().loss(tokens))
