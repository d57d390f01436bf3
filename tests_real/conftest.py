"""Tests with a real language model of 135 million weights (`make test-real`). Without it each is skipped by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from real.fetch import source
from real.word_problems import write
from selfdistill.contexts.chat import Chat
from selfdistill.models.policy import Policy, load_policy

FOLDER = Path(__file__).parents[1] / "models" / "smollm2-135m"


@pytest.fixture(scope="session")
def model() -> Path:
    """The converted directory that `make real-model` writes."""
    if not (FOLDER / "gguf.json").is_file():
        pytest.skip(f"{FOLDER} is not there: make real-model fetches it")
    return FOLDER


@pytest.fixture(scope="session")
def quantised(model: Path) -> Path:
    """The GGUF file that the directory was converted from."""
    file = source(model)
    if file is None or not file.is_file():
        pytest.skip(f"{file} is not there: make real-model fetches it")
    return file


@pytest.fixture(scope="session")
def loaded(model: Path) -> tuple[Policy, Chat]:
    """The model in memory. No test changes it."""
    return load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 60 short word problems with solutions."""
    path = tmp_path_factory.mktemp("rows") / "problems.jsonl"
    write(path, count=60, operations=1, largest=9, seed=0)
    return path
