"""RLCSD: GRPO plus a bounded bonus for the difference between a right hint and wrong hints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, Recommended, State
from selfdistill.methods.grpo import GRPO
from selfdistill.types import Role, Scores, Snapshot, TokenSlice


class RLCSD(GRPO):
    """A_{i,t} = A_i + r_t without a change of sign, r = clip(λ tanh(e/τ), −c, c), in the clipped policy gradient.

    e = log T(y | right hint) − log (1/K) Σ_k T(y | wrong hint k), the log of a mean (arXiv 2606.11709). The right hint
    is a random correct completion of the group, else the reference. The wrong hints are up to K wrong completions. The
    scored completion is never a hint. If there are fewer than K, the mean is over those. T is the student, copied every
    10 steps. A token with |r| > δ is selected. The loss is the mean over unselected tokens plus η times the mean over
    selected ones, with two denominators. A completion without both kinds of hint leaves the loss, and ``without_hints``
    counts it. A_i = 0 stays 0, and such tokens count in the denominators (our reading). The code's β is 1 and
    multiplies λ, so λ stands for both here. Defaults are those of the released script. The full-fine-tuning rate is the
    paper's, the LoRA rate is ten times higher.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5, top_p=0.95, top_k=20)

    name: Literal["rlcsd"] = "rlcsd"  # type: ignore[assignment]
    strength: float = Field(0.5, ge=0, description="λ, the most that hindsight adds to an advantage.")
    sharpness: float = Field(0.02, gt=0, description="τ in nats; evidence far above it counts as λ.")
    bonus_clip: float = Field(2.0, gt=0, description="c, bound of the bonus; of no effect where λ is smaller.")
    selected_above: float = Field(0.02, ge=0, description="δ; tokens with a larger bonus have a mean of their own.")
    selected_weight: float = Field(1.0, ge=0, description="η, the weight of the mean over selected tokens.")
    contrasts: int = Field(4, ge=1, le=64, description="K, the most wrong hints per completion, 64 at most.")
    context: str = Field("random_sibling_or_solution", description="Template with the right hint.")
    wrong_context: str = Field("wrong_sibling", description="Template with a wrong hint.")

    def roles(self) -> Mapping[str, Role]:
        """The right hint and K wrong ones, under the last copy of the student."""
        wrong = {name: self.teacher(self.wrong_context, Snapshot(10), k) for k, name in enumerate(self._wrong())}
        return {**super().roles(), "teacher": self.teacher(self.context, Snapshot(10)), **wrong}

    def precompute(self) -> Sequence[str]:
        """The sampled token's log-probabilities are enough."""
        return tuple(dict.fromkeys((*super().precompute(), *self.roles())))

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """Each token's bonus, and the factor that turns one mean over all tokens into the two means."""
        hints = ("teacher", *self._wrong())
        columns = [[batch.scores[name][i] for name in hints] for i in range(len(batch.views))]
        bonuses = [self._bonus(right, wrong) for right, *wrong in columns]
        weights = [torch.tensor(view.weights, dtype=torch.float64) for view in batch.views]
        selected = [None if bonus is None else bonus.abs() > self.selected_above for bonus in bonuses]
        # The loss is Σ weight · factor · term / Σ weight: a factor of Σ weight / Σ own weight gives a separate mean.
        total = math.fsum(float(weight.sum()) for weight in weights)
        pairs = [(weight, chosen) for weight, chosen in zip(weights, selected, strict=True) if chosen is not None]
        of_selected = math.fsum(float(weight[chosen].sum()) for weight, chosen in pairs)
        of_others = math.fsum(float(weight[~chosen].sum()) for weight, chosen in pairs)
        inside = self.selected_weight * total / of_selected if of_selected else 0.0
        outside = total / of_others if of_others else 0.0
        return {
            **super().on_batch(state, batch),
            "bonus": [torch.zeros_like(w) if b is None else b for w, b in zip(weights, bonuses, strict=True)],
            "factor": [
                torch.zeros_like(weight) if chosen is None else outside + (inside - outside) * chosen.double()
                for weight, chosen in zip(weights, selected, strict=True)
            ],
            "selected": of_selected / (of_selected + of_others) if pairs else 0.0,
            "without_hints": float(len(bonuses) - len(pairs)),
        }

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """A + r, or 0 if the sign would change."""
        advantage_N = tokens.inputs["advantage"]
        moved_N = advantage_N + tokens.inputs["bonus"]
        return torch.where(moved_N.sign() == advantage_N.sign(), moved_N, torch.zeros_like(moved_N))

    def loss(self, tokens: TokenSlice) -> Tensor:
        """The clipped policy gradient, with the factor of the token's mean."""
        return tokens.inputs["factor"] * super().loss(tokens)

    def _wrong(self) -> list[str]:
        return [f"wrong_{k}" for k in range(self.contrasts)]

    def _bonus(self, right: Scores | None, wrong: Sequence[Scores | None]) -> Tensor | None:
        """r of a completion's tokens; None without both kinds of hint."""
        wrong_logprobs = [scores.target_N.cpu().double() for scores in wrong if scores is not None]
        if right is None or not wrong_logprobs:
            return None
        evidence_N = right.target_N.cpu().double() - (
            torch.logsumexp(torch.stack(wrong_logprobs), 0) - math.log(len(wrong_logprobs))
        )
        return (self.strength * torch.tanh(evidence_N / self.sharpness)).clamp(-self.bonus_clip, self.bonus_clip)
