"""The judge's way to the candidate: references to its objects, its names, its exceptions.

Test code uses these objects as if they were the candidate's own. The file is read as text and run inside the sandbox:
the standard library only.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from typing import Any

from selfdistill.sandbox.codec import Encoder, Untransferable, decode

SHOWN = 4000
"""Most characters of one representation that leave this process; the task cuts further."""
DIGITS = 100_000
"""Most digits of an integer that is written out."""


_NEVER_REBUILT = (StopIteration, StopAsyncIteration, SyntaxError, UnicodeError, AssertionError)
"""Exceptions that mean something else here, or are not made of a message alone."""


class CandidateFailed(BaseException):
    """The candidate raised something that is no ordinary exception, or ended, or lacks a name; no test's ``except
    Exception`` takes it for the exception that it waits for. Its description is ``args[0]``.
    """


class CandidateLost(CandidateFailed):
    """There is no such name, or no candidate any more: nothing that a test could have expected."""


class Remote:
    """An object of the candidate's. It can be called and its attributes used; it has no value here.

    It equals nothing but itself. A check that holds because of that (``!=``, ``is not None``, ``not in``) would hold
    of any object, so it counts only where the tests use the object too; see :attr:`Link.doubted`.
    """

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

    def __eq__(self, other: object) -> bool:
        return doubt(self) is other

    def __ne__(self, other: object) -> bool:
        return doubt(self) is not other

    def __hash__(self) -> int:
        return id(doubt(self))

    def __str__(self) -> str:
        return repr(doubt(self))

    def __bool__(self) -> bool:
        raise TypeError("an object of the candidate's has no truth value in a test")

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_remote')[2]} object>"


def doubt(value: Any) -> Any:
    """The value; one of the candidate's objects is noted as compared."""
    if type(value) is Remote:
        link, number, _ = object.__getattribute__(value, "_remote")
        link.doubted.add(number)
    return value


class Absent:
    """A name that the candidate does not define."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def _missing(self, *_: Any, **__: Any) -> Any:
        message = f"name {object.__getattribute__(self, '_name')!r} is not defined"
        raise CandidateLost({"type": "NameError", "name": "NameError", "message": message, "line": None})

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
        self.doubted: set[int] = set()
        """Objects that were compared, by number; a check empties it first, and looks at it afterwards."""
        self.used: set[int] = set()
        """Objects that were called, or whose attributes were read or set, or that were handed back as an argument."""

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
        self.latest = {"input": f"{name}({', '.join(listed)})"[:SHOWN]}
        value = self.ask("call", target, list(arguments), named)
        self.latest["got"] = shown(value)
        return value

    def ask(self, what: str, *arguments: Any) -> Any:
        """One request and its answer, an exception of the candidate's raised here as the built-in one it is."""
        self.consulted |= what != "get"
        self._channel.send({"ask": {"do": what, "with": [_Outgoing().encode(one) for one in arguments]}})
        try:
            answer = self._channel.receive()
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise CandidateLost({"type": "EOFError", "message": "no answer"})
        if isinstance(answer.get("raised"), dict):
            raise _rebuilt(answer["raised"])
        return decode(answer.get("value"), lambda number, name: Remote(self, number, name))


class _Outgoing(Encoder):
    """Arguments of a call: plain values, and objects of the candidate's by their numbers."""

    def __init__(self) -> None:
        super().__init__(_refuse)

    def encode(self, value: Any, depth: int = 0) -> Any:
        if type(value) is Remote:
            link, number, name = object.__getattribute__(value, "_remote")
            link.used.add(number)
            return ["h", number, name]
        return super().encode(value, depth)


def shown(value: Any) -> str:
    """A representation of bounded length."""
    # The sandbox lets code write integers of any length, which takes the square of their digits.
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(DIGITS)
    try:
        return repr(value)[:SHOWN]
    except ValueError:
        return f"<a {type(value).__name__} too large to show>"
    finally:
        sys.set_int_max_str_digits(usual)


def _refuse(value: Any) -> int:
    raise Untransferable(f"a test passes an object of type {type(value).__name__}, which cannot reach the candidate")


def kind_of(error: BaseException) -> type:
    """An exception's type; for one of the candidate's the built-in exception that it descends from."""
    if not isinstance(error, CandidateFailed):
        return type(error)
    kind: Any = getattr(builtins, str(error.args[0].get("type")), None)
    return kind if isinstance(kind, type) else CandidateFailed


def as_raised(error: BaseException) -> BaseException:
    """An exception as a test that waited for it sees it."""
    if not isinstance(error, CandidateFailed):
        return error
    kind: Any = kind_of(error)
    simple = issubclass(kind, BaseException) and not issubclass(kind, UnicodeError | CandidateFailed)
    raised: BaseException = (kind if simple else Exception)(str(error.args[0].get("message", "")))
    return raised


def _rebuilt(found: Any) -> BaseException:
    """The candidate's exception, where a test may expect one: built-in exceptions alone, never ``SystemExit``."""
    kind: Any = getattr(builtins, str(found.get("type")), None)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, _NEVER_REBUILT):
        return CandidateFailed(found)
    message: Any = str(found.get("message", ""))
    if kind is KeyError:  # whose text is the key's representation
        try:
            message = ast.literal_eval(message)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            message = str(message)
    error: Exception = kind(message)
    error.candidate = found  # type: ignore[attr-defined]
    return error
