"""Parse a Countdown completion: its attempts, their arithmetic, and the role of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from countdown_base.traces import DELIBERATION
from selfdistill.tasks.countdown.arithmetic import SYMBOLS, Expression, Operation, evaluate, render

CLASSES = ("deliberation", "jump", "answer", "decision", "bookkeeping")
"""The purpose of a token: deliberating, ending the thinking, answering, choosing an attempt, or bookkeeping."""


@dataclass(frozen=True, slots=True)
class SpokenAttempt:
    """One ``try …`` of a completion.

    ``expression`` is None if the steps do not use all the given numbers once. ``slip`` is true if a step's result is
    wrong. ``verdict`` is ``"yes"``, ``"no"``, or None if the attempt has neither.
    """

    expression: str | None
    slip: bool
    verdict: str | None
    value: int | None


def attempts_in(text: str, numbers: Sequence[int]) -> list[SpokenAttempt]:
    """Return the attempts before the end of the thinking, in order."""
    thinking = text.partition("</think>")[0]
    return [_read_attempt(part.split(), numbers) for part in thinking.split("try")[1:]]


def _read_attempt(words: list[str], numbers: Sequence[int]) -> SpokenAttempt:
    verdict = next((word for word in words if word in ("yes", "no")), None)
    steps = " ".join(words).partition(" vs ")[0].split(" , ")
    parts: list[tuple[int, Expression]] = [(number, number) for number in numbers]
    slip, value, complete = False, None, True
    for step in (step.strip(" ,").split() for step in steps if step.strip(" ,")):
        if len(step) != 5 or step[1] not in SYMBOLS or step[3] != "=" or not (step[0] + step[2] + step[4]).isdecimal():
            return SpokenAttempt(None, slip, verdict, None)
        left, right, value = int(step[0]), int(step[2]), int(step[4])
        slip = slip or not _is_right(left, step[1], right, value)
        operands = [_take(parts, operand) for operand in (left, right)]
        complete = complete and None not in operands
        if complete:
            parts.append((value, Operation(step[1], *(part for part in operands if part is not None))))
    expression = render(parts[0][1]) if complete and len(parts) == 1 else None
    return SpokenAttempt(expression, slip, verdict, value)


def _is_right(left: int, symbol: str, right: int, result: int) -> bool:
    if symbol == "÷" and right == 0:
        return False
    return evaluate(Operation(symbol, left, right)) == result


def _take(parts: list[tuple[int, Expression]], value: int) -> Expression | None:
    # Results come before given numbers: an operand equal to both is the intermediate result that was just made.
    for index in reversed(range(len(parts))):
        if parts[index][0] == value:
            return parts.pop(index)[1]
    return None


def token_classes(words: Sequence[str]) -> list[str]:
    """Return the class of every token of a completion, in order."""
    classes: list[str] = []
    section, step, tokens_in_step = "", 0, 0
    for position, word in enumerate(words):
        kind = "answer" if section == "answer" else "bookkeeping"
        if word in DELIBERATION:
            kind = "deliberation"
        elif word == "</think>":
            kind, section = "jump", "answer"
        elif word == "try":
            # The first "try" decides to search at all; a later one follows from the deliberation.
            kind = "decision" if position == 0 else "bookkeeping"
            section, step, tokens_in_step = "attempt", 0, 0
        elif word == "vs":
            section = "verdict"
        elif section == "attempt" and word == ",":
            step, tokens_in_step = step + 1, 0
        elif section == "attempt":
            tokens_in_step += 1
            # The first step chooses both numbers and the operation. With three numbers, a later step only chooses
            # the operation.
            if tokens_in_step == 2 or (step == 0 and tokens_in_step in (1, 3)):
                kind = "decision"
        classes.append(kind)
    return classes
