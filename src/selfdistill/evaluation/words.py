"""Classifies tokens by their function in a completion, with word lists that anyone can edit.

A list is a file with one word, phrase or symbol per line. A line between slashes is a regular expression. A token
belongs to the first class, in the order of :data:`CLASSES`, that matches any of its characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from selfdistill.contexts.thinking import answer_start
from selfdistill.errors import ConfigError

CLASSES = ("answer", "deliberation", "connective", "number", "operator")
OTHER = "other"
ALL_CLASSES = (*CLASSES, OTHER)
SHIPPED = resources.files("selfdistill.evaluation") / "word_lists"


def load_classes(folder: Path | None = None) -> dict[str, re.Pattern[str]]:
    """Return the pattern of every class, from the lists of a folder, or from the shipped list where it has none.

    Raises:
        ConfigError: the folder has none of the lists, or a regular expression in one is malformed.
    """
    own = {name: folder / f"{name}.txt" for name in CLASSES} if folder else {}
    if folder and not any(path.is_file() for path in own.values()):
        raise ConfigError(f"{folder} holds no word list: name them {', '.join(f'{name}.txt' for name in CLASSES)}")
    return {
        name: _pattern(own[name] if folder and own[name].is_file() else SHIPPED / f"{name}.txt") for name in CLASSES
    }


@cache
def deliberation_pattern() -> re.Pattern[str]:
    """Return the pattern of the shipped deliberation words, which evaluations and training steps count."""
    return _pattern(SHIPPED / "deliberation.txt")


@cache
def reference_pattern() -> re.Pattern[str]:
    """Return the pattern of the shipped phrases that mention a reference text."""
    return _pattern(SHIPPED / "reference.txt")


def mentions_unseen(text: str, shown: str) -> bool:
    """Whether a text mentions a reference, by a phrase of the shipped list that what its writer was shown lacks."""
    given = shown.casefold()
    return any(match.group().casefold() not in given for match in reference_pattern().finditer(text))


def count_markers(texts: Iterable[str]) -> dict[str, int]:
    """Return how often each word of the shipped deliberation list stands in the texts, in the order of the list."""
    markers = [line.lower() for line in _lines(SHIPPED / "deliberation.txt")]
    hits = Counter(hit.lower() for text in texts for hit in deliberation_pattern().findall(text))
    return {**dict.fromkeys(markers, 0), **hits}


def classify(text: str, spans: Sequence[tuple[int, int]], patterns: Mapping[str, re.Pattern[str]]) -> list[str]:
    """Return the class of every token, given its span in the text. A token without visible text is ``other``."""
    # The class of each character. The answer reaches from its last match to the end of the text.
    class_of: list[str | None] = [None] * len(text)
    for name in CLASSES:
        matches = [match.span() for match in patterns[name].finditer(text)]
        if name == "answer":
            begin = answer_start(text) or 0
            starts = [start for start, _ in matches if start >= begin]
            matches = [(starts[-1], len(text))] if starts else []
        for start, end in matches:
            for i in range(start, end):
                class_of[i] = class_of[i] or name
    # A token has the first class among those of its characters.
    result = []
    for start, end in spans:
        names = [class_of[i] for i in range(start, end) if class_of[i] and not text[i].isspace()]
        result.append(min((name for name in names if name), key=CLASSES.index, default=OTHER))
    return result


def _pattern(path: Traversable) -> re.Pattern[str]:
    words = _lines(path)
    # The longest first: otherwise "answer" would match in "answer is".
    parts = [_part(word) for word in sorted(words, key=len, reverse=True)]
    try:
        return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"word list {path}: {error}") from error


def _lines(path: Traversable) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not (line.startswith("# ") or line == "#")]


def _part(word: str) -> str:
    if len(word) > 2 and word.startswith("/") and word.endswith("/"):
        return f"(?:{word[1:-1]})"
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return f"{before}{re.escape(word)}{after}"
