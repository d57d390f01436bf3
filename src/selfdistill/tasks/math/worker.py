"""The process that compares answers with ``math-verify``: one JSON request per line on stdin, replies on stdout.

It runs as a script and imports nothing of this package. Two timers of the operating system can kill it in the middle of
any computation: one on processor time, and one on wall-clock time in case it waits. An unexpected exception ends it
too. In both cases the check counts as given up. ``math-verify``'s own timeout does not suffice: it raises an exception,
which cannot interrupt big-number arithmetic in C.
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
"""Limit of the address space in bytes; without it a tower of powers exhausts the memory before the timeout."""


def _arm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds)


def _canonical(expressions: list[Any]) -> str:
    """One text for equal values: a number to 12 digits or as a fraction, an expression multiplied out."""
    first = expressions[0]
    if isinstance(first, str):
        return "".join(first.split()).lower()
    value = _right_side(first).doit()
    if getattr(value, "is_Rational", False):
        return str(value)
    if getattr(value, "is_number", False):
        rounded = str(value.evalf(12))
        return str(Fraction(rounded)) if getattr(value, "is_Float", False) else rounded  # "2.5" is "5/2"
    return str(value.expand() if getattr(value, "is_commutative", None) else value)


def _right_side(expression: Any) -> Any:
    """The right side of an equation that defines a symbol or a function ("x = 5" gives 5), else the expression."""
    if getattr(expression, "rel_op", None) == "==" and (expression.lhs.is_Symbol or expression.lhs.is_Function):
        return expression.rhs
    return expression


def _closed(expression: Any) -> Any:
    """The evaluated value of an expression without symbols; None for anything else."""
    if not getattr(expression, "is_number", False) or getattr(expression, "is_Matrix", False):
        return None
    value = expression.doit()
    return value if value.is_number and value.is_comparable is not None and value.is_finite is not False else None


def _digits(value: Any) -> str | None:
    """A real number to 40 digits."""
    if value is None or not value.is_extended_real:
        return None
    return str(value.evalf(40))


def _same_value(gold: Any, given: Any) -> bool:
    """Whether two numbers are equal to a relative tolerance; math-verify's is absolute, 1e-15.

    Exact numbers are evaluated to 60 digits and compared to 50. Decimals are parsed with 15 digits and compared to 12.
    """
    if gold.is_Rational and given.is_Rational:
        return bool(gold == given)
    import sympy

    decimal = gold.atoms(sympy.Float) or given.atoms(sympy.Float)
    difference, size = abs((gold - given).evalf(60)), abs(gold.evalf(60))
    return bool(difference <= size * 10 ** (-12 if decimal else -50) or difference == 0)


def _spots(gold: Any, given: Any) -> tuple[bool, bool]:
    """(whether two expressions differ at a positive point, whether they agree at every point that can be computed).

    The values correct math-verify, which takes x/3^{40} + 1e-20 y for x/3^{40} and whose simplification misses
    identities.
    """
    import sympy

    symbols = (
        sorted(gold.free_symbols | given.free_symbols, key=str)
        if isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr)
        else []
    )
    if not symbols or len(symbols) > 8:
        return False, False
    signs = ((1, 1), (1, 1), (-1, 1), (1, -1))
    differs, agrees, real = False, 0, True
    for point, pair in enumerate(signs):
        at = {
            symbol: sympy.Rational(pair[i % 2] * (1009 + 271 * i + 613 * point), 997)
            for i, symbol in enumerate(symbols)
        }
        try:
            left, right = (side.doit().subs(at).evalf(30) for side in (gold, given))
            difference, size = abs(left - right), abs(left) + abs(right)
            if not (difference.is_Float or difference.is_Rational) or not difference.is_finite:
                continue
            near, far = bool(difference <= size * 10**-20), bool(difference > size * 10**-9)
            if point > 1 and real and not (near or left.is_extended_real or right.is_extended_real):
                continue  # outside the domain of both: 1/\sqrt{n} and \sqrt{1/n} differ at negative n
            real = real and (point > 1 or bool(left.is_extended_real and right.is_extended_real))
        # Valid expressions that have no number at this point: sympy cannot order f(x) + 1 and f(x) (TypeError), finds
        # that a sum diverges (ValueError), or recurses endlessly in a limit of f (RecursionError).
        except (TypeError, ValueError, RecursionError):
            continue
        agrees += near
        if not near and (far or point > 1):
            return differs or (far and point < 2), False
    return differs, agrees >= 3


def _proportional(gold: Any, given: Any) -> bool:
    """Whether two equations are the same up to a factor: 2x^3 - 2 = 0 and x^3 = 1."""
    if not all(getattr(side, "rel_op", None) == "==" for side in (gold, given)):
        return False
    import sympy

    left, right = (side.lhs - side.rhs for side in (gold, given))
    if left.free_symbols != right.free_symbols or not left.is_polynomial() or not right.is_polynomial():
        return False
    point = {symbol: sympy.Rational(101 + 7 * i, 97) for i, symbol in enumerate(sorted(left.free_symbols, key=str))}
    values = left.subs(point), right.subs(point)
    if not all(value.is_Rational and value != 0 for value in values):
        return False
    return _spots(left, right * values[0] / values[1])[1]


def _verdict(gold: list[Any], given: list[Any], percent: bool) -> dict[str, Any]:
    """math-verify's verdict on a pair, corrected by the numerical values if both sides have them."""
    from math_verify import verify

    gold_side, given_side = (
        _imaginary(side[0]) if side and not isinstance(side[0], str) else None for side in (gold, given)
    )
    values: list[str | None] = [None, None]
    if gold_side is None or given_side is None:
        return {"equal": bool(verify(gold, given, timeout_seconds=None)), "values": values}
    sides = _conditions(gold_side), _conditions(given_side)
    if _right_side(gold_side) is not gold_side:
        same_name = getattr(given_side, "lhs", None) == gold_side.lhs
        gold_side, given_side = _right_side(gold_side), _right_side(given_side) if same_name else given_side
    elif getattr(gold_side, "rel_op", None) != "==":
        # The row's answer is no equation, so the answer of a given equation is its right side: "m + n = 204" is 204.
        if getattr(given_side, "rel_op", None) == "==":
            reversed_ = given_side.lhs.is_number and given_side.rhs.is_Symbol  # "5 = x"
            given_side = given_side.lhs if reversed_ else given_side.rhs
    elif gold_side.rhs == 0 and getattr(given_side, "rel_op", None) != "==":
        return {"equal": False, "values": values}  # "x + y = 0" is an equation, not the answer 0
    left, right = _closed(gold_side), _closed(given_side)
    values = [_digits(left), _digits(right)]
    if left is not None and right is not None:
        return {
            "equal": _same_value(left, right) or (percent and bool(verify(gold, given, timeout_seconds=None))),
            "values": values,
        }
    equal = bool(verify(gold, given, timeout_seconds=None, allow_set_relation_comp=True))
    differ, agree = _spots(gold_side, given_side)
    agree = agree or _proportional(gold_side, given_side)
    equal = (equal and not differ) or agree or (sides[0] is not None and sides[0] == sides[1])
    return {"equal": equal, "values": values}


def _imaginary(expression: Any) -> Any:
    """The expression with i as the imaginary unit if i is its only symbol. The parser reads some i as a variable."""
    import sympy

    free: set[Any] = getattr(expression, "free_symbols", set())
    if [str(symbol) for symbol in free] != ["i"]:
        return expression
    return expression.subs(dict.fromkeys(free, sympy.I))


def _conditions(expression: Any) -> Any:
    """The set of an interval, a union or an inequality in one variable; None for anything else."""
    if getattr(expression, "is_Interval", False) or getattr(expression, "is_Union", False):
        return expression
    import sympy

    operators = {"<", "<=", ">", ">="}
    parts = expression.args if type(expression).__name__ == "And" else (expression,)
    if len(getattr(expression, "free_symbols", ())) != 1 or not all(
        getattr(part, "rel_op", None) in operators for part in parts
    ):
        return None
    try:
        return sympy.And(*parts).as_set()
    # sympy cannot solve inequalities such as sin x > 0.
    except NotImplementedError:
        return None


def main() -> None:
    """Answer requests until stdin ends."""
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)  # the parent may have set these to "ignore"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF, signal.SIGALRM})
    _arm(float(sys.argv[1]))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Replies go to the real stdout; whatever a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    replies.write('{"ready": true}\n')
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    # Units are removed before this process is asked; math-verify would take the t of "v_0 t" for a unit.
    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    reading = [LatexExtractionConfig(normalization_config=rules), ExprExtractionConfig()]
    for line in sys.stdin:
        request = json.loads(line)
        _arm(request["timeout"])
        gold, given = (
            parse(rf"\boxed{{{request[side]}}}", reading, parsing_timeout=None) for side in ("gold", "given")
        )
        verdict = _verdict(gold, given, "%" in request["gold"] + request["given"])
        replies.write(json.dumps(verdict) + "\n")
        if not verdict["equal"]:
            form = _canonical(given) if given else request["given"]
            replies.write(json.dumps({"canonical": form}) + "\n")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
