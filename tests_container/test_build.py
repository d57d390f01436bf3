"""The Dockerfile builds, and what it builds trains. Run by ``make test-container``: it fetches an image and torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def builder() -> str | None:
    """docker or podman, whichever can reach its engine."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    return None


def test_the_image_is_built_and_trains_two_steps() -> None:
    name = builder()
    if name is None:
        pytest.skip("neither docker nor podman works here")
    subprocess.run([name, "build", "--tag", "selfdistill-test", str(ROOT)], check=True)
    small = ["--set", "steps=2", "--set", "sampling.prompts=2", "--set", "evaluation.problems=4"]
    command = [name, "run", "--rm", "selfdistill-test", "train", "countdown-grpo", *small]
    assert subprocess.run(command, check=False).returncode == 0
