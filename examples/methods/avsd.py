"""AVSD (arXiv 2605.20643): learn what several teachers agree on.

The teachers are the model of step 0 with the whole solution, its first half, and the answer alone. With log q_g the
mean of log T_m(y), log q_a the log of the mean, J = log q_a − log q_g, δ_m = log T_m − log S, and
g = |mean δ| / mean |δ| · |mean δ| / (|mean δ| + J), the loss is −sg(log q_g + g J − log S) · log S(y).
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from selfdistill import METHODS, Method, Role, TokenSlice

VIEWS = ("solution", "solution_half", "answer_only")


class AVSD(Method):
    recommended: ClassVar = METHODS["opsd"].recommended
    name: Literal["avsd"] = "avsd"

    def needs_rewards(self) -> bool:
        return False

    def roles(self) -> Mapping[str, Role]:
        return {name: self.teacher(name, "frozen") for name in VIEWS}

    def precompute(self) -> Sequence[str]:
        return VIEWS

    def loss(self, tokens: TokenSlice) -> Tensor:
        student = tokens.target("student")
        teachers = torch.stack([tokens.target(name) for name in VIEWS])
        geometric = teachers.mean(0)
        disagreement = (torch.logsumexp(teachers, 0) - math.log(len(VIEWS)) - geometric).clamp_min(0)
        gaps = teachers - student.detach()
        common = gaps.mean(0).abs()
        agreement = common / gaps.abs().mean(0).clamp_min(1e-9) * common / (common + disagreement).clamp_min(1e-9)
        return -(geometric + agreement * disagreement - student).detach() * student
