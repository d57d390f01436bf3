"""Text of rows, models and programs, made safe to store, to encode and to show."""

from __future__ import annotations

import re

_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters besides tab and newline, bidirectional marks, separators of lines and paragraphs, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Inside JSON these alone may stand raw; the escape is the same text to every reader.
_RAW_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def lone_surrogate(text: str) -> str | None:
    """The first surrogate of a text as ``"\\\\ud800"``, or None. Such a text is no Unicode and cannot be encoded."""
    found = _SURROGATE.search(text)
    return None if found is None else f"\\u{ord(found.group()):04x}"


def well_formed(text: str) -> str:
    """The text with U+FFFD for every lone surrogate, so that a tokenizer or a file can take it."""
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    """The text for a terminal or a log: what would steer it is written as an escape such as ``\\\\x1b``."""
    # Windows line ends are no attack.
    return _UNPRINTABLE.sub(_escaped, text.replace("\r\n", "\n"))


def printable_json(text: str) -> str:
    """JSON text with every such character escaped as JSON has it: another reader gets the same values."""
    return _RAW_IN_JSON.sub(lambda hit: f"\\u{ord(hit.group()):04x}", text)


def _escaped(hit: re.Match[str]) -> str:
    code = ord(hit.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
