"""Loops with tools: plain Python functions are called by the model, turn by turn, until it reports."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import PydanticUserError, TypeAdapter, ValidationError, validate_call

from selfdistill.contexts.thinking import after_thinking
from selfdistill.errors import ConfigError
from selfdistill.files.text import shortened
from selfdistill.tasks.episode_loop import EpisodeLoop
from selfdistill.tasks.tools.calls import Call, MalformedCall, react_calls, shield_values
from selfdistill.tasks.tools.syntax import find_calls
from selfdistill.types import Example, Message, Reply, Start

REACT = """{request}

You have these tools:

{tools}

Call one by writing a line "Action: name", then a line "Action Input:" with a JSON object.
Answer without a call to end."""
LONGEST_ERROR = 300
"""Characters of an error that the model is told, unless it is a :class:`ToolError`."""


class ToolError(Exception):
    """An error of a tool, of which the model is told every word. A tool may raise it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The state of an episode: its example, and its tools by name with their schemas."""

    example: Example
    functions: Mapping[str, Callable[..., Any]]
    schemas: Sequence[Mapping[str, Any]]
    loop: EpisodeLoop = field(default_factory=EpisodeLoop, compare=False)
    """Where functions that are coroutines run."""


class ToolLoop(ABC):
    """A task whose model calls Python functions. A turn without a call is the report, which ends the episode.

    A subclass has ``name``, :meth:`examples`, :meth:`tools` and :meth:`judge`. Schemas come from the functions'
    signatures and docstrings. Arguments are checked and converted by the annotations. A call that cannot be read, that
    does not fit the signature or whose function raises is answered with an error, which is counted. Functions run in
    the process of the run, several episodes at once: one that executes what a model wrote has to confine it itself.
    """

    name: str
    contexts: str = "default"
    has_verifier: bool = True
    form: ClassVar[Literal["template", "react"]] = "template"
    """How tools are shown and called: by the chat template, or as text where a template takes no tools."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, always in the same order."""

    @abstractmethod
    def tools(self, example: Example) -> Sequence[Callable[..., Any]]:
        """The functions of one episode. What they share, such as an object whose methods they are, is its state."""

    @abstractmethod
    def judge(self, example: Example, report: str) -> float | Reply:
        """The reward of the report, given after its thinking; or a whole reply, whose ``done`` is not read."""

    def start(self, example: Example) -> Start:
        """Make the tools of an episode, and show their schemas before the example's prompt.

        Raises:
            ConfigError: a function cannot be described by a schema, or two have the same name.
        """
        given = self.tools(example)
        schemas = [schema_of(function) for function in given]
        names = [schema["function"]["name"] for schema in schemas]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ConfigError(f"two tools are called {twice!r}: a call could mean either")
        state = Tools(example, dict(zip(names, given, strict=True)), schemas)
        if self.form == "template":
            return Start(state, (Message("tools", json.dumps(schemas, ensure_ascii=False)), *example.prompt))
        *head, last = example.prompt
        described = [
            f"{schema['function']['name']}: {schema['function']['description']}\n"
            f"Parameters: {json.dumps(schema['function']['parameters'], ensure_ascii=False)}"
            for schema in schemas
        ]
        request = REACT.format(request=last.content, tools="\n\n".join(described))
        return Start(state, (*head, Message(last.role, request)))

    def reply(self, state: object, text: str) -> Reply:
        """Run the calls of a turn in their order, or judge a turn without a call."""
        assert isinstance(state, Tools)
        answer = after_thinking(shield_values(text)).strip()
        try:
            react = self.form == "react"
            calls = react_calls(answer, state.schemas) if react else find_calls(answer, state.schemas)
        except MalformedCall as error:
            return self._answered([(f"error: {error}", True)])
        if calls:
            return self._answered([_run(call, state) for call in calls])
        judged = self.judge(state.example, after_thinking(text).strip())
        if isinstance(judged, Reply):
            return replace(judged, done=True)
        return Reply(done=True, reward=float(judged), error=False)

    def end(self, state: object) -> None:
        """Close the event loop of the episode's tools."""
        assert isinstance(state, Tools)
        state.loop.close()

    def _answered(self, results: Sequence[tuple[str, bool]]) -> Reply:
        wrong = [text for text, failed in results if failed]
        messages: Sequence[Message]
        if self.form == "template":
            messages = tuple(Message("tool", text) for text, _ in results)
        else:
            messages = (Message("user", "\n".join(f"Observation: {text}" for text, _ in results)),)
        return Reply(messages, reward=0.0, feedback="\n".join(wrong) or None, error=bool(wrong))


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a tool as chat templates take it, from a function's signature and docstring.

    A function with an attribute ``schema``, as those of an MCP server have, brings its parameters itself.

    Raises:
        ConfigError: the function or a parameter has no name to call it by, or a type that JSON does not have.
    """
    name = getattr(function, "__name__", None)
    if name is None:
        raise ConfigError(f"a tool of type {type(function).__name__} has no name to call it by: write it as a function")
    own = getattr(function, "schema", None)
    if isinstance(own, Mapping):
        return {
            "type": "function",
            "function": {"name": name, "description": function.__doc__ or "", "parameters": own},
        }
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]
        parameters = adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise ConfigError(f"tool {name}: its signature has no JSON schema: {str(error).splitlines()[0]}") from error
    if parameters.get("type") != "object":
        raise ConfigError(f"tool {name}: a call names its arguments, and a parameter of {name} is positional only")
    properties = {
        key: {word: value for word, value in given.items() if word != "title"}
        for key, given in parameters.get("properties", {}).items()
    }
    described = {"name": name, "description": inspect.getdoc(function) or "", "parameters": parameters}
    described["parameters"] = {**parameters, "properties": properties}
    return {"type": "function", "function": described}


def _run(call: Call, tools: Tools) -> tuple[str, bool]:
    """What a call returns as text, and whether that is an error."""
    function = tools.functions.get(call.name)
    if function is None:
        return f"error: there is no tool {call.name}; the tools are {', '.join(tools.functions)}", True
    try:
        result = validate_call(function)(**call.arguments)
        if inspect.isawaitable(result):
            result = tools.loop.run(_awaited(result))
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str), False
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return shortened(f"error: {call.name}: {where}: {first['msg']}", LONGEST_ERROR), True
    except ToolError as error:
        return f"error: {call.name}: {type(error).__name__}: {error}", True
    # A tool may raise anything. The model is told, the error is counted, and the episode goes on.
    except Exception as error:
        return shortened(f"error: {call.name}: {type(error).__name__}: {error}", LONGEST_ERROR), True


async def _awaited(result: Any) -> Any:
    return await result
