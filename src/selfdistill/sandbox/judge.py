"""Runs test code of the data set in one sandbox, against a candidate in another.

Test code holds the expected values (``assert f(2) == 4``, ``check(candidate)``), so it runs in a process without model
code. Every call of the candidate goes through the channel. It returns a plain value of an exact type, or a reference to
an object of the candidate, which equals nothing but itself. Checks are rewritten so that each is counted and the first
failure can be described (``rewriting.py``). Tests that pytest or unittest would collect are run as they would run them
(``frameworks.py``). Tests that reach no check give no verdict, whatever they print.

Arguments are passed by value, so the candidate's changes to them stay in its process. A function that has to change its
argument in place therefore fails, and one that empties its argument to please ``f(xs) == sorted(xs)`` earns nothing.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selfdistill.sandbox.frameworks import Session, Skipped, count_unittest, pytest_module
from selfdistill.sandbox.link import (
    MAX_REPR,
    Absent,
    CandidateFailed,
    CandidateLost,
    CandidateModule,
    Link,
    Remote,
    as_raised,
    bounded_repr,
    doubt,
    kind_of,
)
from selfdistill.sandbox.rewriting import Rewriter

_LENT = {
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque", "namedtuple"),
    "copy": ("deepcopy",),
    "datetime": ("datetime", "timedelta"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "io": ("StringIO",),
    "math": ("isclose", "isnan", "isinf"),
    "typing": ("Any", "Dict", "List", "Optional", "Set", "Tuple", "Union"),
}
"""Names that tests use and forget to import. No task asks for a function of such a name."""
_PACKAGES = {"np", "numpy", "pd", "pandas", "scipy", "sympy", "torch"}
"""Packages that the sandbox does not have. A candidate cannot stand in for them."""


class Tally:
    """Counts the checks that tests reach, and describes the first that fails."""

    def __init__(self, link: Link, sources: list[str]) -> None:
        self._link = link
        self._sources = sources
        self.made = 0
        """Number of checks made, including those before the candidate was asked."""
        self.reached = 0
        self.passed = 0
        self.stopped = False
        self.entered: set[str] = set()
        self.failure: dict[str, Any] | None = None
        self._excused = False
        self._doubtful: list[tuple[str, frozenset[int]]] = []

    def count(self, test: str, holds: bool, error: BaseException | None = None) -> None:
        """Count a check. One that holds before the candidate was asked does not test it, and is not counted."""
        self.made += 1
        if holds and not self._link.consulted:
            return
        self.reached += 1
        self.passed += holds
        if not holds:
            self.fail(test, error)
        elif self._link.doubted:
            self._doubtful.append((test, frozenset(self._link.doubted)))
        self._link.doubted.clear()

    def settle(self) -> None:
        """Fail the checks that hold of any object, unless the tests use that object somewhere."""
        for test, numbers in self._doubtful:
            if not numbers <= self._link.used:
                self.passed -= 1
                self.fail(test)

    def case(self, number: int, left: Callable[[], Any], right: Callable[[], Any] | None = None) -> None:
        """Evaluate one assert."""
        sides: list[Any] = []
        try:
            sides.append(left())
            if right is None:
                holds = bool(sides[0])
            else:
                sides.append(right())
                holds = bool(sides[0] == sides[1])
        except (Exception, CandidateFailed) as error:  # the assert has failed, whatever was raised
            self.count(self._sources[number], False, error)
            return
        if not holds and right is not None and self.failure is None:
            self.fail(self._sources[number])
            self.failure |= {"got": bounded_repr(sides[0]), "expected": bounded_repr(sides[1])}  # type: ignore[operator]
        self.count(self._sources[number], holds)

    def plain(self, number: int, holds: object) -> None:
        """Count an assert that has been evaluated in its place."""
        self.case(number, lambda: holds)

    def guard(self, number: int, fails: object) -> bool:
        """Count the condition of an ``if`` that ends in a failure. If it is true, the failure is counted instead."""
        if not fails:
            self.count(f"not ({self._sources[number]})", True)
        return bool(fails)

    def called(self, number: int, function: Any, *arguments: Any, **named: Any) -> None:
        """Count a call of a library's assert function. A function of the candidate is no check."""
        if type(function) in (Remote, Absent):
            function(*arguments, **named)
        else:
            self.case(number, lambda: (function(*arguments, **named), True)[1])

    def failed(self, number: int) -> None:
        """Count an ``AssertionError`` that the tests are about to raise."""
        self.count(self._sources[number], False)

    def expected(self, number: int) -> None:
        """Count an expected exception. An ``AssertionError`` and the end of the candidate count as failures."""
        error = sys.exc_info()[1]
        holds = not isinstance(error, CandidateFailed | AssertionError)
        self.count(f"{self._sources[number]} raises an exception", holds, error)

    def swallowed(self) -> None:
        """Note an exception that a handler would swallow, and with it the checks that it prevented."""
        self.stop(sys.exc_info()[1])

    def take(self, error: BaseException, expected: Any) -> BaseException | None:
        """The exception if it is of the expected type, else None. Types of the candidate are compared by name."""
        for kind in expected if isinstance(expected, tuple) else (expected,):
            if type(kind) is Remote:
                name = object.__getattribute__(kind, "_remote")[2]
                holds = getattr(error, "candidate", {}).get("name") == name
            else:
                holds = isinstance(kind, type) and issubclass(kind_of(error), kind)
            if holds and not isinstance(error, CandidateLost):
                return as_raised(error)
        return None

    @contextmanager
    def test(self, name: str, *, must_check: bool) -> Iterator[None]:
        """Run a test. It fails if it ``must_check`` and reaches no check."""
        before, self._excused = self.made, False
        yield
        if must_check and not self._excused and self.made == before:
            self.reached += 1
            if self.failure is None:
                self.failure = {"kind": "unreached", "test": name}

    @contextmanager
    def part(self) -> Iterator[None]:
        """Run a part of test code. An exception stops this part alone."""
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):  # sys.exit() ends a script of tests
                self.stop(error)

    def excuse(self) -> None:
        """Note that the test asked not to be run."""
        self._excused = True

    def stop(self, error: BaseException | None) -> None:
        """Note that an exception has prevented checks. A failed check among them has been counted by itself."""
        if isinstance(error, Skipped):
            self.excuse()
            return
        self.stopped = True
        if not isinstance(error, AssertionError):
            self.made += 1
            self.reached += 1
        self.fail("", error)

    def fail(self, test: str, error: BaseException | None = None) -> None:
        """Describe the first failure, with the candidate's exception if it raised one."""
        if self.failure is not None:
            return
        raised = error.args[0] if isinstance(error, CandidateFailed) else getattr(error, "candidate", None)
        failure: dict[str, Any] = {
            "kind": "raised" if raised else "wrong",
            "test": test[:MAX_REPR],
            **self._link.latest,
        }
        if raised:
            failure |= {"raised": raised}
        elif error is not None:
            failure |= {"trouble": f"{type(error).__name__}: {error}"[:MAX_REPR]}
        self.failure = failure

    def doubt(self, value: Any) -> None:
        """Note that an object of the candidate is compared."""
        doubt(value)

    def repr_of(self, value: Any) -> str:
        """A representation of bounded length."""
        return bounded_repr(value)


def judge(channel: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job["setup"]`` and ``job["tests"]`` and return the tally.

    ``job["entry"]`` names the function that ``check(candidate)`` is called with, if the tests define ``check`` and do
    not call it. A name that neither the tests nor Python define is taken from Python's own modules if the tests forgot
    its import. Any other is looked up in the candidate's module, as are imports from modules that do not exist here.
    ``total`` is 0 if no check was reached.
    """
    random.seed(0)
    # Rewrite the checks into calls of the tally, and give the tests their names.
    link = Link(channel)
    rewriter = Rewriter()
    setup, tests = (rewriter.read(job[part]) for part in ("setup", "tests"))
    tally = Tally(link, rewriter.sources)
    entry = job["entry"]
    names: dict[str, Any] = {
        "__name__": "__main__",
        "__file__": "tests.py",
        "__builtins__": {**vars(builtins), "__import__": _importing(link, tally)},
        **{f"__{hook.__name__}__": hook for hook in (tally.case, tally.plain, tally.guard, tally.called)},
        **{f"__{hook.__name__}__": hook for hook in (tally.failed, tally.expected, tally.swallowed)},
        "__entered__": tally.entered.add,
        "__doubt__": doubt,
    }
    # Run the module of tests. Names that it does not define are looked up in the candidate.
    completed = False
    with tally.part():
        own = dict.fromkeys(("candidate", entry.rpartition(".")[2]), link.at(entry)) if entry else {}
        unknown = _unknown([setup, tests], {*names, *own})
        lent = _lent([setup, tests], unknown)
        if own or unknown - lent.keys():  # otherwise the candidate must define these names: nothing else is tested
            names |= lent
        names |= {name: link.get(name) for name in unknown - names.keys()}
        exec(compile(setup, "setup", "exec"), names)
        names |= own  # after the setup, which may define a stub of the function
        exec(compile(tests, "tests", "exec"), names)
        completed = True
    # Run what the module defines and does not call by itself.
    if completed or not tally.stopped:
        defined = [node.name for node in tests.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        if entry and "check" in defined and "check" not in tally.entered:
            with tally.test("check", must_check=True), tally.part():
                names["check"](names["candidate"])
        Session(tally, names, rewriter.checking).run(list(dict.fromkeys(defined)))
    # If the tests were stopped, every check that was not reached counts as failed.
    tally.settle()
    total = max(tally.reached, len(rewriter.sources), 1) if tally.stopped else tally.reached
    passed = tally.passed if tally.failure is None else min(tally.passed, total - 1)
    return {"passed": passed, "total": total, "failure": tally.failure}


def _importing(link: Link, tally: Tally) -> Callable[..., Any]:
    """``__import__`` for tests: a stand-in for pytest, a unittest that counts, the candidate for unknown modules."""
    ready: set[str] = set()

    def imported(name: str, space: Any = None, local: Any = None, members: Any = (), level: int = 0) -> Any:
        top = name.partition(".")[0]
        if top == "pytest":
            return sys.modules.setdefault("pytest", pytest_module(tally))
        if top == "unittest" and top not in ready:
            ready.add(top)
            count_unittest(tally)
        if level or top == "__main__" or importlib.util.find_spec(top) is None:
            return CandidateModule(link, name)
        module = __import__(name, space, local, members, level)
        complete = all(member == "*" or hasattr(module, member) for member in members or ())
        return module if complete else CandidateModule(link, name)

    return imported


def _unknown(trees: list[ast.Module], names: set[str]) -> set[str]:
    """Names that are read somewhere and bound nowhere."""
    read: set[str] = set()
    bound = {*names, *vars(builtins)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
    return {name for name in read - bound if not name.startswith("__")}


def _lent(trees: list[ast.Module], unknown: set[str]) -> dict[str, Any]:
    """Unknown names that Python's own modules define: the tests forgot the import, and no candidate defines them.

    A name means a module only if every use reads an attribute of it: ``math.isclose``, not ``bisect(xs, 3)``.
    """
    owners = {name: module for module, names in _LENT.items() for name in names}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lent: dict[str, Any] = {}
    for name in unknown:
        uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == name]
        reads = [node for node in nodes if isinstance(node, ast.Attribute) and node.value in uses]
        if name in _PACKAGES and len(reads) == len(uses):
            lent[name] = Absent(name)
            continue
        if name in sys.stdlib_module_names and len(reads) == len(uses):
            module = importlib.import_module(name)
            if all(hasattr(module, read.attr) for read in reads):
                lent[name] = module
                continue
        if name in owners:
            lent[name] = getattr(importlib.import_module(owners[name]), name)
    return lent
