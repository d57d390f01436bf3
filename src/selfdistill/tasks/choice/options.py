"""The options of a multiple-choice prompt: find their lines, and write them in another order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

_OPTION = re.compile(r"^(?P<before>[ \t]*\(?)(?P<letter>[A-Z])(?P<after>[:.)][ \t]*)(?P<text>\S.*?)[ \t]*$")


@dataclass(frozen=True, slots=True)
class OptionLines:
    """The options of a prompt, written as ``A: …``, ``B: …``: their texts and positions."""

    first: int
    """Line number of the first option."""
    marks: tuple[tuple[str, str], ...]
    """The text before and after each option's letter."""
    texts: tuple[str, ...]
    movable: bool
    """Whether the options are consecutive single lines. Otherwise the end of the last option is unknown."""


def option_lines(prompt: str) -> OptionLines | None:
    """The last block of at least two options that begin with A, B, C … in order. None if there is no such block."""
    lines = prompt.split("\n")
    matches = [_OPTION.match(line) for line in lines]
    starts = [i for i, match in enumerate(matches) if match and match["letter"] == "A"]
    for start in reversed(starts):
        indices: list[int] = []
        block: list[re.Match[str]] = []
        for index, match in enumerate(matches[start:], start=start):
            if match and len(block) < len(ascii_uppercase) and match["letter"] == ascii_uppercase[len(block)]:
                indices.append(index)
                block.append(match)
        if len(block) > 1:
            marks = tuple((match["before"], match["after"]) for match in block)
            ends = [*indices[1:], indices[-1] + 1]
            continuations = (lines[index + 1 : end] for index, end in zip(indices, ends, strict=True))
            texts = (
                "\n".join([match["text"], *continuation]).strip()
                for match, continuation in zip(block, continuations, strict=True)
            )
            movable = indices == list(range(start, start + len(block)))
            return OptionLines(start, marks, tuple(texts), movable)
    return None


def with_options(prompt: str, lines: OptionLines, order: tuple[int, ...]) -> str:
    """The prompt with the options' texts in another order behind the same letters."""
    rendered = prompt.split("\n")
    for index, (source, (before, after)) in enumerate(zip(order, lines.marks, strict=True)):
        rendered[lines.first + index] = f"{before}{ascii_uppercase[index]}{after}{lines.texts[source]}"
    return "\n".join(rendered)
