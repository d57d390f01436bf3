"""A chat template is a program of strangers: it may fail with anything, and need not end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from selfdistill.errors import ModelError

SECONDS = 10.0
"""A template that takes longer than this for one conversation is taken to loop."""


def render(tokenizer: Any, turns: Sequence[dict[str, str]], *, prompt: bool, **switches: Any) -> str:
    """The text of some turns, as the tokenizer's template writes them; ``prompt`` opens the assistant's turn behind.

    Raises:
        TemplateError: jinja's own, whatever it is that fails in the template.
        ModelError: the template does not come to an end.
    """
    from jinja2 import TemplateError

    try:
        with _time_limit(f"the chat template of {tokenizer.name_or_path or 'the model'}"):
            text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt, **switches)
    except (TemplateError, ModelError):
        raise
    except Exception as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    return str(text)


@contextmanager
def _time_limit(what: str) -> Iterator[None]:
    """End what takes longer than :data:`SECONDS`. Alarms reach the main thread alone, where models are loaded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise ModelError(f"{what} takes more than {SECONDS:g} seconds for one conversation: look for a loop in it")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
