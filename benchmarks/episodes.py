"""Episodes a second beside single answers, and beside episodes of which every turn is read from the start.

    python benchmarks/episodes.py
    python benchmarks/episodes.py --tasks toolbox --problems 2 --completions 2 --rounds 1 --out episodes.json

The shipped models answer the same problems once, and in turns; prompts, seeds and limits are the same for episodes of
both ways. The engine is the run's own model. Each round times all three in random order, with the environments'
replies. A ratio is the median over rounds of two rates of the same round.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from processes import log, origin, write
from selfdistill.contexts.chat import Chat
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.tasks.countdown.task import CountdownTask
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.tasks.toolbox.task import ToolboxTask
from selfdistill.tasks.toolbox.turns import ToolboxTurnsTask
from selfdistill.types import RolloutGroup

TASKS: dict[str, tuple[str, Callable[[], Any], Callable[[], Any], int]] = {
    "countdown": ("countdown-base", CountdownTask, CountdownTurnsTask, 256),
    "toolbox": ("toolbox-turns-base", ToolboxTask, ToolboxTurnsTask, 96),
}
"""Model, single answers, episodes, and the most tokens of an answer or a turn."""
SINGLE, KEPT, AGAIN = "single answers", "episodes", "episodes, read again every turn"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    add("--problems", type=int, default=8, help="problems at once (default: %(default)s)")
    add("--completions", type=int, default=8, help="answers or episodes of each (default: %(default)s)")
    add("--rounds", type=int, default=5, help="timed rounds after one that is not counted (default: %(default)s)")
    add("--threads", type=int, default=2, help="threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="of what is sampled and of the order (default: %(default)s)")
    add("--out", type=Path, help="where the JSON goes (default: benchmarks/results/episodes.json)")
    return parser.parse_args(arguments)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Rates of one task in every round, and what was sampled."""
    base, single, turns, max_tokens = TASKS[name]
    policy, chat = load_policy(base, dtype=torch.float32, device=torch.device("cpu"))
    tasks = {SINGLE: single(), KEPT: turns(), AGAIN: turns()}
    params = SamplingParams(count=options.completions, max_tokens=max_tokens, seed=options.seed)
    order, rounds = random.Random(options.seed), list[dict[str, float]]()
    said: dict[str, dict[str, float]] = {}
    for n in range(options.rounds + 1):
        seconds: dict[str, float] = {}
        for way in order.sample(list(tasks), len(tasks)):
            policy.continues = way != AGAIN
            began = time.perf_counter()
            groups = played(policy, chat, tasks[way], params, options.problems)
            seconds[way] = time.perf_counter() - began
            said[way] = spoken(groups)
        log(f"{name}, round {n}: " + ", ".join(f"{way} {taken:.2f} s" for way, taken in seconds.items()))
        rounds += [seconds] if n else []
    assert said[KEPT] == said[AGAIN], "both ways play the same episodes"
    return {"model": base, "max_tokens": max_tokens, "seconds": rounds, "said": said}


def played(policy: Policy, chat: Chat, task: Any, params: SamplingParams, problems: int) -> list[RolloutGroup]:
    """The completions or episodes of the first training problems."""
    examples = task.examples("train")[:problems]
    return sample_and_verify(examples, task, policy_sampler(policy, chat), chat, params)


def spoken(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Rows, turns, and tokens of the model's own and of all."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "rows": len(rollouts),
        "turns": sum(len(rollout.episode.turns) if rollout.episode else 1 for rollout in rollouts),
        "own": sum(len(rollout.completion_ids) for rollout in rollouts),
        "all": sum(len(rollout.prompt_ids) + len(rollout.ids_after_prompt) for rollout in rollouts),
    }


def ratio(rounds: Sequence[dict[str, float]], way: str, other: str) -> float:
    """How many times as many rows a second one way has as another, the median over rounds."""
    return median(seconds[other] / seconds[way] for seconds in rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the result."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    shape = {name: getattr(options, name) for name in ("problems", "completions", "rounds")}
    tasks = {name: measure(name, options) for name in options.tasks}
    for found in tasks.values():
        found["ratios"] = {other: ratio(found["seconds"], KEPT, other) for other in (SINGLE, AGAIN)}
    write({**origin(options.threads), **shape, "tasks": tasks}, "episodes", options.out)


if __name__ == "__main__":
    main()
