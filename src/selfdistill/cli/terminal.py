"""Ctrl-C handling, log levels and error messages of the command line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from selfdistill.errors import CheckpointError, UserError, is_full, out_of_memory
from selfdistill.files.disk import disk_sentence
from selfdistill.files.jsonl import finite
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


def say(text: str, *, err: bool = False) -> None:
    """Print a line with control characters escaped, because it may contain text of rows and models."""
    typer.echo(printable(text), err=err)


def say_json(document: Any) -> None:
    """Print one JSON document on one line. Numbers that JSON does not know, NaN and infinity, are null."""
    typer.echo(json.dumps(finite(document)))


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
