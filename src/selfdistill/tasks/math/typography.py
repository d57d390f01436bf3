"""Normalize the typography of final answers: Unicode, spacing and markup become plain LaTeX.

The value never changes. Digits of other scripts stay as they are: a full-width ``６`` is not ``6``, because a model
that writes it does not write the row's language.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from unicodedata import decomposition, numeric

from selfdistill.tasks.math.clauses import system

LONGEST = 400
"""Longest answer, in characters, that is parsed. Of longer ones only the text is compared."""

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon"
)
_UNICODE = {
    **{chr(ord("α") + i): f"\\{name} " for i, name in enumerate(f"{_GREEK} upsilon phi chi psi omega".split())},
    "Γ": "\\Gamma ",
    "Δ": "\\Delta ",
    "Θ": "\\Theta ",
    "Λ": "\\Lambda ",
    "Π": "\\Pi ",
    "Σ": "\\Sigma ",
    "Φ": "\\Phi ",
    "Ψ": "\\Psi ",
    "Ω": "\\Omega ",
    "ϕ": "\\phi ",
    "µ": "\\mu ",
    "−": "-",
    "–": "-",
    "‑": "-",
    "×": "\\times ",
    "·": "\\cdot ",
    "⋅": "\\cdot ",
    "∙": "\\cdot ",
    "÷": "\\div ",
    "≤": "\\le ",
    "⩽": "\\le ",
    "≥": "\\ge ",
    "⩾": "\\ge ",
    "≠": "\\ne ",
    "≈": "\\approx ",
    "∼": "\\sim ",
    "±": "\\pm ",
    "∞": "\\infty ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
    "∅": "\\emptyset ",
    "∖": "\\setminus ",
    "ℝ": "\\mathbb{R}",
    "ℤ": "\\mathbb{Z}",
    "ℕ": "\\mathbb{N}",
    "ℚ": "\\mathbb{Q}",
    "ℂ": "\\mathbb{C}",
    "→": "\\to ",
    "⟨": "\\langle ",
    "⟩": "\\rangle ",
    "°": "^\\circ ",
    "º": "^\\circ ",
    "…": "\\ldots ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
    "∶": ":",
    "＝": "=",
    "ℓ": "\\ell ",
    "≡": "\\equiv ",
    "Å": " angstrom ",
    "\u212b": " angstrom ",
    "ℏ": "\\hbar ",
    "∘": "\\circ ",
    "∗": "*",
    "•": "\\cdot ",
    "∣": "|",
    "⊥": "\\perp ",
    "∧": "\\land ",
    "∨": "\\lor ",
    "¬": "\\neg ",
    "∑": "\\sum ",
    "⌊": "\\lfloor ",
    "⌋": "\\rfloor ",
    "⌈": "\\lceil ",
    "⌉": "\\rceil ",
    "˚": "^\\circ ",
    **{
        character: f"\\frac{{{Fraction(numeric(character)).limit_denominator(10).numerator}}}"
        f"{{{Fraction(numeric(character)).limit_denominator(10).denominator}}}"
        for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
    },
    # Full-width punctuation, which Chinese and Japanese keyboards write between digits 0 to 9.
    **dict(zip("（），．：；％＋－＜＞／［］｛｝、。", "(),.:;%+-<>/[]{},.", strict=True)),
    "Ø": "\\emptyset ",
    **dict.fromkeys("\u00a0\u2002\u2003\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
    **dict.fromkeys("\u200b\u2060\ufeff\u200e\u200f", ""),
}
_TABLE = str.maketrans(_UNICODE)
# Unicode superscripts and subscripts of one character: x², xᵃ⁺ᵇ, xᵢ. The º of a degree is not among them.
_SCRIPTS = [chr(i) for first, last in ("²³", "¹¹", "ʰˣ", "ᴬᵪ", "⁰ₜ", "ⱼⱽ") for i in range(ord(first), ord(last) + 1)]
_RAISED, _LOWERED = (
    {
        character: chr(int(parts[1], 16))
        for character in _SCRIPTS
        if (parts := decomposition(character).split())[:1] == [kind]
    }
    for kind in ("<super>", "<sub>")
)
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+(?:\.[0-9]+)?|[A-Za-zα-ω]))")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}

_TEXT = r"\\(?:text|mathrm)\s*\{"
_METRIC = "eV|Hz|mol|Pa|Sv|[msgFACVWLlJNTHM]"
_SUBSTITUTIONS = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\\\\s*\[[^\]]*\]", r"\\\\"),  # a row's end with a skip
        (r",?\\!\s*", ""),
        # Between groups of three digits, or in India of two before the last three: 1{,}20{,}000.
        (r"\{\s*,\s*\}(?=(?:[0-9]{2}\{\s*,\s*\}){0,9}[0-9]{3}(?![0-9]))", ""),
        (r"(?<=[0-9])\\,(?=(?:[0-9]{2}\\,){0,9}[0-9]{3}(?![0-9]))", ""),
        (r"\\(?:q?quad|thinspace|enspace|space|medspace|thickspace|nobreakspace)(?![a-zA-Z])|(?<!\\)\\[,;:> ]|~", " "),
        (r"\\[hv]space\*?\s*\{[^{}]*\}|\\(?:phantom|label|tag)\s*\{[^{}]*\}", " "),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|,)(?![a-zA-Z])", ""),
        (r"\\(?:bf|rm|it|sf|tt|bfseries|large|Large|huge|Huge|normalsize|centering|color)(?![a-zA-Z{\s])", " "),
        (r"\\(?:text)?color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}", ""),
        (r"\{\s*\\(?:bf|rm|it)\s", "{"),
        (r"\\(?:[dtcs]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leqslant|leqq|leq|le)(?![a-zA-Z])|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\(?:neq|ne)(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing|emptyset|O)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\[lr]?vert(?![a-zA-Z])|\\[lr]vert", "|"),
        (r"\\(?:cdots|dots|dotsc|dotsb)(?![a-zA-Z])", r"\\ldots "),
        (r"\^\s*\{\s*\\circ\s*\}|\\degrees?(?![a-zA-Z])|\^\s*\\circ(?![a-zA-Z])", r"^\\circ "),
        (r"(?<=[0-9])\s*\^\s*(?:\{\s*o\s*\}|o(?![a-zA-Z]))", r"^\\circ "),  # 60^o: no exponent is called o
        (r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)(?![a-zA-Z]))", lambda run: "'" * run.group().count("\\prime")),
        (r"\\colon(?![a-zA-Z])|\{\s*:\s*\}", ":"),
        (r"\{\s*(\\(?:times|cdot)|[-+=<>])\s*\}", r"\1 "),
        (r"\^\s*\{\s*([0-9a-zA-Z])\s*\}(?![0-9a-zA-Z])", r"^\1"),  # but x^{1}0 is not x^{10}
        (r"_\s*\{\s*([0-9a-zA-Z])\s*\}(?![0-9a-zA-Z])", r"_\1"),
        (r"\\(?:R|Reals)(?![a-zA-Z])|\\(?:mathbb|Bbb)\s*\{?\s*R\s*\}?", r"\\mathbb{R}"),
        (r"\\(?:backslash|smallsetminus)(?![a-zA-Z])|(?<=\\mathbb\{R\})\s*[-/]\s*(?=\\\{)", r"\\setminus "),
        (r"\\([ij])math(?![a-zA-Z])", r"\1"),
        (r"\\(?:hat|vec)\s*(?:\{\s*(?:\\math(?:bf|rm)\s*)?\{?\s*([ijk])\s*\}?\s*\}|\s([ijk])(?![a-zA-Z]))", r"\1\2"),
        (r"\\log\s*_\s*(?:\{\s*e\s*\}|e(?![a-zA-Z]))", r"\\ln "),
        (r"\+\s*/\s*-", r"\\pm "),
        (r"\\(?:checkmark|blacksquare|qed|Box)(?![a-zA-Z])", " "),
        (r"(?<=[0-9}]) +([kM]?) ?\\Omega(?![a-zA-Z])", r" \\text{\1ohm}"),  # a resistance
        # Micro units: 5\,\mu\text{m}, 5 \text{μm}, 5 μm. The last only at the end, because 5 \mu m g is a product.
        (r"\\(?:text|mathrm)\s*\{ *\\mu *\}", r"\\mu "),
        (rf"(?<=[0-9}}]) *(?:\\mu *{_TEXT}|{_TEXT} *\\mu) *({_METRIC})(?![a-zA-Z])", r" \\text{micro\1"),
        (rf"(?<=[0-9}}]) *\\mu *({_METRIC})(?![a-zA-Z])(?=[ .]*$| *[/^])", r" \\text{micro\1}"),
        (r"\\(?:AA(?![a-zA-Z])|mathring\s*\{ *(?:\\text\s*\{)? *A *\}?\})", " angstrom "),
        (r"\\%", "%"),
        (r"\\&", " and "),
        (r"\\cent(?![a-zA-Z])", "¢"),
        (r"\\pounds(?![a-zA-Z])", "£"),
        (r"\\euro(?![a-zA-Z])", "€"),
        (r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|math(?:rm|sf|tt)|[mh]box|operatorname\*?)(?=\s*\{)", r"\\text"),
        (r"\\?(?<![a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])sqrt(?=\s*\{|\s*[0-9])", r"\\sqrt"),
        (r"(?<![\\a-zA-Z])(?:pi|Pi|PI)(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])(?:infinity|Infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\\text\s*\{[\s.,;:]*\}", " "),
        (r"\\[dt]?binom(?![a-zA-Z])\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\binom{\1}{\2}"),
        # Combinations in other spellings, for numbers only: C_7^3, {}_7C_3.
        (r"(?<![0-9a-zA-Z])(?:\\text\s*)?\{?C\}?\s*_\s*\{?([0-9]+)\}?\s*\^\s*\{?([0-9]+)\}?", r"\\binom{\1}{\2}"),
        (r"(?<![0-9a-zA-Z}])(?:\{\s*\})?[_^]\s*\{?([0-9]+)\}?\s*\{?C\}?\s*_\s*\{?([0-9]+)\}?", r"\\binom{\1}{\2}"),
        (r"^\{\s*\}(?=.)|(?<=[0-9])\{\s*\}$", ""),
        (r"^\{\s*\}$", r"\\emptyset"),
        (r"\\text\s*\{\s*\(?\s*(?:approximately|approx\.?|about)\s*\}\s*([0-9.,]*[0-9])\s*\)", r"\\approx \1"),
        (r"\{?\s*([0-9a-zA-Z]+)\s*\\choose\s*([0-9a-zA-Z]+)\s*\}?", r"\\binom{\1}{\2}"),
        (r"\.\.\.+", r"\\ldots "),
        (r"\*\*(?=[\w({-])", "^"),
        (r"(?<=[\w)}])\s*\*\s*(?=[\w({\\-])", r" \\cdot "),
    )
)  # fmt: skip
# Most answers are numbers and words that need no substitution.
_SIMPLE = re.compile(r"(?!.*(?:pi|inf|oo|sqrt|\+ */ *-))[0-9A-Za-z ,.%/:;()+=-]*", re.IGNORECASE)
_FRACTION = re.compile(r"\\frac(?![a-zA-Z])")
_ARGUMENT = re.compile(r"\s*(?:(?P<token>\\(?!sqrt|frac|text)[a-zA-Z]+|[0-9a-zA-Z])|\{)")
_ROOT_TOKEN = re.compile(r"(\\sqrt\s*\[[^\[\]]*\])\s*([0-9a-zA-Z])")
_OVER = re.compile(r"\{([^{}]{1,60})\\over(?![a-zA-Z])([^{}]{1,60})\}")
_UNWRAPPED = re.compile(
    r"\\(?:mathbf|mathcal|boldsymbol|bm|underline|boxed|fbox|ensuremath|mathit|emph|mathstrut|pmb)\s*(?=\{)"
)
_LONE_BRACES = re.compile(r"(?<![\\a-zA-Z}\]^_])\{([0-9a-zA-Z.]+)\}")
# Plain braces around a condition denote a set: {x | x > 1}.
_BUILT = re.compile(
    r"\{(\s*(?:[a-zA-Z](?:_\w)?|\([a-z, ]+\))\s*(?:\\in[^|:<>]{1,20})?)(?:\\mid(?![a-zA-Z])|\||:)"
    r"(?=.*(?:[<>=]|\\[a-z]))"
)
# "34 is the answer", "n = 34\\text{ is the least such number}"
_TAIL = re.compile(r"(?<=[0-9}])(?:\s*\\text\s*\{)?\s*(?:is|are) (?:the|our|my|its)\b[a-z ]{0,60}\}?$", re.IGNORECASE)
_ALL_TEXT = re.compile(r"^\\text\s*\{\s*([-+]?[0-9][^{}]*)\}$")
r"""A number and its unit in one text command: ``\text{5 apples}``."""
_LEAD = re.compile(
    r"(?:=|:|\\(?:approx|sim|simeq|cong|therefore|implies|Rightarrow)(?![a-zA-Z])"
    r"|(?:(?:is )?(?:about|approximately|approx\.?|roughly|around|exactly|only|just|precisely)|"
    r"\\text\s*\{\s*(?:about|approximately|approx\.?|roughly|around|exactly)\s*\})(?![a-zA-Z]))\s*",
    re.IGNORECASE,
)


@lru_cache(maxsize=8192)
def tidy(answer: str) -> str:
    r"""The answer in plain LaTeX: ``x²`` is ``x^{2}``, ``\dfrac`` is ``\frac``, every text command is ``\text``."""
    if len(answer) > LONGEST:
        return " ".join(answer.split())
    text = answer if _SIMPLE.fullmatch(answer) else _in_plain_latex(answer)
    text = re.sub(r"\s+", " ", text).strip()
    while True:
        before = text
        text = text if text.endswith(("...", "\\ldots")) else text.rstrip(" .,;:?\\")
        text = _TAIL.sub("", text)
        lead = _LEAD.match(text)
        text = text[lead.end() :] if lead else text
        text = _ALL_TEXT.sub(r"\1", text)
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            built = _BUILT.match(text)
            text = f"\\{{{built[1].rstrip()}\\mid {text[built.end() : -1]}\\}}" if built else text[1:-1].strip()
        if text == before:
            return text


def _in_plain_latex(answer: str) -> str:
    text = _RAISED_RUN.sub(lambda run: f"^{{{''.join(_RAISED[c] for c in run.group())}}}", answer)
    text = _LOWERED_RUN.sub(lambda run: f"_{{{''.join(_LOWERED[c] for c in run.group())}}}", text)
    text = _ROOT.sub(lambda root: f"\\sqrt{_DEGREES[root[1]]}{{{root[2] or root[3] or root[4]}}}", text)
    text = text.translate(_TABLE)
    text = _without_markup(text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
        text = re.sub(r"\\\\\s*$", "", text)
    for pattern, by in _SUBSTITUTIONS:
        text = pattern.sub(by, text)
    text = _with_braces(system(text))
    return _LONE_BRACES.sub(r"\1", _unwrap(text, _UNWRAPPED))


def _with_braces(text: str) -> str:
    r"""The text with braces around arguments of one token, as in ``\frac\pi3``, ``\frac{a}b`` and ``\sqrt[3]2``."""
    text = _OVER.sub(r"\\frac{\1}{\2}", _ROOT_TOKEN.sub(r"\1{\2}", text))
    position = 0
    while match := _FRACTION.search(text, position):
        position = match.end()
        for _ in range(2):
            argument = _ARGUMENT.match(text, position)
            if argument is None:
                break
            inner = f"{{{argument['token']}}}" if argument["token"] else "{"
            text = f"{text[:position]}{inner}{text[argument.end() :]}"
            end = closing(text, position)
            if end is None:
                break
            position = end + 1
        position = match.end()  # an argument may hold another fraction
    return text


def bare(text: str) -> str:
    r"""A tidy answer without its text commands: ``\text{Evelyn}`` is ``Evelyn``."""
    if "\\text" not in text:
        return text
    text = _unwrap(text, re.compile(r"\\text\s*(?=\{)"), space=True)
    return re.sub(r"\s+", " ", text).strip()


def closing(text: str, start: int) -> int | None:
    r"""Index of the brace that closes the one at ``start``, or None. ``\{`` and ``\}`` do not count as braces."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _without_markup(text: str) -> str:
    r"""The text without math delimiters, backticks, quotes and bold; ``\$`` stays as a currency."""
    text = re.sub(r"(?<!\\)\$(?=\s*[0-9])(?![^$]*(?<!\\)\$)", r"\\$", text)
    text = re.sub(r"(?<!\\)\$|(?<!\\)\\[()\[\]](?!\s*[0-9.]+\s*(?:pt|em|ex)\])|`|\"", "", text).strip()
    for mark in ("**", "__", "*", "'"):
        while len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            text = text[len(mark) : -len(mark)].strip()
    return text


def _unwrap(text: str, command: re.Pattern[str], *, space: bool = False) -> str:
    """The text with each such command replaced by its content."""
    parts, position = [], 0
    for match in command.finditer(text):
        if match.start() < position:
            continue
        end = closing(text, match.end())
        if end is not None:
            inner = _unwrap(text[match.end() + 1 : end], command, space=space)
            parts += [text[position : match.start()], f" {inner} " if space else f"{{{inner}}}"]
            position = end + 1
    return "".join([*parts, text[position:]])
