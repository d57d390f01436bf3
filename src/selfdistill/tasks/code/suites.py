"""Parse tests as data sets write them, find the code in a completion, and compare printed output.

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from textwrap import dedent
from typing import Any

from selfdistill.errors import DataError
from selfdistill.sandbox.cases import near

_UNPACKED = 256 * 2**20
"""Maximum bytes of a decompressed column."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input and its expected output as text. For a function also its arguments and expected value."""

    given: str
    expected: str
    arguments: tuple[Any, ...] | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Suite:
    """Test code or cases. May be empty."""

    code: str = ""
    cases: tuple[Case, ...] = ()
    function: str = ""
    """The function that the cases call, if the column names it."""

    def __bool__(self) -> bool:
        return bool(self.code.strip() or self.cases)


def read_tests(value: object, location: str) -> Suite:
    """The tests in a column's value.

    Raises:
        DataError: the value has none of the forms above. ``location`` is the row and column for the message.
    """
    if isinstance(value, str):
        value = _unpacked(value, location)
    match value:
        case None | "" | []:
            return Suite()
        case str(code):
            return documented(code, whole_session=True) if code.lstrip().startswith(">>>") else Suite(code)
        case [str(), *_] as asserts if all(isinstance(item, str) for item in asserts):
            return Suite("\n".join(map(str, asserts)))
        case [Mapping(), *_] as cases:
            return Suite(cases=tuple(_case(case, location) for case in cases))
        case {"inputs": list(inputs), "outputs": list(outputs), **other_keys} if len(inputs) == len(outputs):
            function = str(other_keys.get("fn_name") or "")
            pairs = zip(inputs, outputs, strict=True)
            return Suite(
                cases=tuple(_pair(given, expected, bool(function)) for given, expected in pairs), function=function
            )
    raise DataError(f"{location}: tests must be test code, a list of asserts, or a list of inputs and outputs")


def documented(text: str, *, whole_session: bool = False) -> Suite:
    """``>>>`` examples as test code: only those with a literal result, or all if ``whole_session``."""
    asserts = []
    try:
        # Without this, the closing quotes of a docstring would become part of the last result.
        examples = doctest.DocTestParser().get_examples(re.sub(r"\"{3}|'{3}", "\n", text))
    except ValueError:  # badly indented
        return Suite()
    for example in examples:
        literal = _is_literal(example.want)
        source = (
            example.source.strip() if whole_session and not example.want else example.source.partition(" #")[0].strip()
        )
        if literal:
            asserts.append(f"assert {source} == {example.want.strip()}")
        elif whole_session and example.want and example.exc_msg is None:
            asserts.append(f"assert repr({source}) == {example.want.strip()!r}")
        elif whole_session and example.want:
            kind = str(example.exc_msg).partition(":")[0].strip()
            asserts.append(f"try:\n    {source}\n    assert False\nexcept {kind}:\n    pass")
        elif whole_session:
            asserts.append(source)
    return Suite("\n".join(asserts))


def _is_literal(text: str) -> bool:
    try:
        literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _unpacked(text: str, location: str) -> object:
    """The value of JSON text, plain or compressed. Any other text is returned unchanged."""
    start = text.lstrip()[:1]
    if start in ("[", "{"):
        try:
            return _json(text)
        except (ValueError, RecursionError):
            return text
    if not re.fullmatch(r"[A-Za-z0-9+/\s]{16,}={0,2}\s*", text):
        return text
    try:
        packed = base64.b64decode(text)
        stream = zlib.decompressobj()
        data = stream.decompress(packed, _UNPACKED)
        inner = _PlainUnpickler(io.BytesIO(data)).load() if data[:1] == b"\x80" else data.decode()
        return _json(inner) if isinstance(inner, str) else inner
    except (binascii.Error, zlib.error, pickle.UnpicklingError, UnicodeDecodeError, ValueError, EOFError) as error:
        raise DataError(f"{location}: packed tests cannot be unpacked: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles only texts, numbers and lists of them. A pickle that names a class or function could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain values are read")


def _case(case: Any, location: str) -> Case:
    if not isinstance(case, Mapping) or not {"input", "output"} <= case.keys():
        raise DataError(f"{location}: a test case needs an input and an output")
    given, expected = case["input"], case["output"]
    if case.get("testtype") != "functional":
        return Case(_text(given), _text(expected))
    try:
        lines = [line for line in str(given).split("\n") if line.strip()]
        return Case(str(given), str(expected), tuple(_json(line) for line in lines), _json(str(expected)))
    except ValueError as error:
        raise DataError(f"{location}: a functional case must be JSON, an argument a line: {error}") from error


def _pair(given: Any, expected: Any, function: bool) -> Case:
    if not function:
        return Case(_text(given), _text(expected))
    arguments = tuple(given) if isinstance(given, list) else (given,)
    # APPS wraps the expected value in a list of one.
    value = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
    return Case(", ".join(map(python_literal, arguments)), python_literal(value), arguments, value)


def _json(text: str) -> Any:
    """The value of JSON text. Integers may exceed Python's limit of 4300 digits."""
    return json.loads(text, parse_int=lambda digits: int(Decimal(digits)))


def python_literal(value: Any) -> str:
    """``repr`` of a value. Integers may exceed Python's limit of 4300 digits."""
    if isinstance(value, list | tuple):
        inside = ", ".join(map(python_literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{python_literal(key)}: {python_literal(item)}" for key, item in value.items()) + "}"
    return f"{Decimal(value):f}" if type(value) is int else repr(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value if isinstance(value, str) else python_literal(value)


def same_output(output: str, expected: str) -> bool:
    """Whether printed output equals the expected one: line by line, stripped, with numbers compared by value.

    Numbers may be inside lists. They are compared as in LiveCodeBench's first checker (``np.allclose`` with its
    defaults if not all are integers, in ``lcb_runner/evaluation/testing_util.py``; the present checker compares
    decimals exactly): a float may differ by 1e-8 and a relative 1e-5. If the expected number is an integer, it may
    differ by at most 1e-8.
    """
    printed, expected_lines = ([line.strip() for line in text.strip().splitlines()] for text in (output, expected))
    return len(printed) == len(expected_lines) and all(
        _same_line(*pair) for pair in zip(printed, expected_lines, strict=True)
    )


def _same_line(output: str, expected: str) -> bool:
    words = [_WORDS.findall(line) for line in (output, expected)]
    if output == expected or len(words[0]) != len(words[1]):
        return output == expected
    return all(a == b or _same_number(a, b) for a, b in zip(*words, strict=True))


def _same_number(output: str, expected: str) -> bool:
    if not (_NUMBER.fullmatch(output) and _NUMBER.fullmatch(expected)):
        return False
    if Decimal(output) == Decimal(expected):
        return True
    if _INTEGER.fullmatch(output) and _INTEGER.fullmatch(expected):
        return False
    # Two different numbers beyond the range of floats would both be infinite.
    expected_value = float(expected)
    return isfinite(expected_value) and near(float(output), expected_value, whole=bool(_INTEGER.fullmatch(expected)))


# Punctuation separates numbers: "[1.0, 2]" has five words.
_WORDS = re.compile(r"[\[\](){},;:]|[^\s\[\](){},;:]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?")
_INTEGER = re.compile(r"[+-]?\d+")

_FENCE = re.compile(
    r"(?P<lead>[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?)"
    r"(?P<mark>`{3,}(?=[^`]*$)|~{3,})[ \t]*\{?\.?(?P<language>[\w+#.-]*)"
)
_PYTHON = {"python", "py", "python3", "py3"}
_READS_INPUT = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*(?:0|['\"]/dev/stdin)")


def find_code(text: str, *, finished: bool, names: Collection[str] = (), program: bool = False) -> str | None:
    """The code block that is the completion's solution. A text without fences is returned whole.

    The solution is the last block that defines one of ``names``, which the tests call, or that reads input if the tests
    run a ``program``; an example of use may follow it. If there is no such block, it is the last block marked as
    Python, else the last block. An unclosed block counts only if the completion is ``finished``, not if it hit the
    token limit.
    """
    blocks = _blocks(text)
    if not blocks:
        return text if finished and text.strip() else None
    usable = [(language, code) for language, code, closed in blocks if closed or finished]
    python = [code for language, code in usable if language in _PYTHON]
    unmarked = [code for language, code in usable if not language]
    for candidates in (python, unmarked):
        for code in reversed(candidates):
            for source in (code, dedent(code)):
                if any(defines(source, name) for name in names) or (program and _READS_INPUT.search(source)):
                    return source
    if python:
        return python[-1]
    return usable[-1][1] if usable else None


def defines(code: str, name: str) -> bool:
    """Whether code defines a name at its top level, as a function, a class or a value. An empty name is any name."""
    name = re.escape(name) or r"\w+"
    return bool(re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*(?::[^=\n]+)?=(?!=)", code, re.MULTILINE))


def _blocks(text: str) -> list[tuple[str, str, bool]]:
    """(language, code, closed) of every fenced block. Lines lose the indent of their fence."""
    blocks: list[tuple[str, str, bool]] = []
    fence, language, quote, indent, inside = "", "", False, 0, list[str]()
    for line in text.splitlines():
        mark = None if fence else _FENCE.match(line)
        if mark:
            fence, language, inside = mark["mark"], mark["language"].lower(), []
            quote = ">" in mark["lead"]
            inner = mark["lead"].rpartition(">")[2].removeprefix(" " if quote else "")
            indent = len(inner.expandtabs(4))
        elif fence:
            line = re.sub(r"^[ \t]*>[ ]?", "", line) if quote else line
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                blocks.append((language, "\n".join(inside) + "\n", True))
                fence = ""
            else:
                # As in Markdown, a line with less indent loses all of it.
                expanded = line.expandtabs(4) if indent else line
                inside.append(expanded[min(indent, len(expanded) - len(expanded.lstrip(" "))) :])
    if fence:
        blocks.append((language, "\n".join(inside) + "\n", False))
    return blocks


def shorten(text: str, most: int) -> str:
    """The text cut in the middle to about ``most`` characters, with the cut marked."""
    if len(text) <= most:
        return text
    tail = most // 4
    head = most - tail
    return f"{text[:head]}\n… [{len(text) - most} characters cut] …\n{text[len(text) - tail :] if tail else ''}"


def share_out(parts: Sequence[str], most: int) -> list[str]:
    """Shorten several texts to a common budget. Short texts leave their unused share to longer ones."""
    remaining, result = most, dict[int, str]()
    for count, index in enumerate(sorted(range(len(parts)), key=lambda index: len(parts[index]))):
        result[index] = shorten(parts[index], max(20, remaining // (len(parts) - count)))
        remaining -= len(result[index])
    return [result[index] for index in range(len(parts))]
