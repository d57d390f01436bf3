"""SFT: cross-entropy on the reference solutions. The baseline that learns off-policy."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from selfdistill.methods.base import Method, Recommended
from selfdistill.types import STUDENT, TokenSlice


class SFT(Method):
    """−log S(y_t) on the data's own responses (field ``response`` where a task has one, else ``solution``)."""

    recommended: ClassVar[Recommended] = Recommended(learning_rate=5e-6, lora_learning_rate=2e-4, completions=1)
    on_policy: ClassVar[bool] = False

    name: Literal["sft"] = "sft"

    def needs_rewards(self) -> bool:
        """Solutions are enough."""
        return False

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Negative log-likelihood."""
        return -tokens.target(STUDENT)
