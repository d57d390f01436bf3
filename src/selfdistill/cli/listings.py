"""Commands that list and check the available methods, tasks, data, sandbox and configs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfdistill.cli.terminal import HELP_OPTIONS, Command, Commands, echo, echo_json, no_bars, quiet
from selfdistill.errors import ConfigError

if TYPE_CHECKING:
    from selfdistill.config.run import RunConfig

listings = typer.Typer()
command = partial(listings.command, cls=Command, context_settings=HELP_OPTIONS)
data_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Rows of data before anything is trained on them.")

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=value", help="Override a config key; may be repeated.")
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; messages go to stderr.")]


SAMPLING_COMMANDS = ("evaluate", "inspect", "teachers")
"""Commands that train nothing and sample with the config's engine."""


def check_early(
    name: str,
    task: str | None,
    overrides: list[str] | None,
    *,
    command: str,
    with_method: bool = False,
    methods: Sequence[str] = (),
    engine: str | None = None,
) -> RunConfig:
    """Return the config of a command's argument. Reports mistakes before torch is imported, which takes seconds.

    ``methods`` are names of methods, or ``LABEL=NAME``, to check as well.

    Raises:
        UserError: the argument, its config, an override or the name of a method is wrong.
    """
    from selfdistill.config.hyperparameters import check_method_name
    from selfdistill.config.run import config_for
    from selfdistill.config.sources import collision

    warning = collision(name)
    if warning is not None:
        echo(f"warning: {warning}", err=True)
    for method in methods:
        if method.partition("=")[0].strip() and (named := method.rpartition("=")[2].strip()):
            check_method_name(named)
    config = config_for(name, task, overrides or [], command=command, with_method=with_method, engine=engine)
    # A comparison checks the sources of all its arms.
    if command != "compare":
        from selfdistill.cli.early import check_sources

        check_sources(config, judge=command != "contexts")
    if command in SAMPLING_COMMANDS:
        from selfdistill.cli.early import check_served

        check_served(config)
    return config


@command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method; unset: all.")] = None,
    json: Json = False,
) -> None:
    """What each method does, and its hyperparameters with their defaults and limits."""
    from selfdistill.methods import METHODS, build_method
    from selfdistill.methods.reference import describe_method, section

    if name is not None:
        build_method(name, {})
    chosen = list(METHODS) if name is None else [name]
    if json:
        echo_json({method: describe_method(method) for method in chosen})
        return
    for method in chosen:
        echo("\n".join(section(method)))


@command()
def tasks(json: Json = False) -> None:
    """List the tasks: what each is, the keys it needs, and the presets that fill the others."""
    from selfdistill.tasks.check import describe_tasks, list_tasks

    table = list_tasks()
    if json:
        echo_json(table)
    for line in [] if json else describe_tasks(table):
        echo(line)


@data_app.command("check", cls=Command, context_settings=HELP_OPTIONS)
def check(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Rows as for --path, or a config (TOML file or shipped name) or run folder whose rows to read."
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(help="JSONL or Parquet file, folder saved by datasets, or hub name; unset: a task of one's own."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task by kind; unset: the preset's, or that of the config.")] = None,
    preset: Annotated[str | None, typer.Option(help="Preset by name, or a TOML file; see selfdistill tasks.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set or a saved folder.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub data set.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer's special tokens are looked for in the rows as well.")
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Read every row of a file, and verify each row's own reference. Exit code 1: rows are rejected."""
    from selfdistill.config.run import config_for
    from selfdistill.config.sources import find_source, holds_config

    no_bars()
    config_task = None
    if source is not None and (holds_config(find_source(source)) or source.endswith(".toml")):
        checked = config_for(source, None, set_ or [], command="data check")
        config_task = checked.task.model_dump(exclude_none=True, exclude_unset=True)
    elif source is not None and path is not None:
        raise ConfigError(f"data check reads {source} or {path}: leave one of them out")
    rows = path if config_task is not None or path is not None else source
    parts = {"split": split, "config": config, "revision": revision}
    source_parts = {name: value for name, value in parts.items() if value is not None}
    if source_parts and rows is None:
        raise ConfigError("--split, --config and --revision choose among the rows of --path; a config names its own")
    from selfdistill.tasks.check import check_data, describe_check, describe_row

    special: list[str] = []
    if model is not None:
        from selfdistill.contexts.control_marks import special_tokens
        from selfdistill.models.loading import read_tokenizer

        special = [*special_tokens(read_tokenizer(model)).values()]
    rows_source = {"path": rows, **source_parts} if source_parts and rows is not None else rows
    report = check_data(
        rows_source, task=task, preset=preset, overrides=set_ or [], own=config_task, special_tokens=special
    )
    if json:
        echo_json(report)
    for line in [] if json else [*describe_check(report), *describe_row(report)]:
        echo(line)
    raise typer.Exit(1 if report["rejected"] else 0)


@command()
def init(
    model: Annotated[str, typer.Option(help="Model directory, hub id, run folder or shipped name.")],
    data: Annotated[str, typer.Option(help="JSONL, JSON, CSV or Parquet file, folder saved by datasets, or hub name.")],
    out: Annotated[Path, typer.Option(help="Config to write.")] = Path("mine.toml"),
    split: Annotated[str | None, typer.Option(help="Split of a hub data set or a saved folder.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
) -> None:
    """Write a commented config for a model and rows, and say what was found out and what was guessed."""
    # Checked before torch is imported, which takes seconds.
    if out.exists():
        raise ConfigError(f"{out} exists already: choose another --out, or remove it")
    quiet()
    from selfdistill.cli.init import write_config

    for line in write_config(model, data, out, split=split, data_config=config):
        echo(line)


@command()
def doctor(
    thorough: Annotated[bool, typer.Option("--thorough", help="Run every attack, not one of each kind.")] = False,
    json: Json = False,
) -> None:
    """Versions and the device, and whether the sandbox for model-written code holds; exit code 0 only if it does."""
    from selfdistill.sandbox.doctor import describe, examine

    report = examine(thorough=thorough)
    if json:
        echo_json(report)
    for line in [] if json else describe(report):
        echo(line)
    raise typer.Exit(0 if report["safe"] else 1)


@command()
def configs(
    name: Annotated[str | None, typer.Argument(help="One config, printed as TOML; unset: the list of all.")] = None,
    json: Json = False,
) -> None:
    """List the shipped configs, or print one to start from: selfdistill configs countdown-grpo > mine.toml."""
    from selfdistill.config.sources import config_text, read_config, shipped_configs

    if json:
        echo_json(shipped_configs() if name is None else read_config(name))
        return
    typer.echo("\n".join(shipped_configs()) + "\n" if name is None else config_text(name), nl=False)
