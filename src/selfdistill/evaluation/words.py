"""Classes of tokens by word lists that anyone can edit: what a stretch of text is for, not what it means.

A list is a file with one word, phrase or sign a line. A line between slashes is a regular expression. Classes are
asked in the order of :data:`CLASSES`; a token belongs to the first one that claims any of its signs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    """The pattern of every class, from the shipped lists or from those of a folder; a list that it lacks is shipped.

    Raises:
        ConfigError: the folder holds no list of these names, or a regular expression in one is malformed.
    """
    own = {name: folder / f"{name}.txt" for name in CLASSES} if folder else {}
    if folder and not any(path.is_file() for path in own.values()):
        raise ConfigError(f"{folder} holds no word list: name them {', '.join(f'{name}.txt' for name in CLASSES)}")
    return {
        name: _pattern(own[name] if folder and own[name].is_file() else SHIPPED / f"{name}.txt") for name in CLASSES
    }


@cache
def deliberation_pattern() -> re.Pattern[str]:
    """The pattern of the shipped words of deliberation, which evaluations and steps count."""
    return _pattern(SHIPPED / "deliberation.txt")


def classify(text: str, spans: Sequence[tuple[int, int]], patterns: Mapping[str, re.Pattern[str]]) -> list[str]:
    """The class of every token, given where it stands in the text; a token that shows nothing is ``other``."""
    owner: list[str | None] = [None] * len(text)
    for name in CLASSES:
        found = [match.span() for match in patterns[name].finditer(text)]
        if name == "answer":
            begin = answer_start(text) or 0
            last = [start for start, _ in found if start >= begin]
            found = [(last[-1], len(text))] if last else []
        for start, end in found:
            for place in range(start, end):
                owner[place] = owner[place] or name
    result = []
    for start, end in spans:
        claimed = [owner[place] for place in range(start, end) if owner[place] and not text[place].isspace()]
        result.append(min((name for name in claimed if name), key=CLASSES.index, default=OTHER))
    return result


def _pattern(path: Traversable) -> re.Pattern[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    words = [line for line in lines if line and not (line.startswith("# ") or line == "#")]
    # The longest first: "answer is" must not be read as "answer".
    parts = [_part(word) for word in sorted(words, key=len, reverse=True)]
    try:
        return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"word list {path}: {error}") from error


def _part(word: str) -> str:
    if len(word) > 2 and word.startswith("/") and word.endswith("/"):
        return f"(?:{word[1:-1]})"
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return f"{before}{re.escape(word)}{after}"
