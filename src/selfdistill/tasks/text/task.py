"""Prompts with responses, solutions or other privileged texts, and no verifier.

Nothing is added to a prompt, and nothing is right or wrong. A row is one of TRL's forms, each as plain text or as
lists of messages: ``prompt`` alone, ``prompt`` + ``completion``, with ``solution`` or ``privileged_context`` beside
them, or ``messages``, whose last turn is the completion.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.config.tasks import TextConfig
from selfdistill.errors import DataError
from selfdistill.files.text import counted
from selfdistill.tasks.data import MemoryRows, Row, lookup, map_row
from selfdistill.tasks.rows import RowTask, example_id, system_messages
from selfdistill.tasks.text.forms import PREFERENCE_COLUMNS, preference_form
from selfdistill.tasks.tools.calls import MalformedCall, read_schemas
from selfdistill.types import Example, Message, Verdict

ROLES = ("system", "developer", "user", "assistant", "tool")


class TextTask(RowTask):
    """Prompts without a verifier. An example has the fields ``response``, ``solution`` and others that the row has.

    The field ``solution``, which contexts show, holds the solution, else the privileged context, else the completion.
    The completion is the reference that ``sft`` learns and that held-out evaluations score.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.

    Raises:
        DataError: a file or a row that cannot be used, with its line number.
    """

    name = "text"
    contexts = "text"
    has_verifier = False

    def __init__(self, config: TextConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        self.config = config
        self.forms: Counter[str] = Counter()
        """The columns of each form → number of rows in that form."""
        super().__init__(config, rows)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """A verdict without a reward."""
        return Verdict(None)

    def reference(self, example: Example) -> str:
        """The row's completion; empty if it has none."""
        return example.fields.get("response", "")

    def warnings(self) -> list[str]:
        """The forms of the rows with their counts, then the warnings of every task over rows."""
        forms = "; ".join(f"{counted(count, 'row')} as {form}" for form, count in self.forms.most_common())
        return [*([f"read {forms}"] if forms else []), *super().warnings()]

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's prompt as text, whose hash decides the split, and the example."""
        config = self.config
        # Who names the response, or shows preferences to contexts, knows what the row is.
        keys = ("completion", "messages", "solution", "privileged_context")
        own = any(getattr(config, key) != TextConfig.model_fields[key].default for key in keys)
        own = own or any(column in source for source in config.fields.values() for column in PREFERENCE_COLUMNS)
        why = None if own else preference_form(row.values, has_prompt=_present(row, config.prompt))
        if why is not None:
            raise DataError(f"{row.location}: {why}")
        if _present(row, config.messages) and not _present(row, config.prompt):
            turns = _messages(row, config.messages, row.values[config.messages])
            if turns[-1].role != "assistant":
                raise DataError(f"{row.location}: the last of {config.messages!r} must be the assistant's response")
            prompt, form = turns[:-1], [config.messages]
            response: str | None = turns[-1].content
        else:
            prompt, response, form = self._prompt_and_response(row)
        if not prompt or prompt[-1].role != "user" or not prompt[-1].content.strip():
            raise DataError(f"{row.location}: a prompt must end with a message of the user that is not empty")
        if config.system is not None:
            if any(message.role == "system" for message in prompt):
                raise DataError(f"{row.location}: the prompt has a system message of its own; leave out task.system")
            prompt = (*system_messages(row, config.system), *prompt)
        if tools := row.values.get("tools"):
            try:
                read_schemas(tools)
            except MalformedCall as error:
                raise DataError(
                    f"{row.location}: {error}; name the column otherwise if its tools are not for the chat template"
                ) from error
            prompt = (Message("tools", tools if isinstance(tools, str) else json.dumps(tools)), *prompt)
        # The fields that contexts may show, from the columns that this row has.
        named = {"solution": config.solution, "privileged_context": config.privileged_context}
        fields = map_row(row, config.fields)
        for name, source in named.items():
            column = source.removesuffix("?")
            # A source without "?" is required, so the look-up raises an error if it is absent.
            if column == source or _present(row, column):
                fields |= _text(row, name, column)
                form.append(column)
        if response is not None:
            fields["response"] = response
        references = [fields[name] for name in ("solution", "privileged_context", "response") if name in fields]
        if references:
            fields["solution"] = references[0]
        self.forms[" + ".join(form)] += 1
        return _plain(prompt), Example(example_id(row), prompt, fields, row.values)

    def _prompt_and_response(self, row: Row) -> tuple[tuple[Message, ...], str | None, list[str]]:
        """The prompt of a row, its completion if it has one, and the columns of both."""
        config, completion = self.config, self.config.completion.removesuffix("?")
        if "$" not in config.prompt and config.prompt.partition(".")[0] not in row.values:
            raise DataError(
                f"{row.location}: no {config.prompt!r} and no {config.messages!r}; the row has "
                f"{', '.join(row.values) or 'no columns'}"
            )
        if "$" in config.prompt:
            prompt: tuple[Message, ...] = (Message("user", map_row(row, {"prompt": config.prompt})["prompt"]),)
        else:
            value = lookup(row, "prompt", config.prompt)
            prompt = _messages(row, config.prompt, value) if isinstance(value, list | tuple) else ()
            prompt = prompt or (Message("user", map_row(row, {"prompt": config.prompt})["prompt"]),)
        if not _present(row, completion):
            if not config.completion.endswith("?"):
                raise DataError(f"{row.location}: no {completion!r}, which task.completion names")
            return prompt, None, [config.prompt]
        response = _text(row, "response", completion)["response"]
        return prompt, response, [config.prompt, completion]


def _text(row: Row, name: str, source: str) -> dict[str, str]:
    """The field ``name`` with the text of a source. A list of messages becomes one text."""
    value = None if "$" in source else lookup(row, name, source)
    if isinstance(value, list | tuple):
        turns = _messages(row, source, value)
        if name == "response" and [turn.role for turn in turns] != ["assistant"]:
            roles = ", ".join(turn.role for turn in turns)
            raise DataError(f"{row.location}: {source!r} must hold one message of the assistant, it has {roles}")
        return {name: _plain(turns)}
    return map_row(row, {name: source})


def _messages(row: Row, column: str, value: object) -> tuple[Message, ...]:
    """The messages of a list ``[{"role": …, "content": …}]``.

    Raises:
        DataError: an entry is not such a message, or contains an image or a call.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{row.location}: {column!r} must be a list of messages with role and content")
    messages = []
    for number, entry in enumerate(value, start=1):
        where = f"{row.location}: message {number} of {column!r}"
        if not isinstance(entry, Mapping) or entry.get("role") not in ROLES:
            raise DataError(f"{where} must have a role ({', '.join(ROLES)}) and a content")
        if entry.get("tool_calls"):
            raise DataError(f"{where} calls tools, which a text does not hold: use task.kind = 'tools'")
        messages.append(Message(str(entry["role"]), _content(where, entry.get("content"))))
    return tuple(messages)


def _content(where: str, content: Any) -> str:
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} must have a text as its content; images and other parts cannot be read")
    return "".join(str(text) for text in texts)


def _present(row: Row, source: str) -> bool:
    """Whether the row has a value at a column or a dotted path. True for a template."""
    if "$" in source:
        return True
    try:
        return lookup(row, source, source) is not None
    except DataError:
        return False


def _plain(turns: Sequence[Message]) -> str:
    """The content of a single message, or all messages as one text with their roles."""
    return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
