"""Tool use from rows of data: a request, the tools, and the calls that answer it.

A completion is right if it makes the same calls: the same tools with the same arguments, compared as JSON values. Calls
are verified and never executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

from selfdistill.config.tasks import ToolsConfig
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import DataError, ModelError
from selfdistill.tasks.data import SPLITS, MemoryRows, Row, lookup
from selfdistill.tasks.rows import RowTask, example_id, question_and_fields, system_messages
from selfdistill.tasks.tools.calls import (
    Call,
    MalformedCall,
    asked_question,
    canonical,
    documented_schemas,
    react_calls,
    react_text,
    read_calls,
    read_schemas,
    same,
    shield_values,
    short_name,
)
from selfdistill.tasks.tools.syntax import HERMES, Syntax, find_calls, hermes_text, syntax_of
from selfdistill.types import Example, Message, Verdict

SHOWN = 10
"""Faults that feedback names. A model may write calls without end."""


class ToolsTask(RowTask):
    """Requests answered by calls.

    A row's answer is a JSON list of ``{name, arguments}`` or ``{Action, Action_Input}``. A call whose name begins with
    ``[Optional]`` may be left out. In the template form the schemas go through the chat template's ``tools``;
    if they come from documentation in the prompt, only the request stays in the prompt.
    A call with the right tool and wrong arguments gets half of ``partial``.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
    """

    name = "tools"

    def __init__(self, config: ToolsConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        self.config = config
        self._syntax: Syntax | None = None
        self._write: Callable[[Sequence[Call]], str] = react_text if config.form == "react" else hermes_text
        self._mapping = {"prompt": config.prompt, **config.fields}
        if config.solution is not None:
            self._mapping["solution"] = config.solution
        super().__init__(config, rows)

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's request, and the example that asks it."""
        question, fields = question_and_fields(row, self._mapping)
        try:
            calls = read_calls(lookup(row, "answer", self.config.answer))
            column = self.config.tools
            schemas = read_schemas(lookup(row, "tools", column)) if column else documented_schemas(question)
        except MalformedCall as error:
            raise DataError(f"{row.location}: {error}") from error
        if all(call.optional for call in calls):
            raise DataError(f"{row.location}: every call of the answer is optional, so there is nothing to ask for")
        request, head = question, system_messages(row, self.config.system)
        if self.config.form == "template":
            if not schemas:
                raise DataError(f"{row.location}: the template form needs tool schemas; name their column (task.tools)")
            request = question if column else asked_question(question) or question
            head = (Message("tools", json.dumps(schemas, ensure_ascii=False)), *head)
        required = [call for call in calls if not call.optional]
        fields = {"solution": self._write(required), **fields, "answer": canonical(required)}
        names = [schema["function"]["name"] for schema in schemas]
        columns = {**row.values, "wanted_calls": calls, "tool_names": names, "tool_schemas": schemas}
        return question, Example(
            example_id(row), (*head, Message("user", request + self.config.suffix)), fields, columns
        )

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Reward 1 for the same calls, else ``partial`` times the share of right calls and arguments."""
        if not finished:
            return Verdict(0.0, feedback="the completion was cut off before its calls ended", details={"no_call": 1.0})
        try:
            given = self._calls(text, example)
        except MalformedCall as error:
            return Verdict(0.0, feedback=str(error), details={"malformed": 1.0})
        if not given:
            return Verdict(0.0, feedback=self._no_call(), details={"no_call": 1.0})
        pairs = self._paired(given, example.columns["wanted_calls"])
        tools = example.columns["tool_names"]
        share = sum(self._share(*pair) for pair in pairs) / len(pairs)
        complaints = [
            fault for given_call, wanted_call in pairs for fault in self._faults(given_call, wanted_call, tools)
        ]
        more = len(complaints) - SHOWN
        if not complaints:
            return Verdict(1.0, answer=canonical(self._sorted(given)), details={"share": 1.0})
        return Verdict(
            self.config.partial * share,
            answer=canonical(self._sorted(given)),
            feedback="; ".join(complaints[:SHOWN] + [f"{more} more faults"] * (more > 0)),
            details={"share": share},
        )

    def reference(self, example: Example) -> str:
        """The required calls, in the task's form."""
        return self._write([call for call in example.columns["wanted_calls"] if not call.optional])

    def fitted(self, chat: Chat) -> ToolsTask:
        """The task with a chat template's syntax: completions are parsed and solutions written in it.

        Raises:
            ModelError: the template writes no calls, or calls that no known syntax can parse.
        """
        if self.config.form == "react":
            return self
        syntax_and_writer = chat_syntax(chat)
        if syntax_and_writer is None:
            raise ModelError(
                f"the chat template of {chat.name} writes calls of tools in no syntax that can be read back: "
                'write task.form = "react"'
            )
        task = copy(self)
        task._syntax, task._write = syntax_and_writer
        task._examples = {split: tuple(map(task._rewritten, self._examples[split])) for split in SPLITS}
        return task

    def _rewritten(self, example: Example) -> Example:
        """The example with its calls as the template expresses them. XML does not distinguish ``3`` and ``"3"``."""
        assert self._syntax is not None
        rewritten_calls: list[Call] = []
        for call in example.columns["wanted_calls"]:
            text = self._write([call])
            try:
                (read_back,) = find_calls(text, example.columns["tool_schemas"], self._syntax)
            except (MalformedCall, ValueError) as error:
                raise DataError(f"{example.id}: the chat template's call of {call.name} cannot be read back") from error
            if read_back.name != call.name or read_back.arguments.keys() != call.arguments.keys():
                raise DataError(
                    f"{example.id}: the chat template's call of {call.name} is read back as {read_back.name}"
                )
            rewritten_calls.append(replace(read_back, optional=call.optional))
        required = [call for call in example.columns["wanted_calls"] if not call.optional]
        fields = {**example.fields, "answer": canonical([call for call in rewritten_calls if not call.optional])}
        if fields["solution"] == hermes_text(required):
            fields["solution"] = self._write(required)
        return replace(example, fields=fields, columns={**example.columns, "wanted_calls": rewritten_calls})

    def _calls(self, text: str, example: Example) -> list[Call]:
        """The calls of a completion after its thinking."""
        answer_text = after_thinking(shield_values(text))
        if self.config.form == "react":
            return react_calls(answer_text, example.columns["tool_schemas"])
        return find_calls(answer_text, example.columns["tool_schemas"], self._syntax)

    def _no_call(self) -> str:
        if self.config.form == "react":
            return "no 'Action:' with an 'Action Input:' was found"
        return f"no call of a tool was found; it is written {self._syntax.label if self._syntax else HERMES}"

    def _sorted(self, calls: Sequence[Call]) -> list[Call]:
        return list(calls) if self.config.ordered else sorted(calls, key=lambda call: canonical([call]))

    def _paired(self, given: Sequence[Call], wanted: Sequence[Call]) -> list[tuple[Call | None, Call | None]]:
        """Pairs of (given call, most similar wanted call). None marks a missing or a superfluous call."""
        unpaired = list(given)
        names = [call.name for call in given]
        needed = [call for call in wanted if not call.optional or call.name in names]
        pairs: list[tuple[Call | None, Call | None]] = []
        if self.config.ordered:
            pairs = [(given_call, wanted_call) for given_call, wanted_call in zip(given, needed, strict=False)]
            pairs += [(None, wanted_call) for wanted_call in needed[len(given) :]]
            return pairs + [(given_call, None) for given_call in given[len(needed) :]]
        # Required calls are matched first, exact matches before others. Optional calls get the remaining ones.
        inexact = []
        for wanted_call in sorted(needed, key=lambda call: call.optional):
            best = max(unpaired, key=lambda given_call: self._share(given_call, wanted_call), default=None)
            if best is None or self._share(best, wanted_call) < 1:
                inexact.append(wanted_call)
                continue
            unpaired.remove(best)
            pairs.append((best, wanted_call))
        for wanted_call in inexact:
            best = max(unpaired, key=lambda given_call: self._share(given_call, wanted_call), default=None)
            if wanted_call.optional and (best is None or best.name != wanted_call.name):
                continue
            if best is not None:
                unpaired.remove(best)
            pairs.append((best, wanted_call))
        return pairs + [(given_call, None) for given_call in unpaired]

    def _share(self, given_call: Call | None, wanted_call: Call | None) -> float:
        if given_call is None or wanted_call is None or given_call.name != wanted_call.name:
            return 0.0
        given_arguments, wanted_arguments = self._compared_arguments(given_call), self._compared_arguments(wanted_call)
        names = given_arguments.keys() | wanted_arguments.keys()
        right = sum(
            name in given_arguments and name in wanted_arguments and same(given_arguments[name], wanted_arguments[name])
            for name in names
        )
        return 0.5 + 0.5 * (right / len(names) if names else 1.0)

    def _faults(self, given_call: Call | None, wanted_call: Call | None, tools: Sequence[str]) -> list[str]:
        """Feedback on a call, without the right values."""
        if given_call is None:
            return ["a call is missing"]
        exists = (
            not tools or given_call.name in tools or (wanted_call is not None and given_call.name == wanted_call.name)
        )
        if not exists:
            return [f"there is no tool {short_name(given_call.name)}; the tools are {', '.join(tools)}"]
        if wanted_call is None:
            return [f"the call of {given_call.name} is one too many"]
        if given_call.name != wanted_call.name:
            return [f"{given_call.name} is the wrong tool here"]
        given_arguments, wanted_arguments = self._compared_arguments(given_call), self._compared_arguments(wanted_call)
        faults = [
            f"the call of {given_call.name} lacks the argument {name!r}"
            for name in wanted_arguments
            if name not in given_arguments
        ]
        faults += [
            f"the call of {given_call.name} has an argument {short_name(name)!r} too many"
            for name in given_arguments
            if name not in wanted_arguments
        ]
        return faults + [
            f"the argument {name!r} of {given_call.name} is wrong: {json.dumps(value, ensure_ascii=False)[:100]}"
            for name, value in given_arguments.items()
            if name in wanted_arguments and not same(value, wanted_arguments[name])
        ]

    def _compared_arguments(self, call: Call) -> Mapping[str, Any]:
        if not self.config.ignore_empty:
            return call.arguments
        return {name: value for name, value in call.arguments.items() if value not in ("", None, [], {})}


def chat_syntax(chat: Chat) -> tuple[Syntax, Callable[[Sequence[Call]], str]] | None:
    """The syntax in which a chat template writes calls, and the function that writes them; None if none is known.

    Raises:
        ModelError: the template takes no tools, or rendering it never ends.
    """
    # Some templates require the arguments as JSON text.
    for arguments_as_text in (False, True):
        write = partial(_written_by, chat, arguments_as_text)
        syntax = syntax_of(write)
        if syntax is not None:
            return syntax, write
    return None


def _written_by(chat: Chat, arguments_as_text: bool, calls: Sequence[Call]) -> str:
    """The calls as the template writes them: in one turn, or one by one if it refuses several."""
    pairs = [(call.name, call.arguments) for call in calls]
    joint_text = chat.calls_text(pairs, arguments_as_text=arguments_as_text)
    if joint_text or len(pairs) == 1:
        return joint_text
    return "\n".join(chat.calls_text([pair], arguments_as_text=arguments_as_text) for pair in pairs)
