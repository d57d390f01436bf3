"""The ``[signal]`` section: which prompts a step draws, and how much each of their completions counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selfdistill.config.sections import Strict


class SignalConfig(Strict):
    """A signal that fits each prompt, for every method. Nothing of it is on unless it is asked for."""

    equal: Literal["keep", "drop", "resample"] = Field(
        "keep",
        description="Groups whose judged completions have equal rewards: 'drop' leaves them out of the loss; "
        "'resample' also draws other prompts in their place.",
    )
    most: float = Field(
        3.0,
        gt=1,
        description="equal = 'resample': prompts drawn in a step, at most, as a multiple of sampling.prompts.",
    )
    weight: Literal["none", "variance", "deviation"] = Field(
        "none",
        description="Weight of a group whose share p of completions is right: 'variance' p(1−p), 'deviation' its root.",
    )
    overlong: Literal["keep", "mask", "punish"] = Field(
        "keep",
        description="Completions cut by the token limit: 'mask' leaves them out of the loss; 'punish' lowers the "
        "reward of long ones, from 0 at the margin's begin to −1 at the limit.",
    )
    margin: int | None = Field(
        None,
        ge=1,
        description="overlong = 'punish': tokens before sampling.max_tokens over which the punishment grows; unset: a "
        "fifth of them.",
    )
    curriculum: bool = Field(
        False, description="Draw prompts by their estimated success s, in proportion to s(1−s) + curriculum_floor."
    )
    curriculum_rate: float = Field(
        0.5, gt=0, le=1, description="η of a prompt's estimate: s ← (1−η)s + η·(share right), from s = ½."
    )
    curriculum_floor: float = Field(
        0.05, gt=0, description="What keeps prompts that are always or never solved from never being drawn."
    )

    @model_validator(mode="after")
    def _has_use(self) -> SignalConfig:
        if self.margin is not None and self.overlong != "punish":
            raise ValueError("margin is that of a punishment: write overlong = 'punish' too")
        return self

    @property
    def needs_rewards(self) -> bool:
        """Whether any of the settings depends on verdicts."""
        return self.equal != "keep" or self.weight != "none" or self.overlong == "punish" or self.curriculum
