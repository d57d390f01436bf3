"""PACED: distillation at the edge of the student's ability, forward KL first, reverse KL later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import (
    BatchScores,
    DriftingTeacher,
    Full,
    Recommended,
    State,
    Support,
    TopK,
    on_support,
)
from selfdistill.objectives import forward_kl, reverse_kl
from selfdistill.types import STUDENT, Role, TokenSlice


class PACED(DriftingTeacher):
    """w(p) · KL between S and T(·|x, r, y_<t), w(p) = p^α (1−p)^β of the question's pass rate p (arXiv 2603.11178).

    p is the share of right completions among the student's judged completions of the question. The first part of a run
    descends KL(T || S), which covers all of the teacher's modes. The second part descends KL(S || T), which
    concentrates on some of them. α = β = 1 are the paper's values. α = β = 0 weights all questions alike.

    The paper estimates p and distils its own teacher's responses. Our choices: p is estimated anew from the eight
    completions of every step. The text is the student's own completions. T has the weights of step 0 and sees the
    solution. The second part begins at half of the run. Outside a run the loss is that of the first part. w is not
    normalised. A question without a judged completion has the weight 0. The learning rates are ours too.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=5e-6, lora_learning_rate=5e-6)

    name: Literal["paced"] = "paced"
    alpha: float = Field(1.0, ge=0, description="α, power of the pass rate p.")
    beta: float = Field(1.0, ge=0, description="β, power of 1 − p.")
    reverse_from: float = Field(
        0.5, ge=0, le=1, description="Share of the run after which the KL is reversed; 0: from the start, 1: never."
    )
    support: Support = Field(default=Full(), description="Which part of the vocabulary is compared.")
    context: str = Field("solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: frozen weights, reference solution."""
        return {"teacher": self.teacher(self.context, "frozen"), **self.bare("frozen")}

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor]:
        """The weight of every completion's question, its mean, and whether the second part has begun."""
        rates = [view.pass_rate for view in batch.views]
        weights = [0.0 if p is None else p**self.alpha * (1 - p) ** self.beta for p in rates]
        progress = 0.0 if batch.steps is None else (batch.step - 1) / batch.steps
        return {
            "question_weight": torch.tensor(weights, dtype=torch.float64),
            "question_weight_mean": sum(weights) / len(weights) if weights else 0.0,
            "reverse": float(self.reverse_from <= progress),
        }

    def compared_on(self) -> Full | TopK:
        """The tokens of the divergence."""
        return self.support

    def loss(self, tokens: TokenSlice) -> Tensor:
        """The divergence of this part of the run, times the question's weight."""
        divergence = reverse_kl if tokens.values["reverse"] else forward_kl
        return tokens.inputs["question_weight"] * divergence(*on_support(tokens, self.support, STUDENT, "teacher"))
