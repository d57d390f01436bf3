"""Tool calls: parse them from rows, completions and documentation, and compare them.

A call is written in one of two forms. ``"react"`` is ToolAlpaca's: a line ``Action: name``, then ``Action Input:`` and
a JSON object. ``"template"`` is the syntax of the model's chat template (``syntax.py``).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from selfdistill.contexts.thinking import MARKS

OPTIONAL = "[Optional]"
"""ToolAlpaca's mark of an optional call."""

# Markdown may decorate a line: "> **Action**: f", "1. Action: f", "Action 2: f".
_REACT = re.compile(
    r"^[ \t>*`#_-]{0,12}(?:\d{1,3}[.)][ \t*]{1,4})?Action(?:[ \t]\d{1,3})?[*`_]{0,3}[ \t]*[:：]"
    # The name may stand alone on the next line.
    r"[ \t]*(?:[*`_]{0,3}[ \t]*\n[ \t]*(?=[\w.-]{1,100}[ \t]*\n))?"
    r"(?P<name>[^\n]*?)[ \t\r]*(?=\n|[*`]{0,3}Action[ _]Input|\Z)",
    re.MULTILINE | re.IGNORECASE,
)
_INPUT = re.compile(
    r"[\s>*`#_-]*Action[ _]Input(?:[ \t]\d{1,3})?[*`_]{0,3}[ \t]*[:：][*` \t]*(?:\s*```(?:json)?[ \t]*)?\s*",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"^[ \t]{0,8}>[ \t]?", re.MULTILINE)
_NOTHING = re.compile(r"(?:none|null|n/a|\"\"|'')?[ \t.`*]*(?=\r?\n|\Z)", re.IGNORECASE)
# Marks inside a quoted value are text: "a</think>b".
_QUOTED_VALUE = re.compile(r"[:=,\[]\s{0,20}\"(?:[^\"\\\n]|\\.)*+\"")
_MARK = re.compile(
    r"<(?=/?(?:think|tool_call|function_calls|\|))|\[(?=TOOL_CALLS\])|"
    + "|".join(
        f"{re.escape(mark[0])}(?={re.escape(mark[1:])})" for marks in MARKS for mark in (marks.begin, *marks.ends)
    )
)
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
    """The text is not a valid call. The message says why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. An ``optional`` call may be missing from the answer."""

    name: str
    arguments: Mapping[str, Any]
    optional: bool = False


def react_text(calls: Sequence[Call]) -> str:
    """The text of calls in the form ``"react"``."""
    return "\n".join(
        f"Action: {call.name}\nAction Input: {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls
    )


def react_calls(text: str, schemas: Sequence[Mapping[str, Any]] = ()) -> list[Call]:
    """Every call of a text in the form ``"react"``. The text is the completion after its thinking.

    A tool without arguments in ``schemas`` may be called without ``Action Input:``.

    Raises:
        MalformedCall: a call cannot be parsed.
    """
    text = _QUOTE.sub("", text.replace("\r\n", "\n"))
    needy = {schema["function"]["name"] for schema in schemas if _needs_arguments(schema)}
    return [_react_call(text, match, needy) for match in _REACT.finditer(text)]


def shield_values(text: str) -> str:
    """The text with marks inside quoted values escaped as in JSON and Python, so that they do not end a call."""
    return _QUOTED_VALUE.sub(lambda value: _MARK.sub(_escaped, value.group()), text)


def _escaped(mark: re.Match[str]) -> str:
    return f"\\u{ord(mark.group()):04x}"


def read_calls(value: object) -> list[Call]:
    """The calls of a row, from a list, a single object, or JSON text of either, in any of the known spellings.

    Nulls in objects are dropped, because Parquet gives every row the arguments of all rows. Nulls in JSON text stay.

    Raises:
        MalformedCall: the value has another form, or contains no call.
    """
    value = parse_json(value, "the answer") if isinstance(value, str) else _without_nulls(value)
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise MalformedCall("the answer holds no call")
    return [call_of(item) for item in listed]


def read_schemas(value: object) -> list[dict[str, Any]]:
    """Tool schemas for chat templates, from a list (or its JSON text) of full or bare function descriptions.

    Raises:
        MalformedCall: the value is not such a list.
    """
    value = parse_json(value, "the tools") if isinstance(value, str) else _without_nulls(value)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise MalformedCall("the tools are no list of JSON objects")
    return [_schema(tool) for tool in value]


def documented_schemas(prompt: str) -> list[dict[str, Any]]:
    """The schemas described in a ToolAlpaca prompt. Empty if it describes none."""
    schemas = []
    for match in _DOCUMENTED.finditer(prompt):
        try:
            parameters = json.loads(match["parameters"])
        except ValueError:
            continue
        schemas.append(_schema({"name": match["name"], "description": match["description"], "parameters": parameters}))
    return schemas


def asked_question(prompt: str) -> str | None:
    """The text after ``Question:`` in a ToolAlpaca prompt."""
    match = _ASKED.search(prompt)
    return match["question"].strip() if match else None


def same(left: object, right: object) -> bool:
    """Whether JSON values are equal, ignoring key order and number format: 1 equals 1.0, not True and not "1"."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, str) and isinstance(right, str):
        # A letter with an accent may be one character or two.
        return unicodedata.normalize("NFC", left) == unicodedata.normalize("NFC", right)
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return (numbers or type(left) is type(right)) and left == right


def canonical(calls: Sequence[Call]) -> str:
    """One text for equal calls."""
    return " ".join(f"{call.name}({json.dumps(_plain(call.arguments), sort_keys=True)})" for call in calls)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _needs_arguments(schema: Mapping[str, Any]) -> bool:
    """Whether a tool has required arguments. If the schema does not say which are required, all of them are."""
    parameters = schema["function"]["parameters"]
    return bool(parameters.get("required", parameters.get("properties")))


def _react_call(text: str, match: re.Match[str], needy: Set[str]) -> Call:
    name = match["name"].strip("`*'\" \r").removesuffix("()").replace("\\_", "_")
    # Prompts list the names in brackets: "one of [f, g]".
    name = name[1:-1].strip() if re.fullmatch(r"\[[\w.-]+\]", name) else name
    if not name:
        raise MalformedCall("an action has no name")
    begins = _INPUT.match(text, match.end())
    if begins is None and name not in needy:
        return Call(name, {})
    if begins is None:
        raise MalformedCall(f"the action {short_name(name)} has no 'Action Input:'")
    # A JSON text may hold the object: "{\"a\": 1}".
    if text.startswith('"{', begins.end()):
        held, _ = decode_json(text, begins.end(), f"the input of {short_name(name)}")
        return call_of({"name": name, "arguments": held})
    if text[begins.end() : begins.end() + 1] != "{":
        if _NOTHING.match(text, begins.end()) or text.startswith(("Observation", "Thought"), begins.end()):
            return Call(name, {})
        line = text[begins.end() :].partition("\n")[0]
        raise MalformedCall(f"the input of {short_name(name)} is not a JSON object: {line[:60]!r}")
    arguments, _ = decode_json(text, begins.end(), f"the input of {short_name(name)}")
    assert isinstance(arguments, dict)
    return Call(name, arguments)


def call_of(value: object, *, bare: bool = False) -> Call:
    """``{name, arguments}``, ``{function: {…}}`` or ``{Action, Action_Input}``; arguments may be JSON text.

    With ``bare`` a name alone is a call without arguments.

    Raises:
        MalformedCall: the value has none of these forms.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise MalformedCall("a call must be a JSON object with a name and arguments")
    if "arguments" in value and "parameters" in value:
        raise MalformedCall("a call has both arguments and parameters")
    if bare and "name" in value and value.keys().isdisjoint(("arguments", "parameters")):
        value = {**value, "arguments": {}}
    for name_key, input_key in (("name", "arguments"), ("Action", "Action_Input"), ("name", "parameters")):
        if name_key in value and input_key in value:
            name, arguments = value[name_key], value[input_key]
            break
    else:
        raise MalformedCall("a call needs the keys name and arguments (or Action and Action_Input)")
    if not isinstance(name, str) or not name.removeprefix(OPTIONAL).strip():
        raise MalformedCall(f"the name of a call must be a text, this is {short_name(repr(name))}")
    name = name.strip()
    if isinstance(arguments, str):
        arguments = parse_json(arguments or "{}", f"the input of {short_name(name)}")
    if bare and arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise MalformedCall(f"the input of {short_name(name)} is not a JSON object")
    return Call(name.removeprefix(OPTIONAL).strip(), arguments, optional=name.startswith(OPTIONAL))


def short_name(name: str) -> str:
    """A name for messages, which a model may have written without end."""
    return name if len(name) <= 80 else f"{name[:80]}…"


def parse_json(text: str, label: str) -> object:
    """The value of a JSON text; ``label`` names it in messages.

    Raises:
        MalformedCall: the text is not JSON, or an object has a duplicate key.
    """
    value, end = decode_json(text, len(text) - len(text.lstrip()), label)
    if text[end:].strip():
        raise MalformedCall(f"{label} is not valid JSON: Extra data at character {end + 1}")
    return value


def decode_json(text: str, start: int, label: str) -> tuple[object, int]:
    """The JSON value that begins at ``start``, and its end position.

    Raises:
        MalformedCall: as for :func:`parse_json`.
    """
    try:
        # strict=False accepts line breaks in strings, because models write them.
        value, end = json.JSONDecoder(strict=False, object_pairs_hook=_unique).raw_decode(text, start)
        check_value(value)
        return value, end
    except json.JSONDecodeError as error:
        column, reason = error.pos - start + 1, error.msg.removesuffix(" at")
        raise MalformedCall(f"{label} is not valid JSON: {reason} at character {column}") from error
    except (RecursionError, ValueError) as error:
        raise MalformedCall(f"{label} is not valid JSON: {plain_reason(error)}") from error


def check_value(value: object) -> None:
    """Refuse a JSON value that cannot be compared and shown.

    Raises:
        ValueError: an escape in a text is half of a character, which no file and no tokenizer takes.
        RecursionError: the value is nested deeper than 100 levels. Python's own limit depends on the caller.
    """
    level = [value]
    for _ in range(100):
        try:
            "".join(item for item in level if isinstance(item, str)).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"\\u{ord(error.object[error.start]):x} is half of a character") from error
        nested = (item for item in level if isinstance(item, dict | list))
        level = [part for item in nested for part in ((*item, *item.values()) if isinstance(item, dict) else item)]
        if not level:
            return
    raise RecursionError


def plain_reason(error: Exception) -> str:
    """Why Python refused a value, without advice for programmers."""
    if isinstance(error, RecursionError | MemoryError) or "too many nested" in str(error):
        return "it is nested too deeply"
    if "integer string conversion" in str(error):
        return "a number has too many digits"
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {short_name(name)!r} stands twice")
        values[name] = value
    return values


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MalformedCall("a tool needs a name")
    described = function.get("parameters") or {}
    if not isinstance(described, dict):
        raise MalformedCall(f"the parameters of tool {function['name']} are no JSON object")
    parameters = described if described.get("type") == "object" else _parameters(described)
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": str(function.get("description", "")),
            "parameters": parameters,
        },
    }


def _parameters(descriptions: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of parameters that are each described by a text or a small object."""
    properties: dict[str, Any] = {}
    required = []
    for name, described in descriptions.items():
        details = described if isinstance(described, dict) else {"description": str(described), "type": str(described)}
        kind = str(details.get("type", "string"))
        word = re.match(r"[A-Za-z]*", kind)
        properties[name] = {
            "type": _TYPES.get(word.group().lower() if word else "", "string"),
            "description": str(details.get("description", "")),
        }
        if "optional" not in kind.lower() and "default" not in details:
            required.append(name)
    # Documentation that is plain text does not say which parameters are required.
    says_required = any(isinstance(described, dict) for described in descriptions.values())
    return {"type": "object", "properties": properties, **({"required": required} if says_required else {})}
