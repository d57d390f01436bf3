"""Tool calls in Python syntax, ``[f(a=1), g()]``. The text is parsed and never run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from selfdistill.tasks.tools.calls import Call, MalformedCall, check_value, plain_reason


def python_calls(text: str, names: Sequence[str]) -> list[Call]:
    """Parse calls with named arguments, ``f(a=1)``: one per line, or a list of them. ``names`` are those of the tools.

    Raises:
        MalformedCall: the text holds anything else, or an argument is no literal.
    """
    text = text.strip()
    # Python has no names with dashes, so such a name is replaced while the text is parsed.
    stand_ins = {name: f"tool_{index}_with_dashes" for index, name in enumerate(names) if "-" in name}
    for name, stand_in in stand_ins.items():
        text = re.sub(rf"(^|[\[,\n])([ \t\n]{{0,20}}){re.escape(name)}(?=\()", rf"\1\2{stand_in}", text)
    try:
        calls = _calls_of(ast.parse(text))
    except MalformedCall:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MalformedCall(f"the tool call is no Python call: {plain_reason(error)}") from error
    for name, stand_in in stand_ins.items():
        calls = [
            Call(call.name.replace(stand_in, name), json.loads(json.dumps(call.arguments).replace(stand_in, name)))
            for call in calls
        ]
    return calls


def _calls_of(tree: ast.Module) -> list[Call]:
    calls = []
    for statement in tree.body:
        if not isinstance(statement, ast.Expr):
            raise MalformedCall("the tool call is no Python call")
        value = statement.value
        for call in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
                raise MalformedCall("the tool call is no Python call: its arguments need names")
            names = [str(keyword.arg) for keyword in call.keywords]
            if len({*names}) < len(names):
                raise MalformedCall("the tool call is no Python call: an argument stands twice")
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
        value = json.loads(json.dumps(ast.literal_eval(Words().visit(node))))
        check_value(value)
        return value
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise MalformedCall(f"an argument is no literal: {ast.unparse(node)[:60]}") from error
