"""Render chat templates safely: they are third-party programs that may raise any error or never end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from selfdistill.errors import ModelError

SECONDS = 10.0
"""Time limit for rendering one conversation."""


def render(tokenizer: Any, turns: Sequence[Mapping[str, Any]], *, prompt: bool, **switches: Any) -> str:
    """Render turns with the tokenizer's chat template. ``prompt`` appends the start of an assistant turn.

    Raises:
        TemplateError: any error in the template.
        ModelError: the time limit is exceeded.
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
def _time_limit(subject: str) -> Iterator[None]:
    """Raise after :data:`SECONDS`, in the main thread only: SIGALRM handlers run nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise ModelError(f"{subject} takes more than {SECONDS:g} seconds for one conversation: look for a loop in it")

    before = signal.signal(signal.SIGALRM, give_up)
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        # Restore the caller's own alarm, if there is one.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
