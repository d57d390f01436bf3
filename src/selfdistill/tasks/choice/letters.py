r"""Multiple-choice letters: the letter that a completion chose.

A completion chooses by a mark (``<answer>B</answer>``, ``\boxed{B}``), by a statement ("the answer is B", "B is
correct"), by a line that begins with the letter, or by the last letter that it names and does not deny. Two letters
joined by "or", "and" or a slash are not a choice.

Every regular expression takes time linear in the text: each repetition is bounded or cannot start again inside itself.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase

from selfdistill.contexts.thinking import after_thinking

# A box becomes a tag, so that one expression finds both. Its braces may be nested three deep.
_BRACED = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]{0,400}+\}){0,400}+\}){0,800}+)\}"
_BOX = re.compile(rf"\\(?:f?boxed|fbox|framebox)\s{{0,4}}(?:{_BRACED}|([A-Z])\b)")
_TAG = re.compile(
    r"<(?P<mark>answer|box)>(?P<content>(?:(?!<(?P=mark)>).){0,4000}?)</(?P=mark)>", re.DOTALL | re.IGNORECASE
)
_TAG_MARK = re.compile(r"</?(?:answer|box)>", re.IGNORECASE)
# Letters of other shapes count as letters: "Ｂ", "Ⓑ", "𝐁". All are one character, as are the marks.
_SHAPES = {
    code: letter
    for first, last in (("Ａ", "ｚ"), ("Ⓐ", "ⓩ"), ("𝐀", "𝚣"))
    for code in range(ord(first), ord(last) + 1)
    if (letter := unicodedata.normalize("NFKC", chr(code))).isascii() and letter.isalpha()
} | {ord("："): ":", ord("（"): "(", ord("）"): ")"}
# Commands that only format text, and marks of Markdown, quotation and mathematics that do not change the meaning.
_SET_TEXT = re.compile(
    r"\\(?:text(?!color)|math|operatorname|boldsymbol|bm|bf|rm|mbox|displaystyle|underline|emph|large|Large|LARGE|huge|Huge)"
    r"[a-z]*\s{0,4}(?:\{([^{}]{0,400}+)\}|(?![a-z]))|\\(?:text)?color(?:box)?\s{0,4}\{[^{}]{0,40}\}"
)
_DECORATION = re.compile(
    r"[*`$\"“”„«»「」]|(?<!\w)_{1,3}|_{1,3}(?!\w)"
    r"|\\[()\[\]]|\\(?=\s)|\\[,;:!]|^[ \t]{0,8}(?:[#>]{1,6}[ \t]{0,8}){1,4}",
    re.MULTILINE,
)

_ENCLOSED = re.compile(r"(?<!\w)['‘]([A-Z])['’](?!\w)|(?<![\w}^])\{\s?([A-Z])\s?\}")

# The letter must not be part of a word or a formula, or a unit after a number. Other scripts have no spaces: "答案是C".
_BEFORE = r"(?<![A-Za-z0-9_À-ɏ'’\\=^+/{°-])(?<![\d°][ ])(?<![\w\]]\[)"
_BEHIND = r"(?![A-Za-z0-9_À-ɏ'’=^+/#-]|[ ]=)"
_CAPITAL = rf"{_BEFORE}(?P<letter>[A-Z]){_BEHIND}"
# A small letter counts after a colon or "is" if it ends a sentence or has a bracket: "answer: b", "is b) Paris".
_SMALL = r"(?P<small>[a-z])(?=[)\]:]|[.]?[ \t]*(?:$|\n)|[.,;!][ \t\n])"
_EITHER = rf"(?:{_CAPITAL}|{_SMALL})"
_ALONE = re.compile(_CAPITAL)

_BE = r"(?:(?<![A-Za-z])(?:is|was|be|est|ist|lautet|es|è|é)\b|(?:'s|’s)(?!\w)|[:=是为為])"
_GO = r"(?:(?:'s|’s|\s+is|\s+must\s+be|\s+has\s+to\s+be|\s+should\s+be|\s+would\s+be)\b)"
# Words between "the answer is" and its letter.
_FILLERS = (
    r"(?:[\s:(\[-]{0,12}(?:therefore|thus|hence|then|so|clearly|definitely|likely|most|probably|simply|indeed|actually|"
    r"given|by|the|both|either|option|choice|letter|answer|final|correct|right|best|just|only|still|to|be|believe|"
    r"think|I(?=\s+(?:think|believe))|obviously|certainly|also|is|as|follows|statement)\b){0,8}+[\s:(\[{<-]{0,12}"
)
_ANSWER = (
    r"(?:answers?|antwort|antwoord|réponse|respuesta|risposta|resposta|ответ|відповідь|svar|vastaus|odpowiedź|răspuns|"
    r"jawaban|đáp án|cevap|答案|正解|答え|정답|उत्तर|الإجابة)"
)
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
        rf"(?-i:{_CAPITAL})[)\]]?\s+(?:is|must\s+be|has\s+to\s+be|seems|fits|works|matches)\s+(?:\w+\s+){{0,2}}?"
        r"(?:the\s+)?(?:correct|right|answer|best)\b",
        # A revision: "On second thought, B.", "No, C.", "Scratch that: C."
        r"\b(?:wait|no|actually|on\s+second\s+thoughts?|scratch\s+that|correction|sorry|I\s+meant?|make\s+that|rather)\b"
        rf"[\s,:;.!…—–-]{{1,6}}+(?:(?:it{_GO}|I\s+meant?|actually|rather|make\s+that|option)\s+){{0,3}}+[(\[]?"
        rf"(?-i:{_CAPITAL})(?=[)\]]?[.!]?\s*(?:$|\n)|[)\]]?[.!]\s)",
        # "故选C", "应该选 D". "选项B" names an option.
        rf"(?:选择|選擇|[选選])(?![项項])[\s:是(]{{0,4}}(?-i:{_CAPITAL})",
    )
)
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|neither|nor|incorrect|wrong|unlikely|eliminate[sd]?|exclude[sd]?|nicht|kein\w*|niet|"
    r"n['’]est\s+pas|no\s+es|non\s+è|não|не|nie|inte|bukan|không|değil)\b|n['’]t\b|不|并非|ではな",
    re.I,
)
# After these words a statement is no choice: "if B is correct", "I would not choose B", "statement A is correct".
_SUPPOSED = re.compile(
    r"\b(?:if|whether|why|suppos\w+|assum\w+|unless|statement|equation|group|point|when|how|not|never|cannot|neither|"
    r"nor|many|people|students|others)\b[^.\n,;]{0,30}$|n['’]t\b[^.\n,;]{0,30}$",
    re.IGNORECASE,
)

# Another letter after the first: "A or C", "A, B", "(A) and maybe (C)".
_MORE = re.compile(
    r"(?:[\s)\]}.]{0,4}+|\s?\([^()\n]{1,40}\)\s?)(?:,\s*(?:or|and)\b|,|/|&|\+|\b(?:or|and|nor|und|oder|ou|et)\b|[或和])"
    r"(?:[\s(\[{]|\b(?:maybe|perhaps|possibly|even|also|both|option|choice|answer)\b){0,8}+"
    r"(?P<letter>[A-Z])(?![\w'’=^])(?!\s+(?:is|was|has|would|cannot|can|does|gives|fits|being|because|since|seems)\b)"
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|nor|neither|anything but|rather than|instead of|unlike|over|than|except|versus|vs\.?|"
    r"against|"
    r"(?:eliminat|exclud|reject|discard|dismiss)(?:es?|ed|ing|s)?|rul(?:es?|ed|ing) out)|n['’]t)"
    r"(?:\s+(?:be|both|think|believe|say|choose|pick|select|go|going|with|for|it['’]s|it|is|that|this|the|a|correct|right|"
    r"likely|necessarily|really|possibly)){0,6}+\s+(?:(?:option|choice|answer)s?\s+)?[(\[]?$"
    # Other languages, and a supposition: "if the answer were B, …".
    r"|(?:\b(?:nicht|niet|n['’]est\s+pas|no\s+es|non\s+è|não\s+é|не|bukan|không\s+phải\s+là)\s+|不是|不选|不為|不为|并非)"
    r"\s{0,2}(?:la\s+|a\s+)?[(\[]?$"
    r"|\b(?:if|whether|unless|suppos(?:e|ing)|assum(?:e|ing))\s+(?:that\s+)?"
    r"(?:(?:it|the\s+(?:correct\s+)?answer)\s+(?:is|was|were)\s+)?(?:(?:option|choice)\s+)?[(\[]?$",
    re.IGNORECASE,
)
_WRONG = r"(?:wrong|incorrect|false|out|impossible|ruled|eliminated|excluded|invalid|too)\b"
_DENIED_BEHIND = re.compile(
    # "B. Do not choose A" denies no B.
    r"[\s)\].:-]{0,6}+(?:(?<!\.\s)(?:is|are|was|were|seems?|looks?|can|could|would|does|do)\s+"
    rf"(?:(?:be|both|all|also|clearly|the|an?|common)\s+){{0,3}}(?:not\b|{_WRONG}|(?:mistake|error|distractor|trap)\b)"
    rf"|\(?{_WRONG}|(?:选?项)?(?:是)?(?:错|不[对正符])"
    r"|cannot\b|fails?\b|(?:is|are|was|does|do|ca|could|would|wo)n['’]t\b|[✗✘❌]"
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
    r"\s+(?!(?:is|was|because|since|as|and|or|nor|seems|must|fits|over|cannot|has|only|alone|it\s+is)\b)[a-z]"
)
_NAMED = re.compile(r"(?:option|choice|answer|select|choose|pick)s?[ \t]*\(?$", re.IGNORECASE)
_BY_NAME = re.compile(r"\b(?:[Oo]ption|[Cc]hoice)s?\s*\(?[A-Z]\b")

_REFUSED = re.compile(r"\b(?:wrong|incorrect|not (?:correct|right))\b|[✗✘❌]", re.IGNORECASE)
_JOINED = re.compile(r"[\s.]{0,4}(?:,|/|or\b|and\b|,\s*or\b|,\s*and\b)[\s.]{0,8}")

# Letters only: "A B C D", "A; C", "B and/or C".
_LETTERS = re.compile(
    r"[(\[]?[A-Z](?![A-Za-z])[)\].]?(?:[\s,;/&+]{0,4}(?:(?:and|or|and/or)\s)?[(\[]?[A-Z](?![A-Za-z])[)\].]?)+"
)
_SMALL_ALONE = re.compile(r"\s*[(\[]?([a-z])[)\].:]{0,2}\s*")
# A list of the options in one line: "A) x B) y C) z".
_INLINE = re.compile(r"(?<![\w(])(?:[Oo]ption )?\(?([A-Z])[).:]+(?=\s)")
# A last sentence that asks chooses nothing: "Is it A?"
_ASKS = re.compile(
    r"(?:\A|(?<=[.!?\n]))\s{0,4}(?:but\s|so\s|or\s)?(?:is|are|was|could|would|might|should|what|how|why|which)\b"
    r"[^.!?\n]*\?\s{0,20}\Z",
    re.IGNORECASE,
)
# A line that begins with its letter, or consists of it.
_LINE = re.compile(
    r"^[ \t•-]{0,12}(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])(?:[).:]{1,2}(?:[ \t]+\S.*)?|\)?[ \t]*)$", re.MULTILINE
)
_LABEL = re.compile(
    r"\s*(?:(?:option|choice|answer)\s*:?\s*)?[(\[]?\s*([A-Za-z])(?:\s*[)\].:].*"
    # The letter on a line of its own, and "B - iron", which is no difference of two quantities.
    r"|[ \t]*\n(?!\s*[(\[]?[A-Z]\b).*|\s[-–—]\s(?!(?:sin|cos|tan|log|ln|exp)\b)[A-Za-z]{2,}.*)?\s*",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choice of a completion: ``letter`` in capitals, or ``said``, the text in place of a letter."""

    letter: str | None
    said: str | None = None


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
    plain = _ASKS.sub("", _plain(after_thinking(text)))
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


def _plain(text: str) -> str:
    """The text without decoration, with every box as ``<box>…</box>``."""
    text = _BOX.sub(lambda box: f"<box>{box.group(1) or box.group(2)}</box>", text.translate(_SHAPES))
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
    if small := _SMALL_ALONE.fullmatch(text):
        return Chosen(small.group(1).upper())
    listed = {match["letter"] for match in _ALONE.finditer(text)} if _LETTERS.fullmatch(text.strip()) else set()
    if listed and listed <= {*letters}:
        return Chosen(*listed) if len(listed) == 1 else Chosen(None, text.strip())
    text = "\n".join(_one_per_line(line) for line in text.split("\n"))
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


def _one_per_line(line: str) -> str:
    """The line, with breaks in front of its letters if it lists the options from A to C or further."""
    labels = list(_INLINE.finditer(line))
    letters = "".join(label.group(1) for label in labels)
    if len(letters) < 3 or not ascii_uppercase.startswith(letters):
        return line
    # The last option ends with its sentence: "D) zinc. Correct: D".
    end = re.compile(r"[.!]\s").search(line, labels[-1].end())
    cuts = [0, *(label.start() for label in labels), *([end.end()] if end else []), len(line)]
    return "\n".join(line[start:end] for start, end in pairwise(cuts))


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
