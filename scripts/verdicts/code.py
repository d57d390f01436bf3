"""Verdicts on code: which block of a completion is taken and which output is right, here and in LiveCodeBench."""

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
    """The table of printed outputs."""
    cases = _cases("outputs")
    judges = {
        "selfdistill": [same_output(said, expected) for said, expected, _ in cases],
        "LiveCodeBench": [_decimals(said, expected) for said, expected, _ in cases],
        "LiveCodeBench's first checker": [_allclose(said, expected) for said, expected, _ in cases],
    }
    return agreement([right for _, _, right in cases], [False] * len(cases), judges)


def blocks_table() -> str:
    """The table of blocks. No case is wrong: a judge agrees where it takes the solution."""
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


def _decimals(said: str, expected: str) -> bool:
    """``grade_stdio``: equal lines, or lines of equal decimals."""
    one, other = ([line.strip() for line in text.strip().split("\n")] for text in (said, expected))
    return len(one) == len(other) and all(
        a == b or ((numbers := _as_decimals(a)) is not None and numbers == _as_decimals(b))
        for a, b in zip(one, other, strict=True)
    )


def _as_decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def _allclose(said: str, expected: str) -> bool:
    """The first checker: equal lines, or lines that are a float each and near, unless all are integers."""
    one, other = ([line.strip() for line in text.strip().split("\n")] for text in (said, expected))
    if one == other or len(one) != len(other):
        return one == other
    if all(word.lstrip("+-").isdigit() for word in (*one, *other)):
        return False
    try:
        return bool(numpy.allclose([float(line) for line in one], [float(line) for line in other]))
    except ValueError:
        return False


def _last_block(text: str) -> str:
    """``extract_code``: the lines between the last two that hold a fence."""
    lines = text.split("\n")
    fences = [place for place, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""
