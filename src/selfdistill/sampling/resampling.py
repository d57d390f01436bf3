"""Dynamic sampling: other prompts replace those whose completions have equal rewards (arXiv 2503.14476)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.sampling.prefetch import Prefetcher
from selfdistill.sampling.rollouts import RolloutWorker
from selfdistill.seeds import derive
from selfdistill.types import STUDENT, Example, RolloutGroup, Verdict


def _judged(group: RolloutGroup) -> list[Verdict]:
    """The verdicts with a reward on the student's completions, or on all if only other roles sample."""
    pairs = [pair for pair in zip(group.rollouts, group.verdicts, strict=True) if pair[1].reward is not None]
    alone = not any(rollout.source == STUDENT for rollout in group.rollouts)
    return [verdict for rollout, verdict in pairs if alone or rollout.source == STUDENT]


def has_equal_rewards(group: RolloutGroup) -> bool:
    """Whether all judged completions have the same reward; also true with fewer than two."""
    return len({verdict.reward for verdict in _judged(group)}) < 2


def share_right(group: RolloutGroup) -> float | None:
    """The share of the judged completions that is right; None if none is judged."""
    right = [verdict.correct for verdict in _judged(group)]
    return sum(right) / len(right) if right else None


@dataclass(frozen=True, slots=True)
class Resampler:
    """Draws other prompts in place of those whose groups have equal rewards."""

    worker: RolloutWorker
    prefetcher: Prefetcher | None
    examples: Sequence[Example]
    """The examples that other prompts are drawn from."""
    most: float
    """Groups drawn in all, at most, as a multiple of the first ones."""
    seed: int
    """The run's."""

    def fill(self, groups: Sequence[RolloutGroup], *, step: int) -> list[RolloutGroup]:
        """The groups of a step, followed by those of other prompts until as many as at first have unequal rewards.

        The other prompts are drawn at random, without those that the step has already; no example is drawn twice.
        Every choice follows from the seed and the step.

        Raises:
            UserError: as for :meth:`RolloutWorker.rollout`.
        """
        filled = list(groups)
        target, bound = len(groups), int(self.most * len(groups))
        used = {group.example.id for group in groups}
        pool = [example for example in self.examples if example.id not in used]
        random.Random(derive(self.seed, "resampled prompts", step)).shuffle(pool)
        attempt = 0
        while True:
            missing = min(target - sum(not has_equal_rewards(g) for g in filled), bound - len(filled), len(pool))
            if missing <= 0:
                return filled
            attempt += 1
            chosen, pool = pool[:missing], pool[missing:]
            seed, version = derive(self.seed, "resampling", step, attempt), step - 1
            engine = self.prefetcher
            sampled = None if engine is None else engine.further(chosen, seed=seed, version=version)
            filled += self.worker.rollout(chosen, seed=seed, version=version, sampled=sampled)


def resampling_cost(groups: Sequence[RolloutGroup], prompts: int) -> dict[str, float]:
    """What the groups beyond the first ``prompts`` cost, and how many groups of all have unequal rewards."""
    further = [rollout for group in groups[prompts:] for rollout in group.rollouts]
    return {
        "resampled_prompts": len(groups[prompts:]),
        "resampled_completions": len(further),
        "resampled_tokens": sum(len(rollout.completion_ids) for rollout in further),
        "unequal_groups": sum(not has_equal_rewards(group) for group in groups),
    }
