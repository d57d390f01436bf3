"""Rows of TRL's other trainers, which name no single response: preferences and completions that are labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFERENCE_COLUMNS = ("chosen", "rejected", "label")
"""Columns that say which response is better, or whether one is good."""


def preference_form(values: Mapping[str, Any], *, has_prompt: bool) -> str | None:
    """Why a row is refused as preferences (DPO), labelled completions (KTO) or labelled steps; None if it is none.

    The sentence ends with the setting that reads the row, where there is one. ``has_prompt`` says whether the row has a
    prompt beside them.
    """

    def has(*columns: str) -> bool:
        return all(values.get(column) is not None for column in columns)

    if has("chosen", "rejected") and not has("completion") and not has("solution"):
        why = "the row is a preference (chosen, rejected), which names no single response"
        turns = values["chosen"]
        if not isinstance(turns, list | tuple):
            if has_prompt:
                return f"{why}: keep one of them by task.completion = 'chosen'"
            return f"{why} and has no prompt of its own: split each text into a prompt and a completion"
        if not has_prompt:
            return f"{why}: keep one conversation by task.messages = 'chosen'"
        # With a prompt of its own, a conversation of several turns is read by its last one.
        last = "chosen" if len(turns) == 1 else f"chosen.{len(turns) - 1}.content"
        return f"{why}: keep one of them by task.completion = {last!r}"
    # A table of text spells booleans out.
    if has("completion", "label") and str(values["label"]).strip().lower() in ("true", "false"):
        return (
            "the row's label says whether its completion is wanted (KTO), and nothing here learns from unwanted ones: "
            "keep the rows whose label is true, or learn all of them by task.completion = 'completion'"
        )
    if has("completions", "labels") and all(
        isinstance(values[name], list | tuple) for name in ("completions", "labels")
    ):
        return (
            "the row has labelled steps (completions, labels), which nothing here learns from: keep prompt and solution"
        )
    return None
