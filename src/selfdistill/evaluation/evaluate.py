"""Evaluation of a model on problems: success and mean reward with intervals, length, truncation, deliberation."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfdistill.config.evaluation import EvaluationConfig
from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.evaluation.statistics import Estimate, average, bootstrap, majority, pass_curve
from selfdistill.evaluation.words import count_markers, deliberation_pattern
from selfdistill.sampling.base import Sampler, SamplingParams
from selfdistill.sampling.rollouts import gather_groups, sample_and_verify
from selfdistill.seeds import derive
from selfdistill.tasks.reward import function_rewards
from selfdistill.tracking.progress import activity
from selfdistill.types import Example, RolloutGroup, Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Estimates over problems. ``length`` is in tokens, ``truncated`` a share, ``deliberation`` words per completion.

    ``judged`` counts completions with a reward. Without one the three accuracies, ``reward`` and ``hits`` are None;
    beside judged ones, an unjudged completion counts as wrong, and has no part in ``reward``, the mean over the judged
    completions of each problem that has one. ``rewards`` are the means of single functions. ``entropy`` is in nats per
    token, estimated from the completions; None if they were not sampled from the model's own distribution. ``curve`` is
    pass@k for k = 1, 2, 4 … up to the samples, of which ``passed`` is the last; ``markers`` counts each deliberation
    word over all completions. ``hits``, ``words`` and ``tokens`` are sums over the samples of each problem, in order,
    for paired comparisons, and ``earned`` is the mean reward of each, None where no sample is judged. ``problem_set``
    names these problems in this order. ``majority`` is None where no completion has an answer to vote with.
    """

    problems: int
    samples: int
    judged: int
    avg: Estimate | None
    passed: Estimate | None
    curve: tuple[Estimate, ...] | None
    majority: Estimate | None
    reward: Estimate | None
    rewards: Mapping[str, float]
    length: float
    truncated: float
    entropy: float | None
    deliberation: float
    markers: Mapping[str, int]
    hits: tuple[int, ...] | None
    earned: tuple[float | None, ...] | None
    words: tuple[int, ...]
    tokens: tuple[int, ...]
    problem_set: str
    references: Mapping[str, Estimate] = field(default_factory=dict)
    """``loglikelihood``, ``teacher_gap`` and ``teacher_shift`` of a :class:`ReferenceScorer`, if there was one."""
    turns: Estimate | None = None
    """Mean number of turns of an episode; None for single answers."""
    episode_tokens: Estimate | None = None
    """Mean number of the model's own tokens of an episode; None for single answers."""
    tool_errors: Estimate | None = None
    """Mean number of turns of an episode that were answered with an error; None if the environment does not say."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Why the episodes ended: counts by reason."""

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON, as in ``summary.json`` and ``evaluations.jsonl``."""
        return {
            "problems": self.problems,
            "samples": self.samples,
            "judged": self.judged,
            "avg": self.avg and self.avg.as_dict(),
            "pass": self.passed and self.passed.as_dict(),
            "pass_curve": self.curve and [estimate.as_dict() for estimate in self.curve],
            "maj": self.majority and self.majority.as_dict(),
            "reward": self.reward and self.reward.as_dict(),
            "rewards": dict(self.rewards),
            **{name: estimate.as_dict() for name, estimate in self.references.items()},
            "length": self.length,
            "truncated": self.truncated,
            "entropy": self.entropy,
            "deliberation": self.deliberation,
            "markers": dict(self.markers),
            "hits": None if self.hits is None else list(self.hits),
            "earned": None if self.earned is None else list(self.earned),
            "words": list(self.words),
            "tokens": list(self.tokens),
            "problem_set": self.problem_set,
            **self._of_episodes(),
        }

    def _of_episodes(self) -> dict[str, Any]:
        """What only episodes have."""
        named = {"turns": self.turns, "episode_tokens": self.episode_tokens, "tool_errors": self.tool_errors}
        estimates = {name: estimate.as_dict() for name, estimate in named.items() if estimate is not None}
        return {**estimates, "ended": dict(self.ended)} if estimates else {}


def evaluate(
    examples: Sequence[Example],
    task: Task,
    sampler: Sampler,
    chat: Chat,
    params: SamplingParams,
    *,
    thinking: bool | None,
    world: World = ALONE,
    references: ReferenceScorer | None = None,
) -> Evaluation:
    """Sample ``params.count`` completions per problem, verify them and return the statistics.

    The ranks of ``world`` share the problems. Every rank returns the evaluation of all problems. ``references`` also
    scores the problems' references.
    """
    indices = world.shard_indices(len(examples))
    share, params = [examples[i] for i in indices], replace(params, ordinals=indices)
    with activity("evaluating"):
        groups = sample_and_verify(share, task, sampler, chat, params, thinking=thinking, world=world)
    # At another temperature, or from a nucleus, the mean of −log p is no estimate of the entropy.
    plain = params.temperature == 1 and params.top_p == 1 and not params.top_k
    groups = gather_groups(groups, examples, world)
    evaluation = summarise(groups, samples=params.count, plain=plain)
    return evaluation if references is None else replace(evaluation, references=references.measure(groups))


def evaluation_params(config: EvaluationConfig, *, max_tokens: int, seed: int) -> SamplingParams:
    """How a config's evaluations sample. ``max_tokens`` is the limit where the config has none, ``seed`` the run's."""
    return SamplingParams(
        count=config.samples,
        max_tokens=config.max_tokens or max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=derive(seed, "evaluation"),
    )


def summarise(groups: Sequence[RolloutGroup], *, samples: int, plain: bool) -> Evaluation:
    """Return the statistics of verified groups. The bootstrap is seeded, so equal groups have equal intervals.

    ``plain`` says that the completions were sampled at temperature 1 from all tokens, and so estimate the entropy.
    """
    judged = sum(verdict.reward is not None for group in groups for verdict in group.verdicts)
    correct = [[v.correct for v in group.verdicts] for group in groups]
    answers = [[v.answer for v in group.verdicts] for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewarded = [[v.reward for v in group.verdicts if v.reward is not None] for group in groups]
    earned = tuple(math.fsum(row) / len(row) if row else None for row in rewarded)
    means = [mean for mean in earned if mean is not None]
    by_function: dict[str, list[float]] = {}
    for verdict in (verdict for group in groups for verdict in group.verdicts):
        for name, reward in function_rewards(verdict).items():
            by_function.setdefault(name, []).append(reward)
    pattern = deliberation_pattern()
    words = tuple(sum(len(pattern.findall(r.text)) for r in group.rollouts) for group in groups)
    tokens = tuple(sum(len(r.completion_ids) for r in group.rollouts) for group in groups)
    hits = tuple(sum(row) for row in correct)
    # Rounded, because the last digits of a log-probability depend on the batch that it was computed in.
    known = plain and sum(tokens) > 0
    entropy = round(-math.fsum(p for r in rollouts for p in r.logprobs) / sum(tokens), 4) if known else None
    curve = tuple(pass_curve(correct, seed=0)) if judged else None
    return Evaluation(
        problems=len(groups),
        samples=samples,
        judged=judged,
        avg=average([[float(hit) for hit in row] for row in correct], seed=0) if judged else None,
        passed=curve[-1] if curve else None,
        curve=curve,
        # Without any answer, as under a reward function over free text, there is nothing to vote with.
        majority=majority(answers, correct, seed=0) if judged and any(set(row) - {None} for row in answers) else None,
        reward=bootstrap(means, k=samples, seed=0) if means else None,
        rewards={name: math.fsum(given) / len(given) for name, given in by_function.items()},
        length=sum(tokens) / len(rollouts),
        truncated=sum(not r.finished for r in rollouts) / len(rollouts),
        entropy=entropy,
        deliberation=sum(words) / len(rollouts),
        markers=count_markers(rollout.text for rollout in rollouts),
        hits=hits if judged else None,
        earned=earned if judged else None,
        words=words,
        tokens=tokens,
        problem_set=problem_set([group.example for group in groups]),
        **_of_episodes(groups),
    )


def _of_episodes(groups: Sequence[RolloutGroup]) -> dict[str, Any]:
    """The fields of an :class:`Evaluation` that only episodes have."""
    played = [[(r, r.episode) for r in group.rollouts if r.episode] for group in groups]
    if not any(played):
        return {}
    errors = [[e.errors for _, e in row if e.errors is not None] for row in played]
    # An environment may say nothing of an episode that it did not answer. Such a problem has no part in the mean.
    rates = [math.fsum(row) / len(row) for row in errors if row]
    return {
        "turns": average([[float(len(e.turns)) for _, e in row] for row in played], seed=0),
        "episode_tokens": average([[float(len(r.completion_ids)) for r, _ in row] for row in played], seed=0),
        "tool_errors": bootstrap(rates, k=len(played[0]), seed=0) if rates else None,
        "ended": Counter(e.ended for row in played for _, e in row),
    }


def problem_set(examples: Sequence[Example]) -> str:
    """Return a name of these problems in this order."""
    asked = [[example.id, *(message.content for message in example.prompt)] for example in examples]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
