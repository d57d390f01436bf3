"""The ``[task]`` section, and the presets that fill it for well-known data sets.

A preset is a TOML file with a ``kind``, a ``description`` and a ``[task]`` table. Keys of the config take precedence.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from selfdistill.config.sections import JsonTable, Strict
from selfdistill.config.suggest import choices
from selfdistill.config.worlds import GymnasiumConfig, OpenEnvConfig, TextArenaConfig, VerifiersConfig
from selfdistill.errors import ConfigError


class CountdownConfig(Strict):
    """The embedded task."""

    kind: Literal["countdown"] = "countdown"
    difficulty: str = Field("default", description="Which problems are generated.")
    train: int = Field(1024, ge=1, description="Training problems.")
    validation: int = Field(256, ge=1, description="Validation problems.")
    test: int = Field(256, ge=1, description="Test problems.")


class CountdownTurnsConfig(Strict):
    """The embedded task with several attempts at a problem, played in turns."""

    kind: Literal["countdown-turns"] = "countdown-turns"
    turns: int = Field(3, ge=1, description="Attempts at a problem.")
    difficulty: str = Field("default", description="Which problems are generated.")
    train: int = Field(1024, ge=1, description="Training problems.")
    validation: int = Field(256, ge=1, description="Validation problems.")
    test: int = Field(256, ge=1, description="Test problems.")


class ToolboxConfig(Strict):
    """The embedded task whose problems share conventions, so that hindsight transfers."""

    kind: Literal["toolbox"] = "toolbox"
    conventions: int = Field(0, ge=0, description="Seed of the conventions; 1000 to 1999 are for final results alone.")
    conventions_by_seed: bool = Field(
        False,
        description="Draw other conventions for every seed of a run, those of conventions + seed, so that results over "
        "seeds hold for more than one set.",
    )
    train: int = Field(1024, ge=1, description="Training problems.")
    validation: int = Field(256, ge=1, description="Validation problems.")
    test: int = Field(256, ge=1, description="Test problems.")


class ToolboxTurnsConfig(Strict):
    """The toolbox as a loop over turns: several calls that the API answers or refuses, and a report."""

    kind: Literal["toolbox-turns"] = "toolbox-turns"
    calls: int = Field(
        1,
        ge=1,
        le=4,
        description="Requests of an episode, each with one right call; the shipped model reports one number.",
    )
    turns: int = Field(4, ge=2, description="Turns of an episode, refused calls and the report included.")
    conventions: int = Field(0, ge=0, description="Seed of the conventions; 1000 to 1999 are for final results alone.")
    conventions_by_seed: bool = Field(False, description="As for toolbox.")
    train: int = Field(512, ge=1, description="Training episodes.")
    validation: int = Field(128, ge=1, description="Validation episodes.")
    test: int = Field(128, ge=1, description="Test episodes.")

    @model_validator(mode="after")
    def _check_turns(self) -> Self:
        if self.turns <= self.calls:
            raise ValueError(f"turns is {self.turns}: {self.calls} calls and a report need at least {self.calls + 1}")
        return self


class GeneratorConfig(Strict):
    """One generator of the package reasoning-gym."""

    name: str = Field(description="Name of the generator, for example 'chain_sum'.")
    difficulty: int | None = Field(
        None, ge=0, description="Level of the generator's own curriculum, from 0; unset: its default config."
    )
    config: JsonTable = Field({}, description="Keys of the generator's own config, beside or over its difficulty.")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="Share of the questions among several.")


class ReasoningGymConfig(Strict):
    """Generated puzzles of the package reasoning-gym (an extra), verified by its own scorers."""

    kind: Literal["reasoning_gym"]
    generators: list[GeneratorConfig] = Field(
        min_length=1, description="The generators: a name, a table, or a list of names and tables."
    )
    system: str | None = Field(None, description="System message.")
    suffix: str = Field(
        "\n\nReason step by step and give the final answer, and nothing else, as <answer>…</answer>.",
        description="Appended to every question.",
    )
    train: int = Field(1024, ge=1, description="Training problems.")
    validation: int = Field(256, ge=1, description="Validation problems.")
    test: int = Field(256, ge=1, description="Test problems.")
    reveal_incorrect: bool = Field(False, description="Whether feedback may say that an answer is wrong.")
    timeout: float = Field(5.0, gt=0, description="Processor seconds that one score may take.")

    @field_validator("generators", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | Mapping) else value
        return (
            [{"name": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else listed
        )


class SourceConfig(Strict):
    """Rows that a path cannot name: a split of a hub data set or of a folder saved by ``datasets``."""

    path: str = Field(description="Hub name, for example 'openai/gsm8k', or a folder or file.")
    config: str | None = Field(None, description="Configuration of a hub data set, for example 'main'.")
    split: str | None = Field(None, description="Split of the data set, for example 'train'.")
    revision: str | None = Field(None, description="Commit, tag or branch of a hub data set.")
    first: int | None = Field(None, ge=1, description="Read only so many rows; from the hub they are streamed.")


def _source_kind(value: object) -> str:
    return "text" if isinstance(value, str) else "source"


Source = Annotated[Annotated[str, Tag("text")] | Annotated[SourceConfig, Tag("source")], Discriminator(_source_kind)]
"""A path, or a table of :class:`SourceConfig`."""


class RowsConfig(Strict):
    """Keys of every task over rows of data."""

    preset: str | None = Field(None, description="Shipped preset or TOML file that fills the keys left out here.")
    path: Source = Field(
        description="Training rows: a JSONL or Parquet file, a folder saved by datasets, or a table that names a split "
        "of a hub data set."
    )
    validation_path: Source | None = Field(
        None, description="Rows of the validation split; unset: a share of path, by hash."
    )
    test_path: Source | None = Field(None, description="Rows of the test split; unset: a share of path, by hash.")
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of path held out for validation.")
    test_share: float = Field(0.1, ge=0, lt=1, description="Share of path held out for the test split.")
    limit: int | None = Field(None, ge=1, description="At most so many examples of each split.")
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="Whether rows that cannot be used end the run before it begins, or are left out."
    )
    fields: dict[str, str] = Field({}, description="Further fields for context templates: name = source.")
    system: str | None = Field(None, description="System message, a $-template over the columns.")
    worked_examples: int = Field(
        0,
        ge=0,
        description="The first N training rows with a solution stand as earlier turns in every prompt, and are not "
        "trained on.",
    )


class MathConfig(RowsConfig):
    """Rows of problems with checkable answers, verified by math-verify."""

    kind: Literal["math"] = "math"
    prompt: str = Field("question", description="Column, dotted path or $-template of the problem.")
    answer: str | None = Field(
        "answer", description='Column, dotted path or $-template of the final answer; "" for rows without answers.'
    )
    solution: str | None = Field(None, description="Column, dotted path or $-template of a worked solution.")
    answer_pattern: str | None = Field(
        None, description="Regular expression whose first group is the answer in its column."
    )
    solution_remove: str | None = Field(None, description="Regular expression of what solutions are shown without.")
    suffix: str = Field(
        "\nReason step by step and put the final answer in \\boxed{}.", description="Appended to every problem."
    )
    boxed_only: bool = Field(False, description="Whether a completion must box its answer.")
    reveal_incorrect: bool = Field(False, description="Whether feedback may say that a value is wrong.")
    timeout: float = Field(5.0, gt=0, description="Seconds that one answer check may take.")

    @field_validator("answer")
    @classmethod
    def _no_answer(cls, value: str | None) -> str | None:
        # TOML has no null to write.
        return value or None


AnswerIs = Literal["index0", "index1", "letter", "text"]
"""How the answer of a multiple-choice row names its option."""


class ChoiceConfig(RowsConfig):
    """Rows of multiple choice, verified by the letter."""

    kind: Literal["choice"] = "choice"
    prompt: str = Field("question", description="Column, dotted path or $-template of the question.")
    choices: str | list[str] | None = Field(
        None, description="Column that lists the options, or one source for each; unset: lines 'A: …' of the prompt."
    )
    answer: str = Field(
        "answer", description="Column, dotted path or $-template of the right option: its letter, text or number."
    )
    answer_is: AnswerIs | None = Field(
        None,
        description="How answers name their option: its number from 0 or from 1, its letter or its text; unset: as a "
        "row allows, and a row that allows several is refused.",
    )
    solution: str | None = Field(None, description="Column, dotted path or $-template of a worked solution.")
    suffix: str = Field(
        "\nReason step by step and give the letter of the right option as <answer>X</answer>.",
        description="Appended to every question.",
    )
    shuffle: Literal["never", "once", "epoch"] = Field(
        "never", description="Whether options change places, once or anew in every epoch; the answer follows."
    )
    reveal_incorrect: bool = Field(False, description="Whether feedback may say that a letter is wrong.")


class ToolsConfig(RowsConfig):
    """Rows of requests that calls of tools answer, verified call by call."""

    kind: Literal["tools"] = "tools"
    prompt: str = Field("prompt", description="Column, dotted path or $-template of the request.")
    answer: str = Field("answer", description="Column or dotted path of the calls, a list of objects or its JSON text.")
    form: Literal["react", "template"] = Field(
        "react", description="'Action:' and 'Action Input:', or the chat template's tools and <tool_call>."
    )
    tools: str | None = Field(
        None, description="Column or dotted path of the tool schemas; unset: a ToolAlpaca documentation in the prompt."
    )
    solution: str | None = Field(
        None, description="Column, dotted path or $-template of a worked solution; unset: the calls themselves."
    )
    suffix: str = Field("", description="Appended to every request.")
    ordered: bool = Field(False, description="Whether the order of calls counts.")
    ignore_empty: bool = Field(False, description="Whether an empty argument is the same as none.")
    partial: float = Field(0.0, ge=0, lt=1, description="Reward of an answer that is right in part, times that part.")


class CodeConfig(RowsConfig):
    """Rows of programming problems, verified by running tests in a sandbox."""

    kind: Literal["code"] = "code"
    prompt: str = Field("prompt", description="Column, dotted path or $-template of the problem.")
    public_tests: str | None = Field(None, description="Column of tests that may be shown.")
    hidden_tests: str | None = Field(None, description="Column of tests of which only the kind of a failure is told.")
    entry_point: str | None = Field(
        None,
        description="Column of the tested function's name, or of JSON that holds it as func_name; unset: tests that "
        "need one get the function that the prompt declares, or the solution's only one.",
    )
    prefix: str | None = Field(None, description="Column, dotted path or $-template of code that completions continue.")
    preamble: str = Field("", description="Code in front of every program, such as imports.")
    setup: str | None = Field(None, description="Column of code that the tests need.")
    starter: str | None = Field(None, description="Column of starter code, shown behind the problem.")
    examples: str | None = Field(
        None, description="Column with >>> examples, told in feedback where only hidden tests fail; they never count."
    )
    show_public: bool = Field(False, description="Whether the prompt shows public test code.")
    solution: str | None = Field(None, description="Column, dotted path or $-template of a solution's code.")
    suffix: str = Field(
        "\n\nReply with the whole program in one ```python block.", description="Appended to every problem."
    )
    reward: Literal["all", "share"] = Field("all", description="1 if all tests hold, else 0; or the share that holds.")
    feedback_chars: int = Field(1000, ge=100, description="About so many characters of a failing test are told.")
    timeout: float = Field(5.0, gt=0, description="Processor seconds of one program, or of a function's whole suite.")
    memory: int = Field(512, ge=64, description="MiB of one program and all that it starts.")
    workers: int = Field(2, ge=1, le=64, description="Programs that run at once.")
    unsafe: bool = Field(False, description="Whether to run model code without isolation where no sandbox works.")


class TextConfig(RowsConfig):
    """Rows of prompts and responses, which nothing verifies."""

    kind: Literal["text"] = "text"
    prompt: str = Field("prompt", description="Column or dotted path of a text or of messages, or a $-template.")
    completion: str = Field(
        "completion?",
        description="The response, a text or one message, which sft learns and evaluations score.",
    )
    solution: str = Field("solution?", description="What contexts show as $solution, if there is one.")
    privileged_context: str = Field(
        "privileged_context?", description="$privileged_context; also $solution for rows without one."
    )
    messages: str = Field(
        "messages", description="Column of a conversation whose last turn is the response, for rows without a prompt."
    )


class ObjectConfig(Strict):
    """A task object that Python code handed to the run; no config can build it again."""

    kind: Literal["object"]
    name: str = Field(description="Name of the task, and what tells it from others.")


class OwnTaskConfig(BaseModel):
    """A task of the user's own. All other keys are arguments of its class."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(description="Import path of the class, 'package.module:Class'.")


def _whose(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "own" if isinstance(kind, str) and ":" in kind else "shipped"


ShippedTask = Annotated[
    CountdownConfig
    | CountdownTurnsConfig
    | ToolboxTurnsConfig
    | ToolboxConfig
    | ReasoningGymConfig
    | GymnasiumConfig
    | TextArenaConfig
    | OpenEnvConfig
    | VerifiersConfig
    | MathConfig
    | ChoiceConfig
    | ToolsConfig
    | CodeConfig
    | TextConfig
    | ObjectConfig,
    Field(discriminator="kind"),
]
TaskConfig = Annotated[
    Annotated[ShippedTask, Tag("shipped")] | Annotated[OwnTaskConfig, Tag("own")], Discriminator(_whose)
]
"""A task of the package by its kind, or one of the user's own by import path."""


def task_configs() -> dict[str, type[Strict]]:
    """The table of every task that a config can build, by its kind."""
    tables = [table for table in get_args(get_args(ShippedTask)[0]) if table is not ObjectConfig]
    return {get_args(table.model_fields["kind"].annotation)[0]: table for table in tables}


@dataclass(frozen=True, slots=True)
class Preset:
    """Values of a task table for one schema of data."""

    name: str
    kind: str
    description: str
    values: Mapping[str, Any]


def shipped_presets() -> list[str]:
    """Names of the presets in the package."""
    folder = resources.files("selfdistill.tasks") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(source: str) -> Preset:
    """Load a shipped preset by name, or a TOML file by path.

    Raises:
        ConfigError: it is missing or malformed.
    """
    shipped = resources.files("selfdistill.tasks") / "presets" / f"{source}.toml"
    path = shipped if "/" not in source and shipped.is_file() else Path(source)
    if not path.is_file():
        hint = choices(source, shipped_presets(), "shipped")
        raise ConfigError(f"preset {source!r} not found; {hint}; or give a path to a TOML file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {source} is not valid TOML: {error}") from error
    kind, values = table.get("kind"), table.get("task", {})
    if not isinstance(kind, str) or not isinstance(values, dict) or set(table) - {"kind", "description", "task"}:
        raise ConfigError(f"preset {source}: a preset has a kind, a description and a [task] table")
    return Preset(source, kind, str(table.get("description", "")), values)


def fill_from_preset(task: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a task table's missing keys from its preset.

    Raises:
        ConfigError: the preset is unknown, or meant for another kind of task.
    """
    if not isinstance(task.get("preset"), str):
        return dict(task)
    preset = load_preset(task["preset"])
    kind = task.get("kind", preset.kind)
    if kind != preset.kind:
        raise ConfigError(f"task.preset {preset.name!r} is for task.kind {preset.kind!r}, not {kind!r}")
    return {"kind": kind, **preset.values, **task}
