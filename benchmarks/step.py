"""One training step of our ``sdpo`` against TRL's ``SDPOTrainer``: time by phase, peak memory, equal work, equal loss.

    python benchmarks/step.py                    # after `make bench`, or wherever trl can be imported
    python benchmarks/step.py --rounds 1 --timed 2 --out bench-out/step.json

Each side runs in processes of its own, by turns (ours, TRL, ours, TRL, …), on the same model, problems, completions per
problem, limits, sampling and teacher, so that a slow minute of the machine hits both. The ratio is that of the medians
over all timed steps. Processor seconds are given beside wall-clock seconds: they say more on a busy machine. Peak
memory is the highest resident set of a process less its resident set once everything was loaded. This process imports
no torch, because on Linux a child's peak begins at what its parent held.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from processes import ChildFailed, log, origin, run_child, write
from workload import PHASES, SideReport, StepSample, Workload, mean_work

SIDES = {"ours": "our_side.py", "trl": "their_side.py"}
OTHER = "other"
FASTER = 2.5
"""How many times as fast as TRL's step ours is to be."""

LOSS_TOLERANCE = 1e-4
"""float32 sums in another order, through eight layers' worth of rounding: 1e-6 is seen, a wrong shift gives 1e-1."""
WORK_TOLERANCE = 0.1
"""Both sides draw their own completions; the means of several steps of 128 differ by a few per cent."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", default="countdown-base", help="model directory or shipped name (default: %(default)s)")
    add("--prompts", type=int, default=16, help="problems in a step (default: %(default)s)")
    add("--completions", type=int, default=8, help="completions of each (default: %(default)s)")
    add("--max-tokens", type=int, default=120, help="longest completion (default: %(default)s)")
    add("--temperature", type=float, default=1.0, help="of sampling (default: %(default)s)")
    # So small that the completions keep their lengths: the timed steps are all of one kind.
    add("--learning-rate", type=float, default=1e-6, help="of AdamW (default: %(default)s)")
    add("--top-k", type=int, default=100, help="support of the divergence, a tail bin besides (default: %(default)s)")
    add("--teacher-rate", type=float, default=0.05, help="rate of the averaged teacher (default: %(default)s)")
    add("--clip-norm", type=float, default=1.0, help="gradient norm to clip at (default: %(default)s)")
    add("--their-batch", type=int, help="completions in one backward pass of TRL (default: all, its fastest)")
    add("--our-tokens", type=int, help="tokens in one of our micro-batches (default: the shipped config's)")
    add("--rounds", type=int, default=3, help="processes of each side (default: %(default)s)")
    add("--warmup", type=int, default=3, help="untimed steps of a process (default: %(default)s)")
    add("--timed", type=int, default=6, help="timed steps of a process (default: %(default)s)")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of a process (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the first round (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/step.json)")
    return parser.parse_args(arguments)


def workload_of(options: argparse.Namespace, seed: int) -> Workload:
    """The workload of one round."""
    given = {field.name: getattr(options, field.name) for field in fields(Workload)}
    batch = options.their_batch or options.prompts * options.completions
    return Workload(**{**given, "seed": seed, "their_batch": batch})


def measure(options: argparse.Namespace) -> dict[str, list[SideReport]]:
    """Both sides by turns."""
    reports: dict[str, list[SideReport]] = {side: [] for side in SIDES}
    for n in range(options.rounds):
        for side, script in SIDES.items():
            report = SideReport.parse(_run(script, options, options.seed + n))
            reports[side].append(report)
            log(f"round {n + 1} of {options.rounds}, {side}: {median(s.seconds for s in report.samples):.3f} s a step")
    return reports


def summary(reports: Sequence[SideReport]) -> dict[str, Any]:
    """Medians of one side over all timed steps, memory as the largest of its processes."""
    samples = [sample for report in reports for sample in report.samples]
    phases = {name: median(sample.phases.get(name, 0.0) for sample in samples) for name in PHASES}
    phases[OTHER] = median(_rest(sample) for sample in samples)
    return {
        "seconds": median(sample.seconds for sample in samples),
        "cpu_seconds": median(sample.cpu_seconds for sample in samples),
        "phases": phases,
        "memory_mib": {
            "loaded": max(report.loaded for report in reports),
            "peak": max(report.peak for report in reports),
            "added": max(report.peak - report.loaded for report in reports),
        },
        "work": mean_work(samples),
        "seconds_by_round": [median(sample.seconds for sample in report.samples) for report in reports],
    }


def _rest(sample: StepSample) -> float:
    return sample.seconds - sum(sample.phases.get(name, 0.0) for name in PHASES)


def checks_of(sides: dict[str, Any], agreement: dict[str, float]) -> dict[str, bool]:
    """What must hold for the ratio to mean anything, and the two promises."""
    ours, theirs = sides["ours"], sides["trl"]
    same = ("completions", "with a teacher")
    near = ("completion tokens", "tokens trained", "student prompt tokens", "teacher prompt tokens")
    return {
        "same completions, all with a teacher": all(ours["work"][k] == theirs["work"][k] for k in same),
        f"same work within {WORK_TOLERANCE:.0%}": all(
            abs(ours["work"][k] - theirs["work"][k]) <= WORK_TOLERANCE * theirs["work"][k] for k in near
        ),
        "same teacher prompts, token by token": agreement["different teacher prompts"] == 0,
        f"same loss within {LOSS_TOLERANCE:g}": agreement["relative difference of the losses"] <= LOSS_TOLERANCE,
        f"same gradient within {LOSS_TOLERANCE:g}": agreement["relative difference of the gradients"] <= LOSS_TOLERANCE,
        f"at least {FASTER} times as fast": theirs["seconds"] >= FASTER * ours["seconds"],
        "no more peak memory": ours["memory_mib"]["added"] <= theirs["memory_mib"]["added"],
    }


def result_of(
    options: argparse.Namespace, reports: dict[str, list[SideReport]], agreement: dict[str, float]
) -> dict[str, Any]:
    """Everything that the benchmark found, without the machine's name or paths."""
    sides = {side: summary(found) for side, found in reports.items()}
    workload = asdict(workload_of(options, options.seed))
    workload["model"] = Path(workload["model"]).name
    by_round = zip(sides["trl"]["seconds_by_round"], sides["ours"]["seconds_by_round"], strict=True)
    return {
        **origin(options.threads),
        "rounds": options.rounds,
        "workload": workload,
        "ratio": {
            "seconds": sides["trl"]["seconds"] / sides["ours"]["seconds"],
            "cpu_seconds": sides["trl"]["cpu_seconds"] / sides["ours"]["cpu_seconds"],
            "seconds_by_round": [theirs / ours for theirs, ours in by_round],
            "memory": sides["trl"]["memory_mib"]["added"] / max(1.0, sides["ours"]["memory_mib"]["added"]),
        },
        "sides": sides,
        "agreement": agreement,
        "checks": checks_of(sides, agreement),
    }


def table(result: dict[str, Any]) -> str:
    """The result for the terminal."""
    ours, theirs = result["sides"]["ours"], result["sides"]["trl"]
    lines = [f"{'':32}{'selfdistill':>14}{'TRL':>14}{'ratio':>9}"]

    def row(name: str, a: float, b: float, *, digits: int = 3) -> None:
        ratio = f"{b / a:9.2f}" if a > 0 else f"{'':9}"
        lines.append(f"{name:32}{a:14.{digits}f}{b:14.{digits}f}{ratio}")

    for name in (*PHASES, OTHER):
        row(f"  {name}, s", ours["phases"][name], theirs["phases"][name])
    row("a step, s", ours["seconds"], theirs["seconds"])
    row("a step, processor s", ours["cpu_seconds"], theirs["cpu_seconds"])
    for name in ("loaded", "peak", "added"):
        row(f"memory, {name}, MiB", ours["memory_mib"][name], theirs["memory_mib"][name], digits=0)
    for name in ours["work"]:
        row(name, ours["work"][name], theirs["work"][name], digits=2 if name == "reward" else 0)
    mean = [side["work"]["completion tokens"] / side["work"]["completions"] for side in (ours, theirs)]
    row("tokens a completion", *mean, digits=1)
    lines += ["", "on one batch of TRL's completions:"]
    lines += [f"  {name:46}{value:.7g}" for name, value in result["agreement"].items()]
    lines += ["", *(f"{'yes' if held else 'NO ':4}{name}" for name, held in result["checks"].items())]
    spread = ", ".join(f"{ratio:.2f}" for ratio in result["ratio"]["seconds_by_round"])
    lines += ["", f"{result['ratio']['seconds']:.2f} times as fast as TRL (by round: {spread})"]
    return "\n".join(lines)


def _run(script: str, options: argparse.Namespace, seed: int) -> str:
    try:
        return run_child(script, asdict(workload_of(options, seed)), options.threads)
    except ChildFailed as error:
        raise SystemExit(str(error)) from error


def main() -> None:
    """Measure, print, write."""
    if importlib.util.find_spec("trl") is None:
        raise SystemExit("trl cannot be imported: `make bench` installs it, or `pip install 'selfdistill[bench]'`.")
    options = parse()
    batch = options.their_batch or options.prompts * options.completions
    if (options.prompts * options.completions) % batch or batch % options.completions:
        raise SystemExit("--their-batch must divide the completions of a step and be a multiple of --completions")
    agreement = json.loads(_run("agreement.py", options, options.seed))
    log("agreement checked")
    result = result_of(options, measure(options), agreement)
    write(result, "step", options.out)
    print(table(result))


if __name__ == "__main__":
    main()
