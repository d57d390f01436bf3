"""Marks around what a role reads and the student does not, in the text of its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import takewhile

OPEN, CLOSE = "⟦", "⟧"
"""Around what the student does not read. With nothing between them: here the student reads what the role does not."""


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of ids with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def mark_changes(pieces: Sequence[str], ids: Sequence[int], student: Sequence[int]) -> list[str]:
    """The pieces of a text, one for each of its ids, with marks where the ids are not those of the student's text."""
    marked = list(pieces)
    # What both begin and end with need not be compared.
    begin = shared_prefix(ids, student)
    end = shared_prefix(ids[begin:][::-1], student[begin:][::-1])
    own, other = ids[begin : len(ids) - end], student[begin : len(student) - end]
    for kind, _, _, first, last in SequenceMatcher(None, other, own, autojunk=False).get_opcodes():
        first, last = begin + first, begin + last
        # Of several places of an insertion that give the same text, the last one begins with what is new.
        while kind == "insert" and last < len(ids) and ids[first] == ids[last]:
            first, last = first + 1, last + 1
        if kind == "delete":
            _put(marked, first, f"{OPEN}{CLOSE}")
        elif kind != "equal":
            _put(marked, first, OPEN)
            marked[last - 1] += CLOSE
    return marked


def _put(pieces: list[str], at: int, mark: str) -> None:
    """Put a mark in front of a piece, behind the spaces that it begins with; at the very end, behind the last piece."""
    if at == len(pieces):
        pieces[-1] += mark
        return
    text = pieces[at].lstrip()
    pieces[at] = f"{pieces[at][: len(pieces[at]) - len(text)]}{mark}{text}"
