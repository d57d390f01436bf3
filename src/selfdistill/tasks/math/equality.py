"""Whether two final answers are equal, by type: words, times, lists, matrices, numbers with units.

Each rule returns True or False, or None if it does not apply. The first rule that applies decides. If none does,
``ask`` compares the answers by symbolic algebra under its own limits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

from selfdistill.tasks.math.clauses import cases, domain
from selfdistill.tasks.math.forms import Number, fold, is_genotype, may_be_product, number, same_number
from selfdistill.tasks.math.structures import (
    LONGEST_LIST,
    Listed,
    Piece,
    assigned,
    congruence,
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
    """Result of symbolic algebra on a pair: whether it is ``equal``, and the real value of each side, if known."""

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
_POINT = re.compile(r"[A-Z](?:_\{?\w\}?|')?\s*=?\s*(?=\([^()]*,[^()]*\)$)")
_DERIVATIVE = re.compile(
    r"(?:\\frac\s*\{d(?:\^[2-9])?\s*[a-z]\}\s*\{d\s*[a-z](?:\^[2-9])?\}|d[a-z]/d[a-z]|[a-zA-Z]'+(?:\([a-z]\))?)\s*=\s*(?=[^=]+$)"
)
_NOTHING = {"\\emptyset", "no solution"}
_INDIAN = re.compile(r"(?<![0-9,.({\[])[0-9]{1,2}(?:,[0-9]{2}){1,6},[0-9]{3}(?![0-9,])")


def equal(gold: str, given: str, ask: Ask) -> bool:
    """Whether the given answer is the gold one."""
    gold, given = (_SEVERAL_WORDS.sub(r"\1", tidy(text)) for text in (gold, given))
    folded = fold(gold), fold(given)
    if folded[0] == folded[1]:
        return True
    if any(map(is_genotype, folded)):
        return sorted(folded[0]) == sorted(folded[1])
    if max(len(gold), len(given)) > LONGEST or not given:
        return False
    if (number(gold) is None) is not (number(given) is None):
        # 1,20,000 is one number in India and three numbers elsewhere. Against a single number it is read as one.
        gold, given = (_INDIAN.sub(lambda run: run.group().replace(",", ""), text) for text in (gold, given))
    if number(gold) is not None and number(given) is not None:
        return _quantity(gold, given, ask)
    if bool(_RELATION_FIRST.match(gold)) != bool(_RELATION_FIRST.match(given)):
        return False  # algebra would drop the sign: "> 5" is not 5
    (gold_value, gold_domain), (given_value, given_domain) = domain(gold), domain(given)
    if (gold_value, given_value) != (gold, given):
        differ = gold_domain and given_domain and gold_domain != given_domain
        return not differ and equal(gold_value, given_value, ask)
    gold, given = _value_of(_POINT, gold, given), _value_of(_POINT, given, gold)
    gold, given = _value_of(_DERIVATIVE, gold, given), _value_of(_DERIVATIVE, given, gold)
    if bool(_DERIVATIVE.match(gold)) != bool(_DERIVATIVE.match(given)):
        return False  # algebra would drop the prime: y' = 2x is not y = 2x
    for rule in (_label, _cases, _date, _time, _numeral, _matrix, _congruence, _interval, _list, _ratio, _word):
        verdict = rule(gold, given, ask)
        if verdict is not None:
            return verdict
    return _quantity(gold, given, ask)


def _value_of(name: re.Pattern[str], text: str, other: str) -> str:
    """The text without the name of a point or a derivative, unless the other text has another name."""
    match, other_match = name.match(text), name.match(other)
    if match is None or (other_match is None and "=" in other):
        return text
    named_apart = name is _POINT and other_match is not None
    return text if named_apart else text[match.end() :]


def _quantity(gold: str, given: str, ask: Ask) -> bool:
    """Values with units: the units must be compatible and the values equal."""
    (value, unit), (given_value, given_unit) = split_unit(gold), split_unit(given)
    scale = ratio(unit, given_unit)
    if scale is None:
        return False
    gold_number, given_number = number(value), number(given_value)
    if gold_number is not None and given_number is not None:
        last = given_number.last and given_number.last * scale
        scaled = Number(given_number.value * scale, given_number.digits, last, given_number.percent)
        return same_number(gold_number, scaled)
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
    # A decimal may be the other side rounded: 3.4641 for 2\sqrt{3}.
    if gold_number is not None and gold_number.last is not None and reply.given_value is not None:
        return same_number(gold_number, Number(reply.given_value, endless=True))
    if given_number is not None and given_number.last is not None and reply.gold_value is not None:
        return same_number(Number(reply.gold_value, endless=True), given_number)
    return False


def _label(gold: str, given: str, ask: Ask) -> bool | None:
    """The letter of an option, ``D) 12`` for ``D``."""
    gold_label, given_label = label(gold), label(given)
    if gold_label is None or not (gold_label[1] or (given_label is not None and given_label[1])):
        return None
    letter, marked, rest = gold_label
    if given_label is not None:
        same_rest = rest is None or given_label[2] is None or equal(rest, given_label[2], ask)
        return letter == given_label[0] and same_rest
    if rest is not None and marked:
        return equal(rest, given, ask)
    return None


def _time(gold: str, given: str, ask: Ask) -> bool | None:
    """Times of day: ``8 pm`` is ``8:00 p.m.`` and not ``8 am``."""
    gold_time, given_time = time_of_day(gold), time_of_day(given)
    if (
        gold_time is None
        or given_time is None
        or not (gold_time.half or given_time.half or (gold_time.clock and given_time.clock))
    ):
        return None
    if ":" not in gold + given and not (gold_time.half or given_time.half):
        return None  # 8.30 is a number
    if gold_time.seconds == given_time.seconds or (gold_time.half and given_time.half):
        return gold_time.seconds == given_time.seconds
    # If one side does not say a.m. or p.m., 4:35 equals 4:35 p.m.
    return (
        (gold_time.half or given_time.half)
        and gold_time.seconds % 43200 == given_time.seconds % 43200
        and max(gold_time.hour, given_time.hour) <= 12
    )


def _numeral(gold: str, given: str, ask: Ask) -> bool | None:
    """Numerals of other bases: ``2516_8`` equals ``2516`` (the base may be omitted), but not ``2516_9``."""
    gold_numeral, given_numeral = numeral(gold), numeral(given)
    if gold_numeral is None and given_numeral is None:
        return None
    if gold_numeral is not None and given_numeral is not None:
        return gold_numeral == given_numeral
    based, plain = (gold_numeral, given) if gold_numeral is not None else (given_numeral, gold)
    assert based is not None
    return bare(plain).replace(" ", "").replace(",", "").lstrip("0") == based[0]


def _matrix(gold: str, given: str, ask: Ask) -> bool | None:
    """Matrices by rows and entries; a single row or column is also a tuple."""
    gold_matrix, given_matrix = matrix(gold), matrix(given)
    if gold_matrix is None and given_matrix is None:
        return None
    if gold_matrix is None or given_matrix is None:
        rows, text = (gold_matrix, given) if gold_matrix is not None else (given_matrix, gold)
        assert rows is not None
        if min(len(rows), len(rows[0])) != 1 or not listed(text).ordered:
            return None
        items = [cell for row in rows for cell in row]
        pairs = (items, listed(text).items) if gold_matrix is not None else (listed(text).items, items)
        return _pairwise(pairs[0], pairs[1], ask)
    if [len(row) for row in gold_matrix] != [len(row) for row in given_matrix]:
        return False
    return all(_pairwise(row, other_row, ask) for row, other_row in zip(gold_matrix, given_matrix, strict=True))


def _cases(gold: str, given: str, ask: Ask) -> bool | None:
    """Functions by cases: the same values under the same conditions, in any order."""
    gold_cases, given_cases = cases(gold), cases(given)
    if gold_cases is None or given_cases is None:
        return None if gold_cases == given_cases else False  # algebra would take one of the values

    return _matched(gold_cases, given_cases, lambda row, given_row: _pairwise(row, given_row, ask))


def _congruence(gold: str, given: str, ask: Ask) -> bool | None:
    r"""Residues: ``x \equiv 2 \pmod 5`` is ``7 mod 5``, since 5 divides the difference."""
    gold_class, given_class = congruence(gold), congruence(given)
    if gold_class is None or given_class is None:
        return None
    (name, residues, modulus), (given_name, given_residues, given_modulus) = gold_class, given_class
    if modulus != given_modulus or (name is not None and given_name is not None and name != given_name):
        return False

    def same(residue: str, given_residue: str) -> bool:
        gold_number, given_number, size = number(residue), number(given_residue), number(modulus)
        if gold_number is None or given_number is None or size is None or size.value == 0:
            return equal(residue, given_residue, ask)
        return (gold_number.value - given_number.value) % size.value == 0

    return _matched(residues, given_residues, same)


def _interval(gold: str, given: str, ask: Ask) -> bool | None:
    """Intervals and inequalities: ``x \\le 2`` equals ``(-\\infty, 2]``."""
    gold_set, given_set = intervals(gold), intervals(given)
    if gold_set is None or given_set is None:
        return None
    if gold_set[0] is not None and given_set[0] is not None and gold_set[0] != given_set[0]:
        return False
    if len(gold_set[1]) != len(given_set[1]):
        return False

    def same(piece: Piece, given_piece: Piece) -> bool:
        closed = (piece.low_closed, piece.high_closed) == (given_piece.low_closed, given_piece.high_closed)
        ends = (piece.low, piece.high), (given_piece.low, given_piece.high)
        return closed and _pairwise(*ends, ask)

    return _matched(gold_set[1], given_set[1], same)


def _list(gold: str, given: str, ask: Ask) -> bool | None:
    """Several values. Order matters inside parentheses, but not inside braces or without brackets."""
    gold_list, given_list = listed(gold), listed(given)
    if number(gold) is not None:
        gold_list = Listed("", (gold,))
    if number(given) is not None:
        given_list = Listed("", (given,))
    if any(side.kind == "set" and side.items == ("\\emptyset",) for side in (gold_list, given_list)):
        return gold_list == given_list  # the set of the empty set
    if (
        len(gold_list.items) == 1 < len(given_list.items)
        and gold_list.kind == given_list.kind == ""
        and "=" not in given
    ):
        return all(equal(gold, item, ask) for item in given_list.items)  # one value in two forms: "3/4 or 75 %"
    if len(gold_list.items) == 1 and len(given_list.items) == 1:
        return (
            None
            if gold_list.kind == given_list.kind or (gold_list.items[0], given_list.items[0]) == (gold, given)
            else equal(gold_list.items[0], given_list.items[0], ask)
        )
    if max(len(gold_list.items), len(given_list.items)) > LONGEST_LIST:
        return None
    single = 1 in (len(gold_list.items), len(given_list.items))
    if single and _RELATION.search(gold) is None is not _RELATION.search(given):
        return None  # possibly an interval and an inequality that only algebra can solve
    if {gold_list.kind, given_list.kind} == {"tuple", "square"} and len(gold_list.items) == 2:
        return False  # an open interval and a closed one
    if (gold_list.kind, given_list.kind, len(gold_list.items)) == ("square", "set", 2):
        return False  # a closed interval and its ends
    for one, other, text in ((gold_list, given_list, given), (given_list, gold_list, gold)):
        if one.kind == "set" and len(one.items) == 1 and other.kind == "tuple":
            sides = (one.items[0], text) if one is gold_list else (text, one.items[0])
            return equal(*sides, ask)
    if {gold_list.kind, given_list.kind} in ({"tuple", "set"}, {"vector", "set"}):
        return False
    gold_items, items = _in_terms(gold_list, given_list)
    if (gold_list.ordered and given_list.kind != "set" and (given_list.ordered or gold_list.kind != "square")) or (
        given_list.ordered and gold_list.kind == ""
    ):
        return len(gold_items) == len(items) and _pairwise(gold_items, items, ask)
    if gold_items is not gold_list.items or items is not given_list.items:
        return len(gold_items) == len(items) and _pairwise(gold_items, items, ask)

    def same(item: str, given_item: str) -> bool:
        (name, value), (given_name, given_value) = assigned(item), assigned(given_item)
        if name is not None and given_name is not None:
            return name == given_name and equal(value, given_value, ask)
        return equal(value, given_value, ask)

    return _matched(_distinct(gold_list.items), _distinct(given_list.items), same)


def _in_terms(gold: Listed, given: Listed) -> tuple[Sequence[str], Sequence[str]]:
    """The items of both sides; ``x=1, y=2`` against ``(1, 2)`` gives the values in the order of the variables."""
    named = [[assigned(item) for item in side.items] for side in (gold, given)]
    names = [[name for name, _ in side if name is not None] for side in named]
    for side, own_names, other_names in ((0, names[0], names[1]), (1, names[1], names[0])):
        if len(own_names) == len(named[side]) and len(set(own_names)) == len(own_names) > 1 and not other_names:
            # Coordinates have an order, whatever the order in which they are given: "y = 5, x = 2" is (2, 5).
            in_order = (
                sorted(named[side], key=lambda item: item[0] or "") if set(own_names) <= set("xyz") else named[side]
            )
            values = tuple(value for _, value in in_order)
            return (values, given.items) if side == 0 else (gold.items, values)
    return gold.items, given.items


def _ratio(gold: str, given: str, ask: Ask) -> bool | None:
    """Ratios: ``3:4`` is ``3 to 4``, ``6:8`` and ``\\frac{3}{4}``."""
    gold_terms, given_terms = proportion(gold), proportion(given)
    if gold_terms is None and given_terms is None:
        return None
    sides = []
    for terms, text in ((gold_terms, gold), (given_terms, given)):
        if terms is None:
            sides.append([text])
        else:
            sides.append([f"\\frac{{{top}}}{{{bottom}}}" for top, bottom in pairwise(terms)])
    return len(sides[0]) == len(sides[1]) and _pairwise(sides[0], sides[1], ask)


def _word(gold: str, given: str, ask: Ask) -> bool | None:
    """Words, compared letter by letter: ``cab`` is not ``abc``, although the products are equal."""
    gold_word, given_word = (_spoken(text) for text in (gold, given))
    if given_word is None and len(gold_word or "") == 2 and gold.isupper():
        return None  # PV may be written P V
    if gold_word in _NOTHING and given_word in _NOTHING:
        return True
    if gold_word is None or number(gold) is not None or split_unit(gold)[1] is not None:
        return None
    return gold_word == given_word


def _spoken(text: str) -> str | None:
    """The text in lower case, or None if it is not made of words (a product of letters, for example)."""
    words = bare(text).strip(" .,;:!?")
    marked = "\\text" in text
    if words == "\\emptyset":
        return words
    if not _WORDS.fullmatch(words) or (not marked and all(may_be_product(word) for word in re.split(r"[ '-]", words))):
        return None
    words = re.sub(r"^(?:the|a|an|it) ", "", " ".join(words.lower().split()))
    return _SAME_WORDS.get(words, words)


def _pairwise(gold: Sequence[str], given: Sequence[str], ask: Ask) -> bool:
    return len(gold) == len(given) and all(
        equal(gold_item, given_item, ask) for gold_item, given_item in zip(gold, given, strict=True)
    )


def _matched(gold: Sequence[T], given: Sequence[T], same: Callable[[T, T], bool]) -> bool:
    """Whether gold and given items can be matched one to one."""
    remaining = list(given)
    if len(gold) != len(remaining):
        return False
    for gold_item in gold:
        index = next((i for i, candidate in enumerate(remaining) if same(gold_item, candidate)), None)
        if index is None:
            return False
        del remaining[index]
    return True


def _distinct(items: Sequence[str]) -> list[str]:
    distinct: dict[object, str] = {}
    for item in items:
        value = number(item)
        distinct.setdefault(item if value is None or value.percent else value.value, item)
    return list(distinct.values())


def _date(gold: str, given: str, ask: Ask) -> bool | None:
    """Days of the year in any order: ``June 20`` is ``20th of June``."""
    if not _MONTH.search(bare(gold)):
        return None
    gold_parts, given_parts = (
        Counter(re.findall(r"[a-z]{3,}|[0-9]+", re.sub(r"(?<=[0-9])(?:st|nd|rd|th)\b|\bthe\b", "", bare(text).lower())))
        for text in (gold, given)
    )
    return gold_parts == given_parts
