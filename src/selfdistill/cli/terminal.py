"""Ctrl-C handling, log levels and error messages of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from selfdistill.errors import CheckpointError, ConfigError, UserError, is_full, out_of_memory
from selfdistill.files.disk import disk_sentence
from selfdistill.files.text import printable

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""


class Command(TyperCommand):
    """A command whose help shows flags without a value type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, including ``--help``."""
        return _without_flag_types(super().get_params(ctx))


class Commands(TyperGroup):
    """A Typer group that prints a message on Ctrl-C. Typer itself exits silently."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of the group, including ``--help``."""
        return _without_flag_types(super().get_params(ctx))

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
    """
    if not text.strip():
        raise ConfigError("--out is empty, which would be the current folder: name a folder, or leave --out away")
    return Path(text)


def announce_torch() -> None:
    """Say on stderr that torch is being imported, which takes seconds. Once a run, and before anything imports it."""
    if "torch" not in sys.modules and os.environ.get("RANK", "0") == "0":
        print("loading torch", file=sys.stderr, flush=True)


@contextmanager
def reporting() -> Iterator[None]:
    """Show on stderr what goes on in the block, so that stdout holds the result alone."""
    from rich.console import Console

    from selfdistill.tracking.progress import Progress

    with Progress(Console(stderr=True)):
        yield


def say(text: str, *, err: bool = False) -> None:
    """Print a line with control characters escaped, because it may contain text of rows and models."""
    typer.echo(printable(text), err=err)


def no_bars() -> None:
    """Turn off the progress bars of other libraries, which would overwrite the run's progress line."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet() -> None:
    """Turn off progress bars and all log messages of transformers below errors."""
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
    sentence = disk_sentence(error) if isinstance(error, OSError) else None
    return None if sentence is None else CheckpointError(sentence)
