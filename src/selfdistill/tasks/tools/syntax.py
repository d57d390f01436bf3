"""The tool-call syntaxes of chat templates, and detection of a template's syntax.

A call is tagged (``<tool_call>…</tool_call>``), headed by its name (``[TOOL_CALLS]f[ARGS]{…}``) or bare JSON. The text
between tags is JSON, XML or Python. To detect the syntax of a template, the template renders a call; the first syntax
that parses the same call back is used.

The parser of transformers (``parse_response``) is not used: it needs a response template that few tokenizers ship,
reads one call per tag, and takes the last of two equal keys.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.tasks.tools.calls import Call, MalformedCall, call_of, decode_json, same, shield_values

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
    r"<parameter(?:=| name=)\"?(?P<name>[^>\n\"]{1,200})\"?>(?P<value>(?:(?!<parameter[= ]).)*?)</parameter>", re.DOTALL
)
_ARGUMENT = re.compile(
    r"<arg_key>(?P<name>[^<]{1,200})</arg_key>\s*<arg_value>(?P<value>(?:(?!<arg_key>).)*?)</arg_value>", re.DOTALL
)
# Llama-4 writes the text of a turn between python marks, and its calls after them.
_BARE = re.compile(r"(?:<\|python_end\|>\s{0,8}|^[ \t*`]{0,8})(?=\{\s*\"|\[\s*\{\s*\")", re.MULTILINE)
_BEHIND = re.compile(r"<\|python_end\|>\s{0,8}[\[{]")
_GEMMA = re.compile(
    r"<\|tool_call>call:(?P<name>[\w.-]+)(?P<body>\{(?:(?!<\|tool_call>).)*?\})<tool_call\|>", re.DOTALL
)
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
        if opening in text and not (opening == "[TOOL_CALLS]" and _headed(text, _HEADS["[TOOL_CALLS]f[ARGS]{…}"])):
            return _tagged(text, schemas, opening, closing, _any_body)
    for head in _HEADS.values():
        if calls := _headed(text, head):
            return calls
    if calls := _gemma(text, schemas):
        return calls
    if _FUNCTION.search(text):
        return _xml(text, schemas)
    return _bare_json(text, schemas) if re.match(r"[\s*`]*(?:json\b)?\s*[\[{]", text) else []


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


def _tagged(
    text: str, schemas: Schemas, opening: str, closing: str, parse_body: Callable[[str, Schemas], list[Call]]
) -> list[Call]:
    calls: list[Call] = []
    for part in text.split(opening)[1:]:
        body, closed, _ = part.partition(closing) if closing else (part, "", "")
        if closing and not closed:
            raise MalformedCall(f"the call behind {opening} is not closed by {closing}")
        fenced = _FENCE.fullmatch(body)
        calls += parse_body(fenced["inside"] if fenced else body.strip(), schemas)
    return calls


def _headed(text: str, head: str) -> list[Call]:
    calls = []
    for match in re.finditer(head, text):
        arguments, _ = decode_json(text, match.end(), f"the input of {match['name']}")
        calls.append(call_of({"name": match["name"], "arguments": arguments}))
    return calls


def _gemma(text: str, schemas: Schemas) -> list[Call]:
    """Gemma-4's calls: JSON with unquoted keys, and strings between special marks."""
    calls = []
    for match in _GEMMA.finditer(text):
        # Every second piece is a string.
        pieces = match["body"].split('<|"|>')
        keyed = (
            json.dumps(piece) if index % 2 else re.sub(r"([{,]\s*)(\w+)(\s*:)", r'\1"\2"\3', piece)
            for index, piece in enumerate(pieces)
        )
        calls.append(call_of({"name": match["name"], "arguments": "".join(keyed)}))
    return calls


def _any_body(text: str, schemas: Schemas) -> list[Call]:
    if text.startswith("<"):
        return _xml(text, schemas)
    if re.match(r"\[?\s*[A-Za-z_][\w.]*\s*\(", text):
        return _python(text, schemas)
    return _arguments(text, schemas) if re.match(r"[\w.-]+\s*(?:<arg_key>|\Z)", text) else _json(text, schemas)


def _json(text: str, schemas: Schemas) -> list[Call]:
    """Parse one object, several consecutive objects, or an array."""
    calls: list[Call] = []
    position = 0
    text = text.strip().removesuffix("</s>").rstrip()
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
    for match in _FUNCTION.finditer(text):
        name = match["name"].strip()
        calls.append(Call(name, _typed(name, _PARAMETER.finditer(match["body"]), schemas)))
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
    except (ValueError, RecursionError):
        return raw
    # "3" stays a string if the schema allows a string and no number.
    if "string" in kinds and not isinstance(value, dict | list | bool | None) and not {"integer", "number"} & {*kinds}:
        return raw
    return value


def _python(text: str, schemas: Schemas) -> list[Call]:
    """Parse calls with named arguments, ``f(a=1)``: one per line, or a list of them."""
    message = "the tool call is no Python call"
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MalformedCall(f"{message}: {error}") from error
    calls = []
    for statement in tree.body:
        if not isinstance(statement, ast.Expr):
            raise MalformedCall(message)
        value = statement.value
        for call in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
                raise MalformedCall(f"{message}: its arguments need names")
            names = [str(keyword.arg) for keyword in call.keywords]
            if len({*names}) < len(names):
                raise MalformedCall(f"{message}: an argument stands twice")
            values = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
            calls.append(Call(ast.unparse(call.func), values))
    return calls


def _literal(node: ast.expr) -> Any:
    """The value of a Python literal. JSON's true, false and null are accepted as well."""
    words = {"true": True, "false": False, "null": None}

    class Words(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(words[name.id]) if name.id in words else name

    try:
        value = ast.literal_eval(Words().visit(node))
        return json.loads(json.dumps(value))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedCall(f"an argument is no literal: {ast.unparse(node)[:60]}") from error


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


_SYNTAXES = (
    *(_headed_syntax(label, head) for label, head in _HEADS.items()),
    *(_tagged_syntax(opening, closing, body) for opening, closing in _TAGS for body in _BODIES),
    Syntax(
        "<function=f>", lambda text, schemas: _xml(text, schemas) if "<function" in text or "<invoke" in text else []
    ),
    Syntax("<|tool_call>call:f{…}<tool_call|>", _gemma),
    Syntax('{"name": …}', _bare_json),
    Syntax("[f(…)]", lambda text, schemas: _python(text, schemas) if text.lstrip().startswith("[") else []),
)
