"""What the model has read of conversations that go on, kept between the turns of episodes."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.models.prefill import KeptRow


class Conversations:
    """Keys and values of conversations by their ids, from the end of one turn to the begin of the next.

    Conversations of equal ids are one. Nothing is kept of a turn that does not fit into one batch: what is kept takes
    as much memory as the batch.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], KeptRow] = {}
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
        self._rows, self._taken = {}, True
        return known

    def add(self, ids: Sequence[int], row: KeptRow) -> None:
        """Keep what was read of a conversation for the next turn."""
        self._next[tuple(ids)] = row

    def end_turn(self) -> None:
        """What was added is known from here on, and nothing else."""
        self._rows, self._next, self._taken = self._next, {}, False

    def clear(self) -> bool:
        """Forget everything and keep nothing of this turn. Returns whether this turn has used memory for it."""
        used = bool(self._rows or self._next or self._taken)
        self._rows, self._next, self._taken, self.keeps = {}, {}, False, False
        return used

    def _longest(self, prompt: Sequence[int]) -> KeptRow | None:
        # A row knows fewer ids than the prompt has, since at least the last one has to be run.
        lengths = sorted({len(ids) for ids in self._rows if len(ids) < len(prompt)}, reverse=True)
        return next((row for length in lengths if (row := self._rows.get(tuple(prompt[:length])))), None)
