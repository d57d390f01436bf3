"""GRPO: rewards alone, compared within the group. No teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from selfdistill.config.hyperparameters import check_dual_clip
from selfdistill.methods.base import BatchScores, Method, Recommended, State
from selfdistill.methods.turn_advantages import EpisodeReward, TurnAdvantage, advantages_of_turns
from selfdistill.objectives import (
    clipped_policy_gradient,
    clipped_weight_policy_gradient,
    entropy,
    group_advantages,
    reference_penalty,
    sequence_policy_gradient,
)
from selfdistill.types import STUDENT, Role, RolloutGroup, TokenSlice

REFERENCE = "reference"
"""Role with the student's own prompt and its weights before training."""
SEQUENCE = "sequence_log_ratio"
"""Input of the loss: the mean log-ratio of the token's completion."""


class GRPO(Method):
    """Group-relative policy optimisation (arXiv 2402.03300).

    A_i = (R_i − mean) / std over the completions of one prompt, in the clipped policy gradient. Our choice: a token
    mean over the whole batch, as in later practice, instead of the mean of sequence means. The ratio "sequence" is
    GSPO's (arXiv 2507.18071): the geometric mean over the completion's tokens, in a mean over completions. The ratio
    "weight" is CISPO's (arXiv 2506.13585): the clipped ratio weights log S(y_t) and has no gradient. Two optional terms
    are added to the loss of each token: the paper's estimate of KL(S || reference), and the entropy of S with a minus
    sign. The turns of an episode may have advantages of their own. With "group_in_group" these are GiGPO's (arXiv
    2505.10978), with the paper's γ and ω. Rewards to go are compared turn by turn, which is our choice.
    """

    recommended: ClassVar[Recommended] = Recommended(learning_rate=1e-6, lora_learning_rate=1e-5)
    without_context: ClassVar[Literal["drop", "keep", "mask"]] = "keep"

    name: Literal["grpo"] = "grpo"
    scale: Literal["std", "none"] = Field("std", description="Divide advantages by the group's std, or not (Dr. GRPO).")
    ratio: Literal["token", "sequence", "weight"] = Field(
        "token",
        description="Probability ratio: PPO's of each token, GSPO's of the completion (one more scoring pass), or "
        'CISPO\'s, a weight without gradient. Narrow the clip range for "sequence" (GSPO: 3e-4 and 4e-4).',
    )
    clip_low: float = Field(
        0.2, gt=0, description="Lower clip of the probability ratio; 1 is none, as for CISPO.", le=1
    )
    clip_high: float = Field(0.2, gt=0, description="Upper clip of the probability ratio.")
    kl: float = Field(
        0.0,
        ge=0,
        description="β of the KL divergence to the weights before training; they are held beside the student.",
    )
    entropy: float = Field(0.0, ge=0, description="Weight of the student's entropy, which the loss then raises.")
    dual_clip: float | None = Field(None, gt=1, description="Bound of a bad token's loss, in |A|; unset: none.")
    turn_advantage: TurnAdvantage = Field(
        default=EpisodeReward(), description="The advantage of a turn, for tasks that are played in turns."
    )

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        scored = self.precompute()
        if (self.kl and not (REFERENCE in scored and REFERENCE in self.roles())) or (
            self.ratio == "sequence" and STUDENT not in scored
        ):
            raise ValueError(
                f"kl and ratio = 'sequence' need the roles that GRPO scores before the loss, and {type(self).__name__} "
                "leaves them out: add to what super().roles(), super().precompute() and super().on_batch() return"
            )
        check_dual_clip(self.ratio, self.dual_clip)
        return self

    @property
    def weighting(self) -> Literal["token", "completion"]:  # type: ignore[override]
        """GSPO's loss is a mean over completions, all others are means over tokens."""
        return "completion" if self.ratio == "sequence" else "token"

    def roles(self) -> Mapping[str, Role]:
        """The reference, if its divergence has a weight."""
        return {REFERENCE: Role(None, "frozen")} if self.kl else {}

    def precompute(self) -> Sequence[str]:
        """The reference, and the student if the ratio is that of the whole completion."""
        return (*([REFERENCE] if self.kl else ()), *([STUDENT] if self.ratio == "sequence" else ()))

    def on_batch(self, state: State | None, batch: BatchScores) -> Mapping[str, float | Tensor | Sequence[Tensor]]:
        """The mean log-ratio of each completion, if the ratio is that of the completion."""
        if self.ratio != "sequence":
            return {}
        means = []
        for view, scores in zip(batch.views, batch.scores[STUDENT], strict=True):
            assert scores is not None, "the student's own prompt is never missing"
            means.append(float((scores.target_N.cpu() - torch.tensor(view.old_logprobs, dtype=torch.float64)).mean()))
        return {SEQUENCE: torch.tensor(means, dtype=torch.float64)}

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Group advantages; a group of equal rewards has none."""
        return group_advantages(rewards_PG, scale=self.scale)

    def turn_advantages(self, group: RolloutGroup, advantages: Sequence[float]) -> Sequence[Sequence[float]] | None:
        """Those of ``turn_advantage``; a set of equal returns has none."""
        if isinstance(self.turn_advantage, EpisodeReward):
            return None
        return advantages_of_turns(self.turn_advantage, group, advantages, self.scale)

    def needs_turns(self) -> bool:
        """Whether turns have advantages of their own."""
        return not isinstance(self.turn_advantage, EpisodeReward)

    def token_advantage(self, tokens: TokenSlice) -> Tensor:
        """Advantage [N] of each token; here its turn's, or its completion's."""
        return tokens.inputs["advantage"]

    def loss(self, tokens: TokenSlice) -> Tensor:
        """Clipped policy gradient, the divergence to the reference and the entropy."""
        logprob_N, advantage_N = tokens.target(STUDENT), self.token_advantage(tokens)
        old_N = tokens.inputs["old_logprob"]
        low, high = self.clip_low, self.clip_high
        if self.ratio == "sequence":
            ratio_N = tokens.inputs[SEQUENCE]
            loss_N = sequence_policy_gradient(logprob_N, ratio_N, advantage_N, clip_low=low, clip_high=high)
        elif self.ratio == "weight":
            loss_N = clipped_weight_policy_gradient(logprob_N, old_N, advantage_N, clip_low=low, clip_high=high)
        else:
            loss_N = clipped_policy_gradient(
                logprob_N, old_N, advantage_N, clip_low=low, clip_high=high, dual_clip=self.dual_clip
            )
        if self.kl:
            loss_N = loss_N + self.kl * reference_penalty(logprob_N, tokens.target(REFERENCE))
        return loss_N - self.entropy * entropy(tokens.student) if self.entropy else loss_N

    def metrics(self, tokens: TokenSlice) -> Mapping[str, Tensor]:
        """Share of tokens whose ratio left the clip range, the ratio, and the divergence to the reference."""
        log_ratio_N = (
            tokens.inputs[SEQUENCE]
            if self.ratio == "sequence"
            else tokens.target(STUDENT) - tokens.inputs["old_logprob"]
        )
        ratio_N = log_ratio_N.exp()
        outside_N = (ratio_N < 1 - self.clip_low) | (ratio_N > 1 + self.clip_high)
        metrics = {"clip_share": outside_N.to(ratio_N.dtype), "ratio": ratio_N}
        if self.kl:
            metrics["kl"] = reference_penalty(tokens.target(STUDENT).detach(), tokens.target(REFERENCE))
        return metrics
