"""Commands that list and check the available methods, tasks, data, sandbox and configs."""

from __future__ import annotations

import json as jsonlib
from functools import partial
from typing import Annotated

import typer

from selfdistill.cli.terminal import HELP_OPTIONS, Command, Commands, no_bars, say

listings = typer.Typer()
command = partial(listings.command, cls=Command, context_settings=HELP_OPTIONS)
data_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Rows of data before anything is trained on them.")

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a config key; may be repeated.")
]


@command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method; unset: all.")] = None,
) -> None:
    """What each method does, and its hyperparameters with their defaults and limits."""
    from selfdistill.methods import METHODS, build_method
    from selfdistill.methods.reference import section

    if name is not None:
        build_method(name, {})
    for method in METHODS if name is None else [name]:
        say("\n".join(section(method)))


@command()
def tasks(json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """List the tasks: what each is, the keys it needs, and the presets that fill the others."""
    from selfdistill.tasks.check import describe_tasks, list_tasks

    table = list_tasks()
    for line in [jsonlib.dumps(table)] if json else describe_tasks(table):
        say(line)


@data_app.command("check", cls=Command, context_settings=HELP_OPTIONS)
def check(
    path: Annotated[
        str | None,
        typer.Option(help="JSONL or Parquet file, folder saved by datasets, or hub name; unset: a task of one's own."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task by kind; unset: the preset's.")] = None,
    preset: Annotated[str | None, typer.Option(help="Preset by name, or a TOML file; see selfdistill tasks.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set or a saved folder.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub data set.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer's special tokens are looked for in the rows as well.")
    ] = None,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read every row of a file, and verify each row's own reference. Exit code 1: rows are rejected."""
    from selfdistill.tasks.check import check_data, describe_check

    no_bars()
    parts = {"split": split, "config": config, "revision": revision}
    given = {name: value for name, value in parts.items() if value is not None}
    source = {"path": path, **given} if given and path else path
    special: list[str] = []
    if model is not None:
        from selfdistill.contexts.control_marks import special_tokens
        from selfdistill.models.loading import read_tokenizer

        special = [*special_tokens(read_tokenizer(model)).values()]
    report = check_data(source, task=task, preset=preset, overrides=set_ or [], special_tokens=special)
    for line in [jsonlib.dumps(report)] if json else describe_check(report):
        say(line)
    raise typer.Exit(1 if report["rejected"] else 0)


@command()
def doctor(
    thorough: Annotated[bool, typer.Option("--thorough", help="Run every attack, not one of each kind.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Versions and the device, and whether the sandbox for model-written code holds; exit code 0 only if it does."""
    from selfdistill.sandbox.doctor import describe, examine

    report = examine(thorough=thorough)
    for line in [jsonlib.dumps(report)] if json else describe(report):
        say(line)
    raise typer.Exit(0 if report["safe"] else 1)


@command()
def configs(
    name: Annotated[str | None, typer.Argument(help="One config, printed as TOML; unset: the list of all.")] = None,
) -> None:
    """List the shipped configs, or print one to start from: selfdistill configs countdown-grpo > mine.toml."""
    from selfdistill.config.sources import config_text, shipped_configs

    typer.echo("\n".join(shipped_configs()) + "\n" if name is None else config_text(name), nl=False)
