"""Measure how long a command takes to print its help or refuse a config, beside the commands of trl and transformers.

    python benchmarks/startup.py

Each command is started several times in turn, and the median is kept. The result goes to
benchmarks/results/startup.json, of which benchmarks/tables.py makes the table in docs/performance.md.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from processes import RESULTS

TIMES = 5
OURS = [sys.executable, "-m", "selfdistill"]
COMMANDS = {
    "`selfdistill --help`": [*OURS, "--help"],
    "`selfdistill train --help`": [*OURS, "train", "--help"],
    "a misspelt key of a config": [*OURS, "train", "countdown-grpo", "--set", "stps=3"],
    "a config that is not there": [*OURS, "evaluate", "nowhere.toml"],
    "a misspelt option": [*OURS, "train", "countdown-grpo", "--resum"],
}
OTHERS = {"`trl --help`": ["trl", "--help"], "`transformers --help`": ["transformers", "--help"]}


def measure() -> dict[str, float]:
    """Seconds of each command, the median of several starts in turn; the first start of each fills the file cache."""
    commands = dict(COMMANDS)
    for name, (program, *arguments) in OTHERS.items():
        found = shutil.which(program, path=str(Path(sys.executable).parent))
        if found is not None:
            commands[name] = [found, *arguments]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TIMES + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(taken[1:]), 3) for name, taken in seconds.items()}


def main() -> None:
    """Measure and write the result."""
    RESULTS.mkdir(exist_ok=True)
    result = {"date": time.strftime("%Y-%m-%d"), "times": TIMES, "seconds": measure()}
    (RESULTS / "startup.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
