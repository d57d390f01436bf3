r"""Find the final answer in a completion or a solution.

Every search takes time linear in the text: braces are matched in one pass, lines are read once, and phrases are
searched only in a short window after the word "answer".
"""

from __future__ import annotations

import re

BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)(?:\s*\{|(?=\s*[-+0-9A-Za-z\\]))")
r"""The start of a box. Published solutions also write ``\framebox``, and TeX lets ``\boxed 6`` go without braces."""
_TOKEN = re.compile(r"(?P<box>\\(?:f?boxed|fbox|framebox)\s*\{)|\\(?!(?:f?boxed|fbox|framebox)).|[{}]", re.DOTALL)
_BARE_BOX = re.compile(
    r"\\(?:f?boxed|fbox)(?![a-zA-Z])\s*(?P<content>[-+]?[0-9]+(?:[.,/][0-9]+)*|[A-Za-z](?![A-Za-z])"
    r"|\\[a-zA-Z]+(?:\{[^{}]{0,80}\}){0,2})"
)
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,[\s$]*)?(?:(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})?[\s$]*")
_LONGEST_BETWEEN = 60

_WORD = re.compile(
    r"\banswer\b|\b(?:antwort|réponse|respuesta|risposta|resposta|ответ)\b|答案|答え|정답|(?<![가-힣])답(?=[은:：])",
    re.IGNORECASE,
)
"""The word "answer", also in languages that models and data sets often answer in."""
# "So there are 10. #### 10": after a sentence the mark counts only if a number follows, because texts also mention it.
_NUMBER = re.compile(r"(?:\\?\$|[-+−])?[ \t]?\d")
_LEADING = r"(?:[*_\s:`]|\\\[|\$\$)*"
_STATES = re.compile(
    rf"(?:[*_\s]*(?:final[e]?|finale)?[*_\s]*[:：=]{_LEADING}"
    rf"|\s*(?:(?:ist|lautet|est|es|è|é|равен|равно)\b|[是为為は은는]+)(?:[*_\s]*[:：])?{_LEADING}"
    r"|(?:\s*,\s*(?:therefore|thus|then|hence),)?\s+(?:to (?:the|this|your) (?:question|problem)\s+)?"
    r"(?:is|are|was|equals|(?:should|would|will|must|has to|can only)(?:\s+\w+ly)?\s+be|(?:comes|turns) out to be)\b"
    r"(?:[*_\s]*[:=]|\s*,?\s*(?:therefore|thus|then|hence|so|simply|just|now|indeed|clearly|given by|equal to)\b,?)*"
    rf"{_LEADING}"
    rf"|(?P<below>[*_:\s]*\n{_LEADING}))"
    r"(?P<answer>[^\n]{1,300}?)[\s*_]*"
    r"(?:(?:です|である|입니다|이다)?[.!。](?=\s|$)|。|\*\*|,?\s\(?(?=(?:so|which|because|since|as|not|but|where|when)\b)|\n|$)",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?P<answer>\S{0,60}[0-9]\S{0,60})\s+is\s+(?:the|our|my)\s+(?:(?:final|correct|required)\s+)?$", re.IGNORECASE
)
_HEADING = re.compile(r"[#*_\s>]*(?:(?:the|my|our|final|correct)\s+)*", re.IGNORECASE)
_NEGATED = re.compile(r"(?:not|no|unknown|unclear|wrong|nicht|pas|не)\b(?!\s+solution)", re.IGNORECASE)
_FOREIGN_WORDS = re.compile(r"(?:[^\W\d_]{2,}|[^\x00-\x7f\W\d_])[^0-9]*[0-9]|.*[0-9]\W*(?![πθ√])[^\x00-\u02ff\W\d_]")
"""Words of another language that may change a number: ``größer als 12``, ``12的倍数``. Such an answer is not read."""
_COUNTER = re.compile(r"(?<=[0-9$) ])\s*[个個元人米岁只天年度分时本名条件次种円]$")
_WINDOW = 600
_TAG = re.compile(r"<(?P<end>/?)answer>", re.IGNORECASE)


def boxed_answer(text: str, *, finished: bool = True) -> str | None:
    r"""The content of the last ``\boxed{…}``. Boxes separated only by "and" or a comma form one answer.

    A box without braces, ``\boxed 6``, at the end of an unfinished text is ignored.
    """
    boxes = _boxes(text, finished=finished)
    if not boxes:
        return None
    answer = [boxes[-1][2]]
    for (_, end, content), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        separator = text[end : min(start, end + _LONGEST_BETWEEN)]
        close = start - end < _LONGEST_BETWEEN and separator.strip(" \n$") != ""
        if not close or not _BETWEEN_BOXES.fullmatch(separator):
            break
        if content not in answer:
            answer.insert(0, content)
    return ", ".join(answer)


def tagged_answer(text: str) -> str | None:
    """The content of the last closed ``<answer>…</answer>``, or of the box in it."""
    span = _last_tag(text)
    if span is None:
        return None
    content = text[span[0] : span[1]].strip()
    return boxed_answer(content) or stated_answer(content) or content or None


def final_answer(text: str, *, finished: bool = True) -> str | None:
    r"""The content of the last box or ``<answer>`` tag, else the stated answer if the text is ``finished``."""
    tag, boxes = _last_tag(text), _boxes(text, finished=finished)
    if tag is not None and (not boxes or tag[1] > boxes[-1][0]):
        answer = tagged_answer(text)
        if answer is not None:
            return answer
    if boxes:
        return boxed_answer(text, finished=finished)
    return stated_answer(text) if finished else None


def stated_answer(text: str) -> str | None:
    """The answer stated by the last ``#### …`` line, "answer is …" or "answer: …", whichever begins last."""
    marked = _marked_line(text)
    for word in reversed(list(_WORD.finditer(text))):
        if marked is not None and word.start() < marked[0]:
            break
        stated = _stated_beside(text, word)
        if stated is not None:
            return stated
    return None if marked is None else marked[1]


def _stated_beside(text: str, word: re.Match[str]) -> str | None:
    """The answer stated after or before one occurrence of the word "answer". None if there is none."""
    match = _STATES.match(text[word.end() : word.end() + _WINDOW])
    answer = match["answer"].strip() if match else ""
    if word.group().lower() != "answer":
        answer = _COUNTER.sub("", answer)
        answer = "" if _FOREIGN_WORDS.match(answer) else answer
    if match and answer and not _NEGATED.match(answer):
        line = text.rfind("\n", max(0, word.start() - _LONGEST_BETWEEN), word.start()) + 1
        if match["below"] is None or _HEADING.fullmatch(text[line : word.start()]):
            return answer
    before = text[max(0, word.start() - 160) : word.start()]
    behind = _BEHIND.search(before) if " is " in before else None
    return behind["answer"] if behind else None


def marked_answer(text: str) -> str | None:
    """The content of the last ``#### …`` line, GSM8K's mark for an answer."""
    marked = _marked_line(text)
    return None if marked is None else marked[1]


def _marked_line(text: str) -> tuple[int, str] | None:
    """(start, content) of the last ``####`` line, or of a number after ``####`` within a line.

    A heading "#### Answer" does not count.
    """
    start = len(text)
    for line in reversed(text.splitlines(keepends=True)):
        start -= len(line)
        stripped = line.strip()
        mark = stripped.rfind("####")
        inside = stripped[mark + 4 :].strip(" \t*")
        if mark > 0 and stripped[mark - 1] != "#" and _NUMBER.match(inside):
            return start, inside
        content = stripped[4:].strip(" \t*")
        if stripped.startswith("####") and content and not stripped.startswith("#####") and not _WORD.search(content):
            return start, content
    return None


def _boxes(text: str, *, finished: bool = True) -> list[tuple[int, int, str]]:
    """(start, end, content) of every closed, non-empty box in text order. Nested boxes count as the outer one."""
    opened: list[tuple[int, int] | None] = []
    boxes: list[tuple[int, int, str]] = []
    for token in _TOKEN.finditer(text):
        if token["box"]:
            opened.append((token.start(), token.end()))
        elif token.group() == "{":
            opened.append(None)
        elif token.group() == "}" and opened:
            box = opened.pop()
            content = "" if box is None else text[box[1] : token.start()].strip()
            if box is not None and content:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()
                boxes.append((box[0], token.end(), content))
    for match in _BARE_BOX.finditer(text):
        if finished or match.end() < len(text):
            boxes.append((match.start(), match.end(), match["content"]))
    return sorted(boxes)


def _last_tag(text: str) -> tuple[int, int] | None:
    """(start, end) of the content of the last closed tag."""
    end = None
    for tag in reversed(list(_TAG.finditer(text))):
        if tag["end"]:
            end = end if end is not None else tag.start()
        elif end is not None:
            return tag.end(), end
    return None
