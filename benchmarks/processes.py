"""Processes of their own for measurements, and what every result says of its origin.

The parent imports no torch: on Linux a child's peak memory begins at what its parent held.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("selfdistill", "torch", "transformers", "trl", "liger-kernel")
KILLED = -9


class ChildFailed(RuntimeError):
    """A measuring process that left no report; ``killed`` says that the system ended it, as it does for memory."""

    def __init__(self, text: str, *, killed: bool) -> None:
        super().__init__(text)
        self.killed = killed


def run_child(script: str, spec: Mapping[str, Any], threads: int, *, python: str = sys.executable) -> str:
    """Run another script of this folder with a JSON argument; returns what it wrote.

    ``python`` may be that of another virtual environment.

    Raises:
        ChildFailed: it ended otherwise than well, with its own last words.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report.json"
        command = [python, str(HERE / script), json.dumps(spec), str(target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            words = f"{done.stderr[-4000:]}\n{script} failed with exit code {done.returncode}"
            raise ChildFailed(words, killed=done.returncode == KILLED)
        return target.read_text(encoding="utf-8")


def origin(threads: int) -> dict[str, Any]:
    """Date, versions and machine in words, without its name or paths."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{n: package_version(n) for n in PACKAGES}},
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "threads": threads,
    }


def write(result: Mapping[str, Any], name: str, out: Path | None) -> None:
    """Leave a result as JSON, by default in ``benchmarks/results``, in place of the last one of that name."""
    target = out or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def log(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
