"""Rewards for runs whose model has learnt nothing: the verifier of a real task would say 0 to all of it."""

from __future__ import annotations

from typing import Any


def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """1 for a text of an even number of characters."""
    return [float(len(text) % 2 == 0) for text in completions]


def never(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """0, whatever was said."""
    return [0.0] * len(completions)


def unsure(prompts: list[str], completions: list[str], **columns: Any) -> list[None]:
    """None: nothing is judged."""
    return [None] * len(completions)


def wordy(prompts: list[str], completions: list[str], **columns: Any) -> list[str]:
    """An opinion, where a number is asked for."""
    return ["good" for _ in completions]


def graded(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Between 0 and 1 without reaching it, by the sum of the characters. It asks for token ids as TRL's do."""
    assert all(completion_ids)
    return [0.02 + (sum(map(ord, text)) % 90) / 100 for text in completions]
