"""Reading a completion of the toolbox back: what each token is for."""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.tasks.toolbox.calls import DIMENSIONS, PERSONS, TOOLS
from toolbox_base.traces import DELIBERATION

CLASSES = ("deliberation", "certainty", "jump", "convention", "argument", "boilerplate")
"""What a token is for: deliberating, saying that a thing is clear, ending the thinking, committing to a convention,
copying a value of the request, or the rest, which the text before it decides."""

_KEYS = {*DIMENSIONS["place_word"], *DIMENSIONS["person_word"]}


def token_classes(words: Sequence[str], topic: str, values: Sequence[str]) -> list[str]:
    """The class of every token of a completion, in the order of the tokens.

    A call commits to an order or a date form with the first of the two words, and to a confirmation with what follows
    the person: a comma, or the closing bracket.
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
    """Whether a word of the call, after these two, is one that a convention decides."""
    return (
        before == ["unit", "="]
        or word in _KEYS
        or ("verb" in dimensions and before == ["call", ":"])
        or ("order" in dimensions and before[-1] == "(")
        or ("date" in dimensions and before == ["date", "="])
        or ("confirm" in dimensions and before[0] == "=" and before[-1] in PERSONS)
    )
