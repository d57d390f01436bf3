"""OASIS (arXiv 2609.37915): OPSD on the shortest right completion of a group alone, T shown the unverified attempts."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from selfdistill import METHODS, RolloutGroup


class OASIS(METHODS["opsd"]):
    name: Literal["oasis"] = "oasis"
    context: str = Field("attempts", description="Template that the teacher is shown.")

    def needs_rewards(self) -> bool:
        return True

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        right = [i for i, verdict in enumerate(group.verdicts) if verdict.correct]
        best = min(right, key=lambda i: len(group.rollouts[i].completion_ids), default=None)
        return [i == best for i in range(len(group.rollouts))]
