"""The weight of each completion of a step: overlong ones are punished or masked, groups dropped or weighted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfdistill.config.signal import SignalConfig
from selfdistill.sampling.resampling import has_equal_rewards, share_right
from selfdistill.scoring.prepare import Prepared
from selfdistill.types import Rollout, RolloutGroup, Verdict, View

UNJUDGED = "no judged completion to weigh the group by"
EQUAL = "group of equal rewards"
ALIKE = "group of weight 0, all right or all wrong"
OVERLONG = "cut by the token limit"


@dataclass(frozen=True, slots=True)
class Shaping:
    """The ``[signal]`` section applied to the groups and views of a step."""

    config: SignalConfig
    max_tokens: int
    """Longest completion."""

    def punish(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        """The groups with the rewards of long completions lowered, as DAPO does (arXiv 2503.14476, its eq. 13).

        R(y) is 0 up to max_tokens − margin tokens, −1 at max_tokens, and linear between. Whether a completion is right
        stays as it is, and so does a missing reward.
        """
        if self.config.overlong != "punish":
            return list(groups)
        return [
            replace(
                group,
                verdicts=tuple(
                    self._punished(rollout, verdict)
                    for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
                ),
            )
            for group in groups
        ]

    def _punished(self, rollout: Rollout, verdict: Verdict) -> Verdict:
        if verdict.reward is None:
            return verdict
        reward = verdict.reward + self.punishment(len(rollout.completion_ids))
        return replace(verdict, reward=reward, success=verdict.correct)

    def punishment(self, length: int) -> float:
        """The term, from −1 to 0, that is added to the reward of a completion of this many tokens."""
        margin = min(self.config.margin or max(1, self.max_tokens // 5), self.max_tokens)
        return -min(1.0, max(0.0, (length - (self.max_tokens - margin)) / margin))

    def shape(self, prepared: Prepared, groups: Sequence[RolloutGroup]) -> Prepared:
        """The views with their weights. Views of weight 0 are removed and counted by reason.

        ``groups`` are those of the step, before any punishment.
        """
        factors = [self._factor(group) for group in groups]
        views: list[View] = []
        skipped: Counter[str] = Counter(prepared.skipped)
        for view in prepared.views:
            factor, reason = factors[view.group]
            truncated = not groups[view.group].rollouts[view.index].finished
            if self.config.overlong == "mask" and truncated:
                factor, reason = 0.0, OVERLONG
            if factor:
                views.append(view if factor == 1 else replace(view, weights=tuple(factor * w for w in view.weights)))
            else:
                skipped[reason] += 1
        return Prepared(views, skipped, prepared.dropped + len(prepared.views) - len(views))

    def _factor(self, group: RolloutGroup) -> tuple[float, str]:
        """The weight of a group, and why it is 0."""
        if self.config.equal != "keep" and has_equal_rewards(group):
            return 0.0, EQUAL
        if self.config.weight == "none":
            return 1.0, ""
        p = share_right(group)
        if p is None:
            return 0.0, UNJUDGED
        variance = p * (1 - p)
        return (variance if self.config.weight == "variance" else math.sqrt(variance)), ALIKE
