"""Methods by import path, as a user would bring them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from selfdistill.methods.base import BatchScores, State
from selfdistill.methods.grpo import GRPO
from selfdistill.methods.pbsd import PBSD
from selfdistill.types import Role, TokenSlice


class Count:
    """How many steps were seen."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The count put back."""
        self.steps = state["steps"]


class Poisoned(GRPO):
    """GRPO until a given step, whose loss is not a number."""

    poisoned_step: int = Field(3, description="The step that goes wrong; 0 for none.")

    def new_state(self) -> State:
        """A counter of steps."""
        return Count()

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float]:
        """NaN at the poisoned step."""
        assert isinstance(state, Count)
        state.steps += 1
        return {"poison": math.nan if state.steps == self.poisoned_step else 0.0}

    def loss(self, tokens: TokenSlice) -> Tensor:
        """GRPO's, and the poison."""
        return super().loss(tokens) + tokens.values["poison"] * tokens.target("student")


class Coached(PBSD):
    """PBSD with a third role that looks at the verdict and draws nothing."""

    def roles(self) -> Mapping[str, Role]:
        """The teacher that draws, and a coach in hindsight."""
        return {**super().roles(), "coach": Role("solution_verdict", "live")}


class Nameless(PBSD):
    """PBSD that lets a role draw which it does not have."""

    def sampling_roles(self) -> Sequence[str]:
        """The student, and nobody that is known."""
        return ("student", "coach")
