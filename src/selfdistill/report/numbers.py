"""Numbers as words on a page: one rounding for figures, tables, readouts and headlines."""

from __future__ import annotations

import math

MISSING = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: object) -> float | None:
    """A finite float, or None for everything that is not one (a gap in a curve, a dash in a table)."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def plain(value: float | None) -> str:
    """Three significant digits or so: ``1,204``, ``31.2``, ``2.13``, ``0.052``, ``3.1e-06``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.001:
        return f"{value:.1e}".replace("-", MINUS)
    decimals = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def whole(value: float | None) -> str:
    """A count: ``1,204``."""
    return MISSING if value is None else f"{value:,.0f}".replace("-", MINUS)


def compact(value: float) -> str:
    """A round count where room is short: ``1,200``, ``40k``, ``1.5M``."""
    for size, word in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 10_000):
            return f"{value / size:.4g}{word}".replace("-", MINUS)
    return whole(value)


def percent(value: float | None) -> str:
    """A share: ``0.4125`` is ``41.2%``."""
    return MISSING if value is None else f"{100 * value:.1f}%".replace("-", MINUS)


def percent_range(low: float | None, high: float | None) -> str:
    """An interval of shares: ``38.9–43.6%``; empty where an end is missing."""
    return "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f}%"


def plain_range(low: float | None, high: float | None) -> str:
    """An interval: ``31.2–33.0``; empty where an end is missing."""
    return "" if low is None or high is None else f"{plain(low)}–{plain(high)}"


def signed(value: float | None, *, decimals: int = 2) -> str:
    """A difference with its sign: ``+0.52``, ``−1.30``; no sign where it rounds to zero."""
    if value is None:
        return MISSING
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return ("+" if value > 0 else MINUS) + text


def duration(seconds: float | None) -> str:
    """A time as a person says it: ``8.4 s``, ``4 min 12 s``, ``2 h 05 min``."""
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
    """Text that can be written and cannot disturb the page around it: control and bidirectional signs made visible.

    Model text may hold half a surrogate pair (no encoding accepts it), a NUL (an HTML parse error) or a right-to-left
    override (it would turn the words after it around).
    """
    return "".join(map(_visible, text))


def _visible(sign: str) -> str:
    code = ord(sign)
    if code < 0x20 and sign not in "\n\t":
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    if code in _UNSEEN:
        return f"⟨U+{code:04X}⟩"
    return sign


_UNSEEN = frozenset([0x061C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF])
