"""Messages, tools and turns in the form of OpenAI's chat API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.contexts.thinking import after_thinking, thought_of
from selfdistill.errors import DataError
from selfdistill.tasks.tools.calls import Call, MalformedCall
from selfdistill.tasks.tools.syntax import find_calls
from selfdistill.types import Message

Schemas = Sequence[Mapping[str, Any]]
ROLES = {"developer": "system", "function": "tool"}
"""Roles of the API that have another name here."""
TEXTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that are texts."""


@dataclass(frozen=True, slots=True)
class Said:
    """A turn of the model as a server with parsers for thinking and tools returns it."""

    content: str
    thought: str
    calls: tuple[Call, ...]
    first: int = 0
    """The number of its first call in the conversation: agents find a call's result by its id."""

    def message(self) -> dict[str, Any]:
        """The turn as a message of the API."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thought:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": f"call{number:05}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for number, call in enumerate(self.calls, start=self.first)
            ]
        return message

    @property
    def finish_reason(self) -> str:
        """Why the turn ended, in the API's words."""
        return "tool_calls" if self.calls else "stop"


def read_turn(text: str, schemas: Schemas, *, first: int = 0) -> Said:
    """What the model wrote, apart: its thinking, its answer, and its calls if it was shown tools.

    ``first`` is the number of calls before this turn.
    """
    said, calls = after_thinking(text), []
    if schemas:
        try:
            calls = find_calls(said, list(schemas))
        except MalformedCall:
            # As a server does, which returns a call that it cannot read as text.
            calls = []
    return Said(said.strip(), thought_of(text), tuple(calls), first)


def read_messages(given: object) -> tuple[Message, ...]:
    """The messages of a request.

    Raises:
        DataError: they are none, or one holds something else than texts.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise DataError("messages must be a list of messages, each with a role and a content")
    return tuple(_read_message(number, message) for number, message in enumerate(given, start=1))


def _read_message(number: int, message: object) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"message {number} has no role")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXTS else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"message {number} holds something else than texts")
    role = str(message["role"])
    return Message(ROLES.get(role, role), "\n".join(str(text) for text in texts))


def read_tools(given: object) -> tuple[Mapping[str, Any], ...]:
    """The schemas of a request's tools.

    Raises:
        DataError: one is no function.
    """
    tools = given if isinstance(given, Sequence) and not isinstance(given, str) else [given] if given else []
    for tool in tools:
        if not (isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)):
            raise DataError("tools must be a list of functions: {'type': 'function', 'function': {…}}")
    return tuple(tools)
