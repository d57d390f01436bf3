"""The record of a start: program versions, command, commit and device."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfdistill.config.sections import Model
from selfdistill.config.suggest import LOGIN
from selfdistill.distributed.world import World
from selfdistill.models.devices import read_device
from selfdistill.models.gguf import gguf_quantisation, quantised_as
from selfdistill.models.loading import resolve_model

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("selfdistill", "torch", "transformers")


def start_record(model: Model, *, step: int, seed: int) -> dict[str, Any]:
    """One start's line of ``starts.jsonl``, as plain JSON. ``step`` is the step that the run continues from.

    ``quantised`` is how the weights were quantised: in a GGUF file before they were converted, or here.

    The name of the machine is not recorded, nor a password in a server's address.
    """
    device, program = read_device(model.device), Path(sys.argv[0]).name
    # "python -m selfdistill" is the same program.
    program = "selfdistill" if program == "__main__.py" else program
    return {
        "step": step,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": LOGIN.sub("", shlex.join([program, *sys.argv[1:]])),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "commit": commit_of(PACKAGE),
        "device": model.device if device is None or device.kind == "cpu" else f"{model.device}, {device.words}",
        "dtype": model.dtype,
        "quantised": quantised_as(gguf_quantisation(resolve_model(model.path)), model.quantisation),
        "seed": seed,
        "processes": World.current().size,
    }


def commit_of(package: Path) -> str | None:
    """The git commit of the checkout that a package is imported from, with ``+`` if its files differ from the commit.

    None if the package is installed, or git is missing.
    """
    root = package.parents[1]
    # A package installed inside another project's checkout does not have that checkout's commit.
    if package.parent.name != "src" or not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", str(package)))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+" if changes else commit
