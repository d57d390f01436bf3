"""The experiments of docs/results.md: ``python experiments/run.py TASK tune``, then ``… final`` and ``… doses``.

Every arm has the same small budget for tuning: each candidate is trained with three separate seeds and fewer steps, and
the candidate with the best final validation accuracy enters the final comparison. ``doses`` trains candidates that
tuning would not choose: the untuned strengths of the papers' claims. Configs are written below ``--out``; the raw
``compare.json`` of each comparison is kept in experiments/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from selfdistill.comparison.grids import grid_edges

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

SHARED: dict[str, Any] = {
    "sampling": {
        "prompts": 8,
        "completions": 8,
        "max_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    },
    "evaluation": {"problems": 64, "samples": 4},
}
TASKS: dict[str, dict[str, Any]] = {
    "countdown": {"task": {"kind": "countdown"}, "model": {"path": "countdown-base"}},
    "single": {"task": {"kind": "countdown", "difficulty": "single"}, "model": {"path": "countdown-base"}},
    "toolbox": {"task": {"kind": "toolbox"}, "model": {"path": "toolbox-base"}, "sampling": {"max_tokens": 96}},
}
CONVENTIONS = {"tune": 0, "final": 1000, "doses": 1000}
"""The toolbox's first conventions; every seed has others. The conventions of final figures were not used for tuning."""
FINAL_SPLIT = {"tune": "validation", "final": "test", "doses": "test"}
"""Tuning uses validation problems, and figures come from test problems."""
STEPS = {"tune": 15, "final": 20, "doses": 20}
LONGER = {("single", "final"): 30}
"""More steps for tasks where right answers are rare."""
EVERY = {"tune": 15, "final": 5, "doses": 5}
SEEDS = {"tune": "10,11,12", "final": "0,1,2,3,4,5,6,7", "doses": "0,1,2,3,4,5,6,7"}

METRICS = (
    "reward",
    "length",
    "deliberation",
    "student_entropy",
    "gate",
    "u_correct",
    "u_wrong",
    "cos_total_reference",
    "cos_total_question",
    "left_out",
)
"""Metrics that docs/results.md mentions."""

JSD = {"divergence": {"kind": "jensen_shannon"}}
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
Candidate = tuple[float, dict[str, Any]]


def rates(*values: float, **hyperparameters: Any) -> list[Candidate]:
    """The same hyperparameters at several learning rates."""
    return [(value, hyperparameters) for value in values]


def strengths(rate: float, *values: float) -> list[Candidate]:
    """Several λ at one learning rate."""
    return [(rate, {"strength": value}) for value in values]


# Four candidates per arm: learning rates, or λ at GRPO's second rate and one more at its third, which was best.
GRIDS: dict[str, list[Candidate]] = {
    "grpo": rates(*RATES),
    "sd": [*strengths(2e-4, 0.05, 0.1, 0.5), *strengths(4e-4, 0.05)],
    "antisd": [*strengths(2e-4, 0.05, 0.1, 0.3), *strengths(4e-4, 0.1)],
    "opsd": rates(1e-5, 3e-5, 1e-4, 2e-4, **JSD),
    "purified": rates(3e-5, 1e-4, 2e-4, 4e-4),
    "pbsd": rates(1e-5, 3e-5, 1e-4, 2e-4),
    "sdpo": rates(3e-5, 1e-4, 2e-4, 4e-4),
    "credit": [*strengths(1e-4, 0.05, 0.1, 0.5), *strengths(2e-4, 0.1)],
}
# On toolbox sdpo and grpo kept improving up to 4e-4, so all arms there get larger rates.
GRIDS_OF: dict[str, dict[str, list[Candidate]]] = {
    "toolbox": {
        "sdpo": rates(*RATES),
        "credit": [*strengths(4e-4, 0.05, 0.1, 0.5), *strengths(8e-4, 0.1)],
        "antisd": [*strengths(4e-4, 0.05, 0.1, 0.3), *strengths(8e-4, 0.1)],
        "opsd": rates(*RATES, **JSD),
        "purified": rates(*RATES),
        "pbsd": rates(*RATES),
    }
}
ARMS = {
    "countdown": ("grpo", "sd", "antisd", "opsd", "purified", "pbsd"),
    "single": ("grpo", "antisd"),
    "toolbox": ("grpo", "sdpo", "credit", "antisd", "opsd", "purified", "pbsd"),
}
DOSES: dict[str, dict[str, tuple[str, Candidate]]] = {
    "countdown": {
        "sd-0.5": ("sd", (2e-4, {"strength": 0.5})),
        "opsd-1e-4": ("opsd", (1e-4, JSD)),
        "purified-1e-4": ("purified", (1e-4, {})),
        "pbsd-1e-4": ("pbsd", (1e-4, {})),
    },
    "toolbox": {
        "sdpo": ("sdpo", (4e-4, {})),
        **{f"credit-{value:g}": ("credit", (4e-4, {"strength": value})) for value in (0.5, 1.0, 2.0)},
    },
}
"""Arms of the stage ``doses``; the first is the baseline."""
TUNED_ON = {"single": "countdown"}
"""Task → the task whose tuned candidates it uses."""
UNGATED = {"countdown": True, "single": True}
"""Tasks on which AntiSD also runs without its gate, with the candidate tuned for AntiSD."""


def write_arm(folder: Path, task: str, name: str, method: str, candidate: Candidate, stage: str) -> Path:
    """Write the config file of one arm, as TOML lines with dotted keys."""
    rate, hyperparameters = candidate
    steps = LONGER.get((task, stage), STEPS[stage])
    chosen = TASKS[task]
    conventions = {"conventions": CONVENTIONS[stage], "conventions_by_seed": True} if task == "toolbox" else {}
    table = {
        "model": chosen["model"],
        "task": {**chosen["task"], **conventions},
        "steps": steps,
        "sampling": {**SHARED["sampling"], **chosen.get("sampling", {})},
        "evaluation": {**SHARED["evaluation"], "every": EVERY[stage]},
        "checkpoint": {"every": steps, "keep": 1},
        "method": {"name": method, **hyperparameters},
        "optimiser": {"learning_rate": rate},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(dotted(table), encoding="utf-8")
    return path


def dotted(table: dict[str, Any], prefix: str = "") -> str:
    """TOML lines ``a.b = value``."""
    lines = ""
    for key, value in table.items():
        if isinstance(value, dict):
            lines += dotted(value, f"{prefix}{key}.")
        else:
            lines += f"{prefix}{key} = {json.dumps(value)}\n"
    return lines


def compare(task: str, stage: str, arms: list[Path], out: Path, jobs: int) -> dict[str, Any]:
    """Run ``selfdistill compare`` and keep its raw numbers."""
    command = [sys.executable, "-m", "selfdistill", "compare", *map(str, arms)]
    command += ["--seeds", SEEDS[stage], "--final-split", FINAL_SPLIT[stage], "--jobs", str(jobs), "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ})
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(out / "compare.json", RESULTS / f"{task}-{stage}.json")
    metrics = {arm.stem: measured(out / "runs" / arm.stem) for arm in arms}
    (RESULTS / f"{task}-{stage}-metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    result: dict[str, Any] = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return result


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Means of an arm's metrics over all seeds: in the first step, in the last step and over all steps."""
    runs = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("seed-*/metrics.jsonl"))]
    steps = {"first": [run[0] for run in runs], "last": [run[-1] for run in runs]}
    steps["all"] = [line for run in runs for line in run]
    means: dict[str, dict[str, float]] = {}
    for when, lines in steps.items():
        for key in METRICS:
            values = [value for line in map(json.loads, lines) if isinstance(value := line.get(key), int | float)]
            if values:
                means.setdefault(key, {})[when] = round(sum(values) / len(values), 6)
    return means


def tune(task: str, out: Path, jobs: int) -> None:
    """Train every candidate and write the best of each arm to a file."""
    arms: dict[str, tuple[str, Candidate]] = {}
    for method in ARMS[task]:
        for candidate in GRIDS_OF.get(task, {}).get(method, GRIDS[method]):
            label = "-".join(
                [method, f"{candidate[0]:g}", *(f"{candidate[1][k]:g}" for k in ("strength",) if k in candidate[1])]
            )
            arms[label] = (method, candidate)
    paths = [write_arm(out / "arms", task, label, *arm, "tune") for label, arm in arms.items()]
    compared = compare(task, "tune", paths, out, jobs)
    accuracy = {arm["name"]: arm["accuracy"]["final"]["value"] for arm in compared["arms"]}
    chosen: dict[str, Any] = {}
    for label, (method, candidate) in arms.items():
        value = accuracy[label]
        if method not in chosen or value > chosen[method]["accuracy"]:
            chosen[method] = {"learning_rate": candidate[0], "knobs": candidate[1], "accuracy": value, "arm": label}
    (RESULTS / f"{task}-chosen.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(chosen, indent=1))
    for message in grid_edges(compared["arms"]):
        print(message, file=sys.stderr)


def final(task: str, out: Path, jobs: int) -> None:
    """Train the chosen candidate of each arm with every seed."""
    chosen = json.loads((RESULTS / f"{TUNED_ON.get(task, task)}-chosen.json").read_text(encoding="utf-8"))
    paths = []
    for method in ARMS[task]:
        candidate = (chosen[method]["learning_rate"], chosen[method]["knobs"])
        paths.append(write_arm(out / "arms", task, method, method, candidate, "final"))
        if method == "antisd" and UNGATED.get(task):
            ungated = (candidate[0], {**candidate[1], "gated": False})
            paths.append(write_arm(out / "arms", task, "antisd-ungated", method, ungated, "final"))
    compare(task, "final", paths, out, jobs)


def doses(task: str, out: Path, jobs: int) -> None:
    """Train the arms of the papers' claims with every seed."""
    arms = DOSES[task].items()
    compare(task, "doses", [write_arm(out / "arms", task, label, *arm, "doses") for label, arm in arms], out, jobs)


def main() -> None:
    """Read the command line and run one stage of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("stage", choices=STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    stage = {"tune": tune, "final": final, "doses": doses}[args.stage]
    stage(args.task, args.out / f"{args.task}-{args.stage}", args.jobs)


if __name__ == "__main__":
    main()
