"""Final answers of mathematical texts: finding one, and telling whether two are equal.

Two answers that read the same, or are both plain numbers, are compared here. Everything else goes to ``math-verify`` in
one worker process (``worker.py``) that is killed and started afresh when a check takes too long: symbolic algebra
can run for ever, and a thread cannot be stopped.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock

from selfdistill.errors import UserError

_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0
_REMEMBERED = 65_536

BOX = re.compile(r"\\(?:f?boxed|fbox|framebox)\s*\{")
"""Where a box begins. Published solutions also write ``\\framebox``."""
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,[\s$]*)?(?:(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})?[\s$]*")
_LINE = re.compile(r"^\s*####[ \t]*(.+?)\s*$", re.MULTILINE)
_PHRASE = re.compile(
    r"\banswer(?:\s+is\b\s*:?|\s*:|\s*=)[\s*]*(.+?)[\s*]*(?:[.!](?=\s|$)|\*\*|,?\s(?=so\b|which\b|because\b|since\b)|$)",
    re.IGNORECASE | re.MULTILINE,
)

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,12}|\d{1,40})"
_DECIMAL = re.compile(rf"(?P<sign>[-+]?)\s*(?P<whole>{_DIGITS})?(?P<decimals>\.\d{{0,40}})?")
_RATIO = re.compile(r"(?P<sign>[-+]?)\s*(?:(?P<whole>\d{1,40})\s+)?(?P<top>\d{1,40})\s*/\s*(?P<bottom>\d{1,40})")
_FRAC = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<whole>\d{1,40})?\s*\\[dt]?frac\s*"
    r"(?:\{\s*(?P<top>\d{1,40})\s*\}\s*\{\s*(?P<bottom>\d{1,40})\s*\}|(?P<top1>\d)\s*(?P<bottom1>\d))"
)
# A unit is words after a number. Words that change the number are none: "5 million" is not 5.
_UNIT = re.compile(r"(?<=[\d}])\s+(?P<words>[a-z]{2,}(?:[ /][a-z]+)*)$", re.IGNORECASE)
_NO_UNITS = {"dozen", "hundred", "thousand", "million", "billion", "trillion", "percent", "and", "or", "over"} | {
    *("pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp"),
}
_SPACE = re.compile(r"(?<!\d) | (?!\d)")  # not between digits: "1 00" is no 100
_WORD = re.compile(r"[a-z' -]*[a-z]{4}[a-z' -]*")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a check found: ``equal``, the given answer's ``canonical`` form, and whether the check was given up."""

    equal: bool
    canonical: str
    unchecked: bool = False


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


def plain(answer: str) -> str:
    """The answer without what does not change its meaning: dollar signs, spacing, text commands, units in words."""
    answer = answer.replace("\u2212", "-").replace("\\$", "").replace("$", "")
    answer = re.sub(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})", "", answer)
    answer = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[()\[\]]", "", answer)
    answer = re.sub(r"\\[,;:! ]", " ", answer)
    answer = _TEXT.sub(r" \1", answer)
    answer = re.sub(r"\s+", " ", answer).strip()
    answer = answer.rstrip(".").strip()
    unit = _UNIT.search(answer)
    if unit and not _NO_UNITS & set(re.split(r"[ /]", unit["words"].lower())):
        answer = answer[: unit.start()]
    return answer


def number(answer: str) -> Fraction | None:
    """The value of a plain number (``1,234``, ``-0.5``, ``3/4``, ``1\\frac{1}{2}``), None for anything else."""
    answer = plain(answer)
    if len(answer) > 120:
        return None
    match = _DECIMAL.fullmatch(answer)
    if match and (match["whole"] or len(match["decimals"] or "") > 1):
        whole = (match["whole"] or "0").replace(",", "")
        value = Fraction(f"{whole}{(match['decimals'] or '.').removesuffix('.')}")
        return -value if match["sign"] == "-" else value
    ratio = _RATIO.fullmatch(answer) or _FRAC.fullmatch(answer)
    if ratio is None:
        return None
    parts = ratio.groupdict()
    bottom = int(parts["bottom"] or parts["bottom1"])
    if bottom == 0:
        return None
    value = int(parts["whole"] or 0) + Fraction(int(parts["top"] or parts["top1"]), bottom)
    return -value if parts["sign"] == "-" else value


def canonical(answer: str) -> str:
    """One text for answers that are equal at a glance: numbers as fractions in lowest terms, words in lower case."""
    value = number(answer)
    return _SPACE.sub("", plain(answer)).lower() if value is None else str(value)


class AnswerChecker:
    """Tells whether answers are equal, by ``math-verify`` where a glance does not do.

    ``timeout`` counts processor seconds of one check, so that a busy machine does not turn right answers into wrong
    ones; in wall-clock time a check is given up after three times as much. The worker starts with the first check that
    needs it, is out of reach of Ctrl-C, and ends with this object or this process. Results are remembered.
    """

    def __init__(self, *, timeout: float) -> None:
        if timeout <= 0:
            raise UserError(f"the timeout of an answer check must be above 0 seconds, got {timeout}")
        self.timeout = timeout
        self._known: OrderedDict[tuple[str, str], Comparison] = OrderedDict()
        self._lock = Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._ending: weakref.finalize[[subprocess.Popen[str]], AnswerChecker] | None = None

    def compare(self, gold: str, given: str) -> Comparison:
        """Whether ``given`` equals ``gold``; a check that ran out of time or memory is unequal and ``unchecked``."""
        quick = _at_a_glance(gold, given)
        if quick is not None:
            return quick
        key = (gold, given)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._ask(gold, given)
            self._known.move_to_end(key)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return self._known[key]

    def close(self) -> None:
        """End the worker; the next check would start another."""
        if self._ending is not None:
            self._ending()
        self._worker = None

    def _ask(self, gold: str, given: str) -> Comparison:
        worker = self._start()
        request = {"gold": _as_latex(gold), "given": _as_latex(given), "timeout": self.timeout}
        verdict = _exchange(worker, json.dumps(request))
        if verdict is None:
            self.close()
            return Comparison(equal=False, canonical=canonical(given), unchecked=True)
        if verdict["equal"]:
            return Comparison(equal=True, canonical=canonical(gold))
        # The canonical form is a second answer, so that an algebra that cannot be brought into form is still judged.
        form = _receive(worker)
        if form is None:
            self.close()
        if form is None or number(given) is not None:
            return Comparison(equal=False, canonical=canonical(given))
        return Comparison(equal=False, canonical=str(form["canonical"]))

    def _start(self) -> subprocess.Popen[str]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self.close()
        # -P: the script's own folder holds a math.py, which must not hide Python's. A session of its own: Ctrl-C in the
        # terminal is for the run, which finishes its step and still needs verdicts.
        self._worker = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(_START_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,
        )
        self._ending = weakref.finalize(self, _end, self._worker)
        if _receive(self._worker) is None:
            raise UserError(f"the answer checker did not start: is math-verify installed for {sys.executable}?")
        return self._worker


def _at_a_glance(gold: str, given: str) -> Comparison | None:
    form = canonical(given)
    if canonical(gold) == form:
        return Comparison(equal=True, canonical=form)
    # A word is no product of its letters: math-verify would call "silent" and "listen" equal.
    if _WORD.fullmatch(canonical(gold)):
        return Comparison(equal=False, canonical=form)
    # Decimals may be rounded ("0.3333333" for 1/3): how far is math-verify's to say.
    exact = "." not in gold + given
    if exact and number(gold) is not None and number(given) is not None:
        return Comparison(equal=False, canonical=form)
    return None


def _as_latex(answer: str) -> str:
    """The answer as math-verify reads it: no units (to it a product of letters), "pi" and "sqrt(2)" as commands."""
    answer = re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi ", plain(answer))
    return re.sub(r"(?<![\\a-zA-Z])sqrt\(([^()]*)\)", r"\\sqrt{\1}", answer)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.start()
    return None


def _exchange(worker: subprocess.Popen[str], line: str) -> dict[str, object] | None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    return _receive(worker)


def _receive(worker: subprocess.Popen[str]) -> dict[str, object] | None:
    """The worker's next line; None when it has ended: the system's own timer kills it, so this read cannot hang."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    reply: dict[str, object] | None = json.loads(line) if line.endswith("\n") else None
    return reply


def _end(worker: subprocess.Popen[str]) -> None:
    if worker.poll() is None:
        worker.send_signal(signal.SIGKILL)
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                pipe.close()
