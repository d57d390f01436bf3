"""Formats numbers as text, with the same rounding for figures, tables, readouts and headlines."""

from __future__ import annotations

import math
from collections.abc import Callable

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
NO_SPREAD = "no spread"
"""Text in the place of an interval without width. :data:`NO_SPREAD_NOTE` explains it beside the numbers."""
NO_SPREAD_NOTE = (
    "no spread: every problem came out alike, or there is only one, so the interval has no width. That is no certainty "
    "about other problems: evaluate more of them."
)


def number(value: object) -> float | None:
    """Return the value as a finite float, or None (a gap in a curve, a dash in a table) for anything else."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def plain(value: float | None) -> str:
    """Format a number with about three significant digits: ``1,204``, ``31.2``, ``2.13``, ``0.052``, ``3.1e-06``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        return f"{value:.1e}".replace("-", MINUS)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:z,.{decimals}f}".replace("-", MINUS)


def whole(value: float | None) -> str:
    """Format a count: ``1,204``."""
    return MISSING if value is None else f"{value:z,.0f}".replace("-", MINUS)


def compact(value: float) -> str:
    """Format a round count in few characters: ``1,200``, ``40k``, ``1.5M``."""
    for size, word in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 10_000):
            return f"{value / size:.4g}{word}".replace("-", MINUS)
    return whole(value)


def percent(value: float | None) -> str:
    """Format a share: ``0.4125`` is ``41.2%``."""
    return MISSING if value is None else f"{100 * value:z.1f}%".replace("-", MINUS)


def interval(
    low: float | None, high: float | None, form: Callable[[float], str], *, between: str = "\N{EN DASH}"
) -> str:
    """Format an interval with ``form`` for its ends; :data:`NO_SPREAD` if it has no width, empty if an end is missing.

    "0.0 to 0.0" reads as certainty, and a bootstrap or a t interval gives it wherever the values of all problems agree.
    """
    if low is None or high is None:
        return ""
    return NO_SPREAD if without_width(low, high) else f"{form(low)}{between}{form(high)}"


def without_width(low: float | None, high: float | None) -> bool:
    """Whether an interval has no width. Means of equal numbers may differ in the last digits of a float."""
    return low is not None and high is not None and high - low <= 1e-9 * max(1.0, abs(low), abs(high))


def percent_range(low: float | None, high: float | None) -> str:
    """Format an interval of shares: ``38.9–43.6%``; see :func:`interval`."""
    text = interval(low, high, lambda end: f"{100 * end:z.1f}".replace("-", MINUS))
    return f"{text}%" if text not in ("", NO_SPREAD) else text


def plain_range(low: float | None, high: float | None) -> str:
    """Format an interval: ``31.2–33.0``; see :func:`interval`."""
    return interval(low, high, plain)


def signed(value: float | None, *, decimals: int = 2) -> str:
    """Format a difference with its sign: ``+0.52``, ``−1.30``; without a sign if it rounds to zero."""
    if value is None:
        return MISSING
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return ("+" if value > 0 else MINUS) + text


def with_sign(value: float | None) -> str:
    """Format a difference with its sign and about three significant digits: ``+0.052``, ``−3.1e−06``."""
    return ("+" if value is not None and value > 0 else "") + plain(value)


def duration(seconds: float | None) -> str:
    """Format a duration in seconds: ``8.4 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole_seconds = round(seconds)
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def printable(text: str) -> str:
    """Return text that is safe on a page, with control and bidirectional characters made visible.

    Model text may contain a lone surrogate (no encoding accepts it), a NUL (an HTML parse error) or a right-to-left
    override (it reverses the text after it).
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    if code in _UNSEEN:
        return f"⟨U+{code:04X}⟩"
    return character


_UNSEEN = frozenset(
    [*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF]
)
