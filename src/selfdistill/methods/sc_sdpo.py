"""SC-SDPO: SDPO that weights questions by their pass rate, most at one half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Recommended, State
from selfdistill.methods.sdpo import SDPO
from selfdistill.types import TokenSlice


class SCSDPO(SDPO):
    """SDPO's loss × w / w̄, w = [p(1−p)]^½ of the question's pass rate p (arXiv 2605.27765).

    p is the share of right completions among the student's judged completions of the question. It includes completions
    that SDPO leaves out because they have no context. GRPO divides advantages by their standard deviation, which leaves
    √(p(1−p)) as its only weight for difficulty. SDPO has no such weight. Questions that are always or never solved have
    the weight 0, even if there is feedback. An exponent of 0 is SDPO.

    Experimental: the paper normalises by the batch, in a form that we could not recover. Our choice: w̄ is the mean of
    w over the completions in the loss, so the weights of a batch have the mean 1. A question without a judged
    completion has the weight 0, which is also our choice.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-5, lora_learning_rate=1e-5)

    name: Literal["sc_sdpo"] = "sc_sdpo"  # type: ignore[assignment]
    exponent: float = Field(0.5, ge=0, description="Power of p(1−p); 0 weighs all questions alike, as SDPO does.")
    normalise: Literal["batch", "none"] = Field(
        "batch", description="Divide the weights by their mean over the batch's completions, or not."
    )

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """The weight of every completion's question; their mean before the division is logged."""
        rates = [view.pass_rate if view.pass_rate is not None else 0.0 for view in batch.views]
        weight = torch.tensor([(p * (1 - p)) ** self.exponent for p in rates], dtype=torch.float64)
        mean = float(weight.mean()) if rates else 0.0
        if self.normalise == "batch" and mean > 0.0:
            weight = weight / mean
        return {"question_weight": weight, "question_weight_mean": mean}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """SDPO's loss times the question's weight."""
        return tokens.inputs["question_weight"] * super().loss(tokens)
