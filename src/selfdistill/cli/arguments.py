"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="A config (TOML file or shipped name), a run folder, a checkpoint, or a model (directory, hub id or "
        "shipped name)."
    ),
]
TaskKind = Annotated[
    str | None,
    typer.Option(help="Task by kind (options with --set task.key=value); unset: that of the config or run."),
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
    typer.Option(min=1, help="Longest completion; unset: that of the config or run, else 1024 or half the window."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="hf|vllm|URL",
        help="What samples: the model itself (hf), a vLLM engine, or a server (several: URL,URL); unset: the sampler "
        "of the config or run, by default hf.",
    ),
]
Contexts = Annotated[
    str, typer.Option(metavar="NAME,…", help="Further templates to score, besides those of the methods.")
]
Rollouts = Annotated[
    Path | None, typer.Option(help="Read the newest completions of this rollouts.jsonl instead of sampling.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(metavar="best|last|STEP", help="Checkpoint of a run folder; unset: the last."),
]
