"""Runs tests in the forms of pytest and unittest for the judge, and counts their checks.

``unittest`` is Python's own, with assert methods that count themselves. ``pytest`` is a stand-in for what tests of
exercises use (``PYTEST``), because the sandbox has no packages. Tests that use more are refused when their row is read.
"""

from __future__ import annotations

import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

PYTEST = {"raises", "approx", "param", "mark", "fixture", "fail", "skip", "main"}
"""The names of pytest that tests may use."""
UNTRACEABLE = {"assertWarns", "assertWarnsRegex", "assertLogs", "assertNoLogs", "expectedFailure"}
"""Parts of unittest that cannot be judged from another process, or that turn a failure into a success."""


class Skipped(BaseException):
    """The test asks not to be run."""


class Raises:
    """``pytest.raises`` and ``assertRaises``, as a context manager or with a call. Each is one check."""

    def __init__(self, tally: Any, expected: Any, pattern: Any = None) -> None:
        self._tally = tally
        self._expected = expected
        self._pattern = pattern
        self.value: Any = None
        self.exception: Any = None

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        name = f"{getattr(self._expected, '__name__', self._expected)} is raised"
        if error is None:
            self._tally.count(name, False)
            raise AssertionError(f"{name}: it was not")
        caught = self._tally.take(error, self._expected)
        if caught is None:
            return False
        self.value = self.exception = error = caught
        holds = self._pattern is None or re.search(self._pattern, str(error)) is not None
        self._tally.count(f"{name} with a message that matches {self._pattern!r}", holds)
        if not holds:
            raise AssertionError(f"{self._pattern!r} does not match {str(error)!r}")
        return True

    @property
    def type(self) -> type:
        """The type of the exception that was raised."""
        return type(self.value)

    def match(self, pattern: str) -> bool:
        """Whether the message matches the pattern. It is a check of its own."""
        matches = re.search(pattern, str(self.value)) is not None
        self._tally.count(f"the message matches {pattern!r}", matches)
        return matches


class Approx:
    """``pytest.approx`` of numbers, of lists and tuples, and of dicts of them."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expected: Any, rel: Any = None, abs: Any = None, nan_ok: bool = False) -> None:
        self._expected = expected
        self._bounds = (rel, abs, nan_ok)

    def __eq__(self, actual: Any) -> bool:
        expected, (rel, least, nan_ok) = self._expected, self._bounds
        if isinstance(expected, dict):
            same = isinstance(actual, dict) and actual.keys() == expected.keys()
            return same and all(Approx(value, *self._bounds) == actual[key] for key, value in expected.items())
        if isinstance(expected, list | tuple):
            same = isinstance(actual, list | tuple) and len(actual) == len(expected)
            pairs = zip(expected, actual)  # noqa: B905  # lengths are compared first
            return same and all(Approx(item, *self._bounds) == other for item, other in pairs)
        if not isinstance(expected, int | float | complex) or not isinstance(actual, int | float | complex):
            return bool(expected == actual)
        if expected != expected:
            return bool(nan_ok and actual != actual)
        if expected == actual:
            return True
        if abs(expected) == float("inf"):
            return False
        relative = (1e-6 if rel is None and least is None else rel or 0.0) * abs(expected)
        return bool(abs(actual - expected) <= max(relative, 1e-12 if least is None else least))

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"


def pytest_module(tally: Any) -> types.ModuleType:
    """The stand-in that ``import pytest`` gives to tests."""

    def raises(expected: Any, *call: Any, match: Any = None, **named: Any) -> Any:
        context = Raises(tally, expected, match)
        if not call:
            return context
        with context:
            call[0](*call[1:], **named)
        return context

    def fail(reason: str = "", pytrace: bool = True) -> None:
        tally.count(f"fail({reason!r})", False)
        raise AssertionError(reason)

    def skip(reason: str = "", **_: Any) -> None:
        raise Skipped(reason)

    def fixture(function: Any = None, **_: Any) -> Any:
        def mark(made: Any) -> Any:
            made._pytest_fixture = True
            return made

        return mark if function is None else mark(function)

    module: Any = types.ModuleType("pytest")
    module.raises, module.approx, module.fail, module.skip, module.fixture = raises, Approx, fail, skip, fixture
    module.param = lambda *values, **options: _Param(values, options.get("marks", ()))
    module.mark = _Marks()
    module.main = lambda *_, **__: 0
    return module  # type: ignore[no-any-return]


class _Param:
    def __init__(self, values: tuple[Any, ...], marks: Any) -> None:
        self.values = values
        self.skipped = _skip(marks)


class _Marks:
    """``pytest.mark``: a mark is a decorator, with arguments or without.

    ``xfail`` skips the test. pytest runs it, and its result does not count there either. With ``strict`` pytest demands
    the failure. It is not demanded here, because a known fault should not be rewarded. Other marks have no effect.
    """

    def __getattr__(self, name: str) -> Any:
        if name == "parametrize":
            return self._parametrize
        return _Mark(skips=name in ("skip", "xfail"), decides=name in ("skipif", "xfail"))

    @staticmethod
    def _parametrize(names: Any, values: Any, **_: Any) -> Callable[[Any], Any]:
        listed = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
        cases = []
        for case in values:
            if isinstance(case, _Param) and case.skipped:
                continue
            held = case.values if isinstance(case, _Param) else case if len(listed) > 1 else (case,)
            cases.append(dict(zip(listed, held, strict=True)))

        def mark(made: Any) -> Any:
            made._pytest_cases = [cases, *vars(made).get("_pytest_cases", [])]
            return made

        return mark


class _Mark:
    def __init__(self, *, skips: bool, decides: bool) -> None:
        self.skips = skips
        self._decides = decides

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if arguments and callable(arguments[0]):
            # unittest reads this attribute too, and its own ``skip`` sets it.
            arguments[0].__unittest_skip__ = self.skips or vars(arguments[0]).get("__unittest_skip__", False)
            return arguments[0]
        conditions = [*arguments, *([named["condition"]] if "condition" in named else [])]
        return _Mark(skips=any(conditions), decides=False) if self._decides and conditions else self


def _skip(marks: Any) -> bool:
    """Whether one of the marks skips its test."""
    return any(getattr(mark, "skips", False) for mark in (marks if isinstance(marks, list | tuple) else [marks]))


def count_unittest(tally: Any) -> None:
    """Make every assert method of unittest count as one check, even if it calls others. ``main`` then does nothing."""
    import unittest

    inside = [0]

    def counted(name: str, original: Any) -> Any:
        def method(self: Any, *arguments: Any, **named: Any) -> Any:
            inside[0] += 1
            holds = False
            for argument in arguments:
                tally.doubt(argument)
            try:
                result = original(self, *arguments, **named)
                holds = True
                return result
            finally:
                inside[0] -= 1
                error = sys.exc_info()[1]
                if not inside[0] and (holds or isinstance(error, AssertionError)):
                    listed = ", ".join(tally.repr_of(argument) for argument in arguments)
                    tally.count(f"self.{name}({listed})", holds)

        return method

    def raising(self: Any, expected: Any, *call: Any, **named: Any) -> Any:
        named.pop("msg", None)
        return _raised(Raises(tally, expected), call, named)

    def raising_with(self: Any, expected: Any, pattern: Any, *call: Any, **named: Any) -> Any:
        named.pop("msg", None)
        return _raised(Raises(tally, expected, pattern), call, named)

    case: Any = unittest.TestCase
    for name in [*dir(case)]:
        if re.match(r"assert[A-Z]\w*$|fail$", name) and name not in UNTRACEABLE:
            setattr(case, name, counted(name, getattr(case, name)))
    case.assertRaises, case.assertRaisesRegex = raising, raising_with
    done = types.SimpleNamespace(result=unittest.TestResult())
    module: Any = unittest
    module.main = lambda *_, **__: done
    module.TextTestRunner.run = lambda *_: done.result


def _raised(context: Raises, call: tuple[Any, ...], named: dict[str, Any]) -> Raises | None:
    if not call:
        return context
    with context:
        call[0](*call[1:], **named)
    return None


class Session:
    """Runs the functions, classes and cases of unittest that pytest would collect from a module of tests."""

    def __init__(self, tally: Any, names: dict[str, Any], checking: set[str]) -> None:
        self._tally = tally
        self._names = names
        self._checking = checking

    def run(self, defined: list[str]) -> None:
        """Run every test among the names that the module defines, except functions that it has called by itself."""
        # Importing unittest takes longer than most tests. Tests that have cases have imported it.
        case = getattr(sys.modules.get("unittest"), "TestCase", ())
        for name in defined:
            member = self._names.get(name)
            if any(_skip(marks) for marks in (self._names.get("pytestmark"), getattr(member, "pytestmark", None))):
                continue
            if isinstance(member, types.FunctionType):
                called = name in self._tally.entered or hasattr(member, "_pytest_fixture")
                if name.startswith("test") and not called:
                    self._function(name, member, [])
            elif isinstance(member, type) and issubclass(member, case):
                self._cases(member)
            elif isinstance(member, type) and name.startswith("Test") and "__init__" not in vars(member):
                self._methods(member)

    def _function(self, name: str, function: Any, marked: list[Any], around: Any = None) -> None:
        """Run a function with each set of its arguments. At least one of these runs has to reach one of its checks."""
        if any(vars(holder).get("__unittest_skip__") for holder in (*marked, function)):
            return
        tables = [table for holder in (*marked, function) for table in vars(holder).get("_pytest_cases", [])]
        with self._tally.test(name, must_check=name in self._checking):
            cases = list(itertools.product(*tables))
            if not cases:
                self._tally.excuse()
            for chosen in cases:
                arguments = {key: value for row in chosen for key, value in row.items()}
                with self._tally.part(), ExitStack() as stack:
                    test = stack.enter_context(around()) if around else function
                    test(**self._filled(test, arguments, stack))

    def _filled(self, function: Any, arguments: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
        """The arguments that a function asks for: from its table, from fixtures, or the candidate."""
        import inspect  # imported late: most tests take no arguments, and it takes a tenth of the judge's time

        filled = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in arguments:
                filled[name] = arguments[name]
            elif parameter.default is inspect.Parameter.empty:
                given = self._names[name]
                filled[name] = self._made(given, arguments, stack) if hasattr(given, "_pytest_fixture") else given
        return filled

    def _made(self, fixture: Any, arguments: dict[str, Any], stack: ExitStack) -> Any:
        made = fixture(**self._filled(fixture, arguments, stack))
        return stack.enter_context(contextmanager(lambda: made)()) if isinstance(made, types.GeneratorType) else made

    def _methods(self, owner: type) -> None:
        marked = [base for base in reversed(owner.__mro__) if base is not object]
        with self._tally.part():
            getattr(owner, "setup_class", lambda: None)()
        for name in dict.fromkeys(name for base in marked for name in vars(base) if name.startswith("test")):
            function = getattr(owner, name)
            if not isinstance(function, types.FunctionType):
                continue

            @contextmanager
            def around(name: str = name) -> Iterator[Any]:
                instance = owner()
                _call_with(getattr(instance, "setup_method", None), getattr(instance, name))
                yield getattr(instance, name)
                _call_with(getattr(instance, "teardown_method", None), getattr(instance, name))

            self._function(self._qualified_name(owner, name), function, marked, around)

    def _qualified_name(self, owner: type, name: str) -> str:
        """The method's name, prefixed with that of the class that defines it."""
        return next(f"{base.__name__}.{name}" for base in owner.__mro__ if name in vars(base))

    def _cases(self, owner: Any) -> None:
        import unittest

        tally, session = self._tally, self

        result: Any = unittest.TestResult()
        running = ExitStack()

        def start(test: Any) -> None:
            name = session._qualified_name(type(test), test._testMethodName)
            running.enter_context(tally.test(name, must_check=name in session._checking))

        def error(test: Any, raised: Any) -> None:
            tally.stop(raised[1])

        result.startTest, result.stopTest = start, lambda test: running.close()
        result.addError = result.addFailure = error
        result.addSubTest = lambda test, part, raised: raised and tally.stop(raised[1])
        result.addSkip = lambda test, reason: tally.excuse()
        with self._tally.part():
            unittest.defaultTestLoader.loadTestsFromTestCase(owner)(result)


def _call_with(method: Any, test: Any) -> None:
    import inspect

    if method is not None:
        method(*([test] if inspect.signature(method).parameters else []))
