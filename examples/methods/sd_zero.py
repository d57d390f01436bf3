"""SD-Zero (arXiv 2604.12002): the reviser, who sees the attempt and its verdict, teaches the generator who wrote it.

KL(T(·|x, y, verdict, y_<t) || S(·|x, y_<t)) over the generator's tokens. The paper copies the student into the teacher
regularly: ``weights = { kind = "snapshot", every = 10 }``. The divergence, and live weights as default, are our choice.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from selfdistill import METHODS, Method, Role, TokenSlice
from selfdistill.objectives import forward_kl


class SDZero(Method):
    recommended: ClassVar = METHODS["sdpo"].recommended
    name: Literal["sd_zero"] = "sd_zero"
    context: str = Field("attempt_verdict", description="Template that the reviser is shown.")

    def roles(self) -> Mapping[str, Role]:
        return {"teacher": self.teacher(self.context, "live")}

    def loss(self, tokens: TokenSlice) -> Tensor:
        return forward_kl(tokens.student, tokens.roles["teacher"])
