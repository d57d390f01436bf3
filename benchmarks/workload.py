"""What both sides of the step benchmark do: the same problems, the same limits, the same feedback, one report each.

The two trainers differ in where feedback comes from: here the verifier speaks about the completion, there a column of
the data set holds a text that was written before sampling. ``FixedFeedback`` gives both the second kind, so that every
completion has a teacher on both sides and the same tokens are trained.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.types import Example, Task, Verdict

CONFIG = "countdown-sdpo"
"""The shipped config that both sides follow where the workload says nothing else."""

PHASES = ("generation", "views", "teacher", "student", "update")
"""Sampling; rewards and teacher prompts; the teacher's forward; the student's forward, loss and backward; the optimiser
and the averaged teacher. What is left of a step is "other"."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One setting of the benchmark, the same for both sides."""

    model: str
    prompts: int
    completions: int
    max_tokens: int
    temperature: float
    learning_rate: float
    top_k: int
    teacher_rate: float
    clip_norm: float
    warmup: int
    timed: int
    seed: int
    their_batch: int
    """Completions in one backward pass of TRL."""
    our_tokens: int | None
    """Token budget of our micro-batches; None: what the shipped config says."""

    @property
    def rows(self) -> int:
        """Completions in a step."""
        return self.prompts * self.completions

    @property
    def steps(self) -> int:
        """Steps of a process, warm-up included."""
        return self.warmup + self.timed


@dataclass(frozen=True, slots=True)
class StepSample:
    """One timed step: wall-clock and processor seconds, phases that do not overlap, and how much work it was."""

    seconds: float
    cpu_seconds: float
    phases: Mapping[str, float]
    work: Mapping[str, float]


@dataclass(slots=True)
class SideReport:
    """What one process measured. Memory in MiB of resident set: after loading, and the highest until the end."""

    loaded: float
    peak: float
    samples: list[StepSample] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Leave the report where the parent process looks for it."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def parse(cls, text: str) -> SideReport:
        """What :meth:`write` wrote."""
        raw = json.loads(text)
        return cls(raw["loaded"], raw["peak"], [StepSample(**sample) for sample in raw["samples"]])


class Phases:
    """Seconds by phase; time in an inner phase is not counted in the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to ``name``."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


class StepTimer:
    """Wall-clock and processor time of a step."""

    def __init__(self) -> None:
        self.phases = Phases()
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def sample(self, work: Mapping[str, float]) -> StepSample:
        """The step that ends now."""
        seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return StepSample(seconds, cpu, dict(self.phases.seconds), work)


class FixedFeedback:
    """A task whose feedback is known before sampling: what the verifier says of one wrong answer to the problem."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = task.name
        self.contexts = task.contexts
        self.has_verifier = task.has_verifier

    def examples(self, split: str) -> Sequence[Example]:
        """The task's own."""
        return self.task.examples(split)

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """The task's own reward, with the problem's fixed feedback."""
        return replace(self.task.verify(example, text, finished=finished), feedback=self.feedback(example))

    def feedback(self, example: Example) -> str:
        """The verifier's sentence about the sum of all numbers, or about their difference where the sum is right."""
        numbers = [str(number) for number in example.columns["numbers"]]
        for sign in (" + ", " - "):
            verdict = self.task.verify(example, f"answer {sign.join(numbers)}", finished=True)
            if verdict.feedback:
                return verdict.feedback
        raise ValueError(f"no wrong answer found for {example.id}")


def overrides(workload: Workload) -> list[str]:
    """The workload as ``key=value`` pairs for the shipped config."""
    pairs: dict[str, Any] = {
        "model.path": workload.model,
        "seed": workload.seed,
        "method.teacher_rate": workload.teacher_rate,
        "method.divergence": f'{{kind = "jensen_shannon", support = {{kind = "top_k", k = {workload.top_k}}}}}',
        "sampling.prompts": workload.prompts,
        "sampling.completions": workload.completions,
        "sampling.max_tokens": workload.max_tokens,
        "sampling.temperature": workload.temperature,
        "optimiser.learning_rate": workload.learning_rate,
        "optimiser.clip_norm": workload.clip_norm,
    }
    if workload.our_tokens is not None:
        pairs["limits.max_tokens_per_microbatch"] = workload.our_tokens
    return [f"{key}={value}" for key, value in pairs.items()]


def examples_of_step(examples: Sequence[Example], workload: Workload, step: int) -> list[Example]:
    """The problems of a step (from 0), the same on both sides; the data starts over when it runs out."""
    first = step * workload.prompts
    return [examples[i % len(examples)] for i in range(first, first + workload.prompts)]


def mean_work(samples: Sequence[StepSample]) -> dict[str, float]:
    """Mean of every work count over steps."""
    return {name: fmean(sample.work[name] for sample in samples) for name in samples[0].work}


def resident() -> float:
    """Resident set of this process now, in MiB; where the system does not tell, the highest so far."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return peak_resident()
    return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


def peak_resident() -> float:
    """The highest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes everywhere but on macOS, which counts bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def workload_from(text: str) -> Workload:
    """The workload that the parent process wrote as JSON on the command line."""
    return Workload(**json.loads(text))
