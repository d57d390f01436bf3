"""Final answers of mathematical texts: where a completion or a solution states one."""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s*\{")
"""Where a box begins. Published solutions also write ``\\framebox``."""
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,[\s$]*)?(?:(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})?[\s$]*")
_LINE = re.compile(r"^\s*####[ \t]*(.+?)\s*$", re.MULTILINE)
_PHRASE = re.compile(
    r"\banswer(?:\s+is\b\s*:?|\s*:|\s*=)[\s*]*(.+?)[\s*]*(?:[.!](?=\s|$)|\*\*|,?\s(?=so\b|which\b|because\b|since\b)|$)",
    re.IGNORECASE | re.MULTILINE,
)


def boxed_answer(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``; boxes that only "and" or a comma separates make one answer."""
    boxes: list[tuple[int, int, str]] = []
    for match in BOX.finditer(text):
        end = _closing_brace(text, match.end())
        if end is not None and text[match.end() : end].strip():
            boxes.append((match.start(), end + 1, text[match.end() : end].strip()))
    if not boxes:
        return None
    answer = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        separator = text[end:start]
        if not separator.strip(" \n$") or not _BETWEEN_BOXES.fullmatch(separator):
            break
        if content not in answer:
            answer.insert(0, content)
    return ", ".join(answer)


def stated_answer(text: str) -> str | None:
    """What the last ``#### …`` line, "answer is …" or "answer: …" states, whichever begins last."""
    stated = [match for pattern in (_LINE, _PHRASE) for match in pattern.finditer(text)]
    return max(stated, key=lambda match: match.start()).group(1).strip() or None if stated else None


def marked_answer(text: str) -> str | None:
    """What the last ``#### …`` line holds, the mark of GSM8K."""
    lines = _LINE.findall(text)
    return lines[-1] if lines else None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None
