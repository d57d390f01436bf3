"""Parse the structure of final answers: lists, intervals, matrices, times, bases and ratios."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selfdistill.tasks.math.forms import number
from selfdistill.tasks.math.typography import bare

_OPEN, _CLOSE = "([{", ")]}"
_ASSIGNED = re.compile(
    r"(?:\(?[a-zA-Z](?:_\{?\w\}?)?(?:\s*,\s*[a-zA-Z](?:_\{?\w\}?)?)*\)?|\\[a-z]+|[a-zA-Z]\([a-z]\))\s*(?:=|\\in(?![a-z]))\s*"
)
_VARIABLE = r"(?:[a-zA-Z]|\\(?:theta|alpha|beta|lambda|mu|phi|omega|epsilon|delta|gamma))(?:_\{?\w\}?)?"
_RELATION = re.compile(r"(<|>|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z]))")
_MATRIX = re.compile(
    r"(?:[A-Za-z]\s*=\s*)?(?:[(\[]\s*)?\\begin\s*\{(?P<kind>[pb]?(?:small)?matrix|array)\}\s*(?:\{[lcr|\s]*\})?"
    r"(?P<body>.*?)\\end\s*\{(?P=kind)\}(?:\s*[)\]])?",
    re.DOTALL,
)
_TIME = re.compile(
    r"(?:at )?(?P<hour>[0-9]{1,2})(?:[:.](?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?\s*"
    r"(?P<half>a\.?\s?m\.?|p\.?\s?m\.?|noon|midnight|o'clock)?",
    re.IGNORECASE,
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10} | {
    "twelve": 12,
    "sixteen": 16,
}
_RADIX = f"[0-9]{{1,2}}|{'|'.join(_BASES)}"
_BASE = re.compile(
    rf"\(?(?P<digits>[0-9A-Fa-f]{{1,200}})\)?\s*(?:_\s*\{{?\s*(?P<base>{_RADIX})\s*\}}?"
    rf"|\(?\s*_?\s*\{{?\s*(?:in )?base[ -](?P<named>{_RADIX})\s*\}}?\s*\)?)"
)
_LABEL = re.compile(
    r"(?:(?:option|choice|answer)\s+)?(?P<open>\()?(?P<letter>[A-Ha-h])(?P<close>[).:])?(?:(?<=[).:])\s*(?!(?:and|or)\b|[,;&/])(?P<rest>\S.*))?",
    re.IGNORECASE,
)
LONGEST_LIST = 24

Kind = Literal["", "set", "tuple", "square", "vector"]


@dataclass(frozen=True, slots=True)
class Listed:
    """Several values. ``kind`` names the enclosing brackets ("" for none), which decide whether order matters."""

    kind: Kind
    items: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the order matters."""
        return self.kind in ("tuple", "square", "vector")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of the text between separators outside brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        character = text[i]
        if character == "\\" and text[i + 1 : i + 2] not in ("{", "}"):
            match = separator.match(text, i) if depth == 0 else None
            if match is None:
                i += 2
                continue
        else:
            match = separator.match(text, i) if depth == 0 else None
        if match is not None and match.end() > i:
            parts.append(text[start:i])
            start = i = match.end()
            continue
        depth += (character in _OPEN) - (character in _CLOSE)
        i += 1
    return [part.strip() for part in [*parts, text[start:]]]


_AND, _OR = (
    rf"\\text\s*\{{\s*,?\s*{word}\s*,?\s*\}}|(?<![a-zA-Z\\]){word}(?![a-zA-Z])|\\(?:{signs})(?![a-zA-Z])"
    for word, signs in (("and", "wedge|land"), ("or", "vee|lor"))
)
_SEPARATOR = re.compile(rf"\s*(?:[,;]\s*)?(?:{_AND}|{_OR})\s*|\s*[,;]\s*")
_UNION = re.compile(rf"\s*(?:\\cup(?![a-z])|(?<![a-zA-Z])U(?![a-zA-Z])|{_OR})\s*")
_BOTH = re.compile(rf"\s*(?:{_AND})\s*")
_BUILDER = re.compile(
    rf"\\\{{\s*{_VARIABLE}(?:\s*\\in\s*\\mathbb\{{R\}})?\s*(?:\\mid|\||:)\s*(?P<condition>.*)\\\}}", re.DOTALL
)
_REVERSED = re.compile(r"(?P<open>[\[\]])(?P<ends>\s*[^\[\](),;\s][^\[\](),;]*[,;][^\[\](),;]+)(?P<close>[\[\]])")
"""A pair in square brackets of either direction: ISO 31-11 writes the open interval (1,3) as ]1,3[."""
_ALL_REALS = re.compile(
    rf"(?:(?P<name>{_VARIABLE})\s*\\in\s*)?(?:\\mathbb\{{R\}}|(?:\\text\s*\{{\s*)?all real numbers)\s*"
    r"(?P<but>(?:\\setminus|(?:\\text\s*\{\s*)?(?:except|other than|but)(?: for)?(?![a-z]))\s*\}?\s*)?"
    r"(?P<points>[^<>]*)",
    re.IGNORECASE,
)
_REAL_AND = re.compile(
    rf"(?P<name>{_VARIABLE})\s*\\in\s*\\mathbb\{{R\}}\s*[,;:]\s*(?=.*(?:<|>|\\(?:le|ge|ne)(?![a-z])))"
)
_CONGRUENCE = re.compile(
    rf"(?:(?P<name>{_VARIABLE})\s*(?:\\equiv(?![a-z])|=)\s*)?(?P<residues>[^=]{{1,80}}?)"
    r"\s*\(?\s*\\?[pb]?mod(?:ulo)?(?![a-z])\s*\{?\s*(?P<modulus>[0-9]{1,40}|[a-zA-Z])\s*\}?\s*\)?"
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def listed(text: str) -> Listed:
    r"""The values of a tidy answer; ``2 \pm \sqrt{3}`` has two."""
    assigned = _ASSIGNED.match(text)
    rest = text[assigned.end() :] if assigned else text
    if rest != text and (enclosed(rest) or not _has_relation(rest)) and (_several(rest) or enclosed(rest)):
        text = rest
    text = re.sub(r"^(?:either|both)\s+", "", text)
    kind = enclosed(text)
    inner = text
    if kind:
        size = {"set": 2, "vector": 0}.get(kind, 1)
        inner = re.sub(r"^\\langle\s*|\s*\\rangle$", "", text) if kind == "vector" else text[size:-size]
        if kind == "set" and re.search(r"\\mid|\||(?<![0-9]):", inner):
            return Listed("", (text,))
    parts = split(inner, _SEPARATOR)
    if not all(parts):
        parts = [part for part in parts if part]
    if len(parts) == 1 and kind != "set":
        return Listed("", tuple(_both_signs(text)))
    if kind == "tuple" and text.count("\\pm") == 1 and "\\mp" not in text:
        return Listed("", tuple(_both_signs(text)))  # two points
    items = [signed for part in parts for signed in _both_signs(part)]
    return Listed(kind, tuple(items))


def congruence(text: str) -> tuple[str | None, tuple[str, ...], str] | None:
    r"""The variable, the residues and the modulus of ``x \equiv 1, 2 \pmod 5`` or ``2 mod 5``."""
    match = _CONGRUENCE.fullmatch(bare(text))
    return (match["name"], listed(match["residues"]).items, match["modulus"]) if match else None


def _several(text: str) -> bool:
    return len(split(text, _SEPARATOR)) > 1


def _has_relation(text: str) -> bool:
    return re.search(r"=|<|>|\\(?:le|ge|ne|in)(?![a-z])", text) is not None


def enclosed(text: str) -> Kind:
    """The kind of brackets that enclose the whole text, or ""."""
    if text.startswith("\\langle") and text.endswith("\\rangle"):
        return "vector"
    size, kind = (2, "set") if text.startswith("\\{") else (1, {"(": "tuple", "[": "square"}.get(text[:1], ""))
    if not kind or not text.endswith("\\}" if kind == "set" else (")", "]")[kind == "square"]):
        return ""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and i >= size - 1 and i < len(text) - 1:
            return ""
    return kind  # type: ignore[return-value]  # one of the names above


def _both_signs(item: str) -> list[str]:
    item = item if "\\pm" in item else item.replace("\\mp", "\\pm")
    if item.count("\\pm") != 1 or "\\mp" in item:
        return [item]
    assigned = _ASSIGNED.match(item)
    item = item[assigned.end() :] if assigned else item
    before, after = item.split("\\pm")
    return [
        f"{before.strip()}+{after.strip()}" if before.strip() else after.strip(),
        f"{before.strip()}-{after.strip()}",
    ]


def assigned(item: str) -> tuple[str | None, str]:
    """The variable and value of ``x = 5``; (None, item) for anything else."""
    match = re.fullmatch(rf"(?P<name>{_VARIABLE})\s*=\s*(?P<value>[^=<>]+)", item)
    return (match["name"], match["value"]) if match else (None, item)


def matrix(text: str) -> tuple[tuple[str, ...], ...] | None:
    """The rows of a matrix; None for anything else, determinants included."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        nested = listed(text)
        rows = [listed(item) for item in nested.items]
        if nested.kind == "square" and len(rows) > 1 and all(row.kind == "square" for row in rows):
            return tuple(row.items for row in rows)
        return None
    body = re.sub(r"\\hline", "", match["body"])
    rows_ = [tuple(cell.strip() for cell in row.split("&")) for row in re.split(r"\\\\", body) if row.strip()]
    return tuple(rows_) if rows_ else None


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval. It is always open at infinity."""

    low: str
    low_closed: bool
    high: str
    high_closed: bool


def intervals(text: str) -> tuple[str | None, tuple[Piece, ...]] | None:
    """The variable and intervals of an inequality or a union of intervals; None for anything else."""
    builder = _BUILDER.fullmatch(text)
    text = builder["condition"].strip() if builder else text
    text = _REVERSED.sub(_usual_brackets, _REAL_AND.sub("", text))
    reals = _ALL_REALS.fullmatch(text)
    excluded = _without(reals["points"]) if reals and reals["but"] else None
    if reals and excluded:
        return reals["name"], excluded
    name = None
    member = re.match(rf"({_VARIABLE})\s*\\in(?![a-z])\s*", text)
    if member:
        name, text = member[1], text[member.end() :]
    if bare(text).lower() in ("\\mathbb{r}", "all real numbers", "all reals", "all real"):
        return name, (Piece("-\\infty", False, "\\infty", False),)
    pieces: list[Piece] = []
    joined = _joined(text)
    if joined is not None:
        return joined
    for part in split(text, _UNION):
        inequality = _inequality(part)
        if inequality is None:
            piece = _interval(part)
            if piece is None:
                return None
            pieces.append(piece)
            continue
        if name is not None and inequality[0] != name:
            return None
        name = inequality[0]
        pieces += inequality[1]
    return name, tuple(pieces)


def _usual_brackets(pair: re.Match[str]) -> str:
    return f"{'[' if pair['open'] == '[' else '('}{pair['ends']}{']' if pair['close'] == ']' else ')'}"


def _joined(text: str) -> tuple[str, tuple[Piece, ...]] | None:
    r"""Inequalities joined by a comma, and excluded points: ``x > 1, x < 3``; ``x < 1, x > 3``; ``x \ne \pm 1``.

    The comma means "and" unless no number satisfies both.
    """
    unequal = re.fullmatch(rf"(?P<name>{_VARIABLE})\s*\\ne\s*(?P<points>.*)", text)
    if unequal:
        again = rf"(?:{unequal['name']}\s*)?\\ne(?![a-z])"
        pieces = _without(re.sub(again, "", unequal["points"]))
        return (unequal["name"], pieces) if pieces else None
    chains = [_chain(part) for part in split(text, re.compile(r"\s*[,;]\s*"))]
    if len(chains) != 2 or chains[0] is None or chains[1] is None or chains[0][0] != chains[1][0]:
        return None
    name, first, second = chains[0][0], chains[0][1][-1], chains[1][1][-1]
    low, high = (first, second) if first.high == "\\infty" else (second, first)
    if high.low != "-\\infty" or low.high != "\\infty":
        return None
    start, end = number(low.low), number(high.high)
    if start is None or end is None or start.value == end.value:
        return None
    if start.value < end.value:
        return name, (Piece(low.low, low.low_closed, high.high, high.high_closed),)
    return name, (high, low)


def _without(points: str) -> tuple[Piece, ...]:
    """The real line without one point of any form, or without several numbers; empty if they cannot be ordered."""
    items = tuple(assigned(item)[1] for item in listed(points).items)
    values = [number(item) for item in items]
    if len(items) > 1:
        if None in values:
            return ()
        items = tuple(
            item for _, item in sorted((value.value, item) for value, item in zip(values, items, strict=True) if value)
        )
    ends = ["-\\infty", *items, "\\infty"]
    return tuple(_piece(low, False, high, False) for low, high in pairwise(ends)) if all(items) else ()


def _interval(text: str) -> Piece | None:
    if text[:1] not in "([" or text[-1:] not in ")]" or not text:
        return None
    ends = split(text[1:-1], re.compile(r"\s*[,;]\s*"))
    if len(ends) != 2 or not all(ends):
        return None
    return _piece(ends[0], text[0] == "[", ends[1], text[-1] == "]")


def _piece(low: str, low_closed: bool, high: str, high_closed: bool) -> Piece:
    low, high = (re.sub(r"^\+\s*(?=\\infty)|\s+", "", end) for end in (low, high))
    return Piece(low, low_closed and "\\infty" not in low, high, high_closed and "\\infty" not in high)


def _inequality(text: str) -> tuple[str, list[Piece]] | None:
    halves = [_chain(half) for half in split(text, _BOTH)]
    if len(halves) == 1 or len(halves) > 2:
        return halves[0] if len(halves) == 1 else None
    if halves[0] is None or halves[1] is None or halves[0][0] != halves[1][0] or len(halves[0][1] + halves[1][1]) != 2:
        return None
    first, second = halves[0][1][0], halves[1][1][0]
    low, high = (first, second) if first.high == "\\infty" else (second, first)
    if high.low != "-\\infty" or low.high != "\\infty":
        return None
    return halves[0][0], [Piece(low.low, low.low_closed, high.high, high.high_closed)]


def _chain(text: str) -> tuple[str, list[Piece]] | None:
    """The variable and intervals of ``x < 2`` or ``1 \\le x < 2``."""
    parts = [part.strip() for part in _RELATION.split(text)]
    if not all(parts):
        return None
    if len(parts) == 3:
        left, relation, right = parts
        if not re.fullmatch(_VARIABLE, left):
            left, relation, right = right, _FLIPPED.get(relation, relation), left
        if not re.fullmatch(_VARIABLE, left) or re.fullmatch(_VARIABLE, right):
            return None
        below, above = ("-\\infty", False), ("\\infty", False)
        end, closed = right, relation in ("\\le", "\\ge")
        if relation == "\\ne":
            return left, [_piece(*below, end, False), _piece(end, False, *above)]
        return left, [_piece(*below, end, closed) if relation in ("<", "\\le") else _piece(end, closed, *above)]
    if len(parts) == 5:
        low, first, name, second, high = parts
        if {first, second} <= {">", "\\ge"}:
            low, first, second, high = high, _FLIPPED[second], _FLIPPED[first], low
        if re.fullmatch(_VARIABLE, name) and {first, second} <= {"<", "\\le"}:
            return name, [_piece(low, first == "\\le", high, second == "\\le")]
    return None


@dataclass(frozen=True, slots=True)
class Time:
    """A time of day in seconds since midnight, or since midnight or noon if the half of the day is not given."""

    seconds: int
    half: bool
    """Whether the half of the day is given (a.m. or p.m.)."""
    clock: bool
    """Whether minutes are given."""
    hour: int


def time_of_day(text: str) -> Time | None:
    """Parse a time such as ``8:30 p.m.``; a bare number is an hour."""
    text = {"noon": "12 noon", "midnight": "12 midnight"}.get(bare(text).lower(), text)
    match = _TIME.fullmatch(bare(text))
    if match is None or int(match["hour"]) > 24:
        return None
    hour, half = int(match["hour"]), (match["half"] or "").lower().replace(".", "").replace(" ", "")
    seconds = 3600 * hour + 60 * int(match["minute"] or 0) + int(match["second"] or 0)
    if half in ("am", "midnight", "pm", "noon"):
        if not 1 <= hour <= 12:
            return None
        seconds = seconds % 43200 + (43200 if half in ("pm", "noon") else 0)
    return Time(seconds, bool(half) and half != "o'clock", match["minute"] is not None, hour)


def numeral(text: str) -> tuple[str, int] | None:
    """The digits and the base of ``2516_8``."""
    match = _BASE.fullmatch(bare(text))
    if match is None:
        return None
    named = match["base"] or match["named"]
    base = _BASES.get(named) or int(named)
    letters = re.search("[A-Fa-f]", match["digits"]) is not None
    if not 2 <= base <= 36 or (letters and (base < 11 or len(match["digits"]) < 2)):
        return None
    return match["digits"].upper().lstrip("0") or "0", base


def proportion(text: str) -> list[str] | None:
    """The terms of ``3:4``, ``3 to 4`` or ``2:3:5``."""
    terms = split(bare(text), re.compile(r"\s*(?::|(?<![a-zA-Z])to(?![a-zA-Z]))\s*"))
    simple = all(re.fullmatch(r"[-0-9./a-z\\{}()^ ]{1,60}", term) for term in terms)
    return terms if 2 <= len(terms) <= 5 and all(terms) and simple else None


def label(text: str) -> tuple[str, bool, str | None] | None:
    """(letter of an option, whether it is marked as one, text after it): ``D) 12`` gives ("D", True, "12")."""
    match = _LABEL.fullmatch(bare(text).removeprefix("\\text"))
    if match is None:
        return None
    marked = bool(match["close"]) or bool(match["open"]) or bare(text).lower().startswith(("option", "choice"))
    if bool(match["open"]) and match["close"] != ")":
        return None
    return match["letter"].upper(), marked, match["rest"]
