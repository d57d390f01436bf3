"""What is evaluated beside a run's own task: other tasks, and general prompts and texts. It shows what is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.config.evaluation import AlsoTask, EvaluationConfig
from selfdistill.config.sections import Limits, SamplingConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import UserError
from selfdistill.evaluation.evaluate import evaluate, evaluation_params, problem_set
from selfdistill.evaluation.general import GeneralScorer, in_nats, load_general
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.evaluation.statistics import paired_difference
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.rollouts import fitting, fitting_solutions
from selfdistill.tasks.build import build_task, fitted
from selfdistill.types import Example, RolloutGroup, Task, Weights


@dataclass(frozen=True, slots=True)
class OtherTask:
    """Another task with its held-out problems; ``samples`` None: as many as of the run's own."""

    name: str
    task: Task
    examples: list[Example]
    samples: int | None
    unfit: Counter[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Also:
    """The other tasks and the general set of a config, ready to be measured."""

    tasks: tuple[OtherTask, ...]
    general: Mapping[str, GeneralScorer]
    chat: Chat
    params: SamplingParams
    thinking: bool | None
    references: ReferenceScorer
    """Scores the references of tasks that nothing judges."""
    world: World = ALONE

    def __bool__(self) -> bool:
        return bool(self.tasks or self.general)

    def describe(self) -> str:
        """Return what is evaluated in one line: ``"gsm8k (64 problems), general"``."""
        return ", ".join([*(f"{one.name} ({len(one.examples):,} problems)" for one in self.tasks), *self.general])

    def measure(self, sampler: Sampler, *, before: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """Return the results by name, as plain JSON.

        ``before`` is the evaluation before training, with its own ``also``: each result then has ``change``, the paired
        difference since then of every measure that both have, with its interval. Every rank must call.
        """
        results = {other.name: self._answer(other, sampler) for other in self.tasks}
        for name, scorer in self.general.items():
            results[name] = scorer.measure()
        for name, result in results.items():
            earlier = values_of((before or {}).get("also", {}).get(name, {}))
            shared = {key: values for key, values in values_of(result).items() if key in earlier}
            if shared:
                result["change"] = {
                    key: paired_difference(earlier[key], values, k=1, seed=0).as_dict()
                    for key, values in shared.items()
                }
        return results

    def _answer(self, other: OtherTask, sampler: Sampler) -> dict[str, Any]:
        """A task's evaluation, or how likely its references are where nothing is judged: then nothing is sampled."""
        if not other.task.has_verifier:
            groups = [RolloutGroup(example, (), ()) for example in other.examples]
            likelihoods = self.references.values(groups)
            about = {"problems": len(groups), "unfit": dict(other.unfit), "problem_set": problem_set(other.examples)}
            return in_nats(likelihoods) | about
        evaluation = evaluate(
            other.examples,
            other.task,
            sampler,
            self.chat,
            replace(self.params, count=other.samples or self.params.count),
            thinking=self.thinking,
            world=self.world,
        )
        return evaluation.to_json() | {"unfit": dict(other.unfit)}


def values_of(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """The numbers of each problem, text or answer of a result by measure, from which its differences are taken.

    A task that is judged has ``accuracy``, one that is not ``loglikelihood``; the general set has ``loglikelihood``
    and, where the start is known, ``kl``.
    """
    if result.get("hits") is not None:
        return {"accuracy": [hits / result["samples"] for hits in result["hits"]]}
    return dict(result.get("each", {}))


def build_also(
    config: EvaluationConfig,
    sampling: SamplingConfig,
    *,
    split: str,
    seed: int,
    teachers: Teachers,
    start: Weights | None,
    chat: Chat,
    limits: Limits,
    world: World = ALONE,
) -> Also:
    """Build the tasks of ``evaluation.also`` and choose their problems.

    ``start`` are the weights before training, None if they are not known. One of the sections names ``max_tokens``.

    Raises:
        UserError: a task cannot be built, or nothing of an entry fits the context window; the message names the entry.
    """
    thinking = config.thinking_after(sampling.thinking)
    max_tokens = config.max_tokens or sampling.max_tokens
    assert max_tokens is not None
    tasks, general = list[OtherTask](), dict[str, GeneralScorer]()
    for entry in config.also:
        try:
            if not isinstance(entry, AlsoTask):
                general[entry.name] = GeneralScorer(
                    chosen=load_general(entry),
                    teachers=teachers,
                    start=start,
                    chat=chat,
                    limits=limits,
                    thinking=thinking,
                    world=world,
                )
                # A window that is too small is refused here, before a run's folder is made.
                general[entry.name].views()
                continue
            task = fitted(build_task(entry.task, seed=seed, reward=None), chat)
            problems = task.examples(split)[: entry.problems or config.problems]
            # Where nothing judges, nothing is sampled: the references are scored, and have to fit instead.
            examples, unfit = (
                fitting(problems, chat, max_tokens=max_tokens, thinking=thinking)
                if task.has_verifier
                else fitting_solutions(problems, chat, thinking=thinking)
            )
            tasks.append(OtherTask(entry.name, task, examples, entry.samples, unfit))
        except UserError as error:
            raise type(error)(f"evaluation.also, {entry.name}: {error}") from error
    return Also(
        tasks=tuple(tasks),
        general=general,
        chat=chat,
        params=evaluation_params(config, max_tokens=max_tokens, seed=seed),
        thinking=thinking,
        references=ReferenceScorer(
            teachers=teachers, chat=chat, limits=limits, thinking=thinking, templates={}, world=world
        ),
        world=world,
    )
