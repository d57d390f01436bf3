"""What holds for every test: no hub, Ctrl-C that is heard, and fixtures of more than one file."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import deprecations

if TYPE_CHECKING:
    from selfdistill.contexts.templates import Template

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell lets what it starts in the background ignore SIGINT, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for `make test-latest`."""
    parser.addoption(
        "--list-deprecations",
        action="store_true",
        help="list warnings that libraries emit at the end, by library and message, instead of failing on them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors (pyproject.toml), but for those of libraries where they are listed."""
    if config.getoption("--list-deprecations"):
        listing = deprecations.Listing()
        listing.install()
        config.pluginmanager.register(listing)
        for category in deprecations.DEPRECATIONS:
            config.addinivalue_line("filterwarnings", f"default::{category}")


# Fixtures of more than one file. What loads torch is imported when it is needed.


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test can pull the plug, and waiting for the disk was a seventh of a short run."""

    def fsync(descriptor: int) -> None:
        os.fstat(descriptor)  # a closed one is still refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of one layer and its tokenizer: nobody writes into it."""
    from support.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=0, num_hidden_layers=1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 of two layers and its tokenizer: nobody writes into it."""
    from support.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """The contexts of one's own that tests of methods show."""
    from support.engine import own_templates

    return own_templates(tmp_path_factory.mktemp("contexts"))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that compiling does but for compiling, which needs a compiler and takes a minute."""
    import torch

    from selfdistill.models.compile import compiled

    def forget() -> None:
        compiled.cache_clear()
        torch._dynamo.reset()

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    # Whatever was compiled before would be called, and what is traced here must not be called later.
    forget()
    yield
    forget()


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report at the end of a run: it has tests of its own, and would take a third of the time of short runs."""
    monkeypatch.setattr("selfdistill.training.loop.write_report", lambda folder: None)
