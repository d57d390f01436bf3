"""Verdicts on code, here and in LiveCodeBench: the chosen block of a completion, and the comparison of outputs."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy

from selfdistill.tasks.code.suites import find_code, same_output
from verdicts.agreement import agreement

CASES = Path(__file__).resolve().parents[2] / "tests" / "cases" / "code.json"


def outputs_table() -> str:
    """Return the table of printed outputs."""
    cases = _cases("outputs")
    judges = {
        "selfdistill": [same_output(printed, expected) for printed, expected, _ in cases],
        "LiveCodeBench": [_decimals(printed, expected) for printed, expected, _ in cases],
        "LiveCodeBench's first checker": [_allclose(printed, expected) for printed, expected, _ in cases],
    }
    return agreement([right for _, _, right in cases], [False] * len(cases), judges)


def blocks_table() -> str:
    """Return the table of blocks. Every case is right, and a judge agrees if it takes the solution."""
    cases = _cases("blocks")
    ours = [find_code(text, finished=True, names=names, program=not names) for _, text, names, _ in cases]
    judges = {
        "selfdistill": [_same_code(code, case[3]) for code, case in zip(ours, cases, strict=True)],
        "LiveCodeBench": [_same_code(_last_block(text), code) for _, text, _, code in cases],
    }
    return agreement([True] * len(cases), [False] * len(cases), judges)


def _cases(part: str) -> list[list[Any]]:
    cases: list[list[Any]] = json.loads(CASES.read_text(encoding="utf-8"))[part]
    return cases


def _same_code(code: str | None, expected: str) -> bool:
    return code is not None and code.strip() == expected.strip()


def _decimals(printed: str, expected: str) -> bool:
    """``grade_stdio``: equal lines, or lines of equal decimals."""
    printed_lines, expected_lines = (
        [line.strip() for line in text.strip().split("\n")] for text in (printed, expected)
    )
    return len(printed_lines) == len(expected_lines) and all(
        a == b or ((numbers := _as_decimals(a)) is not None and numbers == _as_decimals(b))
        for a, b in zip(printed_lines, expected_lines, strict=True)
    )


def _as_decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def _allclose(printed: str, expected: str) -> bool:
    """The first checker: equal lines, or lines that hold one float each and are close, unless all are integers."""
    printed_lines, expected_lines = (
        [line.strip() for line in text.strip().split("\n")] for text in (printed, expected)
    )
    if printed_lines == expected_lines or len(printed_lines) != len(expected_lines):
        return printed_lines == expected_lines
    if all(word.lstrip("+-").isdigit() for word in (*printed_lines, *expected_lines)):
        return False
    try:
        return bool(numpy.allclose([float(line) for line in printed_lines], [float(line) for line in expected_lines]))
    except ValueError:
        return False


def _last_block(text: str) -> str:
    """``extract_code``: the lines between the last two that hold a fence."""
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""
