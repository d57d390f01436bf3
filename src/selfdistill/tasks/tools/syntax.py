"""The tool-call syntaxes of chat templates, and detection of a template's syntax.

A call is tagged (``<tool_call>…</tool_call>``), headed by its name (``[TOOL_CALLS]f[ARGS]{…}``) or bare JSON. The text
between tags is JSON, XML or Python. To detect the syntax of a template, the template renders a call; the first syntax
that parses the same call back is used.

The parser of transformers (``parse_response``) is not used: it needs a response template that few tokenizers ship,
reads one call per tag, and takes the last of two equal keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.tasks.tools.calls import Call, MalformedCall, call_of, check_value, decode_json, same, shield_values
from selfdistill.tasks.tools.python_calls import python_calls

Schemas = Sequence[Mapping[str, Any]]

HERMES = '<tool_call>{"name": …, "arguments": …}</tool_call>'
"""The form of :func:`hermes_text`, for messages."""

_TAGS = (
    ("<tool_call>", "</tool_call>"),
    ("<function_calls>", "</function_calls>"),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<|python_start|>", "<|python_end|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<seed:tool_call>", "</seed:tool_call>"),
    ("<minimax:tool_call>", "</minimax:tool_call>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    # These are closed by the end of the turn.
    ("<|tool_call|>", ""),
    ("[TOOL_CALLS]", ""),
    ("<|python_tag|>", ""),
)
_HEADS = {
    "[TOOL_CALLS]f[ARGS]{…}": r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)",
    "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}": r"<｜tool▁call▁begin｜>(?!function<)(?P<name>[\w.-]+)<｜tool▁sep｜>\s*",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f": r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[\w.-]+)\s*"
    r"(?:```(?:json)?\s*)?",
    "<|tool_call_begin|>functions.f:0": r"<\|tool_call_begin\|>\s*(?:functions\.)?(?P<name>[\w.-]+)(?::\d+)?\s*"
    r"<\|tool_call_argument_begin\|>\s*",
    "to=functions.f<|message|>{…}": r"\bto=functions\.(?P<name>[\w.-]+)[^{}\n]{0,80}<\|message\|>\s*",
}

_FENCE = re.compile(r"\s*```(?:json|xml|python)?[ \t]*\n?(?P<inside>.*?)\n?[ \t]*```\s*", re.DOTALL)
_FUNCTION = re.compile(
    r"<(?:function=|function name=|invoke name=)\"?(?P<name>[^>\n\"]{1,200})\"?>(?P<body>(?:(?!<function|<invoke).)*?)"
    r"</(?:function|invoke)>",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"<parameter(?:=| name=)\"?(?P<name>[^>\n\"]{1,200})\"?>(?P<value>(?:(?!<parameter[= ]).)*)</parameter>", re.DOTALL
)
_ARGUMENT = re.compile(
    r"<arg_key>(?P<name>[^<]{1,200})</arg_key>\s*<arg_value>(?P<value>(?:(?!<arg_key>).)*)</arg_value>", re.DOTALL
)
# A value between tags of its own, which the next argument or the end of the call follows. Tags inside it are text.
_XML_VALUE = re.compile(
    r"(?<=<arg_value>)(?:(?!<arg_key>|<arg_value>).)*?(?=</arg_value>\s*(?:<arg_key>|</tool_call>))"
    r"|<parameter[= ][^>\n]{1,200}>(?:(?!<parameter[= ]).)*?"
    r"</parameter>(?=\s*(?:<parameter[= ]|</(?:function|invoke)>))",
    re.DOTALL,
)
# Llama-4 writes the text of a turn between python marks, and its calls after them.
_BARE = re.compile(r"(?:<\|python_end\|>\s{0,8}|^[ \t*`]{0,8})(?=\{\s*\"|\[\s*\{\s*\")", re.MULTILINE)
_BEHIND = re.compile(r"<\|python_end\|>\s{0,8}[\[{]")
# The mark before a call, the mark after it, and the mark around a string.
_GEMMAS = {
    "<|tool_call>call:f{…}<tool_call|>": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "<start_function_call>call:f{…}<end_function_call>": ("<start_function_call>", "<end_function_call>", "<escape>"),
}
# Marks of the end of a turn, if the sampler kept them.
_TURN_END = re.compile(r"(?:\s{0,8}(?:</s>|<\|[a-z_]{2,30}\|>)){1,8}\s*\Z")
_SEPARATOR = re.compile(r"[\s,;]*")
_ANOTHER = re.compile(r"\s*[;,]\s*(?=\{)|[ \t]*(?=\{\s*\")")


@dataclass(frozen=True, slots=True)
class Syntax:
    """One way to write calls. Messages show its ``label``."""

    label: str
    find: Callable[[str, Schemas], list[Call]]
    """Returns every call of a text. Schemas distinguish numbers from strings if the syntax does not.

    Raises MalformedCall if a call begins and cannot be parsed.
    """


def find_calls(text: str, schemas: Schemas, syntax: Syntax | None = None) -> list[Call]:
    """Every call in the text after the thinking. Without ``syntax``, any known syntax is tried.

    Raises:
        MalformedCall: a call cannot be parsed.
    """
    text = shield_values(text.replace("\r\n", "\n"))
    if syntax is not None:
        return syntax.find(text, schemas)
    if _BEHIND.search(text):
        return _bare_json(text, schemas)
    for opening, closing in _TAGS:
        if opening == "<|tool_call|>" and closing not in text:
            continue
        if opening in text and not (opening == "[TOOL_CALLS]" and _headed(text, _HEADS["[TOOL_CALLS]f[ARGS]{…}"])):
            return _tagged(text, schemas, opening, closing, _any_body)
    for head in _HEADS.values():
        if calls := _headed(text, head):
            return calls
    for marks in _GEMMAS.values():
        if calls := _gemma(text, marks):
            return calls
    if _FUNCTION.search(text):
        return _xml(text, schemas)
    return _without_tags(text, schemas)


def hermes_text(calls: Sequence[Call]) -> str:
    """Calls in the Hermes syntax, which most templates use. Used before the template is known."""
    bodies = (json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def syntax_of(write: Callable[[Sequence[Call]], str]) -> Syntax | None:
    """The syntax of ``write``. None if no syntax parses back the call that it wrote.

    ``write`` returns an empty text if the template refuses the call.
    """
    probe = [Call("get_weather", {"city": "Bern", "days": 3, "detail": True})]
    kinds = {"city": "string", "days": "integer", "detail": "boolean"}
    properties = {name: {"type": kind} for name, kind in kinds.items()}
    schema = {"function": {"name": "get_weather", "parameters": {"type": "object", "properties": properties}}}
    text = write(probe)
    for syntax in _SYNTAXES if text else ():
        try:
            calls = find_calls(text, [schema], syntax)
        except MalformedCall:
            continue
        if len(calls) == 1 and calls[0].name == probe[0].name and same(calls[0].arguments, probe[0].arguments):
            return syntax
    return None


def _without_tags(text: str, schemas: Schemas) -> list[Call]:
    """Calls that no tag announces: JSON or Python that begins the text, or JSON of known tools that begins a line."""
    names = [str(schema["function"]["name"]) for schema in schemas]
    python = re.match(r"\s*\[\s*(?P<name>[A-Za-z_][\w.-]*)\s*\(", text)
    if python and python["name"] in names:
        return _python(text, schemas)
    if re.match(r"[\s*`]*+(?:json\b\s*+)?[\[{]", text):
        return _bare_json(text, schemas)
    try:
        calls = _bare_json(text, schemas)
    except MalformedCall:
        return []
    return calls if all(call.name in names for call in calls) else []


def _tagged(
    text: str, schemas: Schemas, opening: str, closing: str, parse_body: Callable[[str, Schemas], list[Call]]
) -> list[Call]:
    calls: list[Call] = []
    # A tag inside a value is text, so the tags are looked for where the values are blank.
    blank, start = _blank_values(text), 0
    for part in blank.split(opening)[1:]:
        start = blank.index(opening, start) + len(opening)
        length = part.find(closing) if closing else len(part)
        if length < 0:
            raise MalformedCall(f"the call behind {opening} is not closed by {closing}")
        body = text[start : start + length]
        fenced = _FENCE.fullmatch(body)
        calls += parse_body(fenced["inside"] if fenced else body.strip(), schemas)
    return calls


def _headed(text: str, head: str) -> list[Call]:
    calls = []
    for match in re.finditer(head, text):
        arguments, _ = decode_json(text, match.end(), f"the input of {match['name']}")
        calls.append(call_of({"name": match["name"], "arguments": arguments}))
    return calls


def _blank_values(text: str) -> str:
    """The text with blanks in place of the values that XML tags enclose."""
    return _XML_VALUE.sub(lambda value: " " * len(value.group()), text)


def _gemma(text: str, marks: tuple[str, str, str]) -> list[Call]:
    """Calls of Gemma-4 and FunctionGemma: JSON with unquoted keys, and strings between marks."""
    opening, closing, quote = marks
    begin, end = re.escape(opening), re.escape(closing)
    calls = []
    for match in re.finditer(rf"{begin}call:(?P<name>[\w.-]+)(?P<body>\{{(?:(?!{begin}).)*?\}}){end}", text, re.DOTALL):
        # Every second piece is a string.
        pieces = match["body"].split(quote)
        keyed = (
            json.dumps(piece) if index % 2 else re.sub(r"([{,]\s*)([\w-]+)(\s*:)", r'\1"\2"\3', piece)
            for index, piece in enumerate(pieces)
        )
        calls.append(call_of({"name": match["name"], "arguments": "".join(keyed)}))
    return calls


def _any_body(text: str, schemas: Schemas) -> list[Call]:
    if text.startswith("<"):
        return _xml(text, schemas)
    if re.match(r"\[?\s*[A-Za-z_][\w.-]*\s*\(", text):
        return _python(text, schemas)
    return _arguments(text, schemas) if re.match(r"[\w.-]+\s*(?:<arg_key>|\Z)", text) else _json(text, schemas)


def _json(text: str, schemas: Schemas) -> list[Call]:
    """Parse one object, several consecutive objects, or an array."""
    calls: list[Call] = []
    position = 0
    text = _TURN_END.sub("", text.strip())
    while position < len(text):
        value, position = decode_json(text, position, "the tool call")
        calls += [call_of(item, bare=True) for item in (value if isinstance(value, list) else [value])]
        separator = _SEPARATOR.match(text, position)
        position = separator.end() if separator else position
        if position < len(text) and text[position] not in "{[":
            raise MalformedCall(f"the tool call is not valid JSON: Extra data at character {position + 1}")
    if not calls:
        raise MalformedCall("the tool call is empty")
    return calls


def _bare_json(text: str, schemas: Schemas) -> list[Call]:
    """Parse objects that begin a line."""
    calls: list[Call] = []
    end = 0
    for match in _BARE.finditer(text):
        if match.end() < end:
            continue
        value, end = decode_json(text, match.end(), "the tool call")
        while True:
            calls += [call_of(item, bare=True) for item in (value if isinstance(value, list) else [value])]
            following = _ANOTHER.match(text, end)
            if following is None:
                break
            value, end = decode_json(text, following.end(), "the tool call")
    return calls


def _xml(text: str, schemas: Schemas) -> list[Call]:
    calls = []
    for match in _FUNCTION.finditer(_blank_values(text)):
        name, body = match["name"].strip(), text[match.start("body") : match.end("body")].strip()
        # Llama-3.1's custom tools have JSON between these tags.
        if body.startswith("{"):
            calls.append(call_of({"name": name, "arguments": body}))
        else:
            calls.append(Call(name, _typed(name, _PARAMETER.finditer(body), schemas)))
    if not calls:
        raise MalformedCall("a call needs <function=name> … </function>")
    return calls


def _arguments(text: str, schemas: Schemas) -> list[Call]:
    name = text.partition("<arg_key>")[0].strip()
    if not re.fullmatch(r"[\w.-]+", name):
        raise MalformedCall("a call needs a name in front of its <arg_key>")
    return [Call(name, _typed(name, _ARGUMENT.finditer(text), schemas))]


def _typed(name: str, pairs: Any, schemas: Schemas) -> dict[str, Any]:
    """Arguments written as text, converted to the types of the schema."""
    functions: list[Mapping[str, Any]] = [schema["function"] for schema in schemas]
    function: Mapping[str, Any] = next((candidate for candidate in functions if candidate["name"] == name), {})
    properties = function.get("parameters", {}).get("properties", {})
    values: dict[str, Any] = {}
    for match in pairs:
        key, text = match["name"].strip(), match["value"]
        if key in values:
            raise MalformedCall(f"the argument {key!r} of {name} stands twice")
        property_schema = properties.get(key, {})
        kinds = property_schema.get("type", []) if isinstance(property_schema, Mapping) else []
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        # A string keeps everything but the line breaks next to its tags.
        text = text.removeprefix("\n").removesuffix("\n")
        values[key] = text if kinds == ["string"] else _value(text.strip(), text, kinds)
    return values


def _value(text: str, raw: str, kinds: Sequence[str]) -> Any:
    words = {"True": True, "False": False, "None": None}
    try:
        value = words[text] if text in words else json.loads(text)
        check_value(value)
    except (ValueError, RecursionError):
        return raw
    # "3" stays a string if the schema allows a string and no number.
    if "string" in kinds and not isinstance(value, dict | list | bool | None) and not {"integer", "number"} & {*kinds}:
        return raw
    return value


def _python(text: str, schemas: Schemas) -> list[Call]:
    return python_calls(_TURN_END.sub("", text), [str(schema["function"]["name"]) for schema in schemas])


_BODIES: Mapping[str, Callable[[str, Schemas], list[Call]]] = {
    '{"name": …}': _json,
    "<function=f>": _xml,
    "f<arg_key>": _arguments,
    "f(…)": _python,
}


def _tagged_syntax(opening: str, closing: str, body: str) -> Syntax:
    parse_body = _BODIES[body]
    return Syntax(
        f"{opening}{body}{closing}", lambda text, schemas: _tagged(text, schemas, opening, closing, parse_body)
    )


def _headed_syntax(label: str, head: str) -> Syntax:
    return Syntax(label, lambda text, schemas: _headed(text, head))


def _gemma_syntax(label: str, marks: tuple[str, str, str]) -> Syntax:
    return Syntax(label, lambda text, schemas: _gemma(text, marks))


_SYNTAXES = (
    *(_headed_syntax(label, head) for label, head in _HEADS.items()),
    *(_tagged_syntax(opening, closing, body) for opening, closing in _TAGS for body in _BODIES),
    Syntax(
        "<function=f>", lambda text, schemas: _xml(text, schemas) if "<function" in text or "<invoke" in text else []
    ),
    *(_gemma_syntax(label, marks) for label, marks in _GEMMAS.items()),
    Syntax('{"name": …}', _bare_json),
    Syntax("[f(…)]", lambda text, schemas: _python(text, schemas) if text.lstrip().startswith("[") else []),
)
