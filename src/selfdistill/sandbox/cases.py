"""Calls a candidate's function and compares its values with the expected ones, in a process of its own.

A candidate can return a value that takes hours to rebuild, hash, compare or write. All four happen here, under the
limits of the sandbox, and only counts and one short text leave. The candidate knows the arguments alone. The sandbox
runs the text of this file, so it imports only the standard library and files that are run in the same way.
"""

from __future__ import annotations

import math
from typing import Any

from selfdistill.sandbox.codec import Untransferable, decode
from selfdistill.sandbox.link import CandidateFailed, Link, Remote, bounded_repr

_ABSOLUTE, _RELATIVE = 1e-8, 1e-5


def near(got: float, expected: float, *, whole: bool) -> bool:
    """Whether two floats are equal up to 1e-8, and up to a relative 1e-5 unless the expected number is ``whole``."""
    if not math.isfinite(expected):
        return got == expected
    return abs(got - expected) <= _ABSOLUTE + (0.0 if whole else _RELATIVE * abs(expected))


def same_value(got: Any, expected: Any) -> bool:
    """Whether a value equals the expected one. Tuples count as lists, because JSON has no tuples.

    Floats may differ as in :func:`near`, also inside containers. A comparison that raises has failed, such as that of
    ``Decimal("sNaN")``.
    """
    try:
        return _alike(_as_json(got), expected)
    except (ArithmeticError, TypeError, ValueError, RecursionError):
        return False


def _alike(got: Any, expected: Any) -> bool:
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(_alike, got, expected))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_alike(got[key], expected[key]) for key in got)
    numbers = (type(got), type(expected))
    if float in numbers and set(numbers) <= {float, int} and got != expected:
        try:
            return near(float(got), float(expected), whole=isinstance(expected, int))
        except OverflowError:  # an integer beyond all floats
            return False
    return bool(got == expected)


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return value


def compare(channel: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Call the function at ``job["path"]`` with the arguments of each of ``job["cases"]``.

    Returns the number of cases that ``passed``. If one failed, the result also holds the index of the ``first`` that
    did, and one of three: its value (``got``), its exception (``raised``), or why it cannot be compared (``trouble``).
    """
    link = Link(channel)
    passed, first = 0, None
    for number, (arguments, expected) in enumerate(job["cases"]):
        failure: dict[str, Any]
        try:
            got = link.at(job["path"])(*decode(arguments, _none))
            if not isinstance(got, Remote) and same_value(got, decode(expected, _none)):
                passed += 1
                continue
            failure = {"got": bounded_repr(got)}
        except CandidateFailed as error:
            failure = {"raised": error.args[0]}
        except Untransferable as trouble:
            failure = {"trouble": str(trouble)}
        except Exception as error:  # the candidate's own, rebuilt as a built-in one, or a value that cannot be shown
            raised = getattr(error, "candidate", None)
            failure = {"raised": raised} if raised else {"trouble": f"{type(error).__name__}: {error}"[:200]}
        if first is None:
            first = {"first": number, **failure}
    return {"passed": passed, **(first or {})}


def _none(number: int, name: str) -> Any:
    raise Untransferable("a test holds an object of the candidate's")
