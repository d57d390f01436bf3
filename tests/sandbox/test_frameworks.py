"""The stand-in for pytest that tests get in the sandbox means what pytest means."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from selfdistill.sandbox.frameworks import Approx, pytest_module

INF, NAN = float("inf"), float("nan")
NUMBERS = [0, 0.0, 1, 1.0, -1.0, 1 + 5e-7, 1 + 2e-6, 1.05, 1e-13, 5e-12, 1e6, 1e6 + 0.5, INF, -INF, NAN, 1j, 1 + 1e-7j]
CONTAINERS: list[Any] = [[1.0, 2.0], [1.0, 2.0 + 1e-7], [1.0], (1.0, 2.0), {"a": 1.0}, {"a": 1.0 + 1e-7}, {"b": 1.0}]
BOUNDS: list[dict[str, Any]] = [
    {},
    {"rel": 0.1},
    {"abs": 1e-3},
    {"abs": 0.0},
    {"rel": 0.0},
    {"rel": 1e-9, "abs": 0.1},
    {"nan_ok": True},
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_numbers_are_near_where_pytest_says_so(bounds: dict[str, Any]) -> None:
    pairs = [*product(NUMBERS, NUMBERS), *product(CONTAINERS, CONTAINERS)]
    told = [(expected, actual, Approx(expected, **bounds) == actual) for expected, actual in pairs]

    assert len(told) > 300
    wrong = [one for one in told if one[2] is not bool(pytest.approx(one[0], **bounds) == one[1])]
    assert not wrong


def test_a_skipped_test_and_a_skipped_row_of_a_table_stay_skipped() -> None:
    module: Any = pytest_module(tally=None)

    def test(x: int) -> None: ...

    rows = [module.param(1), module.param(2, marks=module.mark.skip), module.param(3, marks=[module.mark.skipif(True)])]
    rows += [module.param(4, marks=(module.mark.skipif(False, reason="never"), module.mark.slow))]
    marked = module.mark.slow(module.mark.parametrize("x", rows)(module.mark.skip(reason="later")(test)))

    assert marked is test and vars(test)["__unittest_skip__"] is True
    assert vars(test)["_pytest_cases"] == [[{"x": 1}, {"x": 4}]]


@pytest.mark.parametrize("name", ["skipif", "xfail"])
def test_a_condition_decides_wherever_it_stands_and_xfail_needs_none(name: str) -> None:
    mark = getattr(pytest_module(tally=None).mark, name)

    def skipped(decorate: Any) -> bool:
        def test() -> None: ...

        return bool(vars(decorate(test))["__unittest_skip__"])

    assert skipped(mark(True)) and skipped(mark(condition=True, reason="why")) and skipped(mark(False, True))
    assert not skipped(mark(False, reason="why")) and not skipped(mark(condition=False))
    assert skipped(mark(reason="why")) is skipped(mark) is (name == "xfail")
