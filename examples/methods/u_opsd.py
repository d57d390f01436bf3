"""U-OPSD (arXiv 2608.06296): no labels; the shortest completion of the majority teaches the longest that disagree.

Where more than half of a group end in one answer, T, the model of step 0, is shown the shortest of them, and OPSD's
clipped forward KL is taken on the longest completions that end elsewhere. The paper takes one to three of these.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from selfdistill import METHODS, RolloutGroup


class UOPSD(METHODS["opsd"]):
    name: Literal["u_opsd"] = "u_opsd"
    majority: float = Field(0.5, ge=0.5, lt=1, description="Share of the group that has to agree.")
    pupils: int = Field(3, ge=1, description="How many disagreeing completions of a group learn, the longest first.")
    context: str = Field("agreeing_sibling", description="Template that the teacher is shown.")

    def needs_rewards(self) -> bool:
        return True  # for the canonical answers; the rewards themselves are not read

    def keep(self, group: RolloutGroup) -> Sequence[bool]:
        answers = [verdict.answer for verdict in group.verdicts]
        answer, votes = Counter(a for a in answers if a is not None).most_common(1)[0] if any(answers) else (None, 0)
        if votes <= self.majority * len(answers):
            return [False] * len(answers)
        others = [i for i, other in enumerate(answers) if other != answer]
        others.sort(key=lambda i: -len(group.rollouts[i].completion_ids))
        return [i in others[: self.pupils] for i in range(len(answers))]
