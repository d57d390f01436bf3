"""GRPO: rewards alone, compared within the group. No teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import Method, Recommended
from selfdistill.objectives import clipped_policy_gradient, group_advantages
from selfdistill.types import STUDENT, TokenSlice


class GRPO(Method):
    """Group-relative policy optimisation (arXiv 2402.03300), without a KL term.

    A_i = (R_i − mean) / std over the completions of one prompt, in the clipped policy gradient. Our choice: token mean
    over the whole batch, as in later practice, instead of the mean of sequence means.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)
    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "keep"

    name: Literal["grpo"] = "grpo"
    scale: Literal["std", "none"] = Field("std", description="Divide advantages by the group's std, or not (Dr. GRPO).")
    clip_low: float = Field(0.2, gt=0, description="Lower clip of the probability ratio.")
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio.")
    dual_clip: float | None = Field(None, gt=1, description="Bound of a bad token's loss, in |A|; unset: none.")

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Group advantages; a group of equal rewards has none."""
        return group_advantages(rewards_PG, scale=self.scale)

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """Advantage [N] of each token; here its completion's."""
        return tokens.inputs["advantage"]

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Clipped policy gradient."""
        return clipped_policy_gradient(
            tokens.target(STUDENT),
            tokens.inputs["old_logprob"],
            self.token_advantage(tokens),
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """Share of tokens whose ratio left the clip range."""
        ratio_N = (tokens.target(STUDENT) - tokens.inputs["old_logprob"]).exp()
        outside_N = (ratio_N < 1 - self.clip_low) | (ratio_N > 1 + self.clip_high)
        return {"clip_share": outside_N.to(ratio_N.dtype), "ratio": ratio_N}
