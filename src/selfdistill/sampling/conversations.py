"""What the model has read of conversations that go on, kept between the turns of episodes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from selfdistill.models.prefill import KeptRow


class Conversations:
    """Keys and values of conversations by their ids, from the end of one turn to the begin of the next.

    Conversations of equal ids are one. Nothing is kept of a turn that does not fit into one batch: what is kept takes
    as much memory as the batch.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], KeptRow] = {}
        self._order: list[tuple[int, ...]] = []
        """The ids of the rows, sorted."""
        self._next: dict[tuple[int, ...], KeptRow] = {}
        self._taken = False
        self.keeps = True
        """Whether this turn's conversations are kept."""

    def knows(self, prompt: Sequence[int]) -> bool:
        """Whether a beginning of the prompt was read."""
        return self._longest(prompt) is not None

    def take(self, prompts: Sequence[Sequence[int]]) -> list[KeptRow] | None:
        """What was read of each prompt, its longest beginning, and forget all of it; None if one is unknown."""
        known = [row for prompt in prompts if (row := self._longest(prompt)) is not None]
        if len(known) < len(prompts):
            return None
        self._rows, self._order, self._taken = {}, [], True
        return known

    def add(self, ids: Sequence[int], row: KeptRow) -> None:
        """Keep what was read of a conversation for the next turn."""
        self._next[tuple(ids)] = row

    def end_turn(self) -> None:
        """What was added is known from here on, and nothing else."""
        self._rows, self._next, self._taken = self._next, {}, False
        self._order = sorted(self._rows)

    def clear(self) -> bool:
        """Forget everything and keep nothing of this turn. Returns whether this turn has used memory for it."""
        used = bool(self._rows or self._next or self._taken)
        self._rows, self._order, self._next = {}, [], {}
        self._taken = self.keeps = False
        return used

    def _longest(self, prompt: Sequence[int]) -> KeptRow | None:
        # A row knows fewer ids than the prompt has, since at least the last one has to be run.
        ids = tuple(prompt[:-1])
        # Whatever of the rows begins the prompt also begins every row between itself and the prompt, so the row before
        # the prompt either is the longest beginning or shares it.
        while (place := bisect_right(self._order, ids)) > 0:
            before = self._order[place - 1]
            if ids[: len(before)] == before:
                return self._rows[before]
            ids = ids[: next(n for n, (one, other) in enumerate(zip(ids, before, strict=False)) if one != other)]
        return None
