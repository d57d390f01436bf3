"""Makes the text of rows, models and programs safe to store, encode and print."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters besides tab and newline, bidirectional marks, separators of lines and paragraphs, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# JSON allows these characters unescaped; escaping them does not change the parsed value.
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plural(number: int, one: str, many: str = "") -> str:
    """Return the word for a number of things: ``"row"`` for 1, else ``many``, by default ``"rows"``."""
    return one if number == 1 else many or f"{one}s"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with the word for so many things: ``"1 row"``, ``"3 rows"``."""
    return f"{number} {plural(number, one, many)}"


def shortened(text: str, most: int) -> str:
    """Return the text, or its first ``most`` characters and how many more there are: ``"abc … 5 more characters"``."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:most]} … {left_out} more characters"


def lone_surrogate(text: str) -> str | None:
    """Return the first lone surrogate of a text as ``"\\\\ud800"``, or None. UTF-8 cannot encode a lone surrogate."""
    match = _SURROGATE.search(text)
    return None if match is None else f"\\u{ord(match.group()):04x}"


def well_formed(text: str) -> str:
    """Replace every lone surrogate by U+FFFD, so that a tokenizer or a file accepts the text."""
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """Return the text for a terminal or a log, with control characters escaped as in ``\\\\x1b``."""
    # Windows line endings are harmless.
    return _UNPRINTABLE.sub(_escaped, text.replace("\r\n", "\n"))


def printable_json(text: str) -> str:
    """Return JSON text with control characters escaped. The parsed values stay the same."""
    return _RAW_IN_JSON.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
