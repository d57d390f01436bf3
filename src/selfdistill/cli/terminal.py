"""Ctrl-C handling, log levels and error messages of the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from selfdistill.errors import CheckpointError, ConfigError, UserError, is_full, out_of_memory
from selfdistill.files.disk import check_place, disk_message
from selfdistill.files.jsonl import finite
from selfdistill.files.text import printable

UsageError: Any = typer.BadParameter.__mro__[1]
"""The exception that typer raises for a command line that it cannot parse."""
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""

ALIASES = {"--output-dir": "--out", "--nproc-per-node": "--launch", "--model-name-or-path": "--model"}
"""Options of trl and torchrun that are accepted as other names of ours."""
FOREIGN = {
    "--model": "the argument itself, a config or a model; inside a config model.path",
    "--model-name-or-path": "the argument itself, a config or a model; inside a config model.path",
    "--config": "the argument itself: a TOML file, a shipped config or a run folder",
    "--dataset-name": "--set task.path=…; selfdistill init --model MODEL --data ROWS writes a config",
    "--dataset-config": "--set task.path.config=…, beside task.path.path",
    "--dataset-train-split": "--set task.path.split=…, beside task.path.path",
    "--seed": "--set seed=…",
    "--learning-rate": "--set optimiser.learning_rate=…",
    "--lr-scheduler-type": "--set optimiser.schedule=…",
    "--warmup-steps": "--set optimiser.warmup=…",
    "--weight-decay": "--set optimiser.weight_decay=…",
    "--max-grad-norm": "--set optimiser.clip_norm=…",
    "--max-steps": "--set steps=…",
    "--num-train-epochs": "--set steps=…, counted in optimiser steps",
    "--per-device-train-batch-size": "--set sampling.prompts=…, problems a step over all processes",
    "--gradient-accumulation-steps": "nothing: --set limits.max_tokens_per_microbatch=… bounds memory, never results",
    "--num-generations": "--set sampling.completions=…",
    "--num-generations-eval": "--set evaluation.samples=…",
    "--max-completion-length": "--set sampling.max_tokens=…",
    "--max-new-tokens": "--set sampling.max_tokens=…",
    "--max-tokens": "--set sampling.max_tokens=…",
    "--temperature": "--set sampling.temperature=…",
    "--top-p": "--set sampling.top_p=…",
    "--top-k": "--set sampling.top_k=…",
    "--dtype": "--set model.dtype=…",
    "--torch-dtype": "--set model.dtype=…",
    "--bf16": "--set model.dtype=bfloat16",
    "--device": "--set model.device=…",
    "--use-peft": "--set model.lora.rank=16",
    "--lora-r": "--set model.lora.rank=…",
    "--lora-alpha": "--set model.lora.alpha=…",
    "--lora-target-modules": "--set model.lora.target_modules=…",
    "--gradient-checkpointing": "--set parallel.activation_checkpointing=true",
    "--eval-steps": "--set evaluation.every=…",
    "--save-steps": "--set checkpoint.every=…",
    "--save-total-limit": "--set checkpoint.keep=…",
    "--report-to": "--set 'sinks=[\"wandb\"]'",
    "--resume-from-checkpoint": "--resume",
    "--use-vllm": "--set sampler.kind=vllm",
    "--vllm-mode": "--set sampler.kind=vllm for colocate, --set sampler.kind=server for server",
    "--vllm-server-base-url": "--set sampler.kind=server --set 'sampler.urls=[\"…\"]'",
    "--vllm-tensor-parallel-size": "--set sampler.tensor_parallel_size=…",
    "--vllm-gpu-memory-utilization": "--set sampler.gpu_memory_utilization=…",
    "--vllm-max-model-length": "--set sampler.max_model_len=…",
    "--tensor-parallel-size": "--set sampler.tensor_parallel_size=…",
    "--gpu-memory-utilization": "--set sampler.gpu_memory_utilization=…",
    "--max-model-len": "--set sampler.max_model_len=…",
    "--max-num-seqs": "--set sampler.max_num_seqs=…",
    "--enforce-eager": "--set sampler.enforce_eager=true",
    "--nproc-per-node": "--launch N of selfdistill train",
    "--nnodes": "torchrun --nnodes … -m selfdistill train …",
    "--standalone": "--launch N of selfdistill train",
    "--output-dir": "--out DIR",
}
"""Options of trl, vllm and torchrun → the option or setting that does the same here."""


class Command(TyperCommand):
    """A command whose help shows flags without a value type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, including ``--help``."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Underscores in option names count as hyphens.

        Raises:
            ConfigError: an option or an argument is wrong. For one of trl, vllm or torchrun the message names ours.
        """
        options = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        spelled = [_spelled(word, options) for word in args]
        try:
            return super().parse_args(ctx, spelled)
        except UsageError as error:
            raise _refusal(ctx, error, options) from error


def _refusal(ctx: Any, error: Any, options: Iterable[str]) -> Exception:
    """The error for a command line that cannot be parsed. ``options`` are the names of the command's options."""
    # Typer ships its own copy of click, so the class is recognised by its name.
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return error if isinstance(error, Exception) else ConfigError(str(error))
    program = ctx.command_path.removeprefix(ctx.find_root().info_name or "").strip()
    if kind != "NoSuchOption":
        message = error.format_message().replace("\n", " ").rstrip(".")
        return ConfigError(f"{message[:1].lower()}{message[1:]}; see {f'selfdistill {program}'.strip()} --help")
    # These import pydantic, which --help does not need.
    from selfdistill.config.run import KEYS
    from selfdistill.config.suggest import near

    name = str(error.option_name)
    ours = FOREIGN.get(name.replace("_", "-"))
    key = name.removeprefix("--").replace("-", "_")
    if ours is None and key in KEYS and "--set" in options:
        ours = f"--set {key}=…"
    known = ", ".join(sorted(option for option in options if option.startswith("--")))
    hint = f"here it is {ours}" if ours else near(name, options) or f"there are: {known}"
    return ConfigError(f"{f'{program} has' if program else 'there is'} no option {name}; {hint}")


def _spelled(word: str, options: set[str]) -> str:
    """The word with its option under our name: underscores become hyphens, and aliases of other tools are resolved."""
    if not word.startswith("--") or len(word) == 2:
        return word
    name, equals, value = word.partition("=")
    hyphened = name.replace("_", "-")
    ours = ALIASES.get(hyphened, "")
    return (hyphened if hyphened in options else ours if ours in options else name) + equals + value


class Commands(TyperGroup):
    """A Typer group that prints a message on Ctrl-C. Typer itself exits silently."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the group, including ``--help``."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command.

        Raises:
            ConfigError: an option is wrong.
        """
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise _refusal(
                ctx, error, {name for parameter in self.get_params(ctx) for name in parameter.opts}
            ) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names.

        Raises:
            ConfigError: there is none; the message names the nearest one.
        """
        known = self.list_commands(ctx)
        if args and args[0] not in known:
            from selfdistill.config.suggest import near

            program = ctx.command_path.removeprefix(ctx.find_root().info_name or "").strip()
            command = f"{program} {args[0]}".strip()
            hint = near(args[0], known) or f"there are: {', '.join(known)}"
            raise ConfigError(f"there is no command {command}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command. Exits with code 130 on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("selfdistill: stopped", file=sys.stderr)
            raise typer.Exit(130) from None


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    return parameters


def folder(text: str) -> Path:
    """Return the folder that an option names.

    Raises:
        ConfigError: the name is empty, which would be the current folder.
        CheckpointError: no folder can be made there.
    """
    if not text.strip():
        raise ConfigError("--out is empty, which would be the current folder: name a folder, or leave --out away")
    check_place(Path(text))
    return Path(text)


def announce(doing: str) -> None:
    """Print to stderr what is done before torch is imported. Prints nothing after that: a progress line is shown."""
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print(doing, file=sys.stderr, flush=True)


@contextmanager
def reporting() -> Iterator[None]:
    """Show the progress of the block on stderr, so that stdout holds only the result."""
    from rich.console import Console

    from selfdistill.tracking.progress import Progress

    with Progress(Console(stderr=True)):
        yield


def echo(text: str, *, err: bool = False) -> None:
    """Print a line with control characters escaped, because it may contain text of rows and models."""
    typer.echo(printable(text), err=err)


def echo_json(document: Any) -> None:
    """Print one JSON document on one line. Numbers that JSON does not know, NaN and infinity, are null."""
    typer.echo(json.dumps(finite(document)))


def no_bars() -> None:
    """Turn off the progress bars of other libraries, which would overwrite the run's progress line."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet() -> None:
    """Import torch, and turn off progress bars and all log messages of transformers below errors."""
    announce("loading torch")
    no_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def as_mistake(error: Exception) -> UserError | None:
    """Return the one-sentence error for the user, or None if the exception is a bug rather than a user's mistake."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, RuntimeError | MemoryError):
        return out_of_memory(error) if is_full(error) else None
    message = disk_message(error) if isinstance(error, OSError) else None
    return None if message is None else CheckpointError(message)
