"""Runs test code of the data set in a sandbox of its own, in front of a candidate that lives in another.

Expected values stand in test code (``assert f(2) == 4``, ``check(candidate)``), so the tests run where no line of the
model's code does: every call of the candidate goes through the channel, and comes back as a plain value of an exact
type or as a reference to an object over there, which equals nothing but itself. Asserts are rewritten so that each is
counted and the first failing one can be described.

Arguments are handed over by value: what the candidate does to them stays over there. A function that is to change its
argument in place therefore fails, and one that empties its argument to please ``f(xs) == sorted(xs)`` earns nothing.
"""

from __future__ import annotations

import ast
import builtins
import random
from collections.abc import Callable
from typing import Any

from selfdistill.sandbox.codec import Encoder, Untransferable, decode

_SHOWN = 4000
"""Most characters of one representation that leave this process; the task cuts further."""


_NEVER_REBUILT = (StopIteration, StopAsyncIteration, SyntaxError, UnicodeError, AssertionError)
"""Exceptions that mean something else here, or are not made of a message alone."""


class CandidateFailed(Exception):
    """The candidate raised something that is no ordinary exception, or ended; its description is ``args[0]``."""


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


class Link:
    """Asks the candidate's process, and remembers the latest call for the description of a failure."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.latest: dict[str, str] = {}

    def call(self, target: Remote, number: int, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a remote object."""
        listed = [shown(one) for one in arguments] + [f"{key}={shown(value)}" for key, value in named.items()]
        self.latest = {"input": f"{name}({', '.join(listed)})"[:_SHOWN]}
        value = self.ask("call", target, list(arguments), named)
        self.latest["got"] = shown(value)
        return value

    def ask(self, what: str, *arguments: Any) -> Any:
        """One request and its answer, an exception of the candidate's raised here as the built-in one it is."""
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


def _rebuilt(found: Any) -> Exception:
    """The candidate's exception, where a test may expect one: built-in exceptions alone, never ``SystemExit``."""
    kind: Any = getattr(builtins, str(found.get("type")), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NEVER_REBUILT):
        error: Exception = kind(str(found.get("message", "")))
        error.candidate = found  # type: ignore[attr-defined]
        return error
    return CandidateFailed(found)


class _Asserts(ast.NodeTransformer):
    """``assert a == b`` becomes ``__case__(n, lambda: a, lambda: b)``, any other ``__case__(n, lambda: test)``."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        parts = [node.test]
        match node.test:
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                parts = [left, right]
        if any(isinstance(inner, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
            parts = []  # not to be moved into a function; the assert is evaluated where it stands
        self.sources.append(ast.unparse(node.test))
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        deferred = [ast.Lambda(nothing, part) for part in parts or [node.test]]
        if not parts:
            call = ast.Call(ast.Name("__plain__", ast.Load()), [ast.Constant(len(self.sources) - 1), node.test], [])
        else:
            call = ast.Call(
                ast.Name("__case__", ast.Load()), [ast.Constant(len(self.sources) - 1), *deferred], keywords=[]
            )
        return ast.copy_location(ast.Expr(call), node)


class Tally:
    """Counts the asserts that were reached, and describes the first that failed."""

    def __init__(self, link: Link, sources: list[str]) -> None:
        self._link = link
        self._sources = sources
        self.reached = 0
        self.passed = 0
        self.failure: dict[str, Any] | None = None

    def case(self, number: int, left: Callable[[], Any], right: Callable[[], Any] | None = None) -> None:
        """Evaluate one assert."""
        self.reached += 1
        sides: list[Any] = []
        try:
            sides.append(left())
            if right is None:
                holds = bool(sides[0])
            else:
                sides.append(right())
                holds = bool(sides[0] == sides[1])
        except Exception as error:  # whatever the candidate or the test raised, this assert has failed
            self.fail(self._sources[number], error)
            return
        if holds:
            self.passed += 1
        elif self.failure is None:
            found = {"kind": "wrong", "test": self._sources[number][:_SHOWN], **self._link.latest}
            if right is not None:
                found |= {"got": shown(sides[0]), "expected": shown(sides[1])}
            self.failure = found

    def plain(self, number: int, holds: object) -> None:
        """Count an assert that was evaluated in its place."""
        self.case(number, lambda: holds)

    def fail(self, test: str, error: Exception) -> None:
        """Note an exception, told as the candidate's where it came from there."""
        if self.failure is not None:
            return
        raised = error.args[0] if isinstance(error, CandidateFailed) else getattr(error, "candidate", None)
        found: dict[str, Any] = {"kind": "raised" if raised else "wrong", "test": test[:_SHOWN], **self._link.latest}
        if raised:
            found |= {"raised": raised}
        else:
            found |= {"trouble": f"{type(error).__name__}: {error}"[:_SHOWN]}
        self.failure = found


def judge(channel: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run ``job["setup"]`` and ``job["tests"]`` and return the tally.

    ``job["entry"]`` names the function that ``check(candidate)`` is called with, if the tests define ``check``. Names
    that neither tests nor Python know are looked up in the candidate's module.
    """
    random.seed(0)
    link = Link(channel)
    setup = ast.parse(job["setup"])
    asserts = _Asserts()
    tests = ast.fix_missing_locations(asserts.visit(ast.parse(job["tests"])))
    tally = Tally(link, asserts.sources)
    names: dict[str, Any] = {"__name__": "tests", "__case__": tally.case, "__plain__": tally.plain}
    entry = job["entry"]
    whole = True
    try:
        own = {"candidate": link.ask("get", entry), entry: link.ask("get", entry)} if entry else {}
        for name in _unknown([setup, tests], {*names, *own}):
            names |= _looked_up(link, name)
        exec(compile(setup, "setup", "exec"), names)
        names |= own  # behind the setup, which may hold a stub of the function
        exec(compile(tests, "tests", "exec"), names)
        if entry and "check" in names:
            names["check"](names["candidate"])
    except Exception as error:  # a test that is stopped has failed from there on
        whole = False
        tally.fail("", error)
    total = max(tally.reached, len(asserts.sources), 1)
    passed = tally.passed if asserts.sources else int(whole)
    return {
        "passed": passed if whole else min(passed, total - 1),
        "total": total,
        "failure": tally.failure,
    }


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
    return read - bound


def _looked_up(link: Link, name: str) -> dict[str, Any]:
    try:
        return {name: link.ask("get", name)}
    except KeyError:
        return {}
