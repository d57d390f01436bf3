"""Tests of code as data sets write them, the code in a completion, and the comparison of printed output.

====================================  =====================================================================
what a column may hold                read as
====================================  =====================================================================
``"def check(candidate): …"``         test code (HumanEval); so is any text that is not one of the others
``["assert f(2) == 4", …]``           test code (MBPP)
``">>> f(2)\\n4"``                     examples of an interpreter's session, as asserts
``[{"input": …, "output": …}, …]``    cases of a program, or of a function where ``testtype`` is "functional"
                                      (LiveCodeBench); also as JSON text, also packed by pickle, zlib, base64
``{"inputs": […], "outputs": […]}``   cases of a program, or of the function ``fn_name`` (APPS, TACO)
====================================  =====================================================================
"""

from __future__ import annotations

import base64
import binascii
import doctest
import io
import json
import pickle
import re
import zlib
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from selfdistill.errors import DataError

_UNPACKED = 256 * 2**20
"""Most bytes that a packed column may unfold to."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input and its expected output: texts for a program; for a function also its arguments and their value."""

    given: str
    expected: str
    arguments: tuple[Any, ...] | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Suite:
    """Test code, or cases, or nothing."""

    code: str = ""
    cases: tuple[Case, ...] = ()
    function: str = ""
    """The function that the cases call, where the column itself names it."""

    def __bool__(self) -> bool:
        return bool(self.code.strip() or self.cases)


def read_tests(value: object, place: str) -> Suite:
    """The tests in a column's value.

    Raises:
        DataError: it is none of the forms above; ``place`` says where it stands.
    """
    if isinstance(value, str):
        value = _unpacked(value, place)
    match value:
        case None | "" | []:
            return Suite()
        case str(code):
            return documented(code, whole=True) if code.lstrip().startswith(">>>") else Suite(code)
        case [str(), *_] as asserts if all(isinstance(one, str) for one in asserts):
            return Suite("\n".join(map(str, asserts)))
        case [Mapping(), *_] as cases:
            return Suite(cases=tuple(_case(one, place) for one in cases))
        case {"inputs": list(inputs), "outputs": list(outputs), **rest} if len(inputs) == len(outputs):
            function = str(rest.get("fn_name") or "")
            pairs = zip(inputs, outputs, strict=True)
            return Suite(cases=tuple(_pair(one, two, bool(function)) for one, two in pairs), function=function)
    raise DataError(f"{place}: tests must be test code, a list of asserts, or a list of inputs and outputs")


def documented(text: str, *, whole: bool = False) -> Suite:
    """``>>>`` examples as test code: those alone whose result is a literal, or the ``whole`` session."""
    asserts = []
    try:
        # The quotes that close a docstring would belong to the last example's result.
        examples = doctest.DocTestParser().get_examples(re.sub(r"\"{3}|'{3}", "\n", text))
    except ValueError:  # badly indented
        return Suite()
    for one in examples:
        literal = _is_literal(one.want)
        source = one.source.strip() if whole and not one.want else one.source.partition(" #")[0].strip()
        if literal:
            asserts.append(f"assert {source} == {one.want.strip()}")
        elif whole and one.want and one.exc_msg is None:
            asserts.append(f"assert repr({source}) == {one.want.strip()!r}")
        elif whole and one.want:
            kind = str(one.exc_msg).partition(":")[0].strip()
            asserts.append(f"try:\n    {source}\n    assert False\nexcept {kind}:\n    pass")
        elif whole:
            asserts.append(source)
    return Suite("\n".join(asserts))


def _is_literal(text: str) -> bool:
    try:
        literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _unpacked(text: str, place: str) -> object:
    """JSON text, plain or packed, as what it holds; any other text as it is."""
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    if not re.fullmatch(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*", text):
        return text
    try:
        packed = base64.b64decode(text)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, _UNPACKED)
        inner = _PlainUnpickler(io.BytesIO(data)).load() if data[:1] == b"\x80" else data.decode()
        return json.loads(inner) if isinstance(inner, str) else inner
    except (binascii.Error, zlib.error, pickle.UnpicklingError, UnicodeDecodeError, ValueError, EOFError) as error:
        raise DataError(f"{place}: packed tests cannot be unpacked: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles texts, numbers and lists of them; a pickle that names a class or function could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain values are read")


def _case(one: Any, place: str) -> Case:
    if not isinstance(one, Mapping) or not {"input", "output"} <= one.keys():
        raise DataError(f"{place}: a test case needs an input and an output")
    given, expected = one["input"], one["output"]
    if one.get("testtype") != "functional":
        return Case(_text(given), _text(expected))
    try:
        lines = [line for line in str(given).split("\n") if line.strip()]
        return Case(str(given), str(expected), tuple(json.loads(line) for line in lines), json.loads(str(expected)))
    except ValueError as error:
        raise DataError(f"{place}: a functional case must be JSON, an argument a line: {error}") from error


def _pair(given: Any, expected: Any, function: bool) -> Case:
    if not function:
        return Case(_text(given), _text(expected))
    arguments = tuple(given) if isinstance(given, list) else (given,)
    # APPS wraps the expected value in a list of one.
    value = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
    return Case(", ".join(map(repr, arguments)), repr(value), arguments, value)


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def same_output(said: str, expected: str) -> bool:
    """Whether a program printed what it should: line by line, blanks at the ends aside, numbers by their value."""
    one, other = (_lines(text) for text in (said, expected))
    return len(one) == len(other) and all(_same_line(*pair) for pair in zip(one, other, strict=True))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    words = (one.split(), other.split())
    if len(words[0]) != len(words[1]):
        return False
    return all(a == b or _same_number(a, b) for a, b in zip(*words, strict=True))


def _same_number(one: str, other: str) -> bool:
    if max(len(one), len(other)) > 400:
        return False
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def same_value(got: Any, expected: Any) -> bool:
    """Whether a function gave what it should; JSON knows no tuples, so they count as lists."""
    try:
        return bool(_as_json(got) == expected)
    except RecursionError:
        return False


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    return value


_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)")
_PYTHON = {"python", "py", "python3", "py3"}


def find_code(text: str, *, finished: bool) -> str | None:
    """The last fenced block that is marked as Python, else the last of any kind; without any fence the whole text.

    A block that nothing closes counts where the completion is ``finished``; of one that the token limit cut, only
    closed blocks are believed.
    """
    blocks = _blocks(text)
    if not blocks:
        return text if finished and text.strip() else None
    usable = [(language, code) for language, code, closed in blocks if closed or finished]
    python = [code for language, code in usable if language in _PYTHON]
    if python:
        return python[-1]
    return usable[-1][1] if usable else None


def _blocks(text: str) -> list[tuple[str, str, bool]]:
    found: list[tuple[str, str, bool]] = []
    fence, language, inside = "", "", list[str]()
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if not fence and mark:
            fence, language, inside = mark.group(1), mark.group(2).lower(), []
        elif fence and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            found.append((language, "\n".join(inside) + "\n", True))
            fence = ""
        elif fence:
            inside.append(line)
    if fence:
        found.append((language, "\n".join(inside) + "\n", False))
    return found


def shorten(text: str, most: int) -> str:
    """A text of at most about ``most`` characters, its middle cut and the cut marked."""
    if len(text) <= most:
        return text
    tail = most // 4
    kept = most - tail
    return f"{text[:kept]}\n… [{len(text) - most} characters cut] …\n{text[len(text) - tail :] if tail else ''}"


def share_out(parts: Sequence[str], most: int) -> list[str]:
    """Several texts cut to a budget together; short ones leave their share to the others."""
    left, result = most, dict[int, str]()
    for count, place in enumerate(sorted(range(len(parts)), key=lambda place: len(parts[place]))):
        result[place] = shorten(parts[place], max(20, left // (len(parts) - count)))
        left -= len(result[place])
    return [result[place] for place in range(len(parts))]
