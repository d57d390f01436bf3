"""Runs test code of the data set in a sandbox of its own, in front of a candidate that lives in another.

Expected values stand in test code (``assert f(2) == 4``, ``check(candidate)``), so the tests run where no line of the
model's code does: every call of the candidate goes through the channel, and comes back as a plain value of an exact
type or as a reference to an object over there, which equals nothing but itself. Checks are rewritten so that each is
counted and the first failing one can be described (``rewriting.py``); what pytest and unittest would collect is run as
they would run it (``frameworks.py``). Tests that reach no check have said nothing, whatever they printed.

Arguments are handed over by value: what the candidate does to them stays over there. A function that is to change its
argument in place therefore fails, and one that empties its argument to please ``f(xs) == sorted(xs)`` earns nothing.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selfdistill.sandbox.codec import Encoder, Untransferable, decode
from selfdistill.sandbox.frameworks import Session, Skipped, count_unittest, pytest_module
from selfdistill.sandbox.rewriting import Rewriter

_SHOWN = 4000
"""Most characters of one representation that leave this process; the task cuts further."""


_NEVER_REBUILT = (StopIteration, StopAsyncIteration, SyntaxError, UnicodeError, AssertionError)
"""Exceptions that mean something else here, or are not made of a message alone."""


class CandidateFailed(BaseException):
    """The candidate raised something that is no ordinary exception, or ended, or lacks a name; no test's ``except
    Exception`` takes it for the exception that it waits for. Its description is ``args[0]``.
    """


class Remote:
    """An object of the candidate's. It can be called and its attributes used; it has no value here."""

    def __init__(self, link: Link, number: int, name: str) -> None:
        object.__setattr__(self, "_remote", (link, number, name))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        link, number, name = object.__getattribute__(self, "_remote")
        return link.call(self, number, name, arguments, named)

    def __getattr__(self, name: str) -> Any:
        link = object.__getattribute__(self, "_remote")[0]
        return link.ask("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_remote")[0].ask("set", self, name, value)

    def __bool__(self) -> bool:
        raise TypeError("an object of the candidate's has no truth value in a test")

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_remote')[2]} object>"


class Absent:
    """A name that the candidate does not define."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def _missing(self, *_: Any, **__: Any) -> Any:
        message = f"name {object.__getattribute__(self, '_name')!r} is not defined"
        raise CandidateFailed({"type": "NameError", "name": "NameError", "message": message, "line": None})

    __call__ = __getattr__ = __setattr__ = __eq__ = __bool__ = __iter__ = __len__ = __getitem__ = _missing
    __hash__ = None  # type: ignore[assignment]


class CandidateModule(types.ModuleType):
    """What a test imports from a module that does not exist here: ``from solution import double``."""

    def __init__(self, link: Link, name: str) -> None:
        super().__init__(name)
        self.__dict__["__all__"] = []  # names that a star would import are looked up anyway
        self.__dict__["_link"] = link

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.__name__.split(".")[1:]:  # import package.solution
            return self
        return self.__dict__["_link"].get(name)


class Link:
    """Asks the candidate's process, and remembers the latest call for the description of a failure."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.latest: dict[str, str] = {}
        self.consulted = False
        """Whether the tests have had anything of the candidate's yet but a reference to it."""

    def get(self, name: str) -> Any:
        """A name of the candidate's module."""
        try:
            found = self.ask("get", name)
        except KeyError:
            return Absent(name)
        self.consulted |= type(found) is not Remote
        return found

    def at(self, path: str) -> Any:
        """What stands at ``"solve"``, or at ``"Solution.solve"`` of an object that is made for it."""
        first, *others = path.split(".")
        found = self.get(first)
        for name in others:
            found = getattr(found(), name)
        self.consulted = False
        return found

    def call(self, target: Remote, number: int, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a remote object."""
        listed = [shown(one) for one in arguments] + [f"{key}={shown(value)}" for key, value in named.items()]
        self.latest = {"input": f"{name}({', '.join(listed)})"[:_SHOWN]}
        value = self.ask("call", target, list(arguments), named)
        self.latest["got"] = shown(value)
        return value

    def ask(self, what: str, *arguments: Any) -> Any:
        """One request and its answer, an exception of the candidate's raised here as the built-in one it is."""
        self.consulted |= what != "get"
        self._channel.send({"ask": {"do": what, "with": [_Outgoing().encode(one) for one in arguments]}})
        answer = self._channel.receive()
        if answer is None:
            raise CandidateFailed({"type": "EOFError", "message": "the channel closed"})
        if "raised" in answer:
            raise _rebuilt(answer["raised"])
        return decode(answer.get("value"), lambda number, name: Remote(self, number, name))


class _Outgoing(Encoder):
    """Arguments of a call: plain values, and objects of the candidate's by their numbers."""

    def __init__(self) -> None:
        super().__init__(_refuse)

    def encode(self, value: Any, depth: int = 0) -> Any:
        if type(value) is Remote:
            _, number, name = object.__getattribute__(value, "_remote")
            return ["h", number, name]
        return super().encode(value, depth)


def shown(value: Any) -> str:
    """A representation of bounded length."""
    try:
        return repr(value)[:_SHOWN]
    except ValueError:  # an integer of more digits than Python writes
        return f"<a {type(value).__name__} too large to show>"


def _refuse(value: Any) -> int:
    raise Untransferable(f"a test passes an object of type {type(value).__name__}, which cannot reach the candidate")


def _rebuilt(found: Any) -> BaseException:
    """The candidate's exception, where a test may expect one: built-in exceptions alone, never ``SystemExit``."""
    kind: Any = getattr(builtins, str(found.get("type")), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NEVER_REBUILT):
        error: Exception = kind(str(found.get("message", "")))
        error.candidate = found  # type: ignore[attr-defined]
        return error
    return CandidateFailed(found)


class Tally:
    """Counts the checks that were reached, and describes the first that failed."""

    def __init__(self, link: Link, sources: list[str]) -> None:
        self._link = link
        self._sources = sources
        self.made = 0
        """Checks that were made, those before the candidate was asked included."""
        self.reached = 0
        self.passed = 0
        self.stopped = False
        self.entered: set[str] = set()
        self.failure: dict[str, Any] | None = None
        self._excused = False

    def count(self, test: str, holds: bool, error: BaseException | None = None) -> None:
        """Count one check. What holds before the candidate was ever asked says nothing of it, and is not counted."""
        self.made += 1
        if holds and not self._link.consulted:
            return
        self.reached += 1
        self.passed += holds
        if not holds:
            self.fail(test, error)

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
        except (Exception, CandidateFailed) as error:  # whatever was raised, this assert has failed
            self.count(self._sources[number], False, error)
            return
        if not holds and right is not None and self.failure is None:
            self.fail(self._sources[number])
            self.failure |= {"got": shown(sides[0]), "expected": shown(sides[1])}  # type: ignore[operator]
        self.count(self._sources[number], holds)

    def plain(self, number: int, holds: object) -> None:
        """Count an assert that was evaluated in its place."""
        self.case(number, lambda: holds)

    def guard(self, number: int, fails: object) -> bool:
        """Count the condition of an ``if`` that ends in a failure; where it holds, what it leads to is counted."""
        if not fails:
            self.count(f"not ({self._sources[number]})", True)
        return bool(fails)

    def called(self, number: int, function: Any, *arguments: Any, **named: Any) -> None:
        """Count a library's assert function; one of the candidate's is no check."""
        if type(function) in (Remote, Absent):
            function(*arguments, **named)
        else:
            self.case(number, lambda: (function(*arguments, **named), True)[1])

    def failed(self, number: int) -> None:
        """Count an ``AssertionError`` that the tests are about to raise."""
        self.count(self._sources[number], False)

    def expected(self, number: int) -> None:
        """Count an exception that a handler waited for: not the tests' own, nor that of a candidate that is gone."""
        error = sys.exc_info()[1]
        holds = not isinstance(error, CandidateFailed | AssertionError)
        self.count(f"{self._sources[number]} raises an exception", holds, error)

    def swallowed(self) -> None:
        """Note an exception that would have kept checks from being made without a word."""
        self.stop(sys.exc_info()[1])

    def is_expected(self, error: BaseException, expected: Any) -> bool:
        """Whether an exception is of a kind; one that the candidate defines is known by its name."""
        for one in expected if isinstance(expected, tuple) else (expected,):
            if type(one) is Remote:
                name = object.__getattribute__(one, "_remote")[2]
                if getattr(error, "candidate", {}).get("name") == name:
                    return True
            elif isinstance(one, type) and isinstance(error, one) and not isinstance(error, CandidateFailed):
                return True
        return False

    @contextmanager
    def test(self, name: str, *, must_check: bool) -> Iterator[None]:
        """One test. Where checks stand in it and none was reached, it has not held."""
        before, self._excused = self.made, False
        yield
        if must_check and not self._excused and self.made == before:
            self.reached += 1
            if self.failure is None:
                self.failure = {"kind": "unreached", "test": name}

    @contextmanager
    def part(self) -> Iterator[None]:
        """A stretch of test code that may be stopped by an exception; what stands behind it goes on."""
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):  # sys.exit() ends a script of tests
                self.stop(error)

    def excuse(self) -> None:
        """Note that the test asked not to be run."""
        self._excused = True

    def stop(self, error: BaseException | None) -> None:
        """Note that an exception has kept checks from being made; a failed check has been counted by itself."""
        if isinstance(error, Skipped):
            self.excuse()
            return
        self.stopped = True
        if not isinstance(error, AssertionError):
            self.made += 1
            self.reached += 1
        self.fail("", error)

    def fail(self, test: str, error: BaseException | None = None) -> None:
        """Describe the first failure, as the candidate's exception where it came from there."""
        if self.failure is not None:
            return
        raised = error.args[0] if isinstance(error, CandidateFailed) else getattr(error, "candidate", None)
        found: dict[str, Any] = {"kind": "raised" if raised else "wrong", "test": test[:_SHOWN], **self._link.latest}
        if raised:
            found |= {"raised": raised}
        elif error is not None:
            found |= {"trouble": f"{type(error).__name__}: {error}"[:_SHOWN]}
        self.failure = found

    def shown(self, value: Any) -> str:
        """A representation of bounded length."""
        return shown(value)


def judge(channel: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job["setup"]`` and ``job["tests"]`` and return the tally.

    ``job["entry"]`` names the function that ``check(candidate)`` is called with, if the tests define ``check`` and do
    not call it. Names that neither tests nor Python know are looked up in the candidate's module, and so is what tests
    import from modules that do not exist here. ``total`` is 0 where no check was reached.
    """
    random.seed(0)
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
    }
    whole = False
    with tally.part():
        own = dict.fromkeys(("candidate", entry.rpartition(".")[2]), link.at(entry)) if entry else {}
        names |= {name: link.get(name) for name in _unknown([setup, tests], {*names, *own})}
        exec(compile(setup, "setup", "exec"), names)
        names |= own  # behind the setup, which may hold a stub of the function
        exec(compile(tests, "tests", "exec"), names)
        whole = True
    if whole or not tally.stopped:
        defined = [one.name for one in tests.body if isinstance(one, ast.FunctionDef | ast.ClassDef)]
        if entry and "check" in defined and "check" not in tally.entered:
            with tally.test("check", must_check=True), tally.part():
                names["check"](names["candidate"])
        Session(tally, names, rewriter.checking).run(list(dict.fromkeys(defined)))
    total = max(tally.reached, len(rewriter.sources), 1) if tally.stopped else tally.reached
    passed = tally.passed if tally.failure is None else min(tally.passed, total - 1)
    return {"passed": passed, "total": total, "failure": tally.failure}


def _importing(link: Link, tally: Tally) -> Callable[..., Any]:
    """``__import__`` for tests: pytest's stand-in, unittest counted, the candidate where there is no such module."""
    ready: set[str] = set()

    def imported(name: str, space: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        top = name.partition(".")[0]
        if top == "pytest":
            return sys.modules.setdefault("pytest", pytest_module(tally))
        if top == "unittest" and top not in ready:
            ready.add(top)
            count_unittest(tally)
        if level or top == "__main__" or importlib.util.find_spec(top) is None:
            return CandidateModule(link, name)
        module = __import__(name, space, local, wanted, level)
        here = all(one == "*" or hasattr(module, one) for one in wanted or ())
        return module if here else CandidateModule(link, name)

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
