"""AntiSD: ascend the divergence between student and hindsight, behind an entropy gate, on top of GRPO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from selfdistill.errors import TrainingError
from selfdistill.methods.base import BatchScores, State, gain
from selfdistill.methods.entropy_gate import EntropyGate
from selfdistill.methods.grpo import GRPO
from selfdistill.objectives import antisd_advantage
from selfdistill.types import STUDENT, Role, TokenSlice


class AntiSD(GRPO):
    """A_{i,t} = A_i − λ g φ(u_t), φ(u) = ½(softplus(u) − ln 2), in the clipped policy gradient (arXiv 2605.11609).

    The teacher is the live student whose prompt shows a correct solution and the verdict on the scored completion. The
    median H of its entropies over the batch drives the gate g. The gate is closed for the first W steps, and H_warm is
    the median of H over these steps. Later it closes when H < ratio · H_warm and opens when H ≥ H_warm. The bonus
    applies to every completion, also in groups of equal reward. The paper's ablations are hyperparameters.
    ``gate_signal`` has its "student-perplexity" gate in two readings: the same median of the student's entropies, or
    exp of the student's mean −log S(y_t).

    Our choices: H_warm is a median. A completion whose context is missing keeps its plain GRPO advantage. "multiply" is
    A_i · max(0, 1 − λ g φ(u)), which keeps the sign of A_i. Without a teacher, the uniform distribution over the
    vocabulary replaces it. The gate is then open, since it has no entropy to watch.
    """

    name: Literal["antisd"] = "antisd"  # type: ignore[assignment]
    strength: float = Field(0.5, ge=0, description="λ, the weight of −φ(u) beside the group advantage.")
    warmup: int = Field(5, ge=1, description="W, steps with a closed gate that record the teacher's entropy.")
    gate_ratio: float = Field(0.93, gt=0, le=1, description="The gate closes when H falls below this share of H_warm.")
    gate_signal: Literal["teacher_entropy", "student_entropy", "student_perplexity"] = Field(
        "teacher_entropy", description="What the gate watches: a median over the batch's tokens, or a perplexity."
    )
    gated: bool = Field(True, description="Whether there is a gate; without, it is open from the first step on.")
    ascend: Literal["jensen_shannon", "reverse_kl"] = Field(
        "jensen_shannon", description="Divergence that is ascended: −φ(u), or −u."
    )
    compose: Literal["add", "multiply"] = Field("add", description="How signal and group advantage are combined.")
    hindsight: bool = Field(True, description="Whether there is a teacher that sees hindsight.")
    context: str = Field("sibling_or_solution_verdict", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: live weights, hindsight context."""
        return {**super().roles(), **({"teacher": self.teacher(self.context, "live")} if self.hindsight else {})}

    def precompute(self) -> Sequence[str]:
        """The sampled token's log-probability, and the entropy that the gate watches, before the loss."""
        gate_role = (STUDENT,) if self.gated and self.gate_signal != "teacher_entropy" else ()
        return tuple(dict.fromkeys((*super().precompute(), *self.roles(), *gate_role)))

    def likeliest(self, role: str) -> int | None:
        """A gate that watches the teacher's entropy reads its distribution."""
        watched = self.gated and self.gate_signal == "teacher_entropy"
        return None if watched and role == "teacher" else super().likeliest(role)

    def new_state(self) -> State | None:
        """The gate, closed."""
        watches = self.gated and (self.hindsight or self.gate_signal != "teacher_entropy")
        return EntropyGate(warmup=self.warmup, ratio=self.gate_ratio) if watches else None

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """Update the gate with its signal over all response tokens of the batch."""
        role, _, quantity = self.gate_signal.partition("_")
        scores = [score for score in batch.scores.get(role, []) if score is not None]
        measured: dict[str, float] = {}
        if scores and quantity == "entropy":
            measured = {"gate_entropy": _median(torch.cat([score.entropy_N for score in scores]))}
        elif scores:
            mean = float(torch.cat([score.target_N for score in scores]).double().mean())
            measured = {"gate_perplexity": math.exp(-mean)}
        for value in measured.values():
            if not math.isfinite(value):
                raise TrainingError(f"the {role}'s {quantity} is {value}: its scores are not numbers")
        if not isinstance(state, EntropyGate):
            return {"gate": 1.0, **measured, **super().on_batch(state, batch)}
        if measured and batch.update == 0:
            state.update(*measured.values())
        return {"gate": float(state.open), **measured, **super().on_batch(state, batch)}

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """Group advantage minus λ g φ(u), or times 1 − λ g φ(u)."""
        u_N = gain(tokens) if self.hindsight else _gain_of_knowing_nothing(tokens)
        signal_N = antisd_advantage(u_N) if self.ascend == "jensen_shannon" else -u_N
        signal_N = self.strength * tokens.values["gate"] * signal_N
        if self.compose == "multiply":
            return tokens.inputs["advantage"] * (1.0 + signal_N).clamp_min(0.0)
        return tokens.inputs["advantage"] + signal_N


def _median(values_N: Tensor) -> float:
    """The median, with the mean of the two middle values; NaN if a value is NaN or there are none."""
    # torch.median returns the lower of the two middle values.
    return float((values_N.median() - (-values_N).median()) / 2.0)


def _gain_of_knowing_nothing(tokens: TokenSlice) -> Tensor:
    """u [N] with a teacher that is uniform over the real vocabulary."""
    real_N = (tokens.student > -math.inf).sum(-1)
    return -real_N.to(tokens.student.dtype).log() - tokens.target(STUDENT).detach()
