"""AD-OPSD (arXiv 2607.10805): OPSD whose target moves to the base model where the student is most uncertain.

On the fifth of tokens with the highest student entropy the target is U·B + (1−U)·T, entry by entry and normalised,
U = σ(S (log S − log T) / τ), B the bare model of step 0; elsewhere it is T. τ and the divergence are not known to us:
1 and OPSD's are our choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill import METHODS, Role, TokenSlice
from selfdistill.objectives import difference, entropy


class ADOPSD(METHODS["opsd"]):
    name: Literal["ad_opsd"] = "ad_opsd"
    share: float = Field(0.2, gt=0, lt=1, description="Share of the batch's tokens whose target is mixed.")
    tau: float = Field(1.0, gt=0, description="τ, how fast an entry of the target moves to the base.")

    def roles(self) -> Mapping[str, Role]:
        return {**super().roles(), "base": Role(None, "frozen")}

    def precompute(self) -> Sequence[str]:
        return ("student",)

    def on_batch(self, state: Any, batch: Any) -> Mapping[str, float]:
        entropies = [scores.entropies.double() for scores in batch.scores["student"]]
        return {"cut": float(torch.cat(entropies).quantile(1 - self.share))} if entropies else {"cut": 0.0}

    def loss(self, tokens: TokenSlice) -> Tensor:
        student, teacher, base = tokens.student.detach(), tokens.roles["teacher"], tokens.roles["base"]
        # Nobody's entries stay nobody's: −inf − (−inf) would be no number.
        move = torch.sigmoid(student.exp() * difference(student, teacher) / self.tau)
        mixed = move * base.exp() + (1 - move) * teacher.exp()
        target = (mixed / mixed.sum(-1, keepdim=True)).log()
        uncertain = (entropy(student) > tokens.values["cut"])[:, None]
        return self.divergence.between(tokens.student, torch.where(uncertain, target, teacher))
