"""The ``[reward]`` section: reward functions of the user's own, and from which reward on a completion is right."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from selfdistill.config.sections import Strict


class RewardConfig(Strict):
    """Reward functions of one's own, and which completions count as right."""

    function: str | list[str] | None = Field(
        None, description="'package.module:function', or a list of several; unset: the task's verifier."
    )
    weights: list[float] | None = Field(
        None, min_length=1, description="Weight of each function in the reward; unset: 1 each."
    )
    success: float | Literal["verifier"] | None = Field(
        None,
        description="A completion is right from this reward on; 'verifier': where the task's verifier says so, "
        "whatever the functions give. Unset: 1, the verifiers' full reward.",
    )
    messages: bool | None = Field(
        None,
        description="Whether functions get prompts and completions as lists of messages, as TRL passes them for chat "
        "data; unset: where the rows' own prompts are such lists.",
    )
    concurrency: int = Field(8, ge=1, description="Async functions that are awaited at once.")


def _table(given: Any) -> Any:
    return {"function": given} if isinstance(given, str | list) else given


Reward = Annotated[RewardConfig, BeforeValidator(_table)]
"""A table of :class:`RewardConfig`, or the function alone."""
