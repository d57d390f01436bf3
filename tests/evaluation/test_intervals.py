"""Intervals over seeds: against tables and numbers by hand, and how often they cover the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from selfdistill.evaluation.intervals import over_seeds, t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 4, 2.77645),
        (0.975, 7, 2.36462),
        (0.95, 2, 2.91999),
        (0.999, 2, 22.3271),
        (0.995, 63, 2.65615),
        (0.975, 2.5, 3.57469),
        (0.975, 1e6, 1.95996),
        (0.5, 3, 0.0),
        # With one degree of freedom the quantile is tan(π (p − 1/2)).
        (0.50001, 1, math.tan(1e-5 * math.pi)),
    ],
)
def test_the_quantiles_of_t_are_those_of_the_tables(probability: float, freedom: float, value: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(value, rel=2e-5)


def test_an_interval_is_that_of_the_means_of_the_seeds() -> None:
    found = over_seeds([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], k=4)
    # Means 1/2, 1 and 0: standard deviation 1/2, error 1/(2 √3).
    assert (found.value, found.sd, found.freedom, found.n, found.k) == (0.5, 0.5, 2, 6, 4)
    assert found.error == pytest.approx(0.5 / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx(
        (0.5 - 4.30265 * found.error, 0.5 + 4.30265 * found.error), rel=1e-4
    )
    numbers = {"value": 0.5, "low": found.low, "high": found.high, "sd": 0.5, "error": found.error, "freedom": 2}
    assert found.as_dict() == {**numbers, "family": 1, "k": 4, "n": 6}
    inside = over_seeds([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], k=4, bounds=(0.0, 1.0))
    assert (inside.low, inside.high) == (0.0, 1.0)


def test_seeds_that_agree_by_chance_are_no_more_certain_than_their_problems() -> None:
    # Two seeds with the mean 1/2, of problems that vary by 1/√3: a mean of four has the error 1/√12.
    found = over_seeds([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]], k=1)
    assert found.sd == 0.0
    assert found.freedom == 6
    assert found.error == pytest.approx(math.sqrt(1 / 12 / 2))
    # Two problems of a seed are enough for an error: 1/2 each, and √(1/8) of the mean of two.
    found = over_seeds([[0.0, 1.0], [1.0, 0.0]], k=1)
    assert (found.error, found.freedom) == pytest.approx((math.sqrt(1 / 8), 2.0))


def test_the_wider_interval_counts_and_not_the_larger_error() -> None:
    # Means 0.3 and 0.5: error 0.1, times t of one degree of freedom. The problems' error is 0.1225, with four.
    found = over_seeds([[0.0, 0.3, 0.6], [0.2, 0.5, 0.8]], k=1)
    assert (found.error, found.freedom) == pytest.approx((0.1, 1.0))


def test_runs_weigh_the_same_however_many_problems_they_have() -> None:
    found = over_seeds([[1.0, 1.0, 1.0, 1.0], [0.0]], k=1)
    assert found.value == 0.5
    assert found.sd == pytest.approx(math.sqrt(0.5))


def test_of_one_run_the_problems_are_drawn() -> None:
    found = over_seeds([[0.0, 1.0, 1.0, 0.0]], k=1)
    assert (found.sd, found.freedom) == (None, 3)
    assert found.error == pytest.approx(math.sqrt(1 / 12))
    found = over_seeds([[0.0, 1.0]], k=1)
    assert (found.error, found.freedom) == (0.5, 1.0)


def test_the_two_way_table_by_hand() -> None:
    # Mean squares: runs 1.5, problems 3.5, residual 0.5, with 1, 2 and 2 degrees of freedom. Their sum is 4.5.
    found = over_seeds([[0.0, 1.0, 2.0], [1.0, 1.0, 4.0]], k=1, shared=True)
    assert found.error == pytest.approx(math.sqrt(4.5 / 6))
    assert found.freedom == pytest.approx(4.5**2 / (1.5**2 / 1 + 3.5**2 / 2 + 0.5**2 / 2))
    # Two problems: 4, 4 and 1, one degree each.
    found = over_seeds([[0.0, 1.0], [1.0, 4.0]], k=1, shared=True)
    assert (found.error, found.freedom) == pytest.approx((math.sqrt(7 / 4), 49 / 33))
    # Problems that vary less than the residual leave the runs' 13.5, with one degree of freedom.
    found = over_seeds([[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]], k=1, shared=True)
    assert (found.error, found.freedom) == pytest.approx((1.5, 1.0))
    # One shared problem shows nothing of others.
    single = [[1.0], [2.0], [4.0]]
    assert over_seeds(single, k=1, shared=True) == over_seeds(single, k=1)


def test_rows_are_taken_in_double() -> None:
    rows = [np.array([0.1, 0.7, 0.3], dtype=np.float32), np.array([0.2, 0.4, 0.9], dtype=np.float32)]
    double = [row.astype(np.float64) for row in rows]
    # The interval of the means of seeds, that of the table of both, and that of one run's problems.
    assert over_seeds(rows, k=1) == over_seeds(double, k=1)  # type: ignore[arg-type]
    assert over_seeds(rows, k=1, shared=True) == over_seeds(double, k=1, shared=True)  # type: ignore[arg-type]
    assert over_seeds(rows[:1], k=1) == over_seeds(double[:1], k=1)  # type: ignore[arg-type]


def test_a_family_shares_the_error_among_its_intervals() -> None:
    rows = [[0.1, 0.3], [0.2, 0.2], [0.4, 0.2]]
    alone, five = over_seeds(rows, k=1, confidence=0.99), over_seeds(rows, k=1, family=5)
    assert (five.low, five.high) == pytest.approx((alone.low, alone.high))
    assert (five.family, alone.family) == (5, 1)


def test_equality_has_to_be_shown() -> None:
    # Means 0.01, 0 and −0.01: error 0.01/√3, and t at 95 % on one side is 2.92: 0.01686.
    rows = [[0.01, 0.01], [0.0, 0.0], [-0.01, -0.01]]
    assert over_seeds(rows, k=1).equal_within(0.0169)
    assert not over_seeds(rows, k=1).equal_within(0.0168)
    # In a family of two the level is 2.5 %: 4.303 · 0.00577 = 0.02484.
    assert over_seeds(rows, k=1, family=2).equal_within(0.0249)
    assert not over_seeds(rows, k=1, family=2).equal_within(0.0248)
    # A margin that is only just reached shows nothing.
    found = over_seeds(rows, k=1)
    assert not found.equal_within(abs(found.value) + found.error * t_quantile(0.95, found.freedom))
    # No difference is seen here either, and it is no equality.
    wide = over_seeds([[0.2], [0.0], [-0.2]], k=1)
    assert wide.low < 0 < wide.high
    assert not wide.equal_within(0.02)
    # Without any spread there is no error to estimate.
    assert not over_seeds([[0.0], [0.0]], k=1).equal_within(0.5)


def test_equality_is_claimed_of_things_apart_by_the_margin_in_one_case_of_twenty_at_most() -> None:
    generator = np.random.default_rng(5)
    trials = 0.02 + 0.01 * generator.normal(size=(2000, 5, 1))
    claimed = np.mean([over_seeds(list(trial), k=1).equal_within(0.02) for trial in trials])
    assert 0.0 < claimed <= 0.065


def bootstrapped_interval(values: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of 400 resamples of runs, and of the problems of each drawn run."""
    runs, problems = values.shape
    chosen = generator.integers(runs, size=(400, runs, 1))
    means = values[chosen, generator.integers(problems, size=(400, runs, problems))].mean((1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_few_seeds_cover_what_the_bootstrap_misses(seeds: int) -> None:
    # Accuracy of 32 problems drawn anew for each seed, four samples each; seeds vary by 10 points.
    generator = np.random.default_rng(seeds)
    trials, truth = 1000, 0.5
    covered = bootstrapped = 0
    for trial in range(trials):
        ability = truth + 0.1 * generator.normal(size=(seeds, 1)) + generator.uniform(-0.2, 0.2, size=(seeds, 32))
        hits = generator.binomial(4, ability.clip(0, 1)) / 4
        found = over_seeds(list(hits), k=4, bounds=(0.0, 1.0))
        covered += found.low <= truth <= found.high
        if trial < 200:
            low, high = bootstrapped_interval(hits, generator)
            bootstrapped += low <= truth <= high
    assert 0.93 <= covered / trials <= 0.975
    assert bootstrapped / 200 < 0.92


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.05])
def test_intervals_of_shared_problems_cover_other_problems_too(seeds: int, spread_of_seeds: float) -> None:
    # A paired difference on the same 48 problems in every seed; problems vary by 0.2, their samples by 0.2.
    generator = np.random.default_rng(seeds)
    trials, truth = 1000, 0.05
    covered = blind = 0
    for _ in range(trials):
        rows = (
            truth
            + spread_of_seeds * generator.normal(size=(seeds, 1))
            + 0.2 * generator.normal(size=(1, 48))
            + 0.2 * generator.normal(size=(seeds, 48))
        )
        found = over_seeds(list(rows), k=4, shared=True)
        covered += found.low <= truth <= found.high
        alone = over_seeds(list(rows), k=4)
        blind += alone.low <= truth <= alone.high
    assert 0.93 <= covered / trials <= 0.985
    assert blind < covered


def test_intervals_of_a_family_hold_together() -> None:
    generator = np.random.default_rng(9)
    trials, arms = 600, 5
    together = alone = 0
    for _ in range(trials):
        # Differences of five arms from one baseline, whose own noise they share.
        base = generator.normal(size=(3, 1))
        table = [generator.normal(size=(3, 1)) - base for _ in range(arms)]
        together += all(e.low <= 0 <= e.high for e in (over_seeds(list(rows), k=1, family=arms) for rows in table))
        alone += all(e.low <= 0 <= e.high for e in (over_seeds(list(rows), k=1) for rows in table))
    assert together / trials >= 0.93
    assert alone / trials < 0.9


def test_shared_problems_of_runs_that_agree_are_drawn_all_the_same() -> None:
    rows = [[0.0, 1.0, 1.0, 0.0]] * 3
    found = over_seeds(rows, k=1, shared=True)
    # Nothing varies between runs: the error is that of four problems.
    assert found.error == pytest.approx(math.sqrt(1 / 12))
    assert found.freedom == pytest.approx(3)
    # Of problems drawn anew for each of three seeds there would be twelve.
    alone = over_seeds(rows, k=1)
    assert alone.freedom == 9
    assert alone.error == pytest.approx(math.sqrt(1 / 12 / 3))


@pytest.mark.parametrize("rows", [[], [[]], [[1.0], []], [[1.0]], [[1.0, 2.0, 3.0], []], [[[1.0, 2.0], [3.0, 4.0]]]])
def test_too_little_for_an_interval_is_refused(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match="needs two numbers at least"):
        over_seeds(rows, k=1)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        over_seeds([[1.0, 2.0]], k=1, confidence=confidence)
