"""Runs on hostile completions, and the memory of a run on a large vocabulary: short forms of ``make fuzz``."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.bytewise import save_bytewise_model
from support.fuzzing import KINDS, fuzz, measure
from support.isolation import needs_isolation


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", [pytest.param(k, marks=needs_isolation if k == "code" else ()) for k in KINDS])
def test_no_completion_ends_a_run_or_is_lost(kind: str, bytewise: Path, tmp_path: Path) -> None:
    metrics = fuzz(kind, bytewise, tmp_path, steps=12, seed=22)
    assert 0 < sum(line["reward"] for line in metrics) < len(metrics), "some are right, some are not"


def test_memory_and_descriptors_stay_flat(tmp_path: Path) -> None:
    gauge = measure(tmp_path, steps=60)
    assert len({*gauge.descriptors[10:]}) == 1, gauge.descriptors
    # A copy of the weights, of their averages or of a step's logits kept each time would be 40 steps of 1.6 MB or more.
    assert gauge.resident[-1] < 1.06 * gauge.resident[19], gauge.resident
