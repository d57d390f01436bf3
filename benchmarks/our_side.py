"""One process of the step benchmark: ``sdpo`` as ``selfdistill train`` runs it, step by step with a clock."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from selfdistill.config.run import load_config
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.seeds import derive
from selfdistill.training.build import Parts, assemble
from selfdistill.training.clock import Clock
from selfdistill.training.trainer import StepResult
from selfdistill.types import Completion, RolloutGroup
from workload import (
    CONFIG,
    FixedFeedback,
    Phases,
    SideReport,
    StepSample,
    StepTimer,
    Workload,
    examples_of_step,
    overrides,
    peak_resident,
    resident,
    workload_from,
)


class TimedSampler:
    """A sampler whose time is charged to generation; judging the completions is not."""

    def __init__(self, sampler: Sampler, phases: Phases) -> None:
        self.sampler = sampler
        self.phases = phases

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """The sampler's own."""
        with self.phases.phase("generation"):
            return self.sampler.sample(prompts, params)


def build(workload: Workload) -> Parts:
    """Everything that a run of the shipped config would have."""
    return assemble(load_config(CONFIG, overrides(workload)))


def one_step(parts: Parts, task: FixedFeedback, workload: Workload, step: int) -> StepSample:
    """A step as the training loop makes it: sample, judge, update."""
    examples = examples_of_step(parts.examples, workload, step)
    timer, clock = StepTimer(), Clock()
    with timer.phases.phase("views"):
        params = replace(
            parts.worker.params,
            count=workload.completions,
            max_tokens=workload.max_tokens,
            seed=derive(workload.seed, "sampling", step),
        )
        sampler = TimedSampler(parts.worker.sampler, timer.phases)
        groups = sample_and_verify(examples, task, sampler, parts.chat, params)
    result = parts.trainer.step(groups, step=step + 1, clock=clock)
    for name, seconds in clock.seconds.items():
        timer.phases.seconds[name] = timer.phases.seconds.get(name, 0.0) + seconds
    return timer.sample(work_of(groups, result))


def work_of(groups: Sequence[RolloutGroup], result: StepResult) -> dict[str, float]:
    """How much a step did."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [verdict.reward or 0.0 for group in groups for verdict in group.verdicts]
    return {
        "completions": len(rollouts),
        "completion tokens": sum(len(rollout.completion_ids) for rollout in rollouts),
        "truncated": sum(not rollout.finished for rollout in rollouts),
        "with a teacher": len(result.views),
        "tokens trained": sum(len(view.completion_ids) for view in result.views),
        "student prompt tokens": sum(len(view.prompts["student"]) for view in result.views),
        "teacher prompt tokens": sum(len(view.prompts["teacher"]) for view in result.views),
        "reward": sum(rewards) / len(rewards),
    }


def main(workload: Workload, target: Path) -> None:
    """Warm up, time the steps, and write the report."""
    parts = build(workload)
    task = FixedFeedback(parts.task)
    loaded = resident()
    samples = [one_step(parts, task, workload, step) for step in range(workload.steps)]
    SideReport(loaded, peak_resident(), samples[workload.warmup :]).write(target)


if __name__ == "__main__":
    main(workload_from(sys.argv[1]), Path(sys.argv[2]))
