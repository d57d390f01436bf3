r"""Split answers into clauses: systems of equations, functions by cases, and the domain of a variable."""

from __future__ import annotations

import re

_SYSTEM = re.compile(
    r"(?:\\\{|\{)?\s*\\begin\s*\{(?P<kind>cases|aligned|align\*?|gathered|array|split)\}\s*(?:\{[lcr|\s]*\})?"
    r"(?P<body>.*?)\\end\s*\{(?P=kind)\}",
    re.DOTALL,
)
_EQUATION = re.compile(r"[^=<>&]*(?<![<>!])=[^=<>&]*")
_CASES = re.compile(
    r"(?:(?P<name>[a-zA-Z]\([a-z]\)|[a-zA-Z])\s*=\s*)?\\begin\s*\{cases\}(?P<body>.*?)\\end\s*\{cases\}", re.DOTALL
)
_CONDITION = re.compile(r"^(?:[\s,;]|\\text\s*\{\s*,?\s*(?:if|for|when|where)\s*\}|(?:if|for|when|where)(?![a-zA-Z]))+")
_TEXT_IF = re.compile(r"\\text\s*\{\s*,?\s*(?:if|for|when|where)\s*(?=[^\s}])")
_DOMAIN = re.compile(
    r"(?P<joint>\s*[,;]\s*|\s+|(?=\\text|\())"
    r"(?P<open>\(\s*)?(?P<lead>(?:\\text\s*\{\s*,?\s*|,?\s*)?(?:for|where|with|and)(?:\s+(?:all|any|every|each|some)\b)?"
    r"(?:\s+[a-z]{2,}(?:\s+[a-z]{2,})?)?(?:\s+|\s*\}\s*|(?=\s*[a-zA-Z]\b))|\\forall\s*)?"
    r"(?P<name>[a-zA-Z])\s*"
    r"(?:\\in\s*(?P<set>(?:\\mathbb\s*\{?\s*[ZNRQC]\s*\}?|[ZNRQC])(?:\s*[\^_]\s*\{?\s*[-+*0-9]{1,2}\s*\}?)?)"
    r"|(?:\\text\s*\{\s*)?(?:is|are|being)\s+(?:an?|any)\s+(?:arbitrary\s+)?"
    r"(?P<kind>integer|real number|constant|real constant)"
    r"\s*\}?)?\s*(?:\}\s*)?(?P<close>\))?$"
)
_EVERY = re.compile(r"\b(?:all|any|every|each|some)\b|\\forall")
_KINDS = {"integer": "Z", "real number": "R"}


def system(text: str) -> str:
    r"""The text with a system of equations as a list: ``\begin{cases} x=2 \\ y=5 \end{cases}`` is ``x=2, y=5``.

    A lone line in ``aligned`` is that line. Functions by cases, matrices and anything else stay as they are.
    """
    match = _SYSTEM.fullmatch(text.strip())
    if match is None:
        return text
    lines = [line.strip() for line in re.split(r"\\\\", match["body"]) if line.strip()]
    aligned = match["kind"] not in ("cases", "array")
    plain = [re.sub(r"\s*&\s*(?==)|(?<==)\s*&\s*", "", line).strip(" ,;.") for line in lines]
    if len(plain) == 1 and aligned and "&" not in plain[0]:
        return plain[0]
    return ", ".join(plain) if len(plain) > 1 and all(map(_EQUATION.fullmatch, plain)) else text


def cases(text: str) -> tuple[tuple[str, str], ...] | None:
    """The (value, condition) pairs of a function by cases; None for anything else."""
    match = _CASES.fullmatch(text)
    if match is None:
        return None
    rows = []
    for row in filter(str.strip, re.split(r"\\\\", match["body"])):
        value, separator, condition = row.partition("&")
        if not separator:
            return None
        condition = _CONDITION.sub("", _TEXT_IF.sub(r"\\text{", condition.replace("&", "")))
        rows.append((value.strip(" ,;"), condition.strip(" ,;.")))
    return tuple(rows)


def domain(text: str) -> tuple[str, str]:
    r"""An answer without the domain of its variable, and that domain: ``2k\pi, k \in \mathbb{Z}`` gives "Z".

    The domain is "" if it is not given or says nothing ("for all x").
    """
    match = _DOMAIN.search(text)
    if match is None or not (match["set"] or match["kind"] or _EVERY.search(match["lead"] or "")):
        return text, ""
    value = text[: match.start()].rstrip(" ,;")
    stated = match["lead"] or match["open"] or "," in match["joint"] or ";" in match["joint"]
    used = re.search(rf"(?<!\\)(?<!\\[a-z]){match['name']}(?![a-z]{{3}})", value) is not None
    if (
        not value
        or not stated
        or not used
        or bool(match["open"]) != bool(match["close"])
        or value.count("(") != value.count(")")
    ):
        return text, ""
    if match["set"]:
        return value, re.sub(r"\\mathbb|[\s{}]", "", match["set"])
    return value, _KINDS.get(match["kind"] or "", "")
