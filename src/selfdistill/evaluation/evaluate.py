"""How good a model is on problems: avg@k, pass@k, maj@k with intervals, length, truncation, deliberation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.evaluation.statistics import Estimate, average, majority, pass_at
from selfdistill.evaluation.words import deliberation_pattern
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.rollouts import gather_groups, sample_and_verify
from selfdistill.types import Example, RolloutGroup, Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Estimates over problems; lengths in tokens, ``truncated`` a share, ``deliberation`` words per completion.

    The last three are sums over the samples of each problem, in the problems' order: what a paired comparison needs.
    """

    problems: int
    samples: int
    avg: Estimate
    passed: Estimate
    majority: Estimate
    length: float
    truncated: float
    deliberation: float
    hits: tuple[int, ...]
    words: tuple[int, ...]
    tokens: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in ``summary.json`` and ``evaluations.jsonl``."""
        return {
            "problems": self.problems,
            "samples": self.samples,
            "avg": self.avg.as_dict(),
            "pass": self.passed.as_dict(),
            "maj": self.majority.as_dict(),
            "length": self.length,
            "truncated": self.truncated,
            "deliberation": self.deliberation,
            "hits": list(self.hits),
            "words": list(self.words),
            "tokens": list(self.tokens),
        }


def evaluate(
    examples: Sequence[Example],
    task: Task,
    sampler: Sampler,
    chat: Chat,
    params: SamplingParams,
    *,
    thinking: bool | None,
    world: World = ALONE,
) -> Evaluation:
    """Sample ``params.count`` completions of every problem and judge them; the ranks of ``world`` share them."""
    indices = world.shard_indices(len(examples))
    share, params = [examples[i] for i in indices], replace(params, ordinals=indices)
    groups = sample_and_verify(share, task, sampler, chat, params, thinking=thinking)
    return summarise(gather_groups(groups, examples, world), samples=params.count)


def summarise(groups: Sequence[RolloutGroup], *, samples: int) -> Evaluation:
    """Statistics of judged groups; the bootstrap over problems is seeded, so equal groups give equal intervals."""
    correct = [[v.correct for v in group.verdicts] for group in groups]
    answers = [[v.answer for v in group.verdicts] for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    pattern = deliberation_pattern()
    words = tuple(sum(len(pattern.findall(r.text)) for r in group.rollouts) for group in groups)
    tokens = tuple(sum(len(r.completion_ids) for r in group.rollouts) for group in groups)
    return Evaluation(
        problems=len(groups),
        samples=samples,
        avg=average([[float(hit) for hit in row] for row in correct], seed=0),
        passed=pass_at(correct, samples, seed=0),
        majority=majority(answers, correct, seed=0),
        length=sum(tokens) / len(rollouts),
        truncated=sum(not r.finished for r in rollouts) / len(rollouts),
        deliberation=sum(words) / len(rollouts),
        hits=tuple(sum(row) for row in correct),
        words=words,
        tokens=tokens,
    )
