"""Parse a Countdown completion: its attempts, their arithmetic, and the role of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from countdown_base.traces import DELIBERATION
from selfdistill.tasks.countdown.arithmetic import SYMBOLS, Expression, Operation, evaluate, render

CLASSES = ("deliberation", "jump", "answer", "decision", "bookkeeping")
"""What a token is for: deliberating, ending the thinking, answering, choosing an attempt, or writing down the rest."""


@dataclass(frozen=True, slots=True)
class SpokenAttempt:
    """One ``try …`` of a completion.

    ``expression`` is None where the steps do not join all the given numbers once; ``slip`` says that a step's result is
    wrong; ``verdict`` is ``"yes"``, ``"no"`` or None where neither was said.
    """

    expression: str | None
    slip: bool
    verdict: str | None
    value: int | None


def attempts_in(text: str, numbers: Sequence[int]) -> list[SpokenAttempt]:
    """The attempts before the end of the thinking, in order."""
    thinking = text.partition("</think>")[0]
    return [_read_attempt(part.split(), numbers) for part in thinking.split("try")[1:]]


def _read_attempt(words: list[str], numbers: Sequence[int]) -> SpokenAttempt:
    verdict = next((word for word in words if word in ("yes", "no")), None)
    steps = " ".join(words).partition(" vs ")[0].split(" , ")
    parts: list[tuple[int, Expression]] = [(number, number) for number in numbers]
    slip, value, whole = False, None, True
    for step in (step.strip(" ,").split() for step in steps if step.strip(" ,")):
        if len(step) != 5 or step[1] not in SYMBOLS or step[3] != "=" or not (step[0] + step[2] + step[4]).isdecimal():
            return SpokenAttempt(None, slip, verdict, None)
        left, right, value = int(step[0]), int(step[2]), int(step[4])
        slip = slip or not _is_right(left, step[1], right, value)
        taken = [_take(parts, operand) for operand in (left, right)]
        whole = whole and None not in taken
        if whole:
            parts.append((value, Operation(step[1], *(part for part in taken if part is not None))))
    expression = render(parts[0][1]) if whole and len(parts) == 1 else None
    return SpokenAttempt(expression, slip, verdict, value)


def _is_right(left: int, symbol: str, right: int, result: int) -> bool:
    if symbol == "÷" and right == 0:
        return False
    return evaluate(Operation(symbol, left, right)) == result


def _take(parts: list[tuple[int, Expression]], value: int) -> Expression | None:
    # Results before given numbers: an intermediate result equal to a number is the one that was just made.
    for index in reversed(range(len(parts))):
        if parts[index][0] == value:
            return parts.pop(index)[1]
    return None


def token_classes(words: Sequence[str]) -> list[str]:
    """The class of every token of a completion, in the order of the tokens."""
    classes: list[str] = []
    place, step, since = "", 0, 0
    for position, word in enumerate(words):
        kind = "answer" if place == "answer" else "bookkeeping"
        if word in DELIBERATION:
            kind = "deliberation"
        elif word == "</think>":
            kind, place = "jump", "answer"
        elif word == "try":
            # The very first one decides to search at all; a later one follows from the deliberation.
            kind = "decision" if position == 0 else "bookkeeping"
            place, step, since = "attempt", 0, 0
        elif word == "vs":
            place = "verdict"
        elif place == "attempt" and word == ",":
            step, since = step + 1, 0
        elif place == "attempt":
            since += 1
            # The first step chooses both numbers and the operation; a later one of three numbers only the operation.
            if since == 2 or (step == 0 and since in (1, 3)):
                kind = "decision"
        classes.append(kind)
    return classes
