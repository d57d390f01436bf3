"""Where a completion's thinking ends and its answer begins."""

from __future__ import annotations

THINK_BEGIN = "<think>"
THINK_END = "</think>"


def after_thinking(text: str) -> str:
    """The text behind the last closing ``</think>``, or the whole text where nothing is tagged.

    It is empty where a ``<think>`` was opened and never closed: an unfinished thought is no answer.
    """
    said = text.rpartition(THINK_END)[2]
    return "" if THINK_BEGIN in said else said
