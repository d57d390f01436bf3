"""The judge's connection to the candidate: its names, references to its objects, its exceptions.

Test code uses these stand-ins as if they were the candidate's objects. The sandbox runs the text of this file, so it
imports only the standard library and files that are run in the same way.
"""

from __future__ import annotations

import ast
import builtins
import sys
import types
from typing import Any

from selfdistill.sandbox.codec import Encoder, Untransferable, decode

MAX_REPR = 4000
"""Maximum characters of a representation that leaves this process. The task cuts it further."""
DIGITS = 100_000
"""Maximum digits of an integer that is written."""

_NEVER_REBUILT = (StopIteration, StopAsyncIteration, SyntaxError, UnicodeError, AssertionError)
"""Exceptions that mean something else in the judge, or need more than a message."""


class CandidateFailed(BaseException):
    """The candidate raised an exception that is not rebuilt, has ended, or lacks a name; ``args[0]`` describes it.

    It is no ``Exception``, so that ``except Exception`` in a test does not take it for an expected one.
    """


class CandidateLost(CandidateFailed):
    """The candidate lacks the name or has ended, which no test can have expected."""


class Remote:
    """A reference to an object of the candidate. It can be called and its attributes used, but it has no value here.

    It equals nothing but itself. A check that holds because of that (``!=``, ``is not None``, ``not in``) would hold
    of any object, so it counts only if the tests also use the object; see :attr:`Link.doubted`.
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
    """Return the value. An object of the candidate is noted as compared."""
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
    """The candidate, imported as a module that does not exist here: ``from solution import double``."""

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
    """Sends requests to the candidate's process, and keeps the latest call for the description of a failure."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.latest: dict[str, str] = {}
        self.consulted = False
        """Whether the tests have used the candidate. A mere reference to its function does not count."""
        self.doubted: set[int] = set()
        """Numbers of the objects that were compared since the latest check."""
        self.used: set[int] = set()
        """Numbers of the objects that were called or passed as arguments, or whose attributes were read or set."""

    def get(self, name: str) -> Any:
        """The value of a name in the candidate's module; :class:`Absent` if it does not define the name."""
        try:
            value = self.ask("get", name)
        except KeyError:
            return Absent(name)
        self.consulted |= type(value) is not Remote
        return value

    def at(self, path: str) -> Any:
        """The function at a path: ``"solve"``, or ``"Solution.solve"`` of a new object of the class."""
        first, *others = path.split(".")
        function = self.get(first)
        for name in others:
            function = getattr(function(), name)
        self.consulted = False
        return function

    def call(self, target: Remote, number: int, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a remote object."""
        listed = [bounded_repr(argument) for argument in arguments]
        listed += [f"{key}={bounded_repr(value)}" for key, value in named.items()]
        self.latest = {"input": f"{name}({', '.join(listed)})"[:MAX_REPR]}
        value = self.ask("call", target, list(arguments), named)
        self.latest["got"] = bounded_repr(value)
        return value

    def ask(self, request: str, *arguments: Any) -> Any:
        """Send a request and return the answer. The candidate's exception is raised here as its built-in type."""
        self.consulted |= request != "get"
        encoded = [_Outgoing().encode(argument) for argument in arguments]
        self._channel.send({"ask": {"do": request, "with": encoded}})
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
    """Encodes the arguments of a call: plain values, and objects of the candidate by their numbers."""

    def __init__(self) -> None:
        super().__init__(_refuse)

    def encode(self, value: Any, depth: int = 0) -> Any:
        if type(value) is Remote:
            link, number, name = object.__getattribute__(value, "_remote")
            link.used.add(number)
            return ["h", number, name]
        return super().encode(value, depth)


def bounded_repr(value: Any) -> str:
    """A representation of bounded length."""
    # The sandbox lets code write integers of any length, and n digits take n² time.
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(DIGITS)
    try:
        return repr(value)[:MAX_REPR]
    except ValueError:
        return f"<a {type(value).__name__} too large to show>"
    finally:
        sys.set_int_max_str_digits(usual)


def _refuse(value: Any) -> int:
    raise Untransferable(f"a test passes an object of type {type(value).__name__}, which cannot reach the candidate")


def kind_of(error: BaseException) -> type:
    """The type of an exception; for one of the candidate the built-in type that it descends from."""
    if not isinstance(error, CandidateFailed):
        return type(error)
    kind: Any = getattr(builtins, str(error.args[0].get("type")), None)
    return kind if isinstance(kind, type) else CandidateFailed


def as_raised(error: BaseException) -> BaseException:
    """The exception in the form that a test which expects it can inspect."""
    if not isinstance(error, CandidateFailed):
        return error
    kind: Any = kind_of(error)
    simple = issubclass(kind, BaseException) and not issubclass(kind, UnicodeError | CandidateFailed)
    raised: BaseException = (kind if simple else Exception)(str(error.args[0].get("message", "")))
    return raised


def _rebuilt(raised: Any) -> BaseException:
    """The candidate's exception as a built-in one that a test may expect; any other as :class:`CandidateFailed`."""
    kind: Any = getattr(builtins, str(raised.get("type")), None)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, _NEVER_REBUILT):
        return CandidateFailed(raised)
    message: Any = str(raised.get("message", ""))
    if kind is KeyError:  # its message is the repr of the key
        try:
            message = ast.literal_eval(message)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            message = str(message)
    error: Exception = kind(message)
    error.candidate = raised  # type: ignore[attr-defined]
    return error
