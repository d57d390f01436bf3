"""AntiSD: ascend the divergence between student and hindsight, behind an entropy gate, on top of GRPO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.errors import TrainingError
from selfdistill.head import TokenSlice
from selfdistill.methods.base import Observation, Role, State, gain
from selfdistill.methods.grpo import GRPO
from selfdistill.objectives import EntropyGate, antisd_advantage


class AntiSD(GRPO):
    """A_{i,t} = A_i − λ g φ(u_t), φ(u) = ½(softplus(u) − ln 2), in the clipped policy gradient (arXiv 2605.11609).

    The live student, shown a correct solution and the verdict on the scored completion, is the teacher. Its median
    entropy H over the batch drives the gate g: closed for the first W steps, H_warm their median, closed again when
    H < ratio · H_warm, open when H ≥ H_warm. For every completion, also in groups of equal reward. Our choices: H_warm
    is a median; a completion whose context is missing keeps its plain GRPO advantage.
    """

    scored_beforehand: ClassVar[bool] = True

    name: Literal["antisd"] = "antisd"  # type: ignore[assignment]
    strength: float = Field(0.5, ge=0, description="λ, the weight of −φ(u) beside the group advantage.")
    warmup: int = Field(5, ge=1, description="W, steps with a closed gate that record the teacher's entropy.")
    gate_ratio: float = Field(0.93, gt=0, le=1, description="The gate closes when H falls below this share of H_warm.")
    context: str = Field("sibling_or_solution_verdict", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, hindsight context."""
        return {"teacher": Role(self.context, "live", self.teacher_thinking)}

    def new_state(self) -> State:
        """The gate, closed."""
        return EntropyGate(warmup=self.warmup, ratio=self.gate_ratio)

    def observe(self, state: State | None, seen: Observation) -> Mapping[str, float]:
        """Update the gate with the median entropy of the teacher over all response tokens of the batch."""
        assert isinstance(state, EntropyGate)
        entropies = [scores.entropy_N for scores in seen.scores["teacher"] if scores is not None]
        if not entropies:
            return {"gate": float(state.open)}
        entropy = float(torch.cat(entropies).median())
        if not math.isfinite(entropy):
            raise TrainingError(f"the teacher's entropy is {entropy}: its scores are not numbers")
        return {"gate": float(state.update(entropy)), "gate_entropy": entropy}

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """Group advantage minus λ g φ(u)."""
        return tokens.inputs["advantage"] + self.strength * tokens.values["gate"] * antisd_advantage(gain(tokens))
