"""Notes from earlier episodes: what a step's outcome leaves for the contexts of later steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfdistill.contexts.chat import Chat
from selfdistill.seeds import derive
from selfdistill.types import RolloutGroup

NOTE = "note"
"""The field of a context that shows a note."""
MOST = 256
"""Problems whose notes are kept; beyond that the oldest is forgotten."""


@dataclass(slots=True)
class Notes:
    """The newest note of each problem, in the order in which they were written.

    A note is what the environment wrote at the end of an episode, right or wrong. Without one it is the first right
    completion of a group: its question, and its text after the thinking.
    """

    chat: Chat
    seed: int
    wanted: bool = True
    """Whether a context may show a note; if not, none is kept."""
    kept: dict[str, str] = field(default_factory=dict)
    """Note by the problem's id, oldest first."""

    def shown(self, groups: Sequence[RolloutGroup], *, step: int) -> list[RolloutGroup]:
        """The groups of a step with the field ``note``, from notes of earlier steps.

        It is the problem's own newest note, or else one of another problem by a seeded choice. A group has one note, so
        that its completions share a prompt. Data that has this field keeps it.
        """
        return [self._with_note(group, step) for group in groups] if self.kept else list(groups)

    def _with_note(self, group: RolloutGroup, step: int) -> RolloutGroup:
        example = group.example
        note = self.kept.get(example.id)
        if note is None:
            note = random.Random(derive(self.seed, NOTE, step, example.id)).choice(list(self.kept.values()))
        return replace(group, example=replace(example, fields={NOTE: note, **example.fields}))

    def record(self, groups: Sequence[RolloutGroup]) -> None:
        """Keep what the episodes of a step leave, for the steps after it."""
        for group in groups if self.wanted else ():
            note = self._note_of(group)
            if note:
                self.kept.pop(group.example.id, None)
                self.kept[group.example.id] = note
        for name in list(self.kept)[: max(0, len(self.kept) - MOST)]:
            del self.kept[name]

    def _note_of(self, group: RolloutGroup) -> str:
        for rollout in group.rollouts:
            if rollout.episode and rollout.episode.note:
                return rollout.episode.note
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            if verdict.correct and (text := self.chat.answer_part(rollout)):
                opening = rollout.episode.opening if rollout.episode else group.example.prompt
                return f"{opening[-1].content}\n{text}"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """The notes, for a checkpoint."""
        return {"kept": list(self.kept.items())}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Load the notes of a checkpoint. A checkpoint of an earlier version has none."""
        self.kept = dict(state["kept"]) if state else {}
