"""The page of all commands, read off the command line itself without importing torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from selfdistill.cli.app import app


def cli_page() -> str:
    """Return the page of all commands with their arguments and options, in the order of ``--help``."""
    lines = [
        "# Commands\n",
        f"{app.info.help}\n",
        "A user's mistake gives one sentence and exit code 2. Ctrl-C gives exit code 130.\n",
    ]
    for name, command in _commands(app):
        lines += _command(name, command)
    return "\n".join(lines)


def _commands(group: typer.Typer, above: str = "") -> Iterator[tuple[str, Callable[..., object]]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{above}{command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        # A group that is added without a name (typer keeps a placeholder) has its commands beside the others.
        yield from _commands(inner.typer_instance, f"{above}{inner.name} " if isinstance(inner.name, str) else above)


@dataclass(frozen=True, slots=True)
class _Given:
    """An argument or option: its spelling, its default and its help text."""

    word: str
    default: str
    help: str
    option: bool


def _command(name: str, command: Callable[..., object]) -> Iterator[str]:
    given = list(_given(command))
    options = [parameter for parameter in given if parameter.option]
    usage = ["selfdistill", name, *(parameter.word for parameter in given if not parameter.option)]
    usage += [parameter.word for parameter in options if parameter.default == "required"]
    yield f"## `{name}`\n"
    yield f"{inspect.getdoc(command)}\n"
    yield f"```sh\n{' '.join(usage)}{' [OPTIONS]' if options else ''}\n```\n"
    if given:
        yield "| argument or option | default | what it is |"
        yield "|---|---|---|"
        for parameter in given:
            yield f"| `{parameter.word}` | {parameter.default} | {cell(parameter.help)} |"
        yield ""


def _given(command: Callable[..., object]) -> Iterator[_Given]:
    defaults = inspect.signature(command).parameters
    for name, hint in get_type_hints(command, include_extras=True).items():
        info = next((metadata for metadata in get_args(hint) if isinstance(metadata, OptionInfo | ArgumentInfo)), None)
        if info is None:
            continue  # the return type
        kind, default = get_args(hint)[0], defaults[name].default
        required = default is inspect.Parameter.empty
        value = info.metavar or _value_name(kind)
        if isinstance(info, ArgumentInfo):
            word = info.metavar or name.upper()
            yield _Given(word if required else f"[{word}]", "required" if required else "", info.help or "", False)
            continue
        # Inside Annotated the first name of an option is passed as the default.
        flags = [
            declaration for declaration in (info.default, *(info.param_decls or ())) if isinstance(declaration, str)
        ]
        flag = next(iter(flags), f"--{name.replace('_', '-')}")
        silent = default is None or default is False or default == ""
        shown = "required" if required else "" if silent else f"`{default}`"
        yield _Given(flag if kind is bool else f"{flag} {value}", shown, info.help or "", True)


def _value_name(kind: object) -> str:
    inner = next((argument for argument in get_args(kind) if argument is not type(None)), kind)
    names: Mapping[object, str] = {int: "N", float: "X", Path: "PATH"}
    return names.get(inner, "NAME")


def cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
