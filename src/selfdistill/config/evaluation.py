"""The ``[evaluation]`` section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from selfdistill.config.sections import BestBy, Strict
from selfdistill.config.suggest import near
from selfdistill.config.tasks import TaskConfig, fill_from_preset, task_configs
from selfdistill.errors import ConfigError

GENERAL: Literal["general"] = "general"
"""How ``evaluation.also`` names the embedded set of general prompts and texts."""
GENERAL_SIZE = 24
"""Prompts, and also texts, of the embedded set."""


class AlsoTask(Strict):
    """Another task that is evaluated beside the run's own, to see what training does to it."""

    name: str = Field(min_length=1, description="Name in results and on pages; unset: the kind of the task.")
    task: TaskConfig = Field(description="Its task, a kind or a table as [task].")
    problems: int | None = Field(None, ge=1, description="Held-out problems; unset: evaluation.problems.")
    samples: int | None = Field(None, ge=1, description="Completions per problem; unset: evaluation.samples.")


class General(Strict):
    """The embedded general prompts and texts: how far the model has moved there, and how well it predicts them."""

    kind: Literal["general"] = GENERAL
    name: str = Field(GENERAL, min_length=1, description="Name in results and on pages.")
    size: int = Field(GENERAL_SIZE, ge=2, le=GENERAL_SIZE, description="Prompts, and as many texts.")
    seed: int = Field(0, ge=0, description="Which of them, where size is smaller than the set.")


def _whole_entry(value: object) -> object:
    """An entry of ``evaluation.also`` as a table: a kind and a task's table stand for a whole entry."""
    known = [GENERAL, *task_configs()]
    if isinstance(value, AlsoTask | General):
        return value
    if isinstance(value, str):
        if value not in known and ":" not in value:
            hint = f"{near(value, known)} known: {', '.join(known)}; or write a task's table".lstrip()
            raise ConfigError(f"evaluation.also: {value!r} is no task; {hint}")
        value = {"kind": value}
    if isinstance(value, Mapping) and value.get("kind") == GENERAL:
        return value
    # Complete the table of a task, and name the entry by its kind.
    entry = value if isinstance(value, Mapping) and "task" in value else {"task": value}
    task = entry["task"]
    task = {"kind": task} if isinstance(task, str) else fill_from_preset(task) if isinstance(task, Mapping) else {}
    if not isinstance(task.get("kind"), str):
        raise ConfigError(
            f"evaluation.also: {entry['task']!r} names no kind of task; write 'general', a kind "
            f"({', '.join(known[1:])}) or a table with a kind"
        )
    return {"name": task["kind"].rpartition(":")[2], **entry, "task": task}


def _which(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "set" if kind == GENERAL else "other"


Also = Annotated[
    Annotated[AlsoTask, Tag("other")] | Annotated[General, Tag("set")],
    Discriminator(_which),
    BeforeValidator(_whole_entry),
]
"""An entry of ``evaluation.also``."""


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
    also: list[Also] = Field(
        [],
        description="What else is evaluated each time, to see what is forgotten: 'general', kinds of task and tables.",
    )

    @field_validator("also")
    @classmethod
    def _are_told_apart(cls, also: list[Also]) -> list[Also]:
        names = Counter(entry.name for entry in also)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise ConfigError(
                f'evaluation.also has two entries named {twice!r}: give each a name, {{ name = "…", task = … }}'
            )
        return also

    def thinking_after(self, sampling: bool | None) -> bool | None:
        """The chat template's thinking switch in evaluations: this section's, or else that of the sampling."""
        return sampling if self.thinking is None else self.thinking
