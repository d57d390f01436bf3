"""Forms of a final answer: its plain text, its number, and one text for answers that are equal at a glance."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,12}|\d{1,40})"
_DECIMAL = re.compile(rf"(?P<sign>[-+]?)\s*(?P<whole>{_DIGITS})?(?P<decimals>\.\d{{0,40}})?")
_RATIO = re.compile(r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d{1,40})\s+)?(?P<top>\d{1,40})\s*/\s*(?P<bottom>\d{1,40})")
_FRAC = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<whole>\d{1,40})?\s*\\[dt]?frac\s*"
    r"(?:\{\s*(?P<top>\d{1,40})\s*\}\s*\{\s*(?P<bottom>\d{1,40})\s*\}|(?P<top1>\d)\s*(?P<bottom1>\d))"
)
# A unit is words after a number. Words that change the number are none: "5 million" is not 5.
_UNIT = re.compile(r"(?<=[\d}])\s+(?P<words>[a-z]{2,}(?:[ /][a-z]+)*)$", re.IGNORECASE)
_NO_UNITS = {"dozen", "hundred", "thousand", "million", "billion", "trillion", "percent", "and", "or", "over"} | {
    *("pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp"),
}
_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # not between digits: "1 00" is no 100
WORD = re.compile(r"[a-z' -]*[a-z]{4}[a-z' -]*")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


def plain(answer: str) -> str:
    """The answer without what does not change its meaning: dollar signs, spacing, text commands, units in words."""
    answer = answer.replace("\u2212", "-").replace("\\$", "").replace("$", "")
    answer = re.sub(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})", "", answer)
    answer = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[()\[\]]", "", answer)
    answer = re.sub(r"\\[,;:! ]", " ", answer)
    answer = _TEXT.sub(r" \1", answer)
    answer = re.sub(r"\s+", " ", answer).strip()
    answer = answer.rstrip(".").strip()
    unit = _UNIT.search(answer)
    if unit and not _NO_UNITS & set(re.split(r"[ /]", unit["words"].lower())):
        answer = answer[: unit.start()]
    return answer


def number(answer: str) -> Fraction | None:
    """The value of a plain number (``1,234``, ``-0.5``, ``3/4``, ``1\\frac{1}{2}``), None for anything else."""
    answer = plain(answer)
    if len(answer) > 120:
        return None
    match = _DECIMAL.fullmatch(answer)
    if match and (match["whole"] or len(match["decimals"] or "") > 1):
        whole = (match["whole"] or "0").replace(",", "")
        value = Fraction(f"{whole}{(match['decimals'] or '.').removesuffix('.')}")
        return -value if match["sign"] == "-" else value
    ratio = _RATIO.fullmatch(answer) or _FRAC.fullmatch(answer)
    if ratio is None:
        return None
    parts = ratio.groupdict()
    bottom = int(parts["bottom"] or parts["bottom1"])
    if bottom == 0:
        return None
    value = int(parts["whole"] or 0) + Fraction(int(parts["top"] or parts["top1"]), bottom)
    return -value if parts["sign"] == "-" else value


def canonical(answer: str) -> str:
    """One text for answers that are equal at a glance: numbers as fractions in lowest terms, words in lower case."""
    value = number(answer)
    return _SPACE.sub("", plain(answer)).lower() if value is None else str(value)
