"""Manners of the command line: Ctrl-C is answered, and other libraries keep quiet."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup


class Commands(TyperGroup):
    """Typer itself ends at Ctrl-C without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("selfdistill: stopped", file=sys.stderr)
            raise typer.Exit(130) from None


def no_bars() -> None:
    """Progress bars of other libraries would run through our one line."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def quiet() -> None:
    """No progress bars, and no log lines below an error."""
    no_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
