"""The gate's trace on series written by hand, also when it is stopped and taken up again."""

from __future__ import annotations

import json
import math

import pytest

from selfdistill.methods.entropy_gate import EntropyGate

# Warm-up 0.9, 1.1, 1.0 gives H_warm = 1.0; ratio 0.9 closes below 0.9.
TRACE = [
    (0.9, False),
    (1.1, False),
    (1.0, False),
    (0.95, True),  # warm-up over: open, though below H_warm
    (0.9, True),  # at the threshold, not below it
    (0.89, False),
    (0.95, False),  # above the closing threshold is not enough to open again
    (0.999, False),
    (1.0, True),  # at H_warm it is
    (0.91, True),
    (0.5, False),
    (2.0, True),
]


def _resumed(gate: EntropyGate) -> EntropyGate:
    fresh = EntropyGate(warmup=3, ratio=0.9)
    fresh.load_state_dict(json.loads(json.dumps(gate.state_dict(), allow_nan=False)))
    return fresh


def test_the_trace() -> None:
    gate = EntropyGate(warmup=3, ratio=0.9)
    assert gate.open is False
    for entropy, expected in TRACE:
        assert gate.update(entropy) is expected
        assert gate.open is expected


@pytest.mark.parametrize("stop", range(len(TRACE) + 1))
def test_the_trace_when_resumed_from_a_checkpoint(stop: int) -> None:
    gate = EntropyGate(warmup=3, ratio=0.9)
    answers = [gate.update(entropy) for entropy, _ in TRACE[:stop]]
    again = _resumed(gate)
    assert again.state_dict() == gate.state_dict()
    assert (again.open, again.warm_entropy) == (gate.open, gate.warm_entropy)
    answers += [again.update(entropy) for entropy, _ in TRACE[stop:]]
    assert answers == [expected for _, expected in TRACE]


def test_the_first_update_after_the_warm_up_may_close_it_at_once() -> None:
    gate = EntropyGate(warmup=2, ratio=0.9)
    assert [gate.update(entropy) for entropy in (1.0, 1.0, 0.5, 0.95, 1.0)] == [False, False, False, False, True]


def test_a_saved_state_does_not_move_with_the_gate() -> None:
    gate = EntropyGate(warmup=3, ratio=0.9)
    gate.update(0.9)
    saved = gate.state_dict()
    gate.update(1.1)
    assert saved["recorded"] == [0.9]


@pytest.mark.parametrize(("recorded", "median"), [([3.0], 3.0), ([1.0, 2.0], 1.5), ([5.0, 1.0, 2.0], 2.0)])
def test_the_warm_entropy_is_the_median_of_the_warm_up(recorded: list[float], median: float) -> None:
    gate = EntropyGate(warmup=len(recorded), ratio=0.9)
    for entropy in recorded:
        assert gate.warm_entropy is None
        gate.update(entropy)
    assert gate.warm_entropy == median


def test_the_published_settings() -> None:
    gate = EntropyGate(warmup=5, ratio=0.93)
    series = [0.31, 0.29, 0.3, 0.28, 0.32, 0.3, 0.28, 0.2789, 0.2791, 0.2999, 0.3]
    # H_warm = 0.3, the gate closes below 0.279.
    assert [gate.update(entropy) for entropy in series] == [False] * 5 + [True, True, False, False, False, True]


@pytest.mark.parametrize(("warmup", "ratio"), [(0, 0.9), (-1, 0.9), (3, 0.0), (3, 1.1), (3, math.nan)])
def test_impossible_settings_are_errors(warmup: int, ratio: float) -> None:
    with pytest.raises(ValueError, match="must"):
        EntropyGate(warmup=warmup, ratio=ratio)


@pytest.mark.parametrize("entropy", [math.nan, math.inf])
def test_an_entropy_that_is_missing_is_an_error_and_changes_nothing(entropy: float) -> None:
    gate = EntropyGate(warmup=3, ratio=0.9)
    gate.update(1.0)
    before = gate.state_dict()
    with pytest.raises(ValueError, match="finite"):
        gate.update(entropy)
    assert gate.state_dict() == before


def test_a_state_of_another_gate_is_an_error() -> None:
    state = EntropyGate(warmup=3, ratio=0.9).state_dict()
    with pytest.raises(ValueError, match=r"warmup 3 and ratio 0\.9"):
        EntropyGate(warmup=4, ratio=0.9).load_state_dict(state)
    with pytest.raises(ValueError, match="needs the keys"):
        EntropyGate(warmup=3, ratio=0.9).load_state_dict({"open": True})
