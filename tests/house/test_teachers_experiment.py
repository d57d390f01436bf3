"""The derivatives of experiments/teachers.py, on the shipped base model in double precision."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PROBLEMS = 6
STEP = 1e-3
"""Norms and rotations of the model are computed in single precision, so a smaller step measures its rounding."""


@pytest.fixture(scope="module")
def teachers() -> Any:
    """experiments/teachers.py as a module, with few problems."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        module: Any = __import__("teachers")
    finally:
        sys.path.remove(str(EXPERIMENTS))
    module.PROBLEMS = PROBLEMS
    return module


@pytest.fixture(scope="module")
def measured(teachers: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The untrained student with its own teacher."""
    path = tmp_path_factory.mktemp("teachers") / "self.toml"
    method = {"name": "pbsd", "context": "solution"}
    measurement = teachers.Measurement(teachers.write_config(path, 1, 2, 1e-4, method, 1))
    measurement.policy.model.double()
    return measurement


@torch.no_grad()
def moved(measurement: Any, direction: Sequence[Tensor], step: float) -> None:
    """Move all weights along a direction."""
    for weight, part in zip(measurement.weights, direction, strict=True):
        weight += step * part


def between(measurement: Any, direction: Sequence[Tensor], value: Any) -> Any:
    """The central difference of a function of the weights along a direction."""
    moved(measurement, direction, STEP)
    after = value()
    moved(measurement, direction, -2 * STEP)
    before = value()
    moved(measurement, direction, STEP)
    return [(a - b) / (2 * STEP) for a, b in zip(after, before, strict=True)]


@pytest.mark.long
def test_the_curvature_is_the_difference_of_gradients(teachers: Any, measured: Any) -> None:
    gradient = measured.gradient()
    direction = [part / teachers.norm(gradient) for part in gradient]

    def loss() -> list[float]:
        return [sum(float(part().detach()) for part in measured.losses())]

    # The first pair of each problem of the first half, y⁺ of the teacher: m = β (Δ(y⁺) − Δ(y⁻)), Δ = log S − log T.
    firsts = [(measured.of("teacher", group)[0], measured.of("student", group)[0]) for group in range(PROBLEMS // 2)]
    deltas = [[measured.student[i] - measured.teacher[i] for i in pair] for pair in firsts]
    by_hand = sum(math.log1p(math.exp(-measured.beta * (plus - minus))) for plus, minus in deltas) / len(deltas)
    assert loss() == pytest.approx([by_hand], rel=1e-4)
    assert between(measured, direction, loss)[0] == pytest.approx(teachers.norm(gradient), rel=2e-3)
    product = measured.curvature_times(direction)
    numeric = between(measured, direction, measured.gradient)
    wrong = [a - b for a, b in zip(product, numeric, strict=True)]
    assert teachers.norm(wrong) < 1e-2 * teachers.norm(product)


def test_the_rate_is_the_slope_of_the_reward_down_the_gradient(teachers: Any, measured: Any) -> None:
    gradient = measured.gradient()
    size = teachers.norm(gradient)
    direction = [part / size for part in gradient]
    rates = measured.rates(gradient)
    assert len(rates) == PROBLEMS // 2
    for group, rate in zip(range(PROBLEMS // 2, PROBLEMS), rates, strict=True):
        indices = measured.of("student", group)
        rewards = [float(measured.views[i].correct) for i in indices]
        slopes = between(measured, direction, lambda some=indices: measured.logprobs(some).tolist())
        mean, count = sum(rewards) / len(rewards), len(rewards)
        # The baseline of a completion is the mean of the others.
        by_hand = sum((r - (mean * count - r) / (count - 1)) * s for r, s in zip(rewards, slopes, strict=True)) / count
        assert rate == pytest.approx(-by_hand * size, rel=1e-2, abs=1e-6)
    assert any(rates)


def test_the_extreme_eigenvalues_of_a_known_matrix(teachers: Any) -> None:
    values = torch.tensor([-3.0, -1.0, 0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 12.0, 20.0], dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    matrix = basis @ torch.diag(values) @ basis.T

    class Known(teachers.Measurement):  # type: ignore[misc]
        def __init__(self) -> None:
            self.weights = [torch.zeros(4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)]

        def curvature_times(self, vector: list[Tensor]) -> list[Tensor]:
            product = matrix @ torch.cat([part.flatten().double() for part in vector])
            return [product[:4], product[4:].view(2, 3)]

    found, residual = Known().eigenvalues()
    assert (found[0], found[-1]) == pytest.approx((-3.0, 20.0), abs=1e-4) and residual < 1e-3
