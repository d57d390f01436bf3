"""The process that compares answers by ``math-verify``: a JSON request a line on stdin, one or two replies on stdout.

It is run as a script, knows nothing of this package, and lives under two timers of the operating system, which end it
in the middle of any computation: one on processor time, and one on wall-clock time should it wait for something.
``math-verify``'s own timeout raises an exception inside the computation, which big-number arithmetic in C never sees.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from fractions import Fraction
from typing import Any

_MEMORY = 4 * 2**30
"""Bytes of address space: a tower of powers would otherwise take the machine's memory before its time is up."""


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds)


def _canonical(expressions: list[Any]) -> str:
    """One text for equal values: a number by 12 digits or as a fraction, an expression multiplied out."""
    first = expressions[0]
    if isinstance(first, str):
        return "".join(first.split()).lower()
    if getattr(first, "rel_op", None) == "==" and first.lhs.is_Symbol:
        first = first.rhs  # "x = 5" is the answer 5
    value = first.doit()
    if getattr(value, "is_Rational", False):
        return str(value)
    if getattr(value, "is_number", False):
        rounded = str(value.evalf(12))
        return str(Fraction(rounded)) if getattr(value, "is_Float", False) else rounded  # "2.5" is "5/2"
    return str(value.expand() if getattr(value, "is_commutative", None) else value)


def main() -> None:
    """Answer requests until stdin ends."""
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)  # the parent may have handed down "ignored"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    _arm(float(sys.argv[1]))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Replies go to the real stdout; whatever a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    from math_verify import parse, verify

    replies.write('{"ready": true}\n')
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in sys.stdin:
        request = json.loads(line)
        _arm(request["timeout"])
        gold = parse(rf"\boxed{{{request['gold']}}}", parsing_timeout=None)
        given = parse(rf"\boxed{{{request['given']}}}", parsing_timeout=None)
        equal = verify(gold, given, timeout_seconds=None)
        replies.write(json.dumps({"equal": equal}) + "\n")
        if not equal:
            form = _canonical(given) if given else request["given"]
            replies.write(json.dumps({"canonical": form}) + "\n")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
