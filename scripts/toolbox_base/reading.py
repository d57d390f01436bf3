"""Parse a toolbox completion: the purpose of each token."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.tasks.toolbox.calls import DIMENSIONS, PERSONS, TOOLS
from toolbox_base.traces import DELIBERATION

CLASSES = ("deliberation", "certainty", "jump", "convention", "argument", "boilerplate")
"""The purpose of a token: deliberating, stating that a point is clear, ending the thinking, committing to a convention,
copying a value of the request, or the rest, which follows from the text before it."""

_KEYS = {*DIMENSIONS["place_word"], *DIMENSIONS["person_word"]}


def token_classes(words: Sequence[str], topic: str, values: Sequence[str]) -> list[str]:
    """Return the class of every token of a completion, in order.

    A call commits to an order or a date form with the first of the two words. It commits to a confirmation with the
    token after the person: a comma or the closing bracket.
    """
    dimensions = TOOLS[topic].dimensions
    classes: list[str] = []
    calling = False
    for position, word in enumerate(words):
        kind = "boilerplate"
        if word in DELIBERATION:
            kind = "deliberation"
        elif word == "</think>":
            kind, calling = "jump", True
        elif word == "clear" and not calling:
            kind = "certainty"
        elif calling and _commits(word, list(words[max(0, position - 2) : position]), dimensions):
            kind = "convention"
        elif word in values:
            kind = "argument"
        classes.append(kind)
    return classes


def _commits(word: str, before: list[str], dimensions: Sequence[str]) -> bool:
    """Whether a convention decides a word of the call, given the two words before it."""
    return (
        before == ["unit", "="]
        or word in _KEYS
        or ("verb" in dimensions and before == ["call", ":"])
        or ("order" in dimensions and before[-1] == "(")
        or ("date" in dimensions and before == ["date", "="])
        or ("confirm" in dimensions and before[0] == "=" and before[-1] in PERSONS)
    )
