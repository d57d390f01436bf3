"""Conversations are found by the longest of their beginnings that was read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from selfdistill.sampling.conversations import Conversations


def holding(*beginnings: Sequence[int]) -> Conversations:
    """Conversations with a row for each beginning, which here is the beginning itself."""
    kept = Conversations()
    for ids in beginnings:
        row: Any = tuple(ids)
        kept.add(ids, row)
    kept.end_turn()
    return kept


def taken(kept: Conversations, *prompts: Sequence[int]) -> Any:
    """The beginnings of the prompts."""
    return kept.take(prompts)


def test_a_prompt_is_known_by_its_longest_beginning_and_all_is_forgotten_once_it_is_taken() -> None:
    kept = holding((1,), (1, 2), (1, 2, 9), (3,))
    assert [kept.knows(prompt) for prompt in ((1, 5), (3, 3), (2, 1), (1,))] == [True, True, False, False]
    assert taken(kept, (1, 2, 3), (2, 1)) is None
    assert taken(kept, (1, 2, 3), (1, 2, 9, 9), (1, 2, 9), (1, 3)) == [(1, 2), (1, 2, 9), (1, 2), (1,)]
    assert taken(kept, (1, 2, 3)) is None


def test_it_is_the_longest_by_brute_force() -> None:
    draw = random.Random(0)
    for _ in range(300):
        rows = {tuple(draw.choices((0, 1, 2), k=draw.randint(1, 6))) for _ in range(draw.randint(1, 12))}
        prompt = tuple(draw.choices((0, 1, 2), k=draw.randint(1, 8)))
        beginnings = [row for row in rows if len(row) < len(prompt) and prompt[: len(row)] == row]
        assert taken(holding(*rows), prompt) == ([max(beginnings, key=len)] if beginnings else None)


def test_what_is_forgotten_for_lack_of_memory_is_said_if_there_was_something() -> None:
    assert not Conversations().clear()
    kept = holding((1,))
    assert kept.clear() and not kept.keeps and not kept.clear()
    kept = holding((1,))
    assert taken(kept, (1, 2)) == [(1,)]
    assert kept.clear(), "the batch was made of what was kept"
