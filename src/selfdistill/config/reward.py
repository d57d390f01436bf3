"""The ``[reward]`` section: the user's reward functions, a judge, and the reward from which a completion is right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Template
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from selfdistill.config.sections import MAY_CHANGE, JsonTable, Strict

POINTWISE = """Rate the response to the task on a scale from $lowest to $highest.

<task>
$prompt
</task>

<response>
$completion
</response>

End with a line of the form "Score: N"."""
"""Default template of a judge that gives numbers."""

PAIRWISE = """Which response to the task is better?

<task>
$prompt
</task>

<response A>
$first
</response A>

<response B>
$second
</response B>

End with a line of the form "Better: A", "Better: B" or "Better: tie"."""
"""Default template of a judge that compares two completions."""

SCORE_PATTERN = r"(?i)score\W*?(-?\d+(?:\.\d+)?)"
BETTER_PATTERN = r"(?i)better\W*?\b(A|B|tie)\b"


class JudgeConfig(Strict):
    """A language model behind an OpenAI-compatible endpoint that judges completions."""

    url: str = Field(description="Base address of the endpoint, for example 'http://127.0.0.1:8000/v1'.")
    model: str = Field(description="Name of the model, as the endpoint knows it.")
    compare: Literal["none", "all", "first", "reference"] = Field(
        "none",
        description="'none': a number for each completion; else the share of comparisons that it wins: with 'all' "
        "others of its group, with the 'first' of the group, or with the row's own 'reference' (response or solution).",
    )
    template: str | None = Field(
        None,
        description="The question: $prompt, $completion ($first and $second where completions are compared), and any "
        "column of the rows; unset: a plain one.",
    )
    system: str | None = Field(None, description="System message of every request; unset: none.")
    pattern: str | None = Field(
        None,
        description="Regular expression with one group, whose last match in the answer is the number (A, B or another "
        "word for a tie where completions are compared); unset: the number after 'Score', the word after 'Better'.",
    )
    lowest: float = Field(0.0, description="The number that gives reward 0.")
    highest: float = Field(10.0, description="The number that gives reward 1; numbers outside are unreadable.")
    both_orders: bool = Field(True, description="Ask for every comparison a second time with the two exchanged.")
    parameters: JsonTable = Field(
        {"temperature": 0.0}, description="Further keys of every request, such as max_tokens."
    )
    key_env: str | None = Field(
        None,
        description="Environment variable that holds the endpoint's key; the key itself is stored nowhere.",
        json_schema_extra=MAY_CHANGE,
    )
    cache: str | None = Field(
        None,
        description="Folder of answers that were given before; unset: 'judge' in the run's own.",
        json_schema_extra=MAY_CHANGE,
    )
    budget: int | None = Field(
        None,
        ge=0,
        description="Most requests of a run, besides one at each start; beyond, nothing is judged. Unset: no bound.",
        json_schema_extra=MAY_CHANGE,
    )
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for one answer.", json_schema_extra=MAY_CHANGE)
    retries: int = Field(4, ge=0, description="How often a failed request is retried.", json_schema_extra=MAY_CHANGE)
    wait: float = Field(
        1.0, ge=0, description="Seconds before the first retry; doubled each time.", json_schema_extra=MAY_CHANGE
    )

    @property
    def question(self) -> Template:
        """The template of the question."""
        return Template(self.template or (POINTWISE if self.compare == "none" else PAIRWISE))

    @property
    def answer_pattern(self) -> re.Pattern[str]:
        """The compiled pattern."""
        return re.compile(self.pattern or (SCORE_PATTERN if self.compare == "none" else BETTER_PATTERN))

    @model_validator(mode="after")
    def _usable(self) -> JudgeConfig:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is an http:// or https:// address, {self.url!r} is not")
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            # The config is written to the run's folder, so a password must not be part of it.
            raise ValueError("url holds a password: name an environment variable with the key in key_env")
        if set("?#") & set(self.url):
            # Paths are appended, and a key in a query would be stored too.
            raise ValueError("url has a ? or a #: give the base address alone, and name a key's variable in key_env")
        question = self.question
        if not question.is_valid():
            raise ValueError("template: a $ begins the name of a field; write $$ for the sign itself")
        needed = ["completion"] if self.compare == "none" else ["first", "second"]
        missing = [f"${name}" for name in needed if name not in question.get_identifiers()]
        if missing:
            raise ValueError(f"template lacks {' and '.join(missing)}: the judge would not see what it judges")
        try:
            groups = self.answer_pattern.groups
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"pattern must have one group, which holds what was found; {self.pattern!r} has {groups}")
        if not self.lowest < self.highest:
            raise ValueError(f"lowest must be below highest: {self.lowest:g} and {self.highest:g}")
        reserved = sorted({"model", "messages", "stream", "n"} & self.parameters.keys())
        if reserved:
            raise ValueError(f"parameters must not hold {reserved[0]!r}, which the request sets itself")
        return self


class RewardConfig(Strict):
    """Reward functions of one's own, a judge, and which completions count as right."""

    function: str | list[str] | None = Field(
        None, description="'package.module:function', or a list of several; unset: the task's verifier."
    )
    judge: JudgeConfig | None = Field(
        None,
        description='A model that judges; { kind = "judge", url = …, model = … } as the whole reward is the same. '
        "Beside functions it is the last of them.",
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
    concurrency: int = Field(8, ge=1, description="Async functions that are awaited, and a judge's requests, at once.")

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, given: Any) -> Any:
        """Move the keys of ``{ kind = "judge", … }`` into the table ``judge``, except the common ones."""
        if not (isinstance(given, Mapping) and "kind" in given):
            return given
        if given["kind"] != "judge":
            raise ValueError(f"kind must be 'judge', got {given['kind']!r}; a function needs no kind")
        common = {key: value for key, value in given.items() if key in cls.model_fields}
        judge = {key: value for key, value in given.items() if key not in (*common, "kind")}
        return {**common, "judge": judge}


def _table(given: Any) -> Any:
    return {"function": given} if isinstance(given, str | list) else given


Reward = Annotated[RewardConfig, BeforeValidator(_table)]
"""A table of :class:`RewardConfig`, or the function alone."""
