"""The command line. Commands import torch and other slow modules when they run, so that ``--help`` is instant."""

from __future__ import annotations

import json as jsonlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill import __version__
from selfdistill.cli.listings import Set, data_app, listings
from selfdistill.cli.terminal import (
    HELP_OPTIONS,
    Command,
    Commands,
    announce_torch,
    as_mistake,
    folder,
    quiet,
    reporting,
    say,
)
from selfdistill.files.text import printable

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
    pretty_exceptions_enable=False,
    help="On-policy self-distillation: a model that knows the answer in hindsight teaches itself.",
)

command = partial(app.command, cls=Command, context_settings=HELP_OPTIONS)

Config = Annotated[str, typer.Argument(help="A shipped config by name, a TOML file, or the folder of a run.")]
Model = Annotated[str, typer.Argument(help="Model directory, checkpoint, run folder, hub id or shipped name.")]
TaskKind = Annotated[
    str | None, typer.Option(help="Task by kind (options with --set task.key=value); unset: the run folder's own.")
]
Match = Annotated[
    str,
    typer.Option(
        metavar="completions|tokens|steps|seconds", help="What every arm gets equally much of, all roles together."
    ),
]
FinalSplit = Annotated[
    str, typer.Option(metavar="validation|test", help="Split that the verdicts come from; test: nobody tuned on it.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Longest completion; unset: the run folder's own, else 1024 or half the window."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"selfdistill {__version__}")
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
    config: Config,
    set_: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=folder,
            metavar="DIR",
            help="Folder of the run; default: runs/NAME, or the run folder given as config.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder if there is one.")] = False,
    processes: Annotated[
        int | None, typer.Option("--launch", min=1, metavar="N", help="Train with N processes on this machine.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything up to the first step, show it, and write nothing.")
    ] = False,
) -> None:
    """Train a model; stop with Ctrl-C, continue with --resume. Exit code 3: ended by an alarm of stop_on."""
    from selfdistill.cli import train as starting

    place = out or (Path(config) if Path(config).is_dir() else Path("runs") / Path(config).stem)
    if processes is not None and not dry_run:
        raise typer.Exit(starting.train_with(processes, config, set_ or [], place, resume=resume))
    raise typer.Exit(starting.train(config, set_ or [], place, resume=resume, dry_run=dry_run))


@command()
def compare(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Shipped configs by name, TOML files or run folders.")
    ],
    out: Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the comparison.")],
    seeds: Annotated[str, typer.Option(metavar="0,1,2", help="Seeds: every config is run once with each.")] = "0",
    set_: Set = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; unset: one for each core, on an accelerator one.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARM", help="Arm to compare with; unset: the first grpo, else the first arm.")
    ] = None,
    main: Annotated[
        str | None,
        typer.Option(metavar="ARM", help="Also put this arm's summary and page into the folder."),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            metavar="completions|tokens|steps|seconds", help="What every arm gets equally much of, all roles together."
        ),
    ] = "completions",
    final_split: Annotated[
        str,
        typer.Option(metavar="validation|test", help="Split that the verdicts come from; test: nobody tuned on it."),
    ] = "validation",
) -> None:
    """Train several configs on equal terms with several seeds: one table and one page. Resumes where it stopped."""
    from selfdistill.config.run import load_config

    # A mistake in a config is reported before torch is imported, which takes seconds.
    for config in configs:
        load_config(config, set_ or [])
    announce_torch()
    from rich.console import Console

    from selfdistill.comparison.compare import find_arm, parse_seeds, plan, run_comparison, write_results
    from selfdistill.comparison.tables import closing
    from selfdistill.distributed.signals import stop_on_signals
    from selfdistill.tracking.progress import Progress

    comparison = plan(
        configs, set_ or [], seeds=parse_seeds(seeds), baseline=baseline, folder=out, match=match, split=final_split
    )
    if main is not None:
        find_arm(comparison, main, "--main")
    with Progress(Console()) as progress, stop_on_signals(progress.say) as stop:
        finished = run_comparison(comparison, jobs=jobs, progress=progress, stop=stop)
    if not finished:
        progress.say(f"stopped; the same command goes on where the runs in {out} are")
        raise typer.Exit(128 + (stop.signal or 0))
    for line in closing(write_results(comparison, main=main)):
        say(line)
    say(f"page: {out / 'compare.html'}")


@command()
def evaluate(
    model: Model,
    task: TaskKind = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems of the split.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy; unset: the run's own, else 1.")
    ] = None,
    max_tokens: MaxTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Accuracy of a model on held-out problems: avg@k, pass@k, maj@k with intervals."""
    announce_torch()
    from rich.console import Console

    from selfdistill.cli.evaluate import evaluate_model
    from selfdistill.tracking.progress import Progress

    quiet()
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
        )
    if json:
        say(jsonlib.dumps(result))
    else:
        Progress(Console()).evaluation(None, result)
        say(f"{result['problems']} problems × {result['samples']} samples, truncated {result['truncated']:.3f}")
        say(f"weights: {result['weights']}")
        for reason, count in sorted(result["skipped"].items()):
            say(f"skipped: {count} × {reason}")
        for remark in result["remarks"]:
            say(f"remark: {remark}")


@command()
def inspect(
    model: Model,
    out: Annotated[
        Path, typer.Option(parser=folder, metavar="DIR", help="Folder for tokens.parquet, summary.json and index.html.")
    ],
    task: TaskKind = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Methods to inspect; LABEL=NAME repeats a method under a label; set hyperparameters by --set "
            "LABEL.hyperparameter=value; unset: those of --config, else grpo,sd,antisd,opsd,sdpo,credit,purified.",
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(help="A run's config or folder whose method is inspected too, under its name; may be repeated."),
    ] = None,
    contexts: Annotated[
        str, typer.Option(metavar="NAME,…", help="Further templates to score, besides those of the methods.")
    ] = "",
    rollouts: Annotated[
        Path | None, typer.Option(help="Read the newest completions of this rollouts.jsonl instead of sampling.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="Problems to inspect.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem.")] = 4,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")] = 1.0,
    max_tokens: MaxTokens = None,
    words: Annotated[Path | None, typer.Option(help="Folder with your own word lists for the token classes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    set_: Set = None,
) -> None:
    """Show which tokens each method would reward and punish, without training: a table, a summary and a page."""
    announce_torch()
    from selfdistill.inspection.command import InspectOptions, inspect_model

    quiet()
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
    )
    with reporting():
        summary = inspect_model(model, task, options, out, overrides=set_ or [], say=say)
    for name, reason in summary["left_out"].items():
        say(f"left out: {name}, because {reason}")
    for reason, count in summary["skipped"].items():
        say(f"skipped: {count} × {reason}")
    for remark in summary["templates"]["remarks"]:
        say(f"remark: {remark}")
    say(f"page: {out / 'index.html'}")


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


@command()
def contexts(
    config: Config,
    examples: Annotated[int, typer.Option(min=1, help="Problems to show.")] = 2,
    completions: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 4,
    set_: Set = None,
) -> None:
    """Print every prompt that would be scored, rendered, with token counts and the shared prefix."""
    from selfdistill.config.run import load_config

    # A mistake in the config is reported before torch is imported, which takes seconds.
    settings = load_config(config, set_ or [])
    announce_torch()
    quiet()
    from selfdistill.cli.contexts import audit

    with reporting():
        lines = list(audit(settings, examples=examples, completions=completions))
    for line in lines:
        say(line)


@command()
def teachers(
    config: Config,
    problems: Annotated[int, typer.Option(min=1, help="Training problems to measure on.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Sampling seed.")] = 0,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how much more often each teacher is right than the student, and how far apart the two are."""
    from selfdistill.config.run import load_config

    # A mistake in the config is reported before torch is imported, which takes seconds.
    settings = load_config(config, set_ or [])
    announce_torch()
    quiet()
    from selfdistill.cli.teachers import describe_gap, measure

    with reporting():
        report = measure(settings, problems=problems, samples=samples, seed=seed)
    if json:
        say(jsonlib.dumps(report))
        return
    for name, gap in report.items():
        for line in describe_gap(name, gap):
            say(line)


@command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder for the model.")],
    step: Annotated[int | None, typer.Option(min=1, help="Step of the checkpoint; unset: the newest.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number type of the weights; a bfloat16 run trains float32 weights; unset: model.dtype."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge an adapter into its base model: a plain model directory.")
    ] = False,
) -> None:
    """Write a checkpoint's model as a plain Hugging Face directory, from sharded weights too."""
    announce_torch()
    from selfdistill.training.run_folder import export_model

    quiet()
    path = export_model(run, out, step=step, dtype=dtype, merge=merge)
    say(f"{path.name} of {run} is in {out}")


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
        say(f"page: {write_pages(folder)}")
    else:
        serve(folder, host=host, port=port)


app.add_typer(listings)
app.add_typer(data_app, name="data")


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. A user's mistake prints one sentence on stderr and exits with code 2."""
    try:
        app(arguments)
    except Exception as error:
        mistake = as_mistake(error)
        if mistake is None:
            raise
        print(printable(f"selfdistill: {mistake}"), file=sys.stderr)
        sys.exit(2)
