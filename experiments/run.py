"""The experiments of docs/results.md: ``python experiments/run.py TASK STAGE``, in the order of these stages.

``tune``: every arm starts with the same small budget, four candidates, each trained with two seeds of its own and
fewer steps (in turns three candidates and one seed), and is judged on validation problems. If the best candidate has
the smallest or the largest learning rate or λ that its arm was offered, the next one beyond it is tried too, at most
``WIDENINGS`` times. ``final`` trains the best of each arm and, for single answers, AntiSD as published, on seeds, test
problems and conventions of the toolbox that tuning never saw. ``doses`` trains what tuning would not choose: the
strengths that the papers' claims are about, untuned. ``gate`` sweeps the threshold of AntiSD's gate. ``continued`` goes
on from a run of GRPO's tuning, with GRPO and with AntiSD. ``pass`` draws 32 completions a problem from the last weights
of final arms. ``rates`` gives every arm the same learning rates: GRPO's tuned one, a tenth and a hundredth of it.

Every comparison is at equal completions, all roles together. Its raw ``compare.json`` is kept in experiments/results/
after every ``GROUP`` arms, so a stage that is stopped leaves the arms that are complete. A repeated stage goes on where
its runs are, or from experiments/results/archives/, where what comparisons read of them is kept. Further seeds
(``--seeds``) and further arms keep the runs that there are: the stages at final terms share one folder of runs.
``--arms`` limits a stage, and what it keeps, to some of its arms; the baseline is always among them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from archive import PLACE, pack, unpack
from grids import (
    ARMS,
    DOSES,
    GRIDS,
    GRIDS_OF,
    IN_TURNS,
    PASS_ARMS,
    PASS_SAMPLES,
    PUBLISHED,
    SHARED,
    TASKS,
    THRESHOLDS,
    TUNED_ON,
    UNGATED,
    Arm,
    Candidate,
)

from selfdistill.comparison.grids import grid_edges

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Terms:
    """What all runs of a stage share. ``conventions`` is the toolbox's first; every seed has others."""

    steps: int
    every: int
    seeds: str
    split: str
    conventions: int


TUNING = Terms(steps=15, every=15, seeds="10,11", split="validation", conventions=0)
FINAL = Terms(steps=20, every=4, seeds="0,1,2,3,4", split="test", conventions=1000)
TUNING_OF = dict.fromkeys(
    ("countdown-turns", "toolbox-turns", "words-bare"), replace(TUNING, steps=8, every=8, seeds="10,")
)
"""A smaller budget for tuning where a step takes longer."""
FINAL_OF = {
    "single": replace(FINAL, steps=30),
    **dict.fromkeys(("countdown-turns", "toolbox-turns"), replace(FINAL, steps=12, every=6)),
    "words-bare": replace(FINAL, every=10, seeds="0,"),
}
"""More steps at final terms where right answers are rare, fewer where a step takes longer."""
STAGES = ("tune", "final", "doses", "gate", "continued", "pass", "rates")
WIDENINGS = 3
NOT_WIDENED = ("words-bare",)
"""Tasks whose arms have their first candidates only."""
GROUP = 2
"""Number of arms after which the results are kept anew."""

SEVERAL_CONVENTIONS = ("toolbox", "toolbox-turns")
"""Tasks whose conventions every seed draws."""

METRICS = (
    "loss",
    "grad_norm",
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
    "turns",
    "tool_errors",
)
"""Metrics that docs/results.md mentions."""


def write_arm(folder: Path, task: str, name: str, method: str, candidate: Candidate, terms: Terms) -> Path:
    """Write the config file of one arm, as TOML lines with dotted keys."""
    rate, hyperparameters = candidate
    chosen = TASKS[task]
    if task.endswith("-turns"):
        hyperparameters = {**IN_TURNS.get(method, {}), **hyperparameters}
    conventions = {"conventions": terms.conventions, "conventions_by_seed": True} if task in SEVERAL_CONVENTIONS else {}
    table = {
        "model": chosen["model"],
        "task": {**chosen["task"], **conventions},
        "steps": terms.steps,
        "sampling": {**SHARED["sampling"], **chosen.get("sampling", {})},
        "evaluation": {**SHARED["evaluation"], **chosen.get("evaluation", {}), "every": terms.every},
        "checkpoint": {"every": terms.steps, "keep": 1},
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


def compare(
    arms: Sequence[Path], out: Path, kept: str, terms: Terms, jobs: int, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Run ``selfdistill compare`` and keep its raw numbers and the arms' metrics under the name ``kept``."""
    command = [sys.executable, "-m", "selfdistill", "compare", *map(str, arms), "--match", "completions"]
    command += ["--seeds", terms.seeds, "--final-split", terms.split, "--jobs", str(jobs), "--out", str(out), *options]
    archive = RESULTS / "archives" / f"{out.name}.tar.xz"
    unpack(archive, out / "runs")
    subprocess.run(command, check=True, env={**os.environ})
    pack(out / "runs", archive)
    # A run that goes on from another one names the folder that it was in.
    raw = (out / "compare.json").read_text(encoding="utf-8").replace(str(out.parent), PLACE.decode())
    (RESULTS / f"{kept}.json").write_text(raw, encoding="utf-8")
    metrics = {arm.stem: measured(out / "runs" / arm.stem) for arm in arms}
    (RESULTS / f"{kept}-metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    result: dict[str, Any] = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return result


def prefixes(arms: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The first ``GROUP`` arms, then the first twice as many, up to all."""
    for end in range(GROUP, len(arms) + GROUP, GROUP):
        yield arms[:end]


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Means of an arm's metrics over all seeds: in the first step, in the last step and over all steps.

    ``sd`` is the standard deviation over seeds of the means over all steps.
    """
    runs = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("seed-*/metrics.jsonl"))]
    steps = {"first": [run[0] for run in runs], "last": [run[-1] for run in runs]}
    steps["all"] = [line for run in runs for line in run]
    means: dict[str, dict[str, float]] = {}
    for when, lines in steps.items():
        for key in METRICS:
            values = [value for line in map(json.loads, lines) if isinstance(value := line.get(key), int | float)]
            if values:
                means.setdefault(key, {})[when] = round(sum(values) / len(values), 6)
    for key in means:
        each = [
            [value for line in map(json.loads, run) if isinstance(value := line.get(key), int | float)] for run in runs
        ]
        if len(each) > 1 and all(each):
            means[key]["sd"] = round(stdev(map(fmean, each)), 6)
    return means


def tune(stage: Stage) -> None:
    """Train the candidates, widen the grids whose best candidate is at an edge, and write down the best of each arm."""
    task = stage.task
    candidates: dict[str, list[Candidate]] = {}
    grids = GRIDS | GRIDS_OF.get(task, {})
    for methods in prefixes(stage.wanted(ARMS[task])):
        new = [method for method in methods if method not in candidates]
        candidates.update({method: list(grids[method]) for method in new})
        for left in range(0 if task in NOT_WIDENED else WIDENINGS, -1, -1):
            arms = {label(method, each): (method, each) for method, grid in candidates.items() for each in grid}
            paths = [write_arm(stage.out / "configs", task, name, *arm, stage.terms) for name, arm in arms.items()]
            compared = compare(paths, stage.out, f"{task}-tune", stage.terms, stage.jobs)
            levels = {arm["name"]: arm["accuracy"] for arm in compared["arms"]}
            best = {
                method: max((label(method, each) for each in grid), key=lambda name: levels[name]["final"]["value"])
                for method, grid in candidates.items()
            }
            beyond = {}
            for method in new if left else ():
                level = levels[best[method]]
                gains = level["final"]["value"] > level["before"]["value"]
                beyond[method] = wider(candidates[method], arms[best[method]][1], gains=gains)
                candidates[method] += beyond[method]
            if not any(beyond.values()):
                break
        chosen = {
            method: {
                "learning_rate": arms[name][1][0],
                "hyperparameters": arms[name][1][1],
                "accuracy": levels[name]["final"]["value"],
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


def wider(grid: Sequence[Candidate], best: Candidate, *, gains: bool) -> list[Candidate]:
    """The candidates beyond the best one: half or twice its learning rate or λ, if that is the smallest or largest.

    A best candidate that gains nothing has no smaller learning rate beside it: with the rate 0 an arm stays at the
    start, whose accuracy is known.
    """
    rate, hyperparameters = best
    rates_tried = sorted({each for each, _ in grid})
    beyond: list[Candidate] = []
    if rate == rates_tried[-1]:
        beyond.append((rate * 2, hyperparameters))
    elif rate == rates_tried[0] and gains:
        beyond.append((rate / 2, hyperparameters))
    if "strength" in hyperparameters:
        value = hyperparameters["strength"]
        tried = sorted({others["strength"] for _, others in grid})
        factor = 2.0 if value == tried[-1] else 0.5 if value == tried[0] else None
        beyond += [(rate, {**hyperparameters, "strength": value * factor})] if factor else []
    return beyond


@dataclass(frozen=True)
class Stage:
    """One stage of one task. ``out`` is its folder of runs; ``only`` limits its arms, unless it is empty."""

    task: str
    terms: Terms
    out: Path
    jobs: int
    only: frozenset[str] = frozenset()

    def wanted(self, arms: Sequence[str]) -> list[str]:
        """The arms that are asked for; the first, the baseline, always.

        Exits with a sentence if an arm that is asked for is unknown.
        """
        if unknown := self.only - set(arms):
            sys.exit(f"--arms: {', '.join(sorted(unknown))} is not of this stage; its arms: {', '.join(arms)}")
        return [name for name in arms if not self.only or name in self.only or name == arms[0]]

    def chosen(self) -> dict[str, Any]:
        """What tuning has chosen for this task."""
        path = RESULTS / f"{TUNED_ON.get(self.task, self.task)}-chosen.json"
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    def tuned(self, method: str, **hyperparameters: Any) -> Arm:
        """A method with its tuned candidate and further hyperparameters."""
        chosen = self.chosen()[method]
        return method, (chosen["learning_rate"], {**chosen["hyperparameters"], **hyperparameters})

    def train(self, kept: str, arms: dict[str, Arm], options: Sequence[str] = ()) -> None:
        """Compare the wanted arms, and keep the results after every few of them."""
        names = self.wanted(list(arms))
        paths = [write_arm(self.out / "configs", self.task, name, *arms[name], self.terms) for name in names]
        for some in prefixes(paths):
            compare(some, self.out, f"{self.task}-{kept}", self.terms, self.jobs, options)


def published(stage: Stage, **hyperparameters: Any) -> Arm:
    """AntiSD as published, at the learning rate of the tuned GRPO."""
    return "antisd", (stage.chosen()["grpo"]["learning_rate"], {**PUBLISHED, **hyperparameters})


def final(stage: Stage) -> None:
    """Train the chosen candidate of each arm and, where an answer is single, AntiSD as published."""
    arms: dict[str, Arm] = {}
    for method in (name for name in ARMS[stage.task] if name in stage.chosen()):
        arms[method] = stage.tuned(method)
        if method == "antisd" and not stage.task.endswith("-turns"):
            arms["antisd-published"] = published(stage)
            if UNGATED.get(stage.task):
                arms["antisd-ungated"] = published(stage, gated=False)
    stage.train("final", arms)


def doses(stage: Stage) -> None:
    """Train the arms of the papers' claims."""
    baseline = {} if stage.task == "toolbox" else {"grpo": stage.tuned("grpo")}
    stage.train("doses", {**baseline, **DOSES[stage.task]})


def gate(stage: Stage) -> None:
    """Train AntiSD as published with other thresholds of its gate."""
    others = {f"antisd-gate-{ratio:.2f}": published(stage, gate_ratio=ratio) for ratio in THRESHOLDS}
    stage.train("gate", {"grpo": stage.tuned("grpo"), "antisd-published": published(stage), **others})


def continued(stage: Stage) -> None:
    """Go on from a run of GRPO's tuning, whose seed and problems no final run has."""
    start = stage.out.parent / f"{stage.task}-tune" / "runs" / stage.chosen()["grpo"]["arm"] / "seed-10"
    if not (start / "summary.json").is_file():
        sys.exit(f"{start} is no finished run: make the stage tune first")
    arms = {"grpo": stage.tuned("grpo"), "antisd-published": published(stage)}
    stage.train("continued", arms, ["--set", f"model.path={start}"])


def draw(stage: Stage) -> None:
    """Draw many completions of the last weights of final runs, and keep how many are right for each problem.

    All runs answer the same problems, whatever their seeds. The results are kept after every arm.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    problems: set[str] = set()
    seeds = stage.terms.seeds.split(",")
    for name in stage.wanted(PASS_ARMS):

        def drawn(seed: str, name: str = name) -> dict[str, Any]:
            command = [sys.executable, "-m", "selfdistill", "evaluate", str(stage.out / "runs" / name / f"seed-{seed}")]
            command += ["--samples", str(PASS_SAMPLES), "--limit", str(SHARED["evaluation"]["problems"]), "--json"]
            made = subprocess.run([*command, "--seed", seed], check=True, stdout=subprocess.PIPE)
            result: dict[str, Any] = json.loads(made.stdout)
            return result

        with ThreadPoolExecutor(stage.jobs) as pool:
            results = dict(zip(seeds, pool.map(drawn, seeds), strict=True))
        problems |= {result["problem_set"] for result in results.values()}
        counts[name] = {seed: result["hits"] for seed, result in results.items()}
        kept = {"task": stage.task, "samples": PASS_SAMPLES, "baseline": PASS_ARMS[0], "hits": counts}
        kept["shared_problems"] = len(problems) == 1
        (RESULTS / f"{stage.task}-pass.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")


def equal_rates(stage: Stage) -> None:
    """Train every arm with the tuned hyperparameters at GRPO's tuned learning rate, a tenth and a hundredth of it.

    One comparison for each rate, so that each has GRPO at the same rate as its baseline.
    """
    chosen = stage.chosen()
    for part in (1, 10, 100):
        rate = chosen["grpo"]["learning_rate"] / part
        arms = {name: (name, (rate, chosen[name]["hyperparameters"])) for name in ARMS[stage.task] if name in chosen}
        replace(stage, out=stage.out.with_name(f"{stage.out.name}-{part}")).train(f"rates-{part}", arms)


def main() -> None:
    """Read the command line and run one stage of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seeds", help="other seeds than the stage's, with commas")
    parser.add_argument("--arms", default="", help="some of the stage's arms, with commas")
    args = parser.parse_args()
    if args.stage == "doses" and args.task not in DOSES:
        parser.error(f"{args.task} has no doses; choose from {', '.join(DOSES)}")
    special, common = (TUNING_OF, TUNING) if args.stage == "tune" else (FINAL_OF, FINAL)
    terms = special.get(args.task, common)
    # Stages of the same terms share their runs.
    folder = {"doses": "final", "gate": "final", "pass": "final"}.get(args.stage, args.stage)
    out = (args.out / f"{args.task}-{folder}").resolve()
    only = frozenset(name for name in args.arms.split(",") if name)
    stage = Stage(args.task, replace(terms, seeds=args.seeds or terms.seeds), out, args.jobs, only)
    stages = {"tune": tune, "final": final, "doses": doses, "gate": gate, "continued": continued, "pass": draw}
    {**stages, "rates": equal_rates}[args.stage](stage)


if __name__ == "__main__":
    main()
