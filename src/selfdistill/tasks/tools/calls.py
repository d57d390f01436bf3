"""Calls of tools: reading them from a row, from a completion and from a documentation, and comparing them.

A call is written in one of two forms. ``"react"`` is ToolAlpaca's: a line ``Action: name``, then ``Action Input:`` and
a JSON object. ``"template"`` is what chat templates teach: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["react", "template"]

OPTIONAL = "[Optional]"
"""ToolAlpaca's mark of a call that a right answer may leave out."""

_REACT = re.compile(
    r"^[ \t>*`-]*Action[ \t]*:[ \t]*(?P<name>[^\n]*?)[ \t]*(?=\n|[*`]*Action[ _]Input|\Z)", re.MULTILINE
)
_INPUT = re.compile(r"\s*[*`]*Action[ _]Input[*`]*[ \t]*:[*` \t]*(?:\n?```(?:json)?[ \t]*\n?)?\s*", re.IGNORECASE)
_TEMPLATE = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_DOCUMENTED = re.compile(r"^(?P<name>\w+): (?P<description>.*)\nParameters: (?P<parameters>\{.*\})$", re.MULTILINE)
_ASKED = re.compile(r"^Question:[ \t]*(?P<question>.*)\Z", re.MULTILINE | re.DOTALL)
_TYPES = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
} | {kind: kind for kind in ("string", "integer", "number", "boolean", "array", "object")}


class MalformedCall(ValueError):
    """A text that should be a call and is none; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call; an ``optional`` one need not be made."""

    name: str
    arguments: Mapping[str, Any]
    optional: bool = False


def written(calls: Sequence[Call], form: Form) -> str:
    """Calls as a completion writes them."""
    if form == "react":
        return "\n".join(f"Action: {call.name}\nAction Input: {_json(call.arguments)}" for call in calls)
    bodies = (_json({"name": call.name, "arguments": call.arguments}) for call in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def find_calls(text: str, form: Form) -> list[Call]:
    """Every call of a completion, thinking aside.

    Raises:
        MalformedCall: one of them cannot be read.
    """
    if form == "template":
        return [_from_object(_loads(body, "the tool call")) for body in _TEMPLATE.findall(text)]
    return [_react_call(text, match) for match in _REACT.finditer(text)]


def read_calls(value: object) -> list[Call]:
    """The calls of a row: a list or one object, or JSON text of it, in any of the known spellings.

    Raises:
        MalformedCall: it is none of them, or there is no call.
    """
    if isinstance(value, str):
        value = _loads(value, "the answer")
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise MalformedCall("the answer holds no call")
    return [_from_object(one) for one in listed]


def read_schemas(value: object) -> list[dict[str, Any]]:
    """Tool schemas as chat templates want them, from a list (or its JSON text) of full or bare function descriptions.

    Raises:
        MalformedCall: it is no such list.
    """
    if isinstance(value, str):
        value = _loads(value, "the tools")
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise MalformedCall("the tools are no list of JSON objects")
    return [_schema(one) for one in value]


def documented_schemas(prompt: str) -> list[dict[str, Any]]:
    """The schemas that a ToolAlpaca prompt describes in words; empty where it describes none."""
    found = []
    for match in _DOCUMENTED.finditer(prompt):
        try:
            parameters = json.loads(match["parameters"])
        except ValueError:
            continue
        found.append(_schema({"name": match["name"], "description": match["description"], "parameters": parameters}))
    return found


def asked_question(prompt: str) -> str | None:
    """What stands behind ``Question:`` in a ToolAlpaca prompt."""
    match = _ASKED.search(prompt)
    return match["question"].strip() if match else None


def same(one: object, other: object) -> bool:
    """Equality of JSON values: order of keys and spelling of numbers aside (1 is 1.0); True is no 1, "1" is no 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return (numbers or type(one) is type(other)) and one == other


def canonical(calls: Sequence[Call]) -> str:
    """One text for equal calls."""
    return " ".join(f"{call.name}({json.dumps(_plain(call.arguments), sort_keys=True)})" for call in calls)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _react_call(text: str, match: re.Match[str]) -> Call:
    name = match["name"].strip("`*'\" ").removesuffix("()")
    begins = _INPUT.match(text, match.end())
    if begins is None:
        raise MalformedCall(f"the action {name} has no 'Action Input:'")
    if text[begins.end() : begins.end() + 1] != "{":
        said = text[begins.end() :].partition("\n")[0]
        raise MalformedCall(f"the input of {name} is not a JSON object: {said[:60]!r}")
    try:
        # Strings may hold line breaks: models write them, and what they mean is plain.
        arguments, _ = json.JSONDecoder(strict=False).raw_decode(text, begins.end())
    except json.JSONDecodeError as error:
        column = error.pos - begins.end() + 1
        raise MalformedCall(f"the input of {name} is not valid JSON: {error.msg} at character {column}") from error
    except (RecursionError, ValueError) as error:
        raise MalformedCall(f"the input of {name} is not valid JSON: {error}") from error
    return Call(name, arguments)


def _from_object(value: object) -> Call:
    """``{name, arguments}``, ``{function: {…}}`` or ``{Action, Action_Input}``; arguments may be JSON text."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise MalformedCall("a call must be a JSON object with a name and arguments")
    for name_key, input_key in (("name", "arguments"), ("Action", "Action_Input"), ("name", "parameters")):
        if name_key in value and input_key in value:
            name, arguments = value[name_key], value[input_key]
            break
    else:
        raise MalformedCall("a call needs the keys name and arguments (or Action and Action_Input)")
    if not isinstance(name, str) or not name.removeprefix(OPTIONAL).strip():
        raise MalformedCall(f"the name of a call must be a text, this is {name!r}")
    name = name.strip()
    if isinstance(arguments, str):
        arguments = _loads(arguments or "{}", f"the input of {name}")
    if not isinstance(arguments, dict):
        raise MalformedCall(f"the input of {name} is not a JSON object")
    return Call(name.removeprefix(OPTIONAL).strip(), arguments, optional=name.startswith(OPTIONAL))


def _loads(text: str, what: str) -> object:
    try:
        return json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        raise MalformedCall(f"{what} is not valid JSON: {error.msg} at character {error.pos + 1}") from error
    except (RecursionError, ValueError) as error:
        raise MalformedCall(f"{what} is not valid JSON: {error}") from error


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MalformedCall("a tool needs a name")
    given = function.get("parameters") or {}
    if not isinstance(given, dict):
        raise MalformedCall(f"the parameters of tool {function['name']} are no JSON object")
    parameters = given if given.get("type") == "object" else _parameters(given)
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": str(function.get("description", "")),
            "parameters": parameters,
        },
    }


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema of parameters that are described by a text or by a small object each."""
    properties: dict[str, Any] = {}
    required = []
    for name, described in given.items():
        about = described if isinstance(described, dict) else {"description": str(described), "type": str(described)}
        kind = str(about.get("type", "string"))
        word = re.match(r"[A-Za-z]*", kind)
        properties[name] = {
            "type": _TYPES.get(word.group().lower() if word else "", "string"),
            "description": str(about.get("description", "")),
        }
        if "optional" not in kind.lower() and "default" not in about:
            required.append(name)
    # Documentations in words do not say what is required.
    stated = any(isinstance(described, dict) for described in given.values())
    return {"type": "object", "properties": properties, **({"required": required} if stated else {})}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
