"""Whether two answers are equal, with limits on what algebra may cost.

The structure of answers is compared in this process (``equality.py``). Symbolic algebra runs in ``math-verify`` in one
worker process (``worker.py``), which is killed and restarted when a check takes too long. Algebra may never terminate,
and a thread cannot be stopped.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock

from selfdistill.errors import UserError
from selfdistill.tasks.math.equality import Reply, equal
from selfdistill.tasks.math.forms import canonical, number
from selfdistill.tasks.math.typography import bare, tidy
from selfdistill.tasks.math.units import split_unit
from selfdistill.tasks.worker_process import WorkerProcess

_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0
_REMEMBERED = 65_536

_GREEK = "Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega"
_SYMBOLS = re.compile(
    rf"(?P<greek>\\(?:{_GREEK}|{_GREEK.lower()}|kappa|rho|tau|chi|eta|nu)(?![a-zA-Z]))"
    r"|\\(?:text|math[a-z]+|operatorname|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|[a-zA-Z]{4,}|(?P<product>[a-zA-Z]{1,3})"
)
_SPARE = tuple(f"\\{name}" for name in "kappa rho tau chi eta nu".split())
"""Greek letters that are rare in answers and have no capital command in LaTeX."""


class GivenUp(Exception):
    """A check ran out of time or memory."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a check: ``equal``, the ``canonical`` given answer, and whether the check was given up."""

    equal: bool
    canonical: str
    unchecked: bool = False


class AnswerChecker:
    """Decides whether answers are equal. Calls ``math-verify`` only if simple rules do not decide.

    ``timeout`` is in processor seconds per check, so that a busy machine does not turn right answers into wrong ones.
    The limit in wall-clock time is three times as high. The worker starts with the first check that needs it, ignores
    Ctrl-C, and ends with this object or this process. Results are cached.
    """

    def __init__(self, *, timeout: float) -> None:
        if timeout <= 0:
            raise UserError(f"the timeout of an answer check must be above 0 seconds, got {timeout}")
        self.timeout = timeout
        self._results: OrderedDict[tuple[str, str], tuple[Reply, str] | None] = OrderedDict()
        self._lock = Lock()
        self._worker = WorkerProcess(_WORKER, [str(_START_SECONDS)])

    def compare(self, gold: str, given: str) -> Comparison:
        """Whether ``given`` equals ``gold``; a check that ran out of time or memory is unequal and ``unchecked``."""
        forms: dict[str, str] = {}

        def ask(gold_side: str, given_side: str) -> Reply:
            reply, form = self._remembered(gold_side, given_side)
            forms[given_side] = form
            return reply

        try:
            same = equal(gold, given, ask)
        except GivenUp:
            return Comparison(equal=False, canonical=canonical(given), unchecked=True)
        if same:
            return Comparison(equal=True, canonical=canonical(gold))
        form = forms.get(split_unit(tidy(given))[0])
        usable = len(forms) == 1 and form is not None and number(given) is None
        return Comparison(equal=False, canonical=form if usable and form is not None else canonical(given))

    def _remembered(self, gold: str, given: str) -> tuple[Reply, str]:
        """The cached or new reply and canonical form; raises ``GivenUp`` if the check was given up."""
        key = (gold, given)
        with self._lock:
            if key not in self._results:
                self._results[key] = self._ask(gold, given)
            self._results.move_to_end(key)
            if len(self._results) > _REMEMBERED:
                self._results.popitem(last=False)
            result = self._results[key]
        if result is None:
            raise GivenUp
        return result

    def close(self) -> None:
        """Stop the worker. The next check starts a new one."""
        self._worker.close()

    def _ask(self, gold: str, given: str) -> tuple[Reply, str] | None:
        """The worker's reply and the canonical form of the given answer. None if the check was given up."""
        if not self._worker.running and self._worker.start() is None:
            raise UserError(f"the answer checker did not start: is math-verify installed for {sys.executable}?")
        sides = _with_capitals_apart(_as_latex(gold), _as_latex(given))
        request = {"gold": sides[0], "given": sides[1], "timeout": self.timeout}
        verdict = self._worker.ask(request)
        if verdict is None:
            self.close()
            return None
        values = [None if value is None else Fraction(value) for value in verdict["values"]]
        reply = Reply(bool(verdict["equal"]), *values)
        if reply.equal:
            return reply, canonical(gold)
        # The canonical form is a second reply: a verdict still counts if the worker fails to compute the form.
        form = self._worker.receive()
        if form is None:
            self.close()
        return reply, canonical(given) if form is None else str(form["canonical"])


def _as_latex(answer: str) -> str:
    """The answer in math-verify's syntax: 4.5e33 as a product, a space between a number and a following i."""
    answer = re.sub(r"(?<=[0-9.])[eE]([-+]?[0-9]{1,4})(?![0-9])", r" \\times 10^{\1}", bare(answer))
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", answer):  # to math-verify 30° is 30 radians
        answer = re.sub(r"([0-9.]+)\s*\^\s*\\circ", r"\\frac{\1\\pi}{180}", answer)
    return re.sub(r"(?<=[0-9}])i(?![a-zA-Z])", " i", answer)


def _with_capitals_apart(gold: str, given: str) -> tuple[str, str]:
    r"""Rename capitals on both sides where only the case distinguishes two symbols: ``R - r``, ``\Delta - \delta``.

    math-verify reads every symbol in lower case, so R - r would be 0 and equal r - R. A capital becomes an unused Greek
    letter if one side has the Latin letter in both cases, or if the two sides together have the Greek one in both.
    """
    side_symbols = [{symbol for run in _SYMBOLS.finditer(side) for symbol in _symbols(run)} for side in (gold, given)]
    all_symbols = side_symbols[0] | side_symbols[1]
    capitals = [
        symbol
        for symbol in sorted(all_symbols)
        if symbol != symbol.lower()
        and any(
            {symbol, symbol.lower()} <= side for side in ([all_symbols] if symbol.startswith("\\") else side_symbols)
        )
    ]
    unused = [greek for greek in _SPARE if greek not in all_symbols]
    if not capitals or len(capitals) > len(unused):
        return gold, given
    replacement = dict(zip(capitals, unused, strict=False))

    def renamed(run: re.Match[str]) -> str:
        return (
            "".join(f"{replacement[symbol]} " if symbol in replacement else symbol for symbol in _symbols(run))
            or run.group()
        )

    return _SYMBOLS.sub(renamed, gold), _SYMBOLS.sub(renamed, given)


def _symbols(run: re.Match[str]) -> list[str]:
    """The symbols of a match: a Greek command, the letters of a product of at most three, or none."""
    return [run["greek"]] if run["greek"] else list(run["product"] or "")
