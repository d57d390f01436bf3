"""``make demo``: train four arms on Countdown and three on the toolbox, and write one page about both comparisons.

The settings are the same for every arm of a task. Arms that have finished are not trained again.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from selfdistill.comparison.page import Joined, write_joined


@dataclass(frozen=True, slots=True)
class Half:
    """One task of the demo: its heading, a text about hindsight in this task, and its arms."""

    name: str
    heading: str
    about: str
    arms: tuple[str, ...]
    learning_rate: str
    """The learning rate that is best for most of the arms (docs/results.md)."""


HALVES = (
    Half(
        "toolbox",
        "Hindsight that transfers (toolbox)",
        "Requests become calls of a small API whose conventions the model does not know. What a solution shows of one "
        "problem holds for the next.",
        ("toolbox-grpo", "toolbox-sdpo", "toolbox-opsd-first"),
        "8e-4",
    ),
    Half(
        "countdown",
        "Hindsight that leaks (Countdown)",
        "Numbers are combined to reach a target. A solution gives away its own problem and nothing else, so a teacher "
        "that sees it needs no reasoning.",
        ("countdown-grpo", "countdown-opsd-first", "countdown-purified", "countdown-antisd"),
        "2e-4",
    ),
)
SETTINGS = (
    "steps=20",
    "sampling.prompts=8",
    "sampling.completions=8",
    "sampling.temperature=1.0",
    "sampling.top_p=1.0",
    "sampling.top_k=0",
    "evaluation.every=5",
    "evaluation.problems=64",
    "evaluation.samples=4",
    "checkpoint.every=20",
)
JOBS = 2
"""Two processes with one thread each use two cores better than one process with two threads."""


def main(out: Path, seed: str) -> int:
    """Train every arm, write the page, and return the exit code."""
    for half in HALVES:
        code = subprocess.run([sys.executable, "-m", "selfdistill", *arguments(half, out, seed)]).returncode
        if code:
            return code
    page = out / "demo.html"
    write_joined(page, "What hindsight teaches", [Joined(half.heading, half.about, out / half.name) for half in HALVES])
    print(f"The page of this demo: {page.resolve()}")
    return 0


def arguments(half: Half, out: Path, seed: str) -> list[str]:
    """The command line of a task's comparison, for one seed."""
    settings = [*SETTINGS, f"optimiser.learning_rate={half.learning_rate}"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    # "5," is the single seed 5; "5" would be five seeds.
    seeds = ["--seeds", f"{seed},"]
    return ["compare", *half.arms, "--out", str(out / half.name), "--jobs", str(JOBS), *seeds, *overrides]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "0"))
