"""The command line. Commands import torch and other slow modules when they run, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill import __version__
from selfdistill.cli.arguments import (
    Checkpoint,
    Contexts,
    Engine,
    FinalSplit,
    Match,
    MaxTokens,
    Rollouts,
    Source,
    TaskKind,
)
from selfdistill.cli.listings import Json, Set, check_early, data_app, listings
from selfdistill.cli.terminal import (
    HELP_OPTIONS,
    Command,
    Commands,
    as_mistake,
    echo,
    echo_json,
    folder,
    quiet,
    reporting,
)
from selfdistill.errors import ConfigError
from selfdistill.files.text import printable

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
    pretty_exceptions_enable=False,
    help="On-policy self-distillation: a model that knows the answer in hindsight teaches itself.",
)

command = partial(app.command, cls=Command, context_settings=HELP_OPTIONS)


def _folder_option(help_text: str) -> Any:
    return typer.Option(parser=folder, metavar="DIR", help=help_text)


def _print_version(requested: bool) -> None:
    if requested:
        echo(f"selfdistill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options of the program itself."""


@command()
def train(
    config: Source,
    set_: Set = None,
    out: Annotated[
        Path | None,
        _folder_option("Folder of the run; default: runs/NAME, or the run folder given as config."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder if there is one.")] = False,
    processes: Annotated[
        int | None, typer.Option("--launch", min=1, metavar="N", help="Train with N processes on this machine.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything up to the first step, show it, and write nothing.")
    ] = False,
    untrained: Annotated[Path | None, typer.Option(hidden=True, help="For the runs of a comparison.")] = None,
) -> None:
    """Train a model; stop with Ctrl-C, continue with --resume. Exit code 3: ended by an alarm of stop_on."""
    from selfdistill.cli import train as train_command
    from selfdistill.config.sources import find_source

    source = find_source(config)
    run_folder = out or (Path(config) if source.kind == "run" else Path("runs") / source.label)
    if processes is not None and not dry_run:
        raise typer.Exit(train_command.train_with(processes, config, set_ or [], run_folder, resume=resume))
    raise typer.Exit(
        train_command.train(config, set_ or [], run_folder, resume=resume, dry_run=dry_run, untrained=untrained)
    )


@command()
def compare(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Configs, run folders, or models with --set task.kind=…")
    ],
    out: Annotated[Path, _folder_option("Folder of the comparison.")],
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Make an arm of each config with each of these methods, CONFIG-METHOD."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,…", help="Make an arm with each of these values, ARM-KEY-VALUE; repeatable."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N|A,B,…", help="Number of seeds, 3 for 0,1,2, or a list of them.")
    ] = "1",
    set_: Set = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; unset: one for each core, or for each GPU.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARM", help="Arm to compare with; unset: the first grpo, else the first arm.")
    ] = None,
    main: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="Also put this arm's summary and page into the folder."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the arms and what differs; train nothing.")] = False,
    json: Json = False,
    match: Match = "completions",
    final_split: FinalSplit = "validation",
    engine: Engine = None,
) -> None:
    """Train several configs on equal terms with several seeds: one table and one page. Resumes where it stopped."""
    names = _names(methods or "")
    if methods is not None and not names:
        raise ConfigError(f"--methods {methods!r} names no method; write for example --methods grpo,opsd")
    given = [*(f"method={name}" for name in names[:1]), *(set_ or [])]
    for config in configs:
        check_early(config, None, given, command="compare", with_method=True, methods=names, engine=engine)
    from selfdistill.cli.early import check_comparison

    terms: dict[str, Any] = {"match": match, "split": final_split, "baseline": baseline, "folder": out}
    terms |= {"methods": names, "sweeps": sweep or [], "engine": engine}
    chosen = check_comparison(configs, set_ or [], seeds=seeds, main=main, **terms)
    quiet()
    from selfdistill.cli.compare import compare_arms, describe_arms
    from selfdistill.comparison.compare import plan

    comparison = plan(configs, set_ or [], seeds=chosen, **terms)
    if dry_run:
        describe_arms(comparison, json=json)
    else:
        compare_arms(comparison, jobs=jobs, main=main, json=json)


@command()
def evaluate(
    model: Source,
    task: TaskKind = None,
    checkpoint: Checkpoint = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Completions per problem; unset: evaluation.samples, by default 8.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems of the split.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature; 0 is greedy; unset: evaluation.temperature, by default 1."),
    ] = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    engine: Engine = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Accuracy and mean reward of a model on held-out problems: avg@k, pass@k, maj@k with intervals."""
    check_early(model, task, set_, command="evaluate", engine=engine)
    quiet()
    from rich.console import Console

    from selfdistill.cli.evaluate import describe_evaluation, evaluate_model
    from selfdistill.tracking.progress import Progress

    with reporting():
        result = evaluate_model(
            model,
            task,
            samples=samples,
            limit=limit,
            split=split,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=seed,
            overrides=set_ or [],
            checkpoint=checkpoint,
            engine=engine,
        )
    if json:
        echo_json(result)
        return
    Progress(Console()).evaluation(None, result, by=result["best_by"])
    for line in describe_evaluation(result):
        echo(line)


@command()
def inspect(
    model: Source,
    out: Annotated[Path, _folder_option("Folder for tokens.parquet, summary.json and index.html.")],
    task: TaskKind = None,
    checkpoint: Checkpoint = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Methods to inspect; LABEL=NAME repeats a method under a label; set hyperparameters by --set "
            "LABEL.hyperparameter=value; unset: those of --config, else that of the config or run, else "
            "grpo,sd,antisd,opsd,sdpo,credit,purified.",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="A run's config or folder whose method is inspected too, under its name; may be repeated."),
    ] = None,
    contexts: Contexts = "",
    rollouts: Rollouts = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems to inspect.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem.")] = 4,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 1.0,
    max_tokens: MaxTokens = None,
    words: Annotated[Path | None, typer.Option(help="Folder with your own word lists for the token classes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    engine: Engine = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Show which tokens each method would reward and punish, without training: a table, a summary and a page."""
    # Overrides may be a method's.
    check_early(model, task, [], command="inspect", methods=_names(methods or ""), engine=engine)
    quiet()
    from selfdistill.inspection.command import InspectOptions, describe_inspection, inspect_model

    options = InspectOptions(
        methods=None if methods is None else _names(methods),
        configs=config or [],
        contexts=_names(contexts),
        problems=problems,
        samples=samples,
        split=split,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        rollouts=rollouts,
        words=words,
        checkpoint=checkpoint,
        engine=engine,
    )
    log = partial(echo, err=json)
    with reporting():
        summary = inspect_model(model, task, options, out, overrides=set_ or [], log=log)
    if json:
        echo_json(summary)
    for line in (*describe_inspection(summary), f"page: {out / 'index.html'}"):
        log(line)


def _names(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@command()
def contexts(
    config: Source,
    task: TaskKind = None,
    checkpoint: Checkpoint = None,
    examples: Annotated[int, typer.Option(min=1, help="Problems to show.")] = 2,
    completions: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 4,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Print every prompt that would be scored, rendered, with token counts and the shared prefix."""
    settings = check_early(config, task, set_, command="contexts", with_method=True)
    quiet()
    from selfdistill.cli.contexts import audit, describe_audit

    with reporting():
        report = audit(settings, examples=examples, completions=completions, source=config, checkpoint=checkpoint)
    if json:
        echo_json(report)
        return
    for line in describe_audit(report):
        echo(line)


@command()
def teachers(
    config: Source,
    task: TaskKind = None,
    checkpoint: Checkpoint = None,
    problems: Annotated[int, typer.Option(min=1, help="Training problems to measure on.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    engine: Engine = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure how much more often each teacher is right than the student, and how far apart the two are."""
    settings = check_early(config, task, set_, command="teachers", with_method=True, engine=engine)
    quiet()
    from selfdistill.cli.teachers import describe_gap, measure

    with reporting():
        report = measure(settings, problems=problems, samples=samples, seed=seed, source=config, checkpoint=checkpoint)
    if json:
        echo_json(report)
        return
    for name, gap in report.items():
        for line in describe_gap(name, gap):
            echo(line)


@command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, _folder_option("Folder for the model; may be left out with --push.")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Step of the checkpoint; unset: the newest.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number type of the weights; a bfloat16 run trains float32 weights; unset: model.dtype."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base model: a plain model directory.")
    ] = False,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write it as model.gguf: Llama, Qwen2 and Qwen3, not quantised.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Also upload it to this repository of the Hugging Face hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Write a checkpoint's model as a plain Hugging Face directory with a model card, from sharded weights too."""
    if out is None and push is None:
        raise ConfigError("export has no --out: name a folder, or a repository with --push OWNER/NAME")
    quiet()
    from selfdistill.cli.export import export_run

    for line in export_run(run, out, step=step, dtype=dtype, merge=merge, gguf=gguf, push=push, private=private):
        echo(line)


@command()
def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run, finished or going on, or of several runs.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free port.")] = 8642,
    host: Annotated[str, typer.Option(help="Address to serve at; any but this machine's own is open to everybody.")] = (
        "127.0.0.1"
    ),
    static: Annotated[
        bool, typer.Option("--static", help="Write report.html instead; for several runs index.html, with their pages.")
    ] = False,
) -> None:
    """Follow a run, or all runs of a folder, in the browser: curves, alarms and the latest completions as they come."""
    from selfdistill.cli.watch import serve, write_pages

    if static:
        echo(f"page: {write_pages(folder)}")
    else:
        serve(folder, host=host, port=port)


app.add_typer(listings)
app.add_typer(data_app, name="data")


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. A user's mistake prints one sentence on stderr and exits with code 2."""
    try:
        # Also under python -m: the name stands in the shell's completion.
        app(arguments, prog_name="selfdistill")
    except Exception as error:
        mistake = as_mistake(error)
        if mistake is None:
            raise
        print(printable(f"selfdistill: {mistake}"), file=sys.stderr)
        sys.exit(2)
