"""Letters of multiple choice: the options in a prompt, and the letter that a completion chose."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

from selfdistill.contexts.thinking import after_thinking
from selfdistill.tasks.math.answers import BOX, boxed_answer

_OPTION = re.compile(r"^(?P<before>[ \t]*\(?)(?P<letter>[A-Z])(?P<after>[:.)][ \t]*)(?P<text>\S.*?)[ \t]*$")

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
# Capitals alone: "the answer is a force" names no letter.
_PHRASE = re.compile(r"\b[Aa]nswer(?:\s+is\b\s*:?|\s*:|\s*=)[\s*$]*\(?(?P<letter>[A-Z])(?![\w'])")
_ONE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[\s*$(\[]*([A-Za-z])[\s*$)\].:}]*")
_LABELLED = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[\s*$(\[]*([A-Z])[)\].:]\**\s+\S.*", re.DOTALL)
# A formula's letters are variables: no "=", "^" or "\" beside them.
_ALONE = re.compile(r"(?<![\w'’\\=^+/-])([A-Z])(?![\w'’=^+/-])")
# "A gas expands" has an article, "I think" a pronoun; "A is right" has a letter.
_ARTICLE = re.compile(r"\s+(?!(?:is|was|because|since|as|and|or|seems|must|fits)\b)[a-z]")
_NAMED = re.compile(r"(?:option|choice|answer|select|choose|pick)s?\s*\(?$", re.IGNORECASE)
_BY_NAME = re.compile(r"\b(?:[Oo]ption|[Cc]hoice)s?\s*\(?[A-Z]\b")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a completion chose: ``letter`` in capitals, or ``said``, the content of a tag that is no letter."""

    letter: str | None
    said: str | None = None


@dataclass(frozen=True, slots=True)
class OptionLines:
    """Options that stand in a prompt behind ``A: …``, ``B: …``: each one's text, and where they are."""

    first: int
    """The line of the first."""
    marks: tuple[tuple[str, str], ...]
    """What stands before and behind the letter of each."""
    texts: tuple[str, ...]
    movable: bool
    """Whether each is one line right below the other; where one spans several, the end of the last is unknown."""


def chosen_letter(text: str, *, finished: bool = True) -> Chosen:
    r"""The letter in the last ``<answer>…</answer>``, ``\boxed{…}`` or "answer: B", else the last standalone letter.

    Only what stands behind the thinking counts. Of a completion that was cut, only a closed tag or box is believed.
    """
    said = after_thinking(text)
    tags = list(_TAG.finditer(said))
    box = boxed_answer(said)
    phrases = list(_PHRASE.finditer(said)) if finished else []
    found = [(tag.start(), tag.group(1)) for tag in tags[-1:]]
    found += [(list(BOX.finditer(said))[-1].start(), box)] if box is not None else []
    found += [(phrase.start(), phrase["letter"]) for phrase in phrases[-1:]]
    if found:
        content = max(found)[1].strip()
        one = _ONE.fullmatch(content) or _LABELLED.fullmatch(content)
        return Chosen(one.group(1).upper()) if one else Chosen(None, content)
    alone = [match for match in _ALONE.finditer(said) if not _is_word(said, match)] if finished else []
    return Chosen(alone[-1].group(1) if alone else None)


def names_letter(text: str) -> bool:
    """Whether a text speaks of an option by its letter, in a tag, a box or words."""
    box = boxed_answer(text)
    boxed = box is not None and _ONE.fullmatch(box) is not None
    return boxed or any(pattern.search(text) for pattern in (_TAG, _PHRASE, _BY_NAME))


def option_lines(prompt: str) -> OptionLines | None:
    """The last block of options that begin with A, B, C … in order, two at least; None where there is none."""
    lines = prompt.split("\n")
    matches = [_OPTION.match(line) for line in lines]
    starts = [i for i, match in enumerate(matches) if match and match["letter"] == "A"]
    for start in reversed(starts):
        places: list[int] = []
        block: list[re.Match[str]] = []
        for place, match in enumerate(matches[start:], start=start):
            if match and len(block) < len(ascii_uppercase) and match["letter"] == ascii_uppercase[len(block)]:
                places.append(place)
                block.append(match)
        if len(block) > 1:
            marks = tuple((match["before"], match["after"]) for match in block)
            ends = [*places[1:], places[-1] + 1]
            rest = (lines[place + 1 : end] for place, end in zip(places, ends, strict=True))
            texts = ("\n".join([match["text"], *more]).strip() for match, more in zip(block, rest, strict=True))
            movable = places == list(range(start, start + len(block)))
            return OptionLines(start, marks, tuple(texts), movable)
    return None


def with_options(prompt: str, lines: OptionLines, order: tuple[int, ...]) -> str:
    """The prompt with the options' texts in another order behind the same letters."""
    shown = prompt.split("\n")
    for place, (source, (before, after)) in enumerate(zip(order, lines.marks, strict=True)):
        shown[lines.first + place] = f"{before}{ascii_uppercase[place]}{after}{lines.texts[source]}"
    return "\n".join(shown)


def _is_word(text: str, match: re.Match[str]) -> bool:
    if match.group(1) not in "AI" or _NAMED.search(text[: match.start()].rstrip(" (")):
        return False
    return match.group(1) == "I" or bool(_ARTICLE.match(text, match.end()))
