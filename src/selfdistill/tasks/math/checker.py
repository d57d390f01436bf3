"""Whether two answers are equal.

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
from pathlib import Path
from threading import Lock

from selfdistill.errors import UserError
from selfdistill.tasks.math.forms import WORD, canonical, number, plain

_WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0
_REMEMBERED = 65_536


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a check found: ``equal``, the given answer's ``canonical`` form, and whether the check was given up."""

    equal: bool
    canonical: str
    unchecked: bool = False


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
    if WORD.fullmatch(canonical(gold)):
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
