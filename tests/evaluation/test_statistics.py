"""avg@k, pass@k, maj@k and their intervals against numbers worked out by hand or by counting every case."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest

from selfdistill.evaluation.statistics import (
    average,
    average_per_problem,
    bootstrap,
    majority,
    majority_per_problem,
    paired_difference,
    pass_at,
    pass_curve,
    pass_per_problem,
)

FOUR = [[True, False, False, False], [True, True, False, False], [False] * 4, [True] * 4]


def test_the_average_is_the_mean_of_the_problems() -> None:
    assert average_per_problem(FOUR).tolist() == [0.25, 0.5, 0.0, 1.0]
    estimate = average(FOUR, seed=0)
    assert (estimate.value, estimate.k, estimate.n) == (0.4375, 4, 4)
    assert average([[0.5, 0.25]], seed=0).value == 0.375


def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_sample() -> None:
    for k in (1, 2, 3, 4):
        counted = [np.mean([any(draw) for draw in itertools.combinations(samples, k)]) for samples in FOUR]
        assert pass_per_problem(FOUR, k) == pytest.approx(counted, abs=1e-15)
    # One of four correct: 1 − C(3,2)/C(4,2) = 1/2. Two of four: 1 − C(2,2)/C(4,2) = 5/6.
    assert pass_at(FOUR, 2, seed=0).value == pytest.approx((1 / 2 + 5 / 6 + 0 + 1) / 4, abs=1e-15)
    assert pass_at(FOUR, 1, seed=0).value == pytest.approx(average(FOUR, seed=0).value, abs=1e-15)


def test_pass_at_k_holds_where_binomials_overflow_and_where_problems_differ_in_samples() -> None:
    samples = [[i < 3 for i in range(4000)], [True, False] * 300]
    # The binomials themselves, as exact whole numbers.
    expected = [1 - math.comb(3997, 512) / math.comb(4000, 512), 1 - math.comb(300, 512) / math.comb(600, 512)]
    assert pass_per_problem(samples, 512) == pytest.approx(expected, abs=1e-12)


def test_the_curve_is_pass_at_k_for_powers_of_two_and_all_samples() -> None:
    rows = [[True, False, False, False, False, False], [True] * 3 + [False] * 3, [False] * 6]
    curve = pass_curve(rows, seed=0)
    assert [estimate.k for estimate in curve] == [1, 2, 4, 6]
    # 1 − C(n−c, k) / C(n, k) by hand: c = 1, 3 and 0 of six.
    assert [estimate.value for estimate in curve] == pytest.approx(
        [(1 / 6 + 1 / 2) / 3, (1 / 3 + 4 / 5) / 3, (2 / 3 + 1) / 3, 2 / 3]
    )
    assert curve[2] == pass_at(rows, 4, seed=0)
    assert [estimate.k for estimate in pass_curve([[True]], seed=0)] == [1]
    assert [estimate.k for estimate in pass_curve([[True] * 8], seed=0)] == [1, 2, 4, 8]
    with pytest.raises(ValueError, match="same number of samples"):
        pass_curve([[True], [True, False]], seed=0)


def test_a_curve_has_the_intervals_of_its_points() -> None:
    for settings in ({"seed": 3}, {"seed": 3, "confidence": 0.5, "resamples": 17}):
        assert pass_curve(FOUR, **settings) == [pass_at(FOUR, k, **settings) for k in (1, 2, 4)]


def test_the_majority_votes_without_those_who_have_no_answer() -> None:
    answers: list[list[str | None]] = [["7", "7", "3", None], ["1", "2", "2", "2"], [None, None, None, "5"], [None] * 4]
    correct = [[True, True, False, False], [True, False, False, False], [False, False, False, True], [False] * 4]
    assert majority_per_problem(answers, correct).tolist() == [1.0, 0.0, 1.0, 0.0]
    estimate = majority(answers, correct, seed=0)
    assert (estimate.value, estimate.k, estimate.n) == (0.5, 4, 4)


def test_answers_that_tie_share_the_problem_in_whatever_order_they_came() -> None:
    answers, correct = ["7", "3", "7", "3", "1"], [True, False, True, False, False]
    for order in itertools.permutations(range(5)):
        votes, judged = [answers[i] for i in order], [correct[i] for i in order]
        assert majority_per_problem([votes], [judged]).tolist() == [0.5]
    assert majority_per_problem([["1", "2", "3"]], [[True, False, False]]) == pytest.approx([1 / 3])


def test_the_interval_is_the_percentile_of_all_resamples() -> None:
    # Of two problems worth 0 and 1, a resample's mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    wide = bootstrap([0.0, 1.0], k=1, seed=3, confidence=0.95, resamples=4000)
    assert (wide.value, wide.low, wide.high) == (0.5, 0.0, 1.0)
    narrow = bootstrap([0.0, 1.0], k=1, seed=3, confidence=0.4, resamples=4000)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_the_interval_of_many_problems_is_that_of_the_normal_law() -> None:
    values = [0.0, 1.0] * 200
    estimate = bootstrap(values, k=1, seed=0, confidence=0.95, resamples=10_000)
    half_width = 1.96 * 0.5 / math.sqrt(400)  # 0.049
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.004)


def test_a_seed_draws_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).random(37)
    first = bootstrap(values, k=1, seed=1, confidence=0.9, resamples=500)
    assert bootstrap(values, k=1, seed=1, confidence=0.9, resamples=500) == first
    assert bootstrap(values, k=1, seed=2, confidence=0.9, resamples=500) != first


def test_a_paired_difference_sees_what_separate_intervals_do_not() -> None:
    before = np.random.default_rng(0).random(60)
    gain = paired_difference(before, before + 0.125, k=8, seed=0)
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.125, 0.125, 0.125), abs=1e-12)
    assert (gain.k, gain.n) == (8, 60)
    apart = [bootstrap(before + shift, k=8, seed=0, confidence=0.95, resamples=2000) for shift in (0.0, 0.125)]
    assert apart[0].high > apart[1].low
    # One problem lost, one gained: the pairs differ by −1 and +1, whatever the sorted values do.
    crossed = paired_difference([1.0, 0.0], [0.0, 1.0], k=1, seed=0)
    assert (crossed.value, crossed.low, crossed.high) == (0.0, -1.0, 1.0)


def test_every_measure_is_the_bootstrap_of_its_problems() -> None:
    """At the defaults (95 %, 10,000 resamples) and off them, with the seed that was given."""
    generator = np.random.default_rng(1)
    correct = [[bool(hit) for hit in row] for row in generator.random((12, 4)) < 0.5]
    answers: list[list[str | None]] = [[str(int(x)) for x in row] for row in generator.integers(3, size=(12, 4))]
    judged = [[answer == "1" for answer in row] for row in answers]
    per_problem = average_per_problem(correct)
    later = per_problem[::-1]
    settings: tuple[dict[str, Any], ...] = ({}, {"confidence": 0.5, "resamples": 77})
    for asked in settings:
        spelt: dict[str, Any] = {"confidence": 0.95, "resamples": 10_000, **asked}
        for seed in (5, 6):
            assert average(correct, seed=seed, **asked) == bootstrap(per_problem, k=4, seed=seed, **spelt)
            passed = bootstrap(pass_per_problem(correct, 2), k=2, seed=seed, **spelt)
            assert pass_at(correct, 2, seed=seed, **asked) == passed
            voted = bootstrap(majority_per_problem(answers, judged), k=4, seed=seed, **spelt)
            assert majority(answers, judged, seed=seed, **asked) == voted
            paired = bootstrap(later - per_problem, k=9, seed=seed, **spelt)
            assert paired_difference(per_problem, later, k=9, seed=seed, **asked) == paired


@pytest.mark.parametrize("measure", [average, pass_at, pass_curve, majority, paired_difference, bootstrap])
def test_intervals_are_95_per_cent_of_ten_thousand_resamples_unless_asked(measure: Any) -> None:
    defaults = inspect.signature(measure).parameters
    assert (defaults["confidence"].default, defaults["resamples"].default) == (0.95, 10_000)


def test_truth_values_count_as_numbers() -> None:
    assert paired_difference([True, False], [False, False], k=1, seed=0).value == -0.5


def test_the_resamples_are_those_of_one_draw_however_they_are_cut() -> None:
    """2,500 problems are drawn 400 times at once; 1,000 resamples are then two whole parts and a half one."""
    values = np.random.default_rng(0).random(2500)
    means = values[np.random.default_rng(4).integers(2500, size=(1000, 2500))].mean(axis=1)
    low, high = np.quantile(means, [0.1, 0.9])
    estimate = bootstrap(values, k=1, seed=4, confidence=0.8, resamples=1000)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-15)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 1.5])
def test_a_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"between 0 and 1, got {confidence}"):
        bootstrap([1.0, 2.0], k=1, seed=0, confidence=confidence, resamples=10)


def test_an_estimate_becomes_plain_json() -> None:
    estimate = average([[1.0, 1.0]], seed=0)
    assert estimate.as_dict() == {"value": 1.0, "low": 1.0, "high": 1.0, "k": 2, "n": 1}


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ValueError, match="no problems to average over"):
        average([], seed=0)
    with pytest.raises(ValueError, match=r"same number of samples, at least one; got \[1, 2\]"):
        average([[1.0], [1.0, 0.0]], seed=0)
    with pytest.raises(ValueError, match=r"got \[0\]"):
        average_per_problem([[], []])
    with pytest.raises(ValueError, match="which is 0 for some problem"):
        pass_per_problem([], 1)
    with pytest.raises(ValueError, match="which is 2 for some problem"):
        pass_per_problem([[True, False], [True, False, False]], 3)
    with pytest.raises(ValueError, match="got 1 before and 2 after"):
        paired_difference([0.0], [0.0, 1.0], k=1, seed=0)
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap([], k=1, seed=0, confidence=0.95, resamples=10)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        bootstrap([1.0], k=1, seed=0, confidence=95, resamples=10)
