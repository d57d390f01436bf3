"""The experiments of docs/results.md: ``python experiments/run.py TASK STAGE``, in the order of these stages.

``tune``: every arm has the same small budget, four candidates, each trained with three seeds of its own and fewer
steps. The one with the best last validation accuracy goes into the final comparison. If the best learning rate of an
arm is the smallest or the largest that it was offered, the next one beyond it is tried too, at most ``WIDENINGS``
times. ``final`` trains the chosen ones. ``doses`` trains what tuning would not choose: the strengths that the papers'
claims are about, untuned. ``rates`` gives every arm the same learning rates: GRPO's tuned one, a tenth and a hundredth
of it.

Configs are written below ``--out``; the raw ``compare.json`` of each comparison is kept in experiments/results/. An
interrupted stage goes on where its runs are.
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
CONVENTIONS = {"tune": 0, "final": 1000, "doses": 1000, "rates": 1000}
"""The toolbox's first conventions; every seed has others. The conventions of final figures were not used for tuning."""
FINAL_SPLIT = {"tune": "validation", "final": "test", "doses": "test", "rates": "test"}
"""Tuning uses validation problems, and figures come from test problems."""
STEPS = {"tune": 15, "final": 20, "doses": 20, "rates": 20}
LONGER = {("single", "final"): 30}
"""More steps for tasks where right answers are rare."""
EVERY = {"tune": 15, "final": 4, "doses": 4, "rates": 4}
SEEDS = {"tune": "10,11,12", "final": "0,1,2,3,4,5,6,7", "doses": "0,1,2,3,4,5,6,7", "rates": "0,1,2,3,4"}
WIDENINGS = 2

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
    **{method: rates(*RATES) for method in ("rlsd", "cepo", "rlcsd", "sdar", "sdpg", "srpo", "hdpo")},
    **{method: rates(3e-5, 1e-4, 2e-4, 4e-4) for method in ("sc_sdpo", "paced", "demopsd", "eopd")},
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
        **{method: rates(*RATES) for method in ("sc_sdpo", "paced", "demopsd", "eopd")},
    }
}
SUMMER = ("rlsd", "cepo", "rlcsd", "sdar", "sdpg", "srpo", "hdpo", "sc_sdpo", "paced", "demopsd", "eopd")
ARMS = {
    "countdown": ("grpo", "sd", "antisd", "opsd", "purified", "pbsd", "sdpo", "credit", *SUMMER),
    "single": ("grpo", "antisd", *SUMMER),
    "toolbox": ("grpo", "sdpo", "credit", "antisd", "opsd", "purified", "pbsd", *SUMMER),
}
DOSES: dict[str, dict[str, tuple[str, Candidate]]] = {
    "countdown": {
        "sd-0.5": ("sd", (2e-4, {"strength": 0.5})),
        # AntiSD as published: λ = 0.5 and its gate.
        "antisd-0.5": ("antisd", (2e-4, {"strength": 0.5})),
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


def compare(task: str, stage: str, arms: list[Path], out: Path, jobs: int, *, suffix: str = "") -> dict[str, Any]:
    """Run ``selfdistill compare`` and keep its raw numbers."""
    command = [sys.executable, "-m", "selfdistill", "compare", *map(str, arms)]
    command += ["--seeds", SEEDS[stage], "--final-split", FINAL_SPLIT[stage], "--jobs", str(jobs), "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ})
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(out / "compare.json", RESULTS / f"{task}-{stage}{suffix}.json")
    metrics = {arm.stem: measured(out / "runs" / arm.stem) for arm in arms}
    (RESULTS / f"{task}-{stage}{suffix}-metrics.json").write_text(
        json.dumps(metrics, indent=1) + "\n", encoding="utf-8"
    )
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
    """Train every candidate, widen the grids whose best rate is at an edge, and write down the best of each arm."""
    candidates = {method: list(GRIDS_OF.get(task, {}).get(method, GRIDS[method])) for method in ARMS[task]}
    for left in range(WIDENINGS, -1, -1):
        arms = {label(method, each): (method, each) for method, grid in candidates.items() for each in grid}
        paths = [write_arm(out / "arms", task, name, *arm, "tune") for name, arm in arms.items()]
        compared = compare(task, "tune", paths, out, jobs)
        accuracy = {arm["name"]: arm["accuracy"]["final"]["value"] for arm in compared["arms"]}
        best = {
            method: max((label(method, each) for each in grid), key=accuracy.__getitem__)
            for method, grid in candidates.items()
        }
        beyond = {method: wider(grid, arms[best[method]][1]) for method, grid in candidates.items() if left}
        for method, candidate in beyond.items():
            candidates[method] += [candidate] if candidate else []
        if not any(beyond.values()):
            break
    chosen = {
        method: {
            "learning_rate": arms[name][1][0],
            "hyperparameters": arms[name][1][1],
            "accuracy": accuracy[name],
            "arm": name,
            "candidates": len(candidates[method]),
        }
        for method, name in best.items()
    }
    (RESULTS / f"{task}-chosen.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(chosen, indent=1))
    for message in grid_edges(compared["arms"]):
        print(message, file=sys.stderr)


def label(method: str, candidate: Candidate) -> str:
    """The name of a candidate's arm: method, learning rate and λ."""
    rate, hyperparameters = candidate
    return "-".join([method, f"{rate:g}", *(f"{hyperparameters[k]:g}" for k in ("strength",) if k in hyperparameters)])


def wider(grid: list[Candidate], best: Candidate) -> Candidate | None:
    """The next learning rate beyond the best one, at half or twice of it, or None if the best is not at an edge."""
    tried = sorted({rate for rate, _ in grid})
    if best[0] == tried[0]:
        return (best[0] / 2, best[1])
    return (best[0] * 2, best[1]) if best[0] == tried[-1] else None


def final(task: str, out: Path, jobs: int) -> None:
    """Train the chosen candidate of each arm with every seed."""
    chosen = json.loads((RESULTS / f"{TUNED_ON.get(task, task)}-chosen.json").read_text(encoding="utf-8"))
    paths = []
    for method in ARMS[task]:
        candidate = (chosen[method]["learning_rate"], chosen[method]["hyperparameters"])
        paths.append(write_arm(out / "arms", task, method, method, candidate, "final"))
        if method == "antisd" and UNGATED.get(task):
            ungated = (candidate[0], {**candidate[1], "gated": False})
            paths.append(write_arm(out / "arms", task, "antisd-ungated", method, ungated, "final"))
    compare(task, "final", paths, out, jobs)


def doses(task: str, out: Path, jobs: int) -> None:
    """Train the arms of the papers' claims with every seed."""
    arms = DOSES[task].items()
    compare(task, "doses", [write_arm(out / "arms", task, label, *arm, "doses") for label, arm in arms], out, jobs)


def equal_rates(task: str, out: Path, jobs: int) -> None:
    """Train every arm with the tuned hyperparameters at GRPO's tuned learning rate, a tenth and a hundredth of it.

    One comparison for each rate, so that each has GRPO at the same rate as its baseline.
    """
    chosen = json.loads((RESULTS / f"{TUNED_ON.get(task, task)}-chosen.json").read_text(encoding="utf-8"))
    for part in (1, 10, 100):
        rate = chosen["grpo"]["learning_rate"] / part
        folder = out / f"one-{part}"
        paths = [
            write_arm(folder / "arms", task, method, method, (rate, chosen[method]["hyperparameters"]), "rates")
            for method in ARMS[task]
        ]
        compare(task, "rates", paths, folder, jobs, suffix=f"-{part}")


def main() -> None:
    """Read the command line and run one stage of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("stage", choices=STEPS)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    stage = {"tune": tune, "final": final, "doses": doses, "rates": equal_rates}[args.stage]
    stage(args.task, args.out / f"{args.task}-{args.stage}", args.jobs)


if __name__ == "__main__":
    main()
