"""Use of tools from rows of data: a request, the tools, and the calls that answer it.

A completion is right if it makes the same calls: the same tools, and for each the same arguments as JSON values. The
calls are judged and never made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.config.tasks import ToolsConfig
from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import DataError
from selfdistill.tasks.data import MemoryRows, Row, lookup
from selfdistill.tasks.rows import RowTask, example_id, question_and_fields, system_messages
from selfdistill.tasks.tools.calls import (
    Call,
    MalformedCall,
    asked_question,
    canonical,
    documented_schemas,
    find_calls,
    read_calls,
    read_schemas,
    same,
    written,
)
from selfdistill.types import Example, Message, Verdict

_NO_CALL = {
    "react": "no 'Action:' with an 'Action Input:' was found",
    "template": "no <tool_call> with a name and arguments was found",
}


class ToolsTask(RowTask):
    """Requests answered by calls.

    A row's answer is a JSON list of ``{name, arguments}`` or ``{Action, Action_Input}``. A call whose name begins with
    ``[Optional]`` may be left out. In the template form the schemas go through the chat template's ``tools``;
    where they come from a documentation in the prompt, the prompt is then the request alone.
    ``partial`` is given half for a call's tool and half for its arguments.

    Args:
        config: the task's table.
        rows: rows in memory; see :class:`~selfdistill.tasks.rows.RowTask`.

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
    """

    name = "tools"

    def __init__(self, config: ToolsConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        self.config = config
        self._mapping = {"prompt": config.prompt, **config.fields}
        if config.solution is not None:
            self._mapping["solution"] = config.solution
        super().__init__(config, rows)

    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's request, and the example that asks it."""
        question, fields = question_and_fields(row, self._mapping)
        try:
            wanted = read_calls(lookup(row, "answer", self.config.answer))
            column = self.config.tools
            schemas = read_schemas(lookup(row, "tools", column)) if column else documented_schemas(question)
        except MalformedCall as error:
            raise DataError(f"{row.place}: {error}") from error
        if all(call.optional for call in wanted):
            raise DataError(f"{row.place}: every call of the answer is optional, so there is nothing to ask for")
        asked, head = question, system_messages(row, self.config.system)
        if self.config.form == "template":
            if not schemas:
                raise DataError(f"{row.place}: the template form needs tool schemas; name their column (task.tools)")
            asked = question if column else asked_question(question) or question
            head = (Message("tools", json.dumps(schemas, ensure_ascii=False)), *head)
        required = [call for call in wanted if not call.optional]
        fields = {"solution": written(required, self.config.form), **fields, "answer": canonical(required)}
        names = [schema["function"]["name"] for schema in schemas]
        columns = {**row.values, "wanted_calls": wanted, "tool_names": names}
        return question, Example(example_id(row), (*head, Message("user", asked + self.config.suffix)), fields, columns)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Reward 1 for the same calls, else ``partial`` times the share that is right."""
        if not finished:
            return Verdict(0.0, feedback="the completion was cut off before its calls ended", details={"no_call": 1.0})
        try:
            given = find_calls(after_thinking(text), self.config.form)
        except MalformedCall as error:
            return Verdict(0.0, feedback=str(error), details={"malformed": 1.0})
        if not given:
            return Verdict(0.0, feedback=_NO_CALL[self.config.form], details={"no_call": 1.0})
        pairs = self._paired(given, example.columns["wanted_calls"])
        tools = example.columns["tool_names"]
        share = sum(self._share(*pair) for pair in pairs) / len(pairs)
        complaints = [fault for mine, theirs in pairs for fault in self._faults(mine, theirs, tools)]
        if not complaints:
            return Verdict(1.0, answer=canonical(self._sorted(given)), details={"share": 1.0})
        return Verdict(
            self.config.partial * share,
            answer=canonical(self._sorted(given)),
            feedback="; ".join(complaints),
            details={"share": share},
        )

    def reference(self, example: Example) -> str:
        """The calls that must be made, in the task's form."""
        return written([call for call in example.columns["wanted_calls"] if not call.optional], self.config.form)

    def _sorted(self, calls: Sequence[Call]) -> list[Call]:
        return list(calls) if self.config.ordered else sorted(calls, key=lambda call: canonical([call]))

    def _paired(self, given: Sequence[Call], wanted: Sequence[Call]) -> list[tuple[Call | None, Call | None]]:
        """Every given call beside the wanted one that it is nearest to; None where one side has none."""
        left = list(given)
        names = [call.name for call in given]
        needed = [call for call in wanted if not call.optional or call.name in names]
        pairs: list[tuple[Call | None, Call | None]] = []
        if self.config.ordered:
            pairs = [(mine, theirs) for mine, theirs in zip(given, needed, strict=False)]
            pairs += [(None, theirs) for theirs in needed[len(given) :]]
            return pairs + [(mine, None) for mine in given[len(needed) :]]
        # Required calls choose first, the best match first, so that an optional one takes what is left over.
        rest = []
        for theirs in sorted(needed, key=lambda call: call.optional):
            best = max(left, key=lambda mine: self._share(mine, theirs), default=None)
            if best is None or self._share(best, theirs) < 1:
                rest.append(theirs)
                continue
            left.remove(best)
            pairs.append((best, theirs))
        for theirs in rest:
            best = max(left, key=lambda mine: self._share(mine, theirs), default=None)
            if theirs.optional and (best is None or best.name != theirs.name):
                continue
            if best is not None:
                left.remove(best)
            pairs.append((best, theirs))
        return pairs + [(mine, None) for mine in left]

    def _share(self, mine: Call | None, theirs: Call | None) -> float:
        if mine is None or theirs is None or mine.name != theirs.name:
            return 0.0
        given, wanted = self._kept(mine), self._kept(theirs)
        names = given.keys() | wanted.keys()
        right = sum(name in given and name in wanted and same(given[name], wanted[name]) for name in names)
        return 0.5 + 0.5 * (right / len(names) if names else 1.0)

    def _faults(self, mine: Call | None, theirs: Call | None, tools: Sequence[str]) -> list[str]:
        """What is wrong with a call, in words that do not give the right value away."""
        if mine is None:
            return ["a call is missing"]
        known = not tools or mine.name in tools or (theirs is not None and mine.name == theirs.name)
        if not known:
            return [f"there is no tool {mine.name}; the tools are {', '.join(tools)}"]
        if theirs is None:
            return [f"the call of {mine.name} is one too many"]
        if mine.name != theirs.name:
            return [f"{mine.name} is the wrong tool here"]
        given, wanted = self._kept(mine), self._kept(theirs)
        faults = [f"the call of {mine.name} lacks the argument {name!r}" for name in wanted if name not in given]
        faults += [f"the call of {mine.name} has an argument {name!r} too many" for name in given if name not in wanted]
        return faults + [
            f"the argument {name!r} of {mine.name} is wrong: {json.dumps(value, ensure_ascii=False)[:100]}"
            for name, value in given.items()
            if name in wanted and not same(value, wanted[name])
        ]

    def _kept(self, call: Call) -> Mapping[str, Any]:
        if not self.config.ignore_empty:
            return call.arguments
        return {name: value for name, value in call.arguments.items() if value not in ("", None, [], {})}
