"""Parse the numbers of final answers, compare them with rounding, and give obviously equal answers one text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from selfdistill.tasks.math.typography import bare, tidy
from selfdistill.tasks.math.units import split_unit

_GROUPED = r"[0-9]{1,3}(?:(?:,[0-9]{3}){1,12}|(?: [0-9]{3}){1,12})(?![0-9])|[0-9]{1,400}"
_DECIMAL = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<whole>{_GROUPED})?(?P<point>\.(?P<decimals>[0-9]{{0,400}}))?"
    r"(?:\s*[eE]\s*\{?(?P<e>[-+]?[0-9]{1,3})\}?|\s*(?:\\times|\\cdot|[xX*])\s*10\s*\^\s*(?:\{\s*)?(?P<ten>[-+]?\s*[0-9]{1,3})\s*\}?)?"
    r"(?P<scale>\s*(?:hundred|thousand|million|billion|trillion|dozen))?"
    r"(?P<percent>\s*(?:%|percent|per cent|pct))?",
)
_TEN = re.compile(r"(?P<sign>[-+]?)\s*10\s*\^\s*(?:\{\s*)?(?P<ten>[-+]?\s*[0-9]{1,3})\s*\}?")
_RATIO = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?P<whole>[0-9]{1,40})(?:\s+|\s*-\s*))?(?P<top>[0-9]{1,40})\s*/\s*(?P<bottom>[0-9]{1,40})"
    r"(?P<percent>\s*(?:%|percent))?"
)
_FRAC = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<whole>[0-9]{1,40})?\s*\\frac\s*"
    r"(?:\{\s*(?P<minus>-?)\s*(?P<top>[0-9]{1,40})\s*\}\s*\{\s*(?P<bottom>[0-9]{1,40})\s*\}|(?P<top1>[0-9])\s*(?P<bottom1>[0-9]))"
    r"(?P<percent>\s*(?:%|percent))?"
)
_REPEATED = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<whole>[0-9]{1,40})?\.(?P<fixed>[0-9]{0,40})"
    r"(?:\\(?:overline|bar|dot)\s*\{?\s*(?P<period>[0-9]{1,40})\s*\}?|\((?P<aside>[0-9]{1,40})\))(?P<percent>\s*%)?"
)
_GOES_ON = re.compile(r"(?P<sign>[-+]?)\s*(?P<whole>[0-9]{1,40})?\.(?P<digits>[0-9]{2,60})\s*(?:\\ldots|\.\.\.+)")
_ORDINAL = re.compile(r"(?P<place>[0-9]{1,9})\s*(?:\^\s*)?\{?\s*(?:st|nd|rd|th)\s*\}?")
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_NUMERALS = {word: i for i, word in enumerate(f"{_ONES} eighteen nineteen".split())} | {
    word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    f"{part}{ending}": i
    for i, part in enumerate("third fourth fifth sixth seventh eighth ninth tenth".split(), start=3)
    for ending in ("", "s")
}

_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")  # not between digits: "1 00" is no 100
_RUN = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{2,}")
_ALONE = re.compile(r"[A-Za-z'.,;:!?]+")
# These are words and not products of symbols: no symbol is called o, and u times p does not occur.
_SHORT_WORDS = frozenset("no on of or so to go do up".split())


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its precision: ``6.70e-5`` is 6.7e-5 with 3 ``digits``; one unit of the last digit is 1e-7."""

    value: Fraction
    digits: int | None = None
    """Significant digits of a decimal; None for an exact number (an integer, a fraction, a repeating decimal)."""
    last: Fraction | None = None
    """The value of one unit in the last digit."""
    percent: bool = False
    endless: bool = False
    """Whether ``value`` approximates a number without a finite expansion, such as the square root of 2."""


def number(answer: str) -> Number | None:
    r"""The number of an answer such as ``1,234``, ``4.5 \times 10^{33}``, ``2\frac13``, ``8\%`` or ``twelve``."""
    value, _ = split_unit(tidy(answer))
    return _number(value)


@lru_cache(maxsize=8192)
def _number(text: str) -> Number | None:
    text = bare(text)
    if len(text) > 500:
        return None
    text = text.replace("- ", "-") if text.startswith("- ") else text
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1].strip()
    match = _DECIMAL.fullmatch(text)
    if match and (match["whole"] or match["decimals"]):
        return _decimal(match)
    if match := _TEN.fullmatch(text):
        return Number(_signed(match, Fraction(10) ** int(match["ten"].replace(" ", ""))))
    if match := _RATIO.fullmatch(text) or _FRAC.fullmatch(text):
        parts = match.groupdict()
        bottom = int(parts["bottom"] or parts["bottom1"])
        if bottom == 0:
            return None
        value = int(parts["whole"] or 0) + Fraction(int(parts["top"] or parts["top1"]), bottom)
        return Number(_signed(match, -value if parts.get("minus") else value), percent=bool(parts["percent"]))
    if match := _REPEATED.fullmatch(text):
        fixed, period = match["fixed"], match["period"] or match["aside"]
        return Number(_signed(match, _periodic(match["whole"], fixed, period)), percent=bool(match["percent"]))
    if match := _GOES_ON.fullmatch(text):
        return _going_on(match)
    if match := _ORDINAL.fullmatch(text):
        return Number(Fraction(int(match["place"])))
    return _in_words(text.lower())


def _decimal(match: re.Match[str]) -> Number:
    whole = re.sub("[, ]", "", match["whole"] or "0")
    decimals = match["decimals"] or ""
    ten = int((match["e"] or match["ten"] or "0").replace(" ", ""))
    last = Fraction(10) ** (ten - len(decimals))
    scale = _SCALES[match["scale"].strip()] if match["scale"] else 1
    value = _signed(match, int(whole + decimals) * last * scale)
    percent = bool(match["percent"])
    inexact = bool(decimals) or match["e"] is not None or match["ten"] is not None
    if not inexact:
        return Number(value, percent=percent)
    return Number(value, len((whole + decimals).lstrip("0")) or 1, last * scale, percent)


def _going_on(match: re.Match[str]) -> Number:
    """A decimal ending in "...": exact if the digits repeat (0.333..., 0.1666..., 0.1212...), else a rounded number."""
    digits = match["digits"]
    for length in range(1, 7):
        repeats = 3 if length == 1 else 2
        period = digits[-length:]
        if digits.endswith(period * repeats):
            fixed = digits
            while fixed.endswith(period):
                fixed = fixed[:-length]
            return Number(_signed(match, _periodic(match["whole"], fixed, period)))
    last = Fraction(10) ** -len(digits)
    value = int((match["whole"] or "0") + digits) * last
    return Number(_signed(match, value), len(((match["whole"] or "") + digits).lstrip("0")) or 1, last)


def _periodic(whole: str | None, fixed: str, period: str) -> Fraction:
    before = int((whole or "0") + fixed)
    return (before + Fraction(int(period), 10 ** len(period) - 1)) / Fraction(10) ** len(fixed)


def _signed(match: re.Match[str], value: Fraction) -> Fraction:
    return -value if match["sign"] == "-" else value


def _in_words(text: str) -> Number | None:
    """Number words up to the hundreds, with words that scale them: ``twenty-five``, ``two million``."""
    total = 0
    words = re.split(r"[ -]+", re.sub(r"^a (?=hundred|thousand|million|billion)", "one ", text))
    if len(words) == 2 and words[1] in _PARTS:  # "two thirds"; "half" alone says nothing about of what
        top = {"a": 1, "an": 1}.get(words[0], _NUMERALS.get(words[0], 0))
        return Number(Fraction(top, _PARTS[words[1]])) if top else None
    if not 0 < len(words) <= 6:
        return None
    for word in words:
        if word in _SCALES and total:
            total *= _SCALES[word]
        elif word in _NUMERALS and (total % 10 == 0 and (total == 0 or total % 100 >= 20 or total % 100 == 0)):
            total += _NUMERALS[word]
        elif word != "and" or not total:
            return None
    return Number(Fraction(total))


def same_number(gold: Number, given: Number) -> bool:
    """Whether two numbers are the same answer: equal, or one is the other rounded to enough digits.

    If the row's answer is 8 %, both 8 and 0.08 are right. If only the given answer has the sign, 20 % is right for 20
    and 50 % for 0.5.
    """
    if gold.percent == given.percent:
        return _close(gold, given)
    if gold.percent:
        return _close(gold, given) or _close(_per_cent(gold), given)
    return _close(gold, given) or _close(gold, _per_cent(given))


def _per_cent(number: Number) -> Number:
    return Number(number.value / 100, number.digits, number.last and number.last / 100)


def _close(gold: Number, given: Number) -> bool:
    if gold.value == given.value:
        return True
    if gold.last is None and given.last is None:
        return False
    difference = abs(gold.value - given.value)
    if max(gold.digits or 0, given.digits or 0) >= 15 and difference <= Fraction(1, 10**12) * abs(gold.value):
        return True  # rounding error of binary floats: 0.30000000000000004
    # The number with the coarser last digit may be the other number rounded.
    coarse, fine = (gold, given) if (gold.last or 0) > (given.last or 0) else (given, gold)
    assert coarse.last is not None and coarse.digits is not None
    if 2 * difference > coarse.last:
        return False
    if fine.last is not None or (not fine.endless and _terminates(fine.value)):
        # Both have finite expansions. math-verify requires six digits; an integer is never a rounded number.
        return coarse.digits >= 6 and fine.value.denominator > 1 and coarse.last < 1
    return coarse.digits >= (3 if coarse is gold else 4)


def _terminates(value: Fraction) -> bool:
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    return bottom == 1


def fold(text: str) -> str:
    r"""The text without spacing and text commands, words in lower case; ``\Delta`` and ``\delta`` stay distinct."""
    text = _SPACE.sub("", bare(text))
    if len(text.strip("().")) == 1:
        return text.lower()
    alone = _ALONE.fullmatch(text) is not None

    def lowered(run: re.Match[str]) -> str:
        # Up to three letters are a product within a formula; alone they are one if a letter occurs in both cases: Mm.
        word = run.group()
        both_cases = len({*word}) > len({*word.lower()})
        return word if is_genotype(word) or (len(word) < 4 and (both_cases or not alone)) else word.lower()

    return _RUN.sub(lowered, text)


def is_genotype(word: str) -> bool:
    """Whether every letter occurs twice and at least one in both cases: ``AaBb``, ``AABb``. Case matters here."""
    return len({*word}) > len({*word.lower()}) and all(
        word.lower().count(letter) == 2 and letter.isalpha() for letter in word.lower()
    )


def may_be_product(word: str) -> bool:
    """Whether bare letters may be symbols: ``xy``, ``GMm``; not ``no``, nor capitals such as ``HT``, nor ``abc``."""
    if len(word) < 3:
        return len(word) < 2 or (word.lower() not in _SHORT_WORDS and not word.isupper())
    return len(word) == 3 and not (word.islower() or word.isupper() or word.istitle())


def canonical(answer: str) -> str:
    """One text for obviously equal answers: numbers as fractions in lowest terms, words in lower case."""
    value, _ = split_unit(tidy(answer))
    parsed = _number(value)
    if parsed is None:
        return fold(value)
    return f"{parsed.value}%" if parsed.percent else str(parsed.value)
