r"""Multiple-choice letters: parse the options of a prompt, and the letter that a completion chose.

A completion chooses by a mark (``<answer>B</answer>``, ``\boxed{B}``), by a statement ("the answer is B", "B is
correct"), by a line that begins with the letter, or by the last letter that it names and does not deny. Two letters
joined by "or", "and" or a slash are not a choice.

Every regular expression takes time linear in the text: each repetition is bounded or cannot start again inside itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import ascii_uppercase

from selfdistill.contexts.thinking import after_thinking

_OPTION = re.compile(r"^(?P<before>[ \t]*\(?)(?P<letter>[A-Z])(?P<after>[:.)][ \t]*)(?P<text>\S.*?)[ \t]*$")

# A box becomes a tag, so that one expression finds both. Its braces may be nested three deep.
_BRACED = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]{0,400}+\}){0,400}+\}){0,800}+)\}"
_BOX = re.compile(rf"\\(?:f?boxed|fbox|framebox)\s{{0,4}}(?:{_BRACED}|([A-Z])\b)")
_TAG = re.compile(
    r"<(?P<mark>answer|box)>(?P<content>(?:(?!<(?P=mark)>).){0,4000}?)</(?P=mark)>", re.DOTALL | re.IGNORECASE
)
_TAG_MARK = re.compile(r"</?(?:answer|box)>", re.IGNORECASE)
# Commands that only format text, and marks of Markdown, quotation and mathematics that do not change the meaning.
_SET_TEXT = re.compile(
    r"\\(?:text|math|operatorname|boldsymbol|bm|bf|rm|mbox|displaystyle)[a-z]*\s{0,4}(?:\{([^{}]{0,400}+)\}|(?![a-z]))"
)
_DECORATION = re.compile(
    r"[*`$\"“”„«»「」]|(?<!\w)_{1,3}|_{1,3}(?!\w)"
    r"|\\[()\[\]]|\\(?=\s)|\\[,;:!]|^[ \t]{0,8}(?:[#>]{1,6}[ \t]{0,8}){1,4}",
    re.MULTILINE,
)

_ENCLOSED = re.compile(r"(?<!\w)['‘]([A-Z])['’](?!\w)|(?<![\w}^])\{\s?([A-Z])\s?\}")

# The letter must not be part of a word or a formula, or a unit after a number. Other scripts have no spaces: "答案是C".
_BEFORE = r"(?<![A-Za-z0-9_À-ɏ'’\\=^+/{-])(?<!\d[ ])"
_BEHIND = r"(?![A-Za-z0-9_À-ɏ'’=^+/-]|[ ]=)"
_CAPITAL = rf"{_BEFORE}(?P<letter>[A-Z]){_BEHIND}"
# A small letter counts after a colon or "is" if it ends a sentence or has a bracket: "answer: b", "is b) Paris".
_SMALL = r"(?P<small>[a-z])(?=[)\]:]|[.]?[ \t]*(?:$|\n)|[.,;!][ \t\n])"
_EITHER = rf"(?:{_CAPITAL}|{_SMALL})"
_ALONE = re.compile(_CAPITAL)

_BE = r"(?:(?:is|was|be|est|ist|lautet|es|è)\b|(?:'s|’s)(?!\w)|[:=是为為])"
_GO = r"(?:(?:'s|’s|\s+is|\s+must\s+be|\s+has\s+to\s+be|\s+should\s+be|\s+would\s+be)\b)"
# Words between "the answer is" and its letter.
_FILLERS = (
    r"(?:[\s:(\[-]{0,12}(?:therefore|thus|hence|then|so|clearly|definitely|likely|most|probably|simply|indeed|actually|"
    r"given|by|the|both|either|option|choice|letter|answer|final|correct|right|best|just|only|still|to|be|believe|"
    r"think|I(?=\s+(?:think|believe))|obviously|certainly|also|is|as|follows|statement)\b){0,8}+[\s:(\[{<-]{0,12}"
)
_ANSWER = r"(?:answers?|antwort|réponse|respuesta|risposta|resposta|ответ|答案|正解|答え)"
_BEST = r"(?:correct|right|best|final|only|chosen)\s+(?:\w+\s+)?(?:option|choice|letter|one)"
_STATED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "The correct answer to the question is B", "Answer: b". _DENIAL checks whether the words between deny it.
        rf"(?<![a-z])(?:{_ANSWER}|{_BEST})[^.\n。]{{0,80}}?{_BE}{_FILLERS}(?-i:{_EITHER})",
        # "answer=C"; elsewhere a letter after "=" belongs to a formula.
        rf"(?<![a-z])(?:{_ANSWER}|{_BEST})\s{{0,4}}=(?-i:(?P<letter>[A-Z]){_BEHIND}|{_SMALL})",
        # "Answer B", a heading "Final Answer" above the letter.
        rf"(?<![a-z])(?:answer|choice)[\s:(\[]{{1,12}}+(?:option\s)?(?-i:(?!I\s){_CAPITAL})(?!\s+[a-z])",
        # "I would choose option B", "so C.", "Hence it must be B", "It is C."
        r"\b(?:I|we)(?:['’](?:ll|d|m))?\s+(?:\w+\s+){0,3}?(?:choose|pick|select|go(?:ing)?\s+with|opt\s+for|settle\s+on)"
        rf"\b{_FILLERS}(?-i:{_CAPITAL})",
        rf"\b(?:(?:so|thus|hence|therefore|consequently|conclude)\b,?(?:\s+(?:it|this|that){_GO})?|(?:it|this|that){_GO})"
        rf"{_FILLERS}(?-i:{_CAPITAL})(?=[)\].:,;!]|\s*$|\n|\s+(?:because|since|as|and|not)\b)",
        # "Thus B is correct", "(C) must be the right answer".
        rf"(?-i:{_CAPITAL})[)\]]?\s+(?:is|must\s+be|has\s+to\s+be|seems)\s+(?:\w+\s+){{0,2}}?"
        r"(?:the\s+)?(?:correct|right|answer|best)\b",
    )
)
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|neither|nor|incorrect|wrong|unlikely|eliminate[sd]?|exclude[sd]?)\b|n['’]t\b", re.I
)
# After these words a statement is no choice: "if B is correct", "I would not choose B", "statement A is correct".
_SUPPOSED = re.compile(
    r"\b(?:if|whether|why|suppos\w+|assum\w+|unless|statement|equation|group|point|when|how|not|never|cannot|neither|"
    r"nor)\b[^.\n,;]{0,30}$|n['’]t\b[^.\n,;]{0,30}$",
    re.IGNORECASE,
)

# Another letter after the first: "A or C", "A, B", "(A) and maybe (C)".
_MORE = re.compile(
    r"(?:[\s)\]}.]{0,4}+|\s?\([^()\n]{1,40}\)\s?)(?:,\s*(?:or|and)\b|,|/|&|\+|\b(?:or|and|nor|und|oder|ou|et)\b|[或和])"
    r"(?:[\s(\[{]|\b(?:maybe|perhaps|possibly|even|also|both|option|choice|answer)\b){0,8}+"
    r"(?P<letter>[A-Z])(?![\w'’=^])(?!\s+(?:is|was|has|would|cannot|can|does|gives|fits|being|because|since|seems)\b)"
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|nor|neither|anything but|rather than|instead of|unlike|over|than|except|versus|vs\.?|against|"
    r"(?:eliminat|exclud|reject|discard|dismiss)(?:es?|ed|ing|s)?|rul(?:es?|ed|ing) out)|n['’]t(?:\s+be)?)"
    r"\s+(?:be\s+|both\s+)?(?:(?:option|choice|answer)s?\s+)?[(\[]?$",
    re.IGNORECASE,
)
_WRONG = r"(?:wrong|incorrect|false|out|impossible|ruled|eliminated|excluded|invalid|too)\b"
_DENIED_BEHIND = re.compile(
    r"[\s)\].:-]{0,6}+(?:(?:is|are|was|were|seems?|looks?|can|could|would|does|do)\s+"
    rf"(?:(?:be|both|all|also|clearly|the)\s+){{0,2}}(?:not\b|{_WRONG})|\(?{_WRONG}"
    r"|cannot\b|fails?\b|(?:is|are|was|does|do|ca|could|would)n['’]t\b|[✗✘❌]"
    r"|[^.!?\n]{0,60}\?\s{0,4}no\b)",
    re.IGNORECASE,
)

# "All but D can be eliminated", "every option except B is wrong": the statement about the others chooses the letter.
_SINGLED_OUT = re.compile(
    r"\b(?:all|none|nothing|everything|every|each)(?:\s+(?:of|the|other|options?|choices?|answers?)){0,4}"
    r"\s+(?:but|except(?:\s+for)?)\s+(?:(?:option|choice|answer)\s+)?[(\[]?$",
    re.IGNORECASE,
)
# "All but A and C can be eliminated" leaves two. After other words "and C can" begins another sentence.
_SINGLED_OUT_TOO = re.compile(r"[)\]]?(?:,|\s+(?:and|or))\s+(?:(?:option|choice|answer)\s+)?[(\[]?[A-Z]\b")
# "Vitamin C" is not option C.
_THING = re.compile(
    r"\b(?:vitamin|hepatitis|influenza|group|type|class|grade|figure|fig\.|table|section|appendix)s?\s$", re.IGNORECASE
)

# "A gas expands" has an article, "I think" a pronoun; "A is right" has a letter.
_ARTICLE = re.compile(
    r"\s+(?!(?:is|was|because|since|as|and|or|nor|seems|must|fits|over|cannot|has|only|alone)\b)[a-z]"
)
_NAMED = re.compile(r"(?:option|choice|answer|select|choose|pick)s?[ \t]*\(?$", re.IGNORECASE)
_BY_NAME = re.compile(r"\b(?:[Oo]ption|[Cc]hoice)s?\s*\(?[A-Z]\b")

_REFUSED = re.compile(r"\b(?:wrong|incorrect|not (?:correct|right))\b|[✗✘❌]", re.IGNORECASE)
_JOINED = re.compile(r"[\s.]{0,4}(?:,|/|or\b|and\b|,\s*or\b|,\s*and\b)[\s.]{0,8}")

# A line that begins with its letter, or consists of it.
_LINE = re.compile(
    r"^[ \t•-]{0,12}(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])(?:[).:]{1,2}(?:[ \t]+\S.*)?|\)?[ \t]*)$", re.MULTILINE
)
_LABEL = re.compile(
    r"\s*(?:(?:option|choice|answer)\s*:?\s*)?[(\[]?\s*([A-Za-z])(?:\s*[)\].:].*)?\s*", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choice of a completion: ``letter`` in capitals, or ``said``, the text in place of a letter."""

    letter: str | None
    said: str | None = None


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


@dataclass(frozen=True, slots=True)
class _Claim:
    """A passage that names the chosen option. It has several ``letters`` if it hedges, none for a mark without one."""

    start: int
    end: int
    letters: str
    said: str


def chosen_letter(text: str, *, finished: bool = True, letters: str = ascii_uppercase) -> Chosen:
    r"""The letter that a completion chose, or none.

    The last mark or statement counts. Without one, a line that begins with its letter counts, then the last letter
    that is named and not denied. Text inside the thinking is ignored. If the completion was cut off, only a closed tag
    or box counts. ``letters`` are those of the question: any other letter on its own is not a choice.
    """
    plain = _plain(after_thinking(text))
    marked = _marked_claims(plain)
    stated = _stated_claims(plain) if finished else []
    # A box may hold an intermediate number. A statement with a letter then takes precedence.
    if stated:
        marked = [claim for claim in marked if claim.letters or not plain.startswith("<box>", claim.start)]
    claims = sorted([*marked, *stated], key=lambda claim: claim.start)
    if claims:
        last = claims[-1]
        if len(last.letters) == 1:
            return Chosen(last.letters)
        # The text after a hedge may decide: "either A or C. Probably C".
        after = _named_letter(plain[last.end :], letters) if finished and last.letters else Chosen(None)
        return Chosen(after.letter, last.said if after.letter is None else None)
    return _named_letter(plain, letters) if finished else Chosen(None)


def read_label(text: str) -> str | None:
    """The letter that a text consists of or begins with: ``B``, ``(b)``, ``Option B``, ``B) Paris``; else None."""
    match = _LABEL.fullmatch(text)
    return match.group(1).upper() if match else None


def names_letter(text: str) -> bool:
    """Whether a text names an option by its letter, in a tag, a box or words."""
    plain = _plain(text)
    return bool(_BY_NAME.search(plain)) or any(
        claim.letters for claim in (*_marked_claims(plain), *_stated_claims(plain))
    )


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


def _plain(text: str) -> str:
    """The text without decoration, with every box as ``<box>…</box>``."""
    text = _BOX.sub(lambda box: f"<box>{box.group(1) or box.group(2)}</box>", text.replace("：", ":"))
    for _ in range(2):
        text = _SET_TEXT.sub(lambda command: f" {command.group(1) or ''}", text)
    return _ENCLOSED.sub(lambda match: match.group(1) or match.group(2), _DECORATION.sub("", text))


def _marked_claims(text: str) -> list[_Claim]:
    """The claims in tags and boxes. Marks separated only by "or", "and" or a comma are joined into one claim."""
    claims: list[_Claim] = []
    for match in _TAG.finditer(text):
        content = _TAG_MARK.sub("", match["content"]).strip().strip("{}").strip()
        letter = read_label(content)
        start = content.upper().find(letter) if letter else 0
        letters = _with_more(content, letter, start + 1)[0] if letter else ""
        stated = [] if letter else _stated_claims(content)
        if stated:
            letters = stated[-1].letters
        elif not letter and _ALONE.match(content):
            letters = _with_more(content, content[0], 1)[0]
            letters = letters if len(letters) > 1 else ""
        claim = _Claim(match.start(), match.end(), letters, content)
        before = claims[-1] if claims else None
        if (
            before
            and letters
            and before.letters
            and _JOINED.fullmatch(text[before.end : min(match.start(), before.end + 20)])
        ):
            joined_letters = "".join(dict.fromkeys(before.letters + letters))
            claims[-1] = _Claim(before.start, claim.end, joined_letters, f"{before.said}, {content}")
        else:
            claims.append(claim)
    return claims


def _stated_claims(text: str) -> list[_Claim]:
    """The claims that sentences state, outside tags and boxes."""
    text = _TAG.sub(lambda mark: "." * len(mark.group()), text)
    claims = []
    for pattern in _STATED:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            name = "letter" if groups.get("letter") else "small"
            start, end = match.span(name)
            supposed = _SUPPOSED.search(text[max(0, match.start() - 40) : match.start()])
            if supposed or _DENIAL.search(match.group()):
                continue
            if "\n" in text[match.start() : start] and _is_word(text, start):
                continue
            letters, end = _with_more(text, groups[name].upper(), end)
            if not _DENIED_BEHIND.match(text, end):
                claims.append(_Claim(match.start(), end, letters, text[start:end]))
    return claims


def _named_letter(text: str, letters: str) -> Chosen:
    """The letter of the only line that begins with a letter and denies nothing, else the last letter not denied."""
    # "(A) or (B)" begins with a letter but is no choice.
    lines = [
        line
        for line in _LINE.finditer(text)
        if line.group(1) in letters and len(_with_more(text, line.group(1), line.end(1))[0]) == 1
    ]
    undenied = {line.group(1) for line in lines if not _REFUSED.search(line.group())}
    if len(undenied) == 1:
        return Chosen(*undenied)
    # Several such lines repeat the options, so the choice is in the text around them.
    remaining = text
    for line in reversed(lines):
        remaining = remaining[: line.start()] + remaining[line.end() :]
    chosen, end = Chosen(None), 0
    for match in _ALONE.finditer(remaining):
        start = match.start()
        if start < end or match["letter"] not in letters or _is_word(remaining, start):
            continue
        group, end = _with_more(remaining, match["letter"], match.end())
        before = remaining[max(0, start - 50) : start]
        singled_out = _SINGLED_OUT.search(before)
        second_letter = _SINGLED_OUT_TOO.match(remaining, end) if singled_out else None
        denied = _DENIED_BEFORE.search(before) or _DENIED_BEHIND.match(remaining, end)
        if _THING.search(before) or (denied and not singled_out):
            continue
        end = second_letter.end() if second_letter else end
        chosen = Chosen(None, remaining[start:end]) if second_letter or len(group) > 1 else Chosen(group)
    return chosen


def _with_more(text: str, letter: str, end: int) -> tuple[str, int]:
    """The letter with all letters joined to it, and the end position of the last."""
    letters = letter
    while following := _MORE.match(text, end):
        letters, end = letters + following["letter"] * (following["letter"] not in letters), following.end()
    return letters, end


def _is_word(text: str, start: int) -> bool:
    letter = text[start]
    if letter not in "AI" or _NAMED.search(text[max(0, start - 20) : start].rstrip(" (")):
        return False
    return letter == "I" or bool(_ARTICLE.match(text, start + 1))
