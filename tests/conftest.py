"""What holds for every test: no hub, Ctrl-C that is heard, and warnings that are not ours to mend."""

from __future__ import annotations

import os
import signal
import threading

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell lets what it starts in the background ignore SIGINT, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

NOT_OURS = (
    # peft asks transformers for an attribute that transformers has renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors (pyproject.toml), these aside."""
    for line in NOT_OURS:
        config.addinivalue_line("filterwarnings", line)
