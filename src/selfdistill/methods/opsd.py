"""OPSD: match the frozen model that has seen the solution, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import (
    ClippedForwardKL,
    Divergence,
    DriftingTeacher,
    Full,
    Recommended,
    TopK,
    at_temperature,
    on_support,
)
from selfdistill.types import Role, TokenSlice


class OPSD(DriftingTeacher):
    """Divergence from S(·|x, y_<t) to T(·|x, r, y_<t) on the student's own completions (arXiv 2601.18734).

    T has the weights of step 0. Both sides are divided by the sampling temperature, 1.1, as in the released trainer.
    Defaults are the current recipe: clipped forward KL with τ = 0.05, to be used with ``optimiser.clip_norm = 0.1``.
    The first release is ``divergence = {kind = "jensen_shannon"}``, learning rate 2e-4 and 2048 tokens (config
    ``countdown-opsd-first``).
    """

    recommended: ClassVar[Recommended] = Recommended(
        learning_rate=5e-6, lora_learning_rate=5e-6, completions=1, temperature=1.1, top_p=0.95, top_k=20
    )
    name: Literal["opsd"] = "opsd"
    divergence: Divergence = Field(default=ClippedForwardKL(), description="How teacher and student are compared.")
    score_temperature: float | None = Field(
        None, gt=0, description="Divides the scores of both sides alike; unset: the sampling temperature."
    )
    context: str = Field("solution", description="Template that the teacher is shown.")

    def roles(self) -> Mapping[str, Role]:
        """The teacher: frozen weights, reference solution."""
        return {"teacher": self.teacher(self.context, "frozen"), **self.bare("frozen")}

    def at_sampling_temperature(self, temperature: float) -> OPSD:
        """Score at the sampling temperature, as the released trainer does."""
        return self if self.score_temperature else self.model_copy(update={"score_temperature": temperature})

    def needs_rewards(self) -> bool:
        """Solutions are enough."""
        return False

    def compared_on(self) -> Full | TopK:
        """The tokens of the divergence; all tokens at another temperature than 1, which divides the scores of each."""
        return self.divergence.support if self.score_temperature == 1 else Full()

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Divergence at each token."""
        # A method that was not resolved by a config scores at the recipe's sampling temperature.
        softened = at_temperature(tokens, self.score_temperature or self.recommended.temperature)
        return self.divergence.between(*on_support(softened, self.divergence.support, "student", "teacher"))
