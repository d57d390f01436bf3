"""Encodes values for two processes that do not trust each other: JSON, with a tag for each type that JSON lacks.

Only values of the types named here are sent, and they are rebuilt as exactly these types. So the receiver compares
plain numbers, texts and containers, whatever ``__eq__`` a class of the sender has. Any other object stays in its
process, and a reference to it is sent. The sandbox runs the text of this file, so it imports only the standard library.
"""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

DEPTH = 60
"""Maximum depth of nesting. A parser's limit on recursion lies deeper."""
NODES = 200_000
"""Maximum number of values in a message: ``x = [x, x]`` forty times over is small in memory and endless in writing."""
LONGEST = 4_000_000
"""Maximum characters of a text, and about the maximum digits of a number."""
EXPONENT = 100_000
"""Maximum exponent of a decimal number: ``1e50000000`` is ten letters, and minutes of work as a fraction."""
COLLISIONS = 1_000
"""Maximum members of a set or dict with equal hashes: n of them take n² comparisons."""

_LATE = (("dec", "decimal", "Decimal"), ("fr", "fractions", "Fraction"))
"""Types whose modules take longer to import than most programs run. They are imported only to decode such a value."""

_VIEWS: tuple[tuple[str, Any], ...] = (("dk", type({}.keys())), ("dv", type({}.values())), ("di", type({}.items())))


class Untransferable(Exception):
    """A value too large, too deep or malformed."""


class Encoder:
    """Encodes values as JSON trees. ``keep`` stores an object of another type and returns its number."""

    def __init__(self, keep: Callable[[Any], int]) -> None:
        self._keep = keep
        self._nodes = 0

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The tree of a value.

        Raises:
            Untransferable: it is too large or too deep.
        """
        self._nodes += 1
        if depth > DEPTH:
            raise Untransferable("a value nested too deeply")
        if self._nodes > NODES:
            raise Untransferable("a value too large")
        if value is None or value is True or value is False:
            return value
        # Methods of the base types, not of the object: a subclass is sent as the plain value that it holds.
        if isinstance(value, int):
            number = int.__index__(value)
            if number.bit_length() > 3 * LONGEST:
                raise Untransferable("a number too large")
            return number if number.bit_length() < 256 else ["i", hex(number)]
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            if str.__len__(value) > LONGEST:
                raise Untransferable("a text too long")
            return str.__str__(value)
        return self._container(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        def all_of(items: Iterator[Any]) -> list[Any]:
            return [self.encode(item, depth + 1) for item in items]

        plain: tuple[tuple[str, Any], ...] = (("l", list), ("t", tuple), ("s", set), ("fs", frozenset), ("dq", deque))
        for tag, base in plain:
            if isinstance(value, base):
                return [tag, all_of(base.__iter__(value))]
        if isinstance(value, dict):
            return ["d", [all_of(iter(pair)) for pair in dict.items(value)]]
        for tag, view in _VIEWS:
            if isinstance(value, view):
                return [tag, all_of(iter(value))]
        kind = type(value)
        if kind in (bytes, bytearray):
            return ["b" if kind is bytes else "ba", self.encode(value.hex(), depth)]
        if kind is complex:
            return ["c", value.real, value.imag]
        if kind is range:
            return ["r", *(self.encode(part, depth) for part in (value.start, value.stop, value.step))]
        for tag, module, late in _LATE:
            if module in sys.modules and kind is getattr(sys.modules[module], late, None):
                return [tag, self.encode(str(value), depth)]
        if isinstance(value, Iterator):
            return ["it", all_of(value)]
        name = getattr(value, "__name__", None) if callable(value) else None
        return ["h", self._keep(value), (name if type(name) is str else kind.__name__)[:60]]


def decode(tree: Any, refer: Callable[[int, str], Any], depth: int = 0) -> Any:
    """The value of a tree, of exactly the types above. ``refer`` returns the stand-in for an object that was not sent.

    Raises:
        Untransferable: the tree is not one that :class:`Encoder` writes, or its value exceeds the bounds above.
    """
    if not depth and _has_too_many_nodes(tree):
        raise Untransferable("a value too large")
    if depth > 2 * DEPTH:
        raise Untransferable("a value nested too deeply")
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    try:
        return _decode_tagged(tree, refer, depth)
    except (TypeError, ValueError, ArithmeticError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise Untransferable("a malformed value") from error


def _has_too_many_nodes(tree: Any) -> bool:
    stack, count = [tree], 0
    while stack:
        node = stack.pop()
        # The tree of a value has up to three nodes besides itself: its tag, and a list or two texts.
        count += 1
        if count > 4 * NODES:
            return True
        if isinstance(node, list):
            stack += node
    return False


def _decimal(text: str) -> Any:
    number = importlib.import_module("decimal").Decimal(text)
    if number.is_finite() and abs(number.adjusted()) > EXPONENT:
        raise Untransferable("a number too large")
    return number


def _fraction(text: str) -> Any:
    # ``int`` reads digits alone. Fraction itself would read an exponent too, and compute its power.
    numerator, _, denominator = text.partition("/")
    return importlib.import_module("fractions").Fraction(int(numerator), int(denominator or 1))


def _hashed(kind: Callable[[Any], Any], items: list[Any], keys: list[Any]) -> Any:
    """A container of hashed items, unless too many of its keys have equal hashes."""
    if len(keys) > COLLISIONS:
        counts: dict[int, int] = {}
        for key in keys:
            code = hash(key)
            counts[code] = counts.get(code, 0) + 1
            if counts[code] > COLLISIONS:
                raise Untransferable("a set or dict whose members' hashes are equal")
    return kind(items)


def _decode_tagged(tree: Any, refer: Callable[[int, str], Any], depth: int) -> Any:
    def all_of(items: Any) -> list[Any]:
        if type(items) is not list:
            raise Untransferable("a malformed value")
        return [decode(item, refer, depth + 1) for item in items]

    containers: dict[str, Callable[[Any], Any]] = {
        "l": list,
        "t": tuple,
        "s": lambda items: _hashed(set, items, items),
        "fs": lambda items: _hashed(frozenset, items, items),
        "dq": deque,
        "it": iter,
        "dk": lambda items: _hashed(dict.fromkeys, items, items).keys(),
        "dv": lambda items: dict(enumerate(items)).values(),
        "di": lambda items: _hashed(dict, items, [key for key, _ in items]).items(),
    }
    texts: dict[str, Callable[[str], Any]] = {
        "i": lambda text: int(text, 16),
        "b": bytes.fromhex,
        "ba": bytearray.fromhex,
        "dec": _decimal,
        "fr": _fraction,
    }
    match tree:
        case [str(tag), list(items)] if tag in containers:
            return containers[tag](all_of(items))
        case ["d", list(pairs)]:
            entries = [tuple(all_of(pair)) for pair in pairs]
            return _hashed(dict, entries, [key for key, _ in entries])
        case [str(tag), str(text)] if tag in texts:
            return texts[tag](text)
        case ["c", int() | float() as real, int() | float() as imaginary]:
            return complex(real, imaginary)
        case ["r", *parts]:
            return range(*all_of(parts))
        case ["h", int(number), str(name)]:
            return refer(number, name)
    raise Untransferable("a malformed value")
