"""What a method's further contexts cost: a whole step of each method over the step of GRPO, sampling included.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --rounds 1 --cases short --methods antisd sdpo --out bench-out/overhead.json

Everything runs in one process, by turns: in every round each method makes a step on the same problems, in a drawn
order, under weights that stand still, with the same seed, so that all of them train on the same completions. A ratio is
the median over rounds of a method's step over GRPO's in the same round; sampling the same tokens is the same work for
all methods, so its time in a round is the median over them. In the cases ``long`` and ``few`` completions never stop
and are eight or four at a time, so that sampling dominates: on a CPU many rows are decoded almost as cheaply as they
are scored. The share of sampling is printed, because the ratios follow from it. Every completion has a context, by
feedback that is known beforehand. A method that samples from its teacher too draws as many completions in all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch

from our_side import TimedSampler
from processes import log, origin, write
from selfdistill.config.run import load_config
from selfdistill.methods import METHODS
from selfdistill.sampling.hf import HFSampler
from selfdistill.sampling.rollouts import RolloutWorker
from selfdistill.seeds import derive
from selfdistill.training.build import Parts, assemble
from selfdistill.training.clock import Clock
from selfdistill.types import STUDENT
from workload import FixedFeedback, StepSample, StepTimer

BASELINE = "grpo"
MODEL = "countdown-base"
LONG_BARS = {"antisd": 1.10, "sdpo": 1.10, "credit": 1.15, "purified": 1.20}
BARS: Mapping[str, Mapping[str, float]] = {
    "short": {"antisd": 1.25, "sdpo": 1.25, "credit": 1.40, "purified": 1.50},
    "long": LONG_BARS,
    "few": LONG_BARS,
}
LONG = 1024
"""Tokens of each completion in the cases that are not ``short``."""
ROWS: Mapping[str, Mapping[str, int]] = {
    "short": {},
    "long": {"prompts": 2, "completions": 4},
    "few": {"prompts": 2, "completions": 2},
}
"""Problems of a step and completions of each where they are not the options'."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A method ready to make steps."""

    parts: Parts
    worker: RolloutWorker


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    known = [name for name, method in METHODS.items() if method.on_policy and name != BASELINE]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cases", nargs="+", default=list(BARS), choices=list(BARS), help="(default: %(default)s)")
    add("--methods", nargs="+", default=known, choices=known, help="beside GRPO (default: all that sample)")
    add("--prompts", type=int, default=8, help="problems in a step of the short case (default: %(default)s)")
    add("--completions", type=int, default=8, help="completions of each there (default: %(default)s)")
    add("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the first round (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/overhead.json)")
    return parser.parse_args(arguments)


@contextmanager
def model_of(case: str) -> Iterator[str]:
    """The shipped model; for long completions with a window that holds them and their prompts."""
    if case == "short":
        yield MODEL
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        resources.as_file(resources.files("selfdistill.models") / "shipped") as models,
    ):
        target = Path(folder) / MODEL
        shutil.copytree(models / MODEL, target)
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
        config["max_position_embeddings"] = 4 * LONG
        (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield str(target)


def build(method: str, case: str, model: str, options: argparse.Namespace) -> Arm:
    """The shipped config of a method with weights that stand still."""
    sources = len(METHODS[method]().sampling_roles())
    pairs = {
        "model.path": model,
        "seed": options.seed,
        "sampling.prompts": options.prompts,
        "sampling.completions": max(1, options.completions // sources),
        # AdamW moves each weight by about this much: no float32 of the model changes.
        "optimiser.learning_rate": 1e-12,
        **({"sampling.max_tokens": LONG} if case != "short" else {}),
    }
    parts = assemble(
        load_config(f"countdown-{method.replace('_', '-')}", [f"{key}={value}" for key, value in pairs.items()])
    )
    if case != "short" and isinstance(parts.worker.sampler, HFSampler):
        parts.worker.sampler.stop_ids = ()
        parts.chat.stop_ids = ()
    return Arm(parts, replace(parts.worker, task=FixedFeedback(parts.task)))


def one_step(arm: Arm, options: argparse.Namespace, number: int) -> StepSample:
    """Sample, judge, update."""
    first = number * options.prompts
    examples = [arm.parts.examples[(first + i) % len(arm.parts.examples)] for i in range(options.prompts)]
    timer, clock = StepTimer(), Clock()
    with timer.phases.phase("views"):
        sampler = TimedSampler(arm.worker.sampler, timer.phases)
        worker = replace(arm.worker, sampler=sampler)
        groups = worker.rollout(examples, seed=derive(options.seed, "sampling", number), version=number)
    result = arm.parts.trainer.step(groups, step=number + 1, clock=clock)
    for name, seconds in clock.seconds.items():
        timer.phases.seconds[name] = timer.phases.seconds.get(name, 0.0) + seconds
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return timer.sample(
        {
            "completions": len(rollouts),
            "completion tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
            "tokens trained": sum(len(view.completion_ids) for view in result.views),
            "contexts scored": sum(len(view.prompts) for view in result.views),
            "their prompts' tokens": sum(len(ids) for view in result.views for ids in view.prompts.values()),
        }
    )


def measure(case: str, options: argparse.Namespace) -> dict[str, list[StepSample]]:
    """Timed steps of every method, by turns; the first round is not counted."""
    found: dict[str, list[StepSample]] = {name: [] for name in (BASELINE, *options.methods)}
    options = argparse.Namespace(**{**vars(options), **ROWS[case]})
    with model_of(case) as model:
        arms = {name: build(name, case, model, options) for name in found}
        for number in range(options.rounds + 1):
            # Whoever comes first in a round is slower by some per cent; it is another one each time.
            for name in random.Random(number).sample(list(arms), len(arms)):
                sample = one_step(arms[name], options, number)
                if number:
                    found[name].append(sample)
            log(f"{case}: round {number} of {options.rounds}")
    return found


def alike(samples: Mapping[str, StepSample]) -> dict[str, StepSample]:
    """A round's steps by method, with one time of sampling for all whose completions are the student's alone."""
    same = [name for name in samples if set(METHODS[name]().sampling_roles()) == {STUDENT}]
    drawn = {(samples[name].work["completions"], samples[name].work["completion tokens"]) for name in same}
    if len(drawn) > 1:
        raise SystemExit(f"methods drew differently from the same seed: {drawn}")
    typical = median(samples[name].phases["generation"] for name in same)
    evened = dict(samples)
    for name in same:
        rest = samples[name].seconds - samples[name].phases["generation"]
        evened[name] = replace(samples[name], seconds=rest + typical)
    return evened


def summary(case: str, found: Mapping[str, Sequence[StepSample]]) -> list[dict[str, Any]]:
    """A row a method: its ratio by round, its phases, its work, and the bar if there is one."""
    rows = []
    rounds = [alike(dict(zip(found, samples, strict=True))) for samples in zip(*found.values(), strict=True)]
    for name, samples in found.items():
        pairs = list(zip(samples, found[BASELINE], strict=True))
        wall = [evened[name].seconds / evened[BASELINE].seconds for evened in rounds]
        bar = BARS[case].get(name)
        rows.append(
            {
                "method": name,
                "seconds": median(sample.seconds for sample in samples),
                "ratio": median(wall),
                "ratio_by_round": wall,
                "ratio_as_timed": median(mine.seconds / base.seconds for mine, base in pairs),
                "ratio_of_processor_seconds": median(mine.cpu_seconds / base.cpu_seconds for mine, base in pairs),
                "phases": {
                    phase: median(sample.phases.get(phase, 0.0) for sample in samples) for phase in samples[0].phases
                },
                "sampling_share": median(sample.phases.get("generation", 0.0) / sample.seconds for sample in samples),
                "work": {key: median(sample.work[key] for sample in samples) for key in samples[0].work},
                "most": bar,
                "reached": None if bar is None else median(wall) <= bar,
            }
        )
    return rows


def table(case: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for the terminal."""
    mean = rows[0]["work"]["completion tokens"] / rows[0]["work"]["completions"]
    lines = [f"{case}: {mean:.0f} tokens a completion, sampling is {rows[0]['sampling_share']:.0%} of GRPO's step"]
    lines.append(f"{'':14}{'s':>8}{'sampling':>10}{'teacher':>9}{'student':>9}{'ratio':>8}{'processor':>11}{'bar':>7}")
    for row in rows:
        phases = [row["phases"].get(name, 0.0) for name in ("generation", "teacher", "student")]
        lines.append(
            f"{row['method']:14}{row['seconds']:8.2f}{phases[0]:10.2f}{phases[1]:9.2f}{phases[2]:9.2f}{row['ratio']:8.3f}"
            f"{row['ratio_of_processor_seconds']:11.3f}"
            + (f"{row['most']:7.2f} {'yes' if row['reached'] else 'NO'}" if row["most"] else "")
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(options.threads)
    cases = {case: summary(case, measure(case, options)) for case in options.cases}
    settings = {name: getattr(options, name) for name in ("prompts", "completions", "rounds", "seed")}
    write({**origin(options.threads), "model": MODEL, **settings, "cases": cases}, "overhead", options.out)
    print("\n\n".join(table(case, rows) for case, rows in cases.items()))


if __name__ == "__main__":
    main()
