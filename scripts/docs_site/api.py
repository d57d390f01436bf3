"""The page of the Python API, read off what ``selfdistill`` exports: signatures, docstrings, methods of its classes."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

import selfdistill
from docs_site.commands import cell

SECTIONS: Mapping[str, Sequence[str]] = {
    "Models": ("load_policy", "save_policy", "Policy", "Chat"),
    "Tasks": (
        "load_task",
        "Task",
        "Environment",
        "Start",
        "Reply",
        "ToolLoop",
        "ToolError",
        "McpServer",
        "PythonTool",
        "AgentTask",
        "AskedModel",
    ),
    "Completions": ("rollout", "HFSampler", "ScriptedSampler", "Sampler", "SamplingParams"),
    "Scores": ("score", "Template", "load_templates", "Scores"),
    "Training": ("train", "load_config", "RunConfig", "Trainer"),
    "Looking and comparing": ("evaluate", "inspect", "compare"),
    "Methods": ("METHODS", "Method", "build_method", "Role", "TokenSlice"),
    "Records": ("Message", "Example", "Verdict", "Completion", "Rollout", "Episode", "Turn", "RolloutGroup", "View"),
    "Losses": ("objectives",),
    "Errors": ("UserError",),
}
RETURNED: Mapping[str, str] = {
    "score": "selfdistill.api.scores:ScoreTable",
    "train": "selfdistill.api.training:Summary",
    "inspect": "selfdistill.api.inspection:Inspection",
    "compare": "selfdistill.api.comparison:Comparison",
}
"""Function → the class that it returns. These classes have no public name, so the function's entry describes them."""

INTRODUCTION = """# Python API

`import selfdistill as sd` is the only import: every name below is an attribute of the package, loaded when it is first
used. A function does the same as the command of its name, with the same numbers for the same seed. A mistake raises a
`UserError` with one sentence. See [extend](../extend.md) for a method of your own.
"""


def api_page() -> str:
    """Return the page of all public names.

    Raises:
        ValueError: a public name is in no section, or a section holds a name that is not public.
    """
    named = {name for names in SECTIONS.values() for name in names}
    if named != set(selfdistill.__all__):
        raise ValueError(f"SECTIONS and selfdistill.__all__ differ by {sorted(named ^ set(selfdistill.__all__))}")
    lines = [INTRODUCTION]
    for title, names in SECTIONS.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines += _entry(name, getattr(selfdistill, name))
    return "\n".join(lines)


def described(name: str) -> str:
    """Return the docstring of a public name, or the text after a constant in the source; empty if there is none."""
    value = getattr(selfdistill, name)
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
        # A dataclass without a docstring is given its signature as one, a subclass its parent's.
        text = value.__doc__ or ""
        return "" if text.startswith(f"{name}(") else inspect.cleandoc(text)
    module = Path(inspect.getfile(selfdistill.build_method))
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == name:
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    return inspect.cleandoc(text)
    return ""


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"### `{name}`\n"
    is_built = inspect.isclass(value) and not issubclass(value, BaseModel) and not is_protocol(value)
    if inspect.isfunction(value) or (is_built and "__init__" in vars(value)):
        yield f"```python\n{_signature(name, value)}\n```\n"
    yield f"{markdown(described(name))}\n"
    if isinstance(value, ModuleType):
        yield from _members(value)
    elif inspect.isclass(value):
        yield from _attributes(value)
    if name in RETURNED:
        module, _, kind = RETURNED[name].partition(":")
        returned = getattr(__import__(module, fromlist=[kind]), kind)
        yield f"**`{kind}`**: {markdown(inspect.cleandoc(returned.__doc__ or ''))}\n"
        yield from _attributes(returned)


def is_protocol(kind: type) -> bool:
    """Whether a class is a protocol, which is never instantiated."""
    return bool(getattr(kind, "_is_protocol", False))


def _members(module: ModuleType) -> Iterator[str]:
    """Yield the table of a namespace's functions."""
    yield "| name | what it is |\n|---|---|"
    for name in module.__all__:
        yield f"| `{name}` | {cell(markdown(_first(getattr(module, name).__doc__)))} |"
    yield ""


def _attributes(kind: type) -> Iterator[str]:
    """Yield the table of a class's methods and properties; its docstring describes the fields."""
    rows = []
    for name, member in vars(kind).items():
        inner = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        is_property = isinstance(inner, property)
        if name.startswith("_") or not (is_property or inspect.isfunction(inner)) or not inner.__doc__:
            continue
        rows.append(f"| `.{name}{'' if is_property else '(…)'}` | {cell(markdown(_first(inner.__doc__)))} |")
    if rows:
        yield "\n".join(["| member | what it is |", "|---|---|", *rows, ""])


def _first(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n\n")[0]


def _signature(name: str, value: Any) -> str:
    function = value.__init__ if inspect.isclass(value) else value
    parameters = [
        parameter for parameter in inspect.signature(function).parameters.values() if parameter.name != "self"
    ]
    parts, starred = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        parts.append(str(parameter.replace(annotation=inspect.Parameter.empty)))
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def markdown(text: str) -> str:
    """Return a docstring as Markdown: literals and roles as code, sections as paragraphs and lists."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Returns|Raises):", line)
        argument = re.match(r"    (\w[\w, *]*): (.*)", line) if section in ("Args", "Raises") else None
        if heading:
            section = heading[1]
            lines += ["", f"**{'Arguments' if section == 'Args' else section}**", ""]
        elif argument:
            lines.append(f"- `{argument[1]}`: {argument[2]}")
        else:
            lines.append(("  " if section in ("Args", "Raises") and line else "") + line.strip() if section else line)
    return "\n".join(lines)
