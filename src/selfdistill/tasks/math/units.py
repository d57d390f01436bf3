"""Split units from the numbers of answers, and convert between units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_KNOWN = {
    "length": "m meter metre 1; mm millimeter millimetre 1/1000; cm centimeter centimetre 1/100; dm decimeter 1/10; "
    "km kilometer kilometre 1000; inch inche in 127/5000; ft foot feet 381/1250; yd yard 1143/1250; "
    "mi mile 201168/125; nm nanometer 1/1000000000; um microm micrometer micron 1/1000000; angstrom 1/10000000000",
    "mass": "g gram gm 1; kg kilogram kilo 1000; mg milligram 1/1000; microg microgram 1/1000000; "
    "lb lbs pound 45359237/100000; oz ounce 45359237/1600000; tonne 1000000",
    "time": "s sec second 1; ms millisecond 1/1000; micros microsecond 1/1000000; min minute 60; h hr hour 3600; "
    "day d 86400; week wk 604800; month 2629800; yr year 31557600",
    "volume": "l liter litre 1; ml milliliter millilitre cc 1/1000; microl microliter 1/1000000; "
    "gal gallon 1; quart qt 1/4; pint pt 1/8",
    "money": "dollar buck usd 1; cent ¢ penny pennie 1/100",
    "angle": "degree deg 1",
    "solid": "rad radian 1",
    "temperature": "celsius 1; fahrenheit 1; kelvin 1",
    "resistance": "ohm 1; kohm 1000; mohm 1000000",
    "energy": "j joule 1; kj kilojoule 1000; erg 1/10000000",
}
_APART = ("gal", "quart", "pint", "celsius", "fahrenheit", "kelvin")
"""Units that are never converted: each is a dimension of its own."""
_TABLE: dict[str, tuple[str, Fraction]] = {}
for _dimension, _rows in _KNOWN.items():
    for _row in _rows.split("; "):
        *_names, _size = _row.split()
        _kind = _names[0] if _names[0] in _APART else _dimension
        _TABLE.update(dict.fromkeys(_names, (_kind, Fraction(_size))))
_SHORT = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "C": "celsius", "F": "fahrenheit", "K": "kelvin"}
_SINGLE = frozenset("m g s h d l L J N W V A K C F T".split())
"""Letters that are units after a number and a space; any other letter is a variable."""
_SCALES = frozenset("hundred thousand million billion trillion dozen".split())
NO_UNITS = frozenset(
    "hundred thousand million billion trillion percent percentage and or over pi sqrt sin cos tan sec csc cot log ln "
    "exp mod base if for where when with a.m p.m am pm noon midnight to is not but else otherwise plus minus least "
    "most more less than infty dozen cup cap in arcsin arccos arctan sinh cosh max min all".split()
)
"""Words after a number that are not units, because they change its meaning."""

_POWER = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9]))?"
_TEXT_UNIT = rf"\\text\s*\{{[^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*\}}{_POWER}"
_WORD_UNIT = rf"(?:[a-zA-Zµ]+\.?|¢){_POWER}"
_JOIN = r"(?:\s*(?:/|\\cdot)\s*|\s+)"
_BEHIND = re.compile(
    rf"(?:(?<=[0-9}})%a-zA-Z.])\s*(?P<text>\(?{_TEXT_UNIT}(?:\s*(?:/|\\cdot)?\s*(?:{_TEXT_UNIT}|{_WORD_UNIT}))*\)?)"
    rf"|(?<=[0-9}})])(?P<degrees>\s*\^\s*\\circ\s*(?:\\text\s*\{{\s*[CFK]\s*\}}|[CFK])?)"
    rf"|(?<=[0-9}}i)])\s+(?P<words>{_WORD_UNIT}(?:{_JOIN}{_WORD_UNIT})*)"
    rf"|(?<=[0-9}}])(?P<sign>¢|€|£|¥)"
    rf"|(?<=[0-9])(?P<close>(?:[mgshLJNWV]|cm|mm|km|kg|mph|ft|mL|ml|kmh|lbs|lb|kWh|km/h|m/s){_POWER})"
    r"|(?<=[0-9}])\s+\((?P<aside>[a-zA-Z][a-zA-Z ]*)\))$"
)  # fmt: skip
_NUMERIC = re.compile(r"(?:[-+0-9.,/ ^{}]|\\(?:times|cdot|frac)|[eE](?=[-+0-9]))+")
_OVER = re.compile(rf"\\frac\s*\{{\s*({_TEXT_UNIT})\s*\}}\s*\{{\s*({_TEXT_UNIT})\s*\}}")
_BEFORE = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\text\s*\{\s*)?(?P<currency>(?:US|CA|AU)?\\\$|€|£|¥|₹|USD|EUR|GBP|Rs\.?|\\text\s*\{Rs\.?\s*\})"
    r"(?![a-zA-Z])\s*(?:\}\s*)?(?=[-0-9.\\])"
)
_MIXED = re.compile(
    r"(?P<whole>[0-9]{1,9})\s*(?P<unit>[a-zA-Z]+)\.?,?\s+(?:and\s+)?(?P<part>[0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(?P<smaller>[a-zA-Z]+)"
)
_ARC = re.compile(
    r"(?P<sign>-?)(?P<degrees>[0-9]{1,4})\s*\^\s*\\circ\s*(?P<minutes>[0-9]{1,2}(?:\.[0-9]{1,4})?)\s*'(?!')"
    r"(?:\s*(?P<seconds>[0-9]{1,2}(?:\.[0-9]{1,4})?)\s*'')?"
)
"""Degrees, minutes and seconds of an angle."""
_CALLED = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?:the|a|an|its|total|area|volume|perimeter|length|width|height|radius|distance|speed|cost|sum"
    r"|price|profit|age|ratio|slope|probability|minimum|maximum|average|mean|median|number|answer|time|of|is|result|value"
    r"|surface|in|final|correct)\b[ ]*)+\s*(?:\}\s*)?(?:[:=]\s*(?:\}\s*)?|(?=\s*[-0-9\\(]))"
    r"(?:\\text\s*\{\s*(?:is|of)\s*\})?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: its ``dimensions`` with powers and its ``size``; both are None if the unit is unknown."""

    words: str
    dimensions: tuple[tuple[str, int], ...] | None = None
    size: Fraction | None = None


@lru_cache(maxsize=8192)
def split_unit(text: str) -> tuple[str, Unit | None]:
    """The value and the unit of a tidy answer. Words like "area =" before the value are dropped."""
    called = _CALLED.match(text)
    if called and called.end() < len(text):
        text = text[called.end() :]
    compound = _compound(text)
    if compound:
        return compound
    text = _OVER.sub(r"\1/\2", text)
    before = _BEFORE.match(text)
    if before:
        named = "dollar" if before["currency"].endswith(("$", "USD")) else before["currency"].lower()
        rest, unit = split_unit(before["sign"] + text[before.end() :])
        return rest, unit or _unit(named)
    behind = _BEHIND.search(text)
    if behind is None or not text[: behind.start()].strip():
        return text, None
    kind = behind.lastgroup or "words"
    unit_text = behind[kind].strip()
    value = text[: behind.start()].strip()
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", unit_text).strip(" .,()")
    names = re.findall(r"[a-zA-Z.]+", words)
    if kind == "degrees" and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", value):
        return text, None  # the degrees belong to the angle inside the function
    if kind == "degrees":
        return value, _unit("degree" if words.endswith("circ") else words[-1])
    if names and names[0].lower() in ("squared", "cubed", "factorial"):
        return text, None  # an operation, not a unit
    if len(names) > 1 and names[0].lower() in _SCALES and _NUMERIC.fullmatch(value):  # "3 million people"
        counted = words.split(maxsplit=1)[1]
        if not any(name.lower() in NO_UNITS for name in names[1:]):
            return f"{value} {names[0].lower()}", _unit(counted)
    if any(name.lower().strip(".") in NO_UNITS - {"in"} or name.lower() in NO_UNITS - {"in"} for name in names):
        return text, None
    if names and names[0].lower() == "in" and len(names) > 1:  # "5 in total", "25 in square inches"
        words, names = words[2:].strip(), names[1:]
    if kind == "text" and re.search(r"[=<>&]|[+*/^(-]\s*$", value):
        return (text, None) if not re.search(r"[0-9}a-zA-Z)]$", value) else (value, _unit(words))
    single = len(names) == 1 and len(names[0].rstrip(".")) == 1
    plain_value = _NUMERIC.fullmatch(value) is not None
    if (
        kind == "words"
        and any(len(name) == 1 for name in names)
        and not (plain_value and {name for name in names if len(name) == 1} <= _SINGLE)
    ):
        return text, None
    if kind == "words" and single and not (plain_value and names[0] in _SINGLE):
        return text, None
    if kind == "text" and (
        words in ("i", "e", "d", "th", "T") or not words or (re.fullmatch(r"[(]?[A-E][)]?", words) and not plain_value)
    ):
        return text, None
    if (
        kind == "text"
        and re.search(r"[a-zA-Z]$", value)
        and not re.search(r"(?<![a-zA-Z])[a-zA-Z]$|\\[a-zA-Z]+$", value)
    ):
        return text, None  # "no \text{solution}"
    return value, _unit(words)


def _compound(text: str) -> tuple[str, Unit] | None:
    """The value of two units as one: ``2 hours 30 minutes`` is 5/2 hours, ``15^\\circ 30'`` is 31/2 degrees."""
    if mixed := _MIXED.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip()):
        # "2 hours 30 minutes" is 5/2 hours; "2 feet and 30 inches" may be two lengths.
        larger, smaller = _unit(mixed["unit"]), _unit(mixed["smaller"])
        if larger.size and smaller.size and larger.dimensions == smaller.dimensions:
            part = Fraction(mixed["part"]) * smaller.size / larger.size
            if part < 1 and smaller.size < larger.size:
                total = int(mixed["whole"]) + part
                return f"{total.numerator}/{total.denominator}", larger
    if arc := _ARC.fullmatch(text):
        minutes = Fraction(arc["minutes"]) + Fraction(arc["seconds"] or 0) / 60
        if minutes < 60:
            total = int(arc["degrees"]) + minutes / 60
            return f"{arc['sign']}{total.numerator}/{total.denominator}", _unit("degree")
    return None


def ratio(gold: Unit | None, given: Unit | None) -> Fraction | None:
    """Factor from the given unit to the gold unit: 1 if either is missing or unknown, None if they are incompatible."""
    if gold is not None and given is not None and _prefixes_clash(gold.words, given.words):
        return None
    if gold is None or given is None or gold.dimensions is None or given.dimensions is None:
        return Fraction(1)
    if gold.dimensions != given.dimensions:
        kinds = {kind for kind, _ in gold.dimensions + given.dimensions}
        # "30°" is a temperature if the other side names a temperature scale.
        return Fraction(1) if "angle" in kinds and kinds & {"celsius", "fahrenheit"} else None
    assert gold.size is not None and given.size is not None
    return given.size / gold.size


def _prefixes_clash(gold: str, given: str) -> bool:
    """Whether two units differ only as milli and mega, or pico and peta: ``mV``/``MV``, but not ``mm``/``MM``."""
    pairs = zip(
        *(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z]{2,3}(?![a-zA-Z])", words) for words in (gold, given)), strict=False
    )
    return any(
        {gold_word[0], given_word[0]} in ({"m", "M"}, {"p", "P"})
        and gold_word[1:] == given_word[1:]
        and gold_word != given_word
        for gold_word, given_word in pairs
    )


@lru_cache(maxsize=2048)
def _unit(words: str) -> Unit:
    words = re.sub(r"(?<![a-zA-Z])[a-zA-Z]+(?![a-zA-Z])", lambda word: _SHORT.get(word.group(), word.group()), words)
    tokens = re.findall(r"[a-zA-Z¢µ]+|/|\^\s*\{?\s*-?[0-9]|per\b", words)
    powers: dict[str, int] = {}
    size = Fraction(1)
    sign, raised = 1, 1
    last: tuple[str, Fraction, int] | None = None
    for token in tokens:
        if token.startswith("^"):
            power = int(token.lstrip("^ {"))
            if last is None or abs(power) > 4:
                return Unit(words)
            kind, unit_size, by = last
            powers[kind] += by * (power - 1)
            size *= unit_size ** (by * (power - 1))
            continue
        lower = token.lower()
        if lower in ("/", "per"):
            sign = -1
        elif lower in ("square", "sq", "cubic", "cu"):
            raised = 2 if lower.startswith("s") else 3
        elif lower in ("squared", "cubed") and last is not None:
            kind, unit_size, by = last
            more = 1 if lower == "squared" else 2
            powers[kind] += by * more
            size *= unit_size ** (by * more)
        else:
            entry = _TABLE.get(token if len(token) == 1 and token not in "LJ" else lower) or _TABLE.get(
                lower.removesuffix("s")
            )
            if entry is None:
                return Unit(words)
            by = sign * raised
            powers[entry[0]] = powers.get(entry[0], 0) + by
            size *= entry[1] ** by
            last, raised = (entry[0], entry[1], by), 1
    if not powers:
        return Unit(words)
    return Unit(words, tuple(sorted(item for item in powers.items() if item[1])), size)
