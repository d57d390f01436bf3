"""Whether two final answers are equal, by what they are: words, times, lists, matrices, numbers with units.

Each rule says True or False, or None where it does not apply; the first that applies decides. What no rule knows is
symbolic algebra and goes to ``ask``, which has limits of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

from selfdistill.tasks.math.forms import Number, fold, number, same_number
from selfdistill.tasks.math.structures import (
    LONGEST_LIST,
    Listed,
    Piece,
    assigned,
    intervals,
    label,
    listed,
    matrix,
    numeral,
    proportion,
    time_of_day,
)
from selfdistill.tasks.math.typography import LONGEST, bare, tidy
from selfdistill.tasks.math.units import ratio, split_unit

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """What symbolic algebra says of a pair: whether it is ``equal``, and the value of a side that is a real number."""

    equal: bool
    gold_value: Fraction | None = None
    given_value: Fraction | None = None


Ask = Callable[[str, str], Reply]
"""Symbolic algebra on (gold, given)."""

_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]")
_LONG = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{4,}")
_SAME_WORDS = {
    "no solutions": "no solution",
    "no real solutions": "no real solution",
    "dne": "does not exist",
    "infinite": "infinitely many",
    "infinitely many solutions": "infinitely many",
    "empty set": "\\emptyset",
    "the empty set": "\\emptyset",
}
_MONTH = re.compile(
    r"\b(?:january|february|march|april|may|june|july|august|september|october|november|december)\b", re.IGNORECASE
)
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![a-z])")
_SEVERAL_WORDS = re.compile(r"^\\text\s*\{([^{}]*(?:[,;]|\band\b|\bor\b)[^{}]*)\}$")
_RELATION_FIRST = re.compile(r"<|>|\\(?:le|ge|ne|not)(?![a-z])|(?:not|at least|at most|more than|less than)\b")
_NOTHING = {"\\emptyset", "no solution"}


def equal(gold: str, given: str, ask: Ask) -> bool:
    """Whether the given answer is the gold one."""
    gold, given = (_SEVERAL_WORDS.sub(r"\1", tidy(text)) for text in (gold, given))
    if fold(gold) == fold(given):
        return True
    if max(len(gold), len(given)) > LONGEST or not given:
        return False
    if number(gold) is not None and number(given) is not None:
        return _quantity(gold, given, ask)
    if bool(_RELATION_FIRST.match(gold)) != bool(_RELATION_FIRST.match(given)):
        return False  # algebra would drop the sign: "> 5" is not 5
    for rule in (_label, _date, _time, _numeral, _matrix, _interval, _list, _ratio, _word):
        verdict = rule(gold, given, ask)
        if verdict is not None:
            return verdict
    return _quantity(gold, given, ask)


def _quantity(gold: str, given: str, ask: Ask) -> bool:
    """Values with units: the units must not clash, and the values are equal."""
    (value, unit), (given_value, given_unit) = split_unit(gold), split_unit(given)
    scale = ratio(unit, given_unit)
    if scale is None:
        return False
    one, other = number(value), number(given_value)
    if one is not None and other is not None:
        return same_number(one, _scaled(other, scale))
    if scale != 1:
        return False
    if (value, given_value) != (gold, given):
        return equal(value, given_value, ask)
    long_words = [Counter(word.lower() for word in _LONG.findall(bare(text))) for text in (gold, given)]
    # To algebra a word is a product of letters, so that "row silent" would be "row listen".
    if all(long_words) and long_words[0] != long_words[1]:
        return False
    reply = ask(gold, given)
    if reply.equal:
        return True
    # A decimal may be what the other side is rounded to: 3.4641 for 2\sqrt{3}.
    if one is not None and one.last is not None and reply.given_value is not None:
        return same_number(one, Number(reply.given_value, endless=True))
    if other is not None and other.last is not None and reply.gold_value is not None:
        return same_number(Number(reply.gold_value, endless=True), other)
    return False


def _scaled(one: Number, scale: Fraction) -> Number:
    return Number(one.value * scale, one.digits, one.last and one.last * scale, one.percent)


def _label(gold: str, given: str, ask: Ask) -> bool | None:
    """The letter of an option, ``D) 12`` for ``D``."""
    one, other = label(gold), label(given)
    if one is None or not (one[1] or (other is not None and other[1])):
        return None
    letter, marked, rest = one
    if other is not None:
        same_rest = rest is None or other[2] is None or equal(rest, other[2], ask)
        return letter == other[0] and same_rest
    if rest is not None and marked:
        return equal(rest, given, ask)
    return None


def _time(gold: str, given: str, ask: Ask) -> bool | None:
    """Times of day: ``8 pm`` is ``8:00 p.m.`` and not ``8 am``."""
    one, other = time_of_day(gold), time_of_day(given)
    if one is None or other is None or not (one.half or other.half or (one.clock and other.clock)):
        return None
    if ":" not in gold + given and not (one.half or other.half):
        return None  # 8.30 is a number
    if one.seconds == other.seconds or (one.half and other.half):
        return one.seconds == other.seconds
    # Where one leaves the half of the day open, 4:35 is 4:35 p.m.
    return (one.half or other.half) and one.seconds % 43200 == other.seconds % 43200 and max(one.hour, other.hour) <= 12


def _numeral(gold: str, given: str, ask: Ask) -> bool | None:
    """Numerals of other bases: ``2516_8`` is ``2516`` where a base may be left out, and not ``2516_9``."""
    one, other = numeral(gold), numeral(given)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return one == other
    based, plain = (one, given) if one is not None else (other, gold)
    assert based is not None
    return bare(plain).replace(" ", "").replace(",", "").lstrip("0") == based[0]


def _matrix(gold: str, given: str, ask: Ask) -> bool | None:
    """Matrices by rows and entries; a single row or column is also a tuple."""
    one, other = matrix(gold), matrix(given)
    if one is None and other is None:
        return None
    if one is None or other is None:
        rows, text = (one, given) if one is not None else (other, gold)
        assert rows is not None
        if min(len(rows), len(rows[0])) != 1 or not listed(text).ordered:
            return None
        items = [cell for row in rows for cell in row]
        pairs = (items, listed(text).items) if one is not None else (listed(text).items, items)
        return _pairwise(pairs[0], pairs[1], ask)
    if [len(row) for row in one] != [len(row) for row in other]:
        return False
    return all(_pairwise(row, other_row, ask) for row, other_row in zip(one, other, strict=True))


def _interval(gold: str, given: str, ask: Ask) -> bool | None:
    """Intervals and inequalities in each other's terms: ``x \\le 2`` is ``(-\\infty, 2]``."""
    one, other = intervals(gold), intervals(given)
    if one is None or other is None:
        return None
    if one[0] is not None and other[0] is not None and one[0] != other[0]:
        return False
    if len(one[1]) != len(other[1]):
        return False

    def same(piece: Piece, given_piece: Piece) -> bool:
        closed = (piece.low_closed, piece.high_closed) == (given_piece.low_closed, given_piece.high_closed)
        ends = (piece.low, piece.high), (given_piece.low, given_piece.high)
        return closed and _pairwise(*ends, ask)

    return _matched(one[1], other[1], same)


def _list(gold: str, given: str, ask: Ask) -> bool | None:
    """Several values: in order within parentheses, in any order within braces and without brackets."""
    one, other = listed(gold), listed(given)
    if number(gold) is not None:
        one = Listed("", (gold,))
    if number(given) is not None:
        other = Listed("", (given,))
    if len(one.items) == 1 and len(other.items) == 1:
        return (
            None
            if one.kind == other.kind or (one.items[0], other.items[0]) == (gold, given)
            else equal(one.items[0], other.items[0], ask)
        )
    if max(len(one.items), len(other.items)) > LONGEST_LIST:
        return None
    if 1 in (len(one.items), len(other.items)) and _RELATION.search(gold) is None is not _RELATION.search(given):
        return None  # an interval, perhaps, and an inequality that only algebra can solve
    if {one.kind, other.kind} == {"tuple", "square"} and len(one.items) == 2:
        return False  # an open interval and a closed one
    if {one.kind, other.kind} in ({"tuple", "set"}, {"vector", "set"}):
        return False
    gold_items, items = _in_terms(one, other)
    if (one.ordered and other.kind != "set" and (other.ordered or one.kind != "square")) or (
        other.ordered and one.kind == ""
    ):
        return len(gold_items) == len(items) and _pairwise(gold_items, items, ask)
    if gold_items is not one.items or items is not other.items:
        return len(gold_items) == len(items) and _pairwise(gold_items, items, ask)

    def same(item: str, given_item: str) -> bool:
        (name, value), (given_name, given_value) = assigned(item), assigned(given_item)
        if name is not None and given_name is not None:
            return name == given_name and equal(value, given_value, ask)
        return equal(value, given_value, ask)

    return _matched(_distinct(one.items), _distinct(other.items), same)


def _in_terms(one: Listed, other: Listed) -> tuple[Sequence[str], Sequence[str]]:
    """``x=1, y=2`` beside ``(1, 2)``: the values of different variables, in the order of their names."""
    named = [[assigned(item) for item in side.items] for side in (one, other)]
    names = [[name for name, _ in side if name is not None] for side in named]
    for side, mine, theirs in ((0, names[0], names[1]), (1, names[1], names[0])):
        if len(mine) == len(named[side]) and len(set(mine)) == len(mine) > 1 and not theirs and mine == sorted(mine):
            values = tuple(value for _, value in named[side])
            return (values, other.items) if side == 0 else (one.items, values)
    return one.items, other.items


def _ratio(gold: str, given: str, ask: Ask) -> bool | None:
    """Ratios: ``3:4`` is ``3 to 4``, ``6:8`` and ``\\frac{3}{4}``."""
    one, other = proportion(gold), proportion(given)
    if one is None and other is None:
        return None
    sides = []
    for terms, text in ((one, gold), (other, given)):
        if terms is None:
            sides.append([text])
        else:
            sides.append([f"\\frac{{{top}}}{{{bottom}}}" for top, bottom in pairwise(terms)])
    return len(sides[0]) == len(sides[1]) and _pairwise(sides[0], sides[1], ask)


def _word(gold: str, given: str, ask: Ask) -> bool | None:
    """Words letter by letter: ``cab`` is not ``abc``, as it would be as a product."""
    one, other = (_spoken(text) for text in (gold, given))
    if one in _NOTHING and other in _NOTHING:
        return True
    if one is None or number(gold) is not None or split_unit(gold)[1] is not None:
        return None
    return one == other


def _spoken(text: str) -> str | None:
    """Words in lower case; None for what is no word, products of one or two letters included."""
    words = bare(text).strip("!?").strip()
    marked = "\\text" in text
    if words == "\\emptyset":
        return words
    if not _WORDS.fullmatch(words) or len(re.sub("[^A-Za-z]", "", words)) < (2 if marked else 3):
        return None
    if not marked and all(len(word) == 1 for word in words.split()):
        return None  # a product: "a b c"
    words = re.sub(r"^(?:the|a|an) ", "", " ".join(words.lower().split()))
    return _SAME_WORDS.get(words, words)


def _pairwise(gold: Sequence[str], given: Sequence[str], ask: Ask) -> bool:
    return len(gold) == len(given) and all(equal(one, other, ask) for one, other in zip(gold, given, strict=True))


def _matched(gold: Sequence[T], given: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether each of the gold has its own equal among the given, and none is left over."""
    left = list(given)
    if len(gold) != len(left):
        return False
    for one in gold:
        place = next((i for i, other in enumerate(left) if same(one, other)), None)
        if place is None:
            return False
        del left[place]
    return True


def _distinct(items: Sequence[str]) -> list[str]:
    found: dict[object, str] = {}
    for item in items:
        value = number(item)
        found.setdefault(item if value is None or value.percent else value.value, item)
    return list(found.values())


def _date(gold: str, given: str, ask: Ask) -> bool | None:
    """Days of the year in any order: ``June 20`` is ``20th of June``."""
    if not _MONTH.search(bare(gold)):
        return None
    one, other = (
        Counter(re.findall(r"[a-z]{3,}|[0-9]+", re.sub(r"(?<=[0-9])(?:st|nd|rd|th)\b|\bthe\b", "", bare(text).lower())))
        for text in (gold, given)
    )
    return one == other
