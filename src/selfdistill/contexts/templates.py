"""Contexts as data: named prompt templates in TOML files.

A template's text replaces the last user message of the student's prompt, and its turns, if it has any, stand before
it as earlier messages of the conversation. ``$question`` is the student's own last message;
every other ``$name`` is a field of the example or of its group. A field that is missing makes the rendering a counted
:class:`~selfdistill.types.Skipped`, never an empty string.

The messages before the text (system text, tools, earlier turns) belong to the question that the text shows: to the
example's own if it names ``$question``, to the other input if it names only ``$other_question``. They are left out if
the text names neither, because such a context shows a solution and no question.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from selfdistill.config.suggest import choices, near
from selfdistill.errors import ConfigError
from selfdistill.types import Message, Skipped

FIELDS = {
    "question": "the student's own last user message",
    "solution": "the data's reference solution",
    "answer": "the data's final answer",
    "feedback": "the environment's text about the scored completion",
    "sibling": "a correct completion of the same group other than the scored one, thinking stripped",
    "verdict": "'correct' or 'wrong', of the scored completion",
    "assessment": "the verdict as AntiSD words it; of code judged by its share of tests: how many of them it passes",
    "other_question": "another question of the batch; its system text, tools and earlier turns come with it",
    "wrong_sibling": "a wrong completion of the same group, thinking stripped",
    "wrong_answer": "the final answer of that wrong completion",
    "sibling_answer": "the final answer of $sibling",
    "random_sibling": "as $sibling, drawn anew for every completion and step",
    "shortest_sibling": "as $sibling, the shortest of them in tokens",
    "longest_sibling": "as $sibling, the longest of them in tokens",
    "attempt": "the scored completion itself, thinking stripped",
    "attempt_answer": "the final answer of the scored completion",
    "attempts": "all other completions of the group, numbered, thinking stripped",
    "majority_answer": "the most frequent final answer of the group; missing if two are equally frequent",
    "agreeing_sibling": "the shortest other completion that ends in $majority_answer, thinking stripped",
    "sibling_turn": "the same turn of $sibling as the one that the text stands before; of a single answer $sibling",
    "reply": "what the environment said after the turn that the text stands before; of a single answer its $feedback",
    "note": "what an earlier step left: the environment's note or a right episode, best of the same problem",
    "solution_half": "the first half of $solution, by its words",
}
"""Fields that the library itself fills; a task or a field mapping may add more."""

HINDSIGHT = tuple(name for name in FIELDS if name not in ("question", "solution", "answer", "solution_half"))
"""The :data:`FIELDS` that exist only after sampling, unless the data itself has them."""

OF_A_TURN = ("reply", "sibling_turn")
"""The :data:`FIELDS` that differ between the turns of an episode."""


@dataclass(frozen=True, slots=True)
class Template:
    """A named context: either a text with ``$fields``, or the first of several other templates that can be rendered.

    ``turns`` are earlier messages with ``$fields``, which stand before the text.
    """

    name: str
    description: str
    text: str | None = None
    first_of: tuple[str, ...] = ()
    system: str | None = None
    turns: tuple[Message, ...] = ()
    before: int | Literal["first", "last", "each"] = "first"
    """The turn of an episode before which the text stands; numbers count from 1. ``$question`` is the message that it
    replaces."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the fields in the turns and the text, in order of appearance."""
        texts = [*(turn.content for turn in self.turns), self.text or ""]
        return tuple(dict.fromkeys(name for text in texts for name in string.Template(text).get_identifiers()))

    @property
    def needs(self) -> tuple[str, ...]:
        """The same without ``question``, which every prompt has."""
        return tuple(name for name in self.shown if name != "question")

    def render(
        self, prompt: Sequence[Message], fields: Mapping[str, str], *, other_input: Sequence[Message] = ()
    ) -> tuple[Message, ...] | Skipped:
        """The messages before the text, then the turns and the text; or the names of missing fields.

        ``other_input`` is the whole prompt whose last message is ``$other_question``; empty if the data has that field.

        Raises:
            ConfigError: the prompt does not end with a user message.
        """
        missing = [field for field in self.needs if field not in fields]
        if missing:
            return Skipped(self.name, tuple(missing))
        if not prompt or prompt[-1].role != "user":
            raise ConfigError(f"context {self.name}: the prompt must end with a user message")
        filled = {**fields, "question": prompt[-1].content}
        own = [
            Message(turn.role, string.Template(turn.content).substitute(filled))
            for turn in (*self.turns, Message("user", self.text or ""))
        ]
        head: Sequence[Message] = ()
        if "question" in self.shown:
            head = prompt[:-1]
        elif "other_question" in self.shown:
            head = other_input[:-1]
        if self.system is not None:
            head = (*(message for message in head if message.role == "tools"), Message("system", self.system))
        return (*head, *own)


def load_templates(source: str | Path) -> dict[str, Template]:
    """Read a context file: a shipped one by name (``"default"``), or the path of a TOML file.

    Raises:
        ConfigError: the file is missing or malformed, or a ``first_of`` names an unknown template.
    """
    shipped = resources.files("selfdistill.contexts") / f"{source}.toml"
    path = shipped if shipped.is_file() else Path(source)
    if not path.is_file():
        known = shipped_contexts()
        hint = f"{near(str(source), known)} else ".removeprefix(" else ")
        raise ConfigError(
            f"context file {str(source)!r} not found: {hint}give a shipped name ({', '.join(known)}) or a path"
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"context file {source} is not valid TOML: {error}") from error
    templates = {name: parse_template(name, table, str(source)) for name, table in tables.items()}
    for template in templates.values():
        for choice in template.first_of:
            if choice not in templates or templates[choice].first_of:
                raise ConfigError(
                    f"context file {source}: {template.name}.first_of names {choice!r}, "
                    "which is no plain template there"
                )
    return templates


def shipped_contexts() -> list[str]:
    """Names of the context files in the package."""
    folder = resources.files("selfdistill.contexts")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def apply(
    templates: Mapping[str, Template],
    name: str,
    prompt: Sequence[Message],
    fields: Mapping[str, str],
    *,
    other_input: Sequence[Message] = (),
) -> tuple[Message, ...] | Skipped:
    """The messages of a context, or why it cannot be rendered.

    Raises:
        ConfigError: no template of that name.
    """
    if name not in templates:
        raise ConfigError(f"unknown context {name!r}; {choices(name, sorted(templates))}")
    template = templates[name]
    if template.first_of:
        tried = [apply(templates, choice, prompt, fields, other_input=other_input) for choice in template.first_of]
        usable = next((result for result in tried if not isinstance(result, Skipped)), None)
        missing = dict.fromkeys(field for result in tried if isinstance(result, Skipped) for field in result.missing)
        return usable or Skipped(name, tuple(missing), template.first_of)
    return template.render(prompt, fields, other_input=other_input)


def may_show(templates: Mapping[str, Template], name: str) -> list[str]:
    """Every field that a context may use, directly or through ``first_of``, except ``question``."""
    template = templates[name]
    needs = [*template.needs, *(field for choice in template.first_of for field in may_show(templates, choice))]
    return list(dict.fromkeys(needs))


def parse_template(name: str, table: object, source: str) -> Template:
    """Parse a template from its table in a context file. ``source`` names the file in messages.

    Raises:
        ConfigError: the table is malformed.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"context file {source}: {name!r} must be a table")
    unknown = set(table) - {"description", "text", "first_of", "system", "turns", "before"}
    if unknown:
        raise ConfigError(
            f"context file {source}: unknown key {sorted(unknown)[0]!r} in [{name}]; "
            "known: before, description, first_of, system, text, turns"
        )
    if ("text" in table) == ("first_of" in table):
        raise ConfigError(f"context file {source}: [{name}] needs either 'text' or 'first_of'")
    for key in ("text", "system"):
        if not isinstance(table.get(key, ""), str):
            raise ConfigError(f"context file {source}: [{name}].{key} must be a text")
    choices = table.get("first_of", ())
    if "first_of" in table and not (isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)):
        raise ConfigError(f"context file {source}: [{name}].first_of must be a list of names")
    template = Template(
        name=name,
        description=str(table.get("description", "")),
        text=table.get("text"),
        first_of=tuple(choices),
        system=table.get("system"),
        turns=_parse_turns(table.get("turns", ()), f"context file {source}: [{name}].turns"),
        before=table.get("before", "first"),
    )
    before = template.before
    a_number = isinstance(before, int) and not isinstance(before, bool) and before > 0
    if not a_number and before not in ("first", "last", "each"):
        raise ConfigError(
            f"context file {source}: [{name}].before is the turn 'first', 'last' or 'each', or its number from 1"
        )
    if template.before != "first" and (template.text is None or template.system is not None or template.turns):
        raise ConfigError(f"context file {source}: [{name}].before goes with a text alone, without system and turns")
    texts = [("text", template.text or ""), *(("turns", turn.content) for turn in template.turns)]
    for key, text in texts:
        if not string.Template(text).is_valid():
            raise ConfigError(f"context file {source}: [{name}].{key} holds a stray '$'; write '$$' for a dollar sign")
    if template.turns and template.text is None:
        raise ConfigError(f"context file {source}: [{name}] has turns and no text to follow them")
    return template


def _parse_turns(turns: object, where: str) -> tuple[Message, ...]:
    """Earlier messages from a list of tables: user and assistant in turn, the assistant last.

    Raises:
        ConfigError: they are malformed, or in another order.
    """
    form = 'a list of { role = "user" or "assistant", text = "…" }, in turn, the assistant last'
    tables: list[Any] = list(turns) if isinstance(turns, list | tuple) else [turns]
    for table in tables:
        if not (isinstance(table, dict) and set(table) == {"role", "text"} and isinstance(table["text"], str)):
            raise ConfigError(f"{where} are {form}")
    roles = [table["role"] for table in tables]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ConfigError(f"{where} are {form}; here: {', '.join(map(str, roles))}")
    return tuple(Message(table["role"], table["text"]) for table in tables)
