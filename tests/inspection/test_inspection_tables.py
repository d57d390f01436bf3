"""The microscope's tables on arrays small enough to be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfdistill.inspection import tables

NAN = math.nan


def test_a_missing_number_is_in_neither_numerator_nor_denominator() -> None:
    assert tables.describe(np.array([1.0, NAN, -3.0, 5.0])) == {"tokens": 3, "mean": 1.0, "sum": 3.0, "positive": 2 / 3}
    assert tables.describe(np.array([NAN])) == {"tokens": 0, "mean": None, "sum": 0.0, "positive": None}


def test_shares_are_of_the_absolute_sum() -> None:
    rows = tables.by_label(np.array([1.0, -3.0, 4.0, NAN]), np.array(["a", "a", "b", "b"]), ["a", "b", "c"])
    assert [(row["name"], row["tokens"], row["mean"], row["share"]) for row in rows] == [
        ("a", 2, -1.0, 0.5),
        ("b", 1, 4.0, 0.5),
        ("c", 0, None, 0.0),
    ]


def test_deciles_begin_anew_with_every_completion() -> None:
    assert tables.deciles([2, 5, 1]).tolist() == [0, 5, 0, 2, 4, 6, 8, 0]


def test_equal_entropies_stay_together() -> None:
    part_N, names = tables.entropy_parts(np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0]), 3)
    assert part_N.tolist() == [0, 0, 0, 0, 2, 2]
    assert names == ["0–0", "0–0.33", "0.33–2"]


def test_signs_and_tails() -> None:
    values = np.array([-2.0, *[0.0] * 100, *[1.0] * 98, 100.0, NAN])
    found = tables.balance(values)
    assert found["tokens"] == 200
    assert (found["positive"], found["negative"], found["zero"]) == (99 / 200, 1 / 200, 100 / 200)
    assert (found["positive_sum"], found["negative_sum"], found["largest"]) == (198.0, -2.0, 100.0)
    # Of 200 tokens the largest 1 % are two: 100 and 2, of a sum of 200.
    assert found["top_share"] == 102 / 200
    assert found["quantiles"]["0.5"] == 0.0
    assert found["absolute_quantiles"]["0.5"] == 0.5
    assert tables.balance(np.array([NAN])) == {"tokens": 0}


def test_correlation_by_hand() -> None:
    left, right = np.array([1.0, 2.0, 3.0, NAN]), np.array([1.0, 3.0, 2.0, 9.0])
    assert tables.correlation(left, right) == {"tokens": 3, "r": pytest.approx(0.5)}
    assert tables.correlation(left, np.ones(4)) == {"tokens": 3, "r": None}


def test_the_answer_explains_what_it_correlates_with() -> None:
    u = {
        "solution": np.array([1.0, 2.0, 3.0]),
        "answer_only": np.array([1.0, 3.0, 2.0]),
        "far": np.array([2.0, 6.0, 4]),
    }
    rows = {row["context"]: row["r2"] for row in tables.answer_leak(u, "answer_only")}
    assert rows == {"solution": pytest.approx(0.25), "far": pytest.approx(1.0)}
    pairs = [(row["left"], row["right"]) for row in tables.agreement(u)]
    assert pairs == [("solution", "answer_only"), ("solution", "far"), ("answer_only", "far")]


def test_a_total_needs_every_token() -> None:
    totals = tables.totals(np.array([1.0, 2.0, NAN, 4.0]), [2, 2])
    assert totals[0] == 3.0
    assert math.isnan(totals[1])


def test_auc_counts_won_pairs() -> None:
    # Right: 3, 1 of problem 0 and 2 of problem 1. Wrong: 1 of problem 0 and 0, 5 of problem 1; one is not known.
    totals = np.array([3.0, 1.0, 1.0, 2.0, 0.0, 5.0, NAN])
    correct = np.array([True, True, False, True, False, False, True])
    found = tables.separation(totals, correct, np.array([0, 0, 0, 1, 1, 1, 1]))
    assert (found["correct"], found["wrong"], found["problems"]) == (3, 3, 2)
    # 3 beats 1 and 0; 1 ties with 1 and beats 0; 2 beats 1 and 0: 5.5 of 9.
    assert found["auc"]["value"] == pytest.approx(5.5 / 9)
    # Within problem 0: 3 beats 1, 1 ties; within problem 1: 2 beats 0 alone. 2.5 of 4.
    assert found["within"]["value"] == pytest.approx(2.5 / 4)
    assert (found["auc"]["pairs"], found["within"]["pairs"]) == (9, 4)
    assert found["within"]["low"] == pytest.approx(0.5)
    assert found["within"]["high"] == pytest.approx(0.75)
    assert 0 <= found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"] <= 1


def test_without_both_kinds_there_is_nothing_to_separate() -> None:
    found = tables.separation(np.array([1.0, 2.0]), np.array([True, True]), np.array([0, 1]))
    assert found["auc"] is None
    assert found["within"] is None
    one = tables.separation(np.array([1.0, 2.0]), np.array([True, False]), np.array([0, 0]))
    assert one["auc"] == {"value": 0.0, "low": None, "high": None, "pairs": 1}
