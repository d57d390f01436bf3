"""What holds for every test: no hub, and warnings that are not ours to mend."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

NOT_OURS = (
    # peft asks transformers for an attribute that transformers has renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors (pyproject.toml), these aside."""
    for line in NOT_OURS:
        config.addinivalue_line("filterwarnings", line)
