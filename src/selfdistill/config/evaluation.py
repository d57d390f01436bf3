"""The ``[evaluation]`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from selfdistill.config.sections import BestBy, Strict


class EvaluationConfig(Strict):
    """Accuracy on held-out problems, before, during and after training."""

    every: int = Field(20, ge=1, description="Steps between evaluations.")
    problems: int = Field(128, ge=1, description="Held-out problems, the first of the split.")
    samples: int = Field(8, ge=1, description="Completions per problem.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus.")
    top_k: int = Field(0, ge=0, description="Keep the k likeliest tokens, 0 for all.")
    max_tokens: int | None = Field(None, ge=1, description="Longest completion; unset: sampling.max_tokens.")
    thinking: bool | None = Field(None, description="Thinking switch of the chat template; unset: sampling.thinking.")
    split: Literal["validation", "test"] = Field("validation", description="Split that is evaluated.")
    final: Literal["test"] | None = Field(
        None,
        description="Split that is answered only before training and after the last step, for figures that nothing was "
        "tuned on; unset: none.",
    )
    best: BestBy | None = Field(
        None,
        description="Metric that the best checkpoint has most of ('teacher_shift': least); 'last': the newest. Unset: "
        "'reward' where reward functions judge, 'success' where a verifier does, 'last' where nothing is judged.",
    )
