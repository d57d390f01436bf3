"""The tuning of experiments/run.py, with comparisons that are made up."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "experiments" / "run.py"


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], list[list[str]]]]:
    """Tune two methods, whose arms have the accuracies that a function gives them.

    Returns what was chosen and the arms of each comparison.
    """
    spec = importlib.util.spec_from_file_location("experiments_run", SOURCE)
    assert spec is not None and spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    grids = {"grpo": run.rates(1e-4, 2e-4, 4e-4), "sd": [*run.strengths(2e-4, 0.05, 0.1), *run.strengths(4e-4, 0.05)]}
    monkeypatch.setattr(run, "ARMS", {"countdown": tuple(grids)})
    monkeypatch.setattr(run, "GRIDS", grids)
    monkeypatch.setattr(run, "RESULTS", tmp_path)

    def tune(accuracy: Callable[[str], float]) -> tuple[dict[str, Any], list[list[str]]]:
        compared: list[list[str]] = []

        def compare(task: str, stage: str, arms: list[Path], out: Path, jobs: int) -> dict[str, Any]:
            assert (task, stage) == ("countdown", "tune") and all(path.is_file() for path in arms)
            compared.append([path.stem for path in arms])
            return {
                "arms": [
                    {
                        "name": path.stem,
                        "method": {"name": path.stem.partition("-")[0]},
                        "optimiser": {"learning_rate": float(path.stem.split("-", 1)[1].partition("-0.")[0])},
                        "accuracy": {"final": {"value": accuracy(path.stem)}},
                    }
                    for path in arms
                ]
            }

        monkeypatch.setattr(run, "compare", compare)
        run.tune("countdown", tmp_path / "out", 1)
        return json.loads((tmp_path / "countdown-chosen.json").read_text(encoding="utf-8")), compared

    return tune


def test_only_a_grid_whose_best_rate_is_at_its_edge_is_widened(tuned: Any) -> None:
    chosen, compared = tuned(lambda name: {"grpo-0.0002": 0.5, "sd-0.0002-0.1": 0.4}.get(name, 0.1))
    # The best sd has the smallest rate, so half of it is tried once, with its strength.
    assert len(compared) == 2
    assert compared[1] == [*compared[0], "sd-0.0001-0.1"]
    assert chosen["grpo"] == {
        "learning_rate": 2e-4,
        "hyperparameters": {},
        "accuracy": 0.5,
        "arm": "grpo-0.0002",
        "candidates": 3,
    }
    assert chosen["sd"] == {
        "learning_rate": 2e-4,
        "hyperparameters": {"strength": 0.1},
        "accuracy": 0.4,
        "arm": "sd-0.0002-0.1",
        "candidates": 4,
    }


def test_a_grid_is_widened_twice_at_most_and_its_edge_is_named(tuned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracy of grpo rises with its rate. The best sd has the largest rate until it is widened."""
    chosen, compared = tuned(
        lambda name: float(name[5:]) if name.startswith("grpo") else float(name == "sd-0.0004-0.05")
    )
    assert [name for name in compared[2] if name.startswith("sd")][3:] == ["sd-0.0008-0.05"]
    assert [[name for name in arms if name.startswith("grpo")][3:] for arms in compared] == [
        [],
        ["grpo-0.0008"],
        ["grpo-0.0008", "grpo-0.0016"],
    ]
    assert (chosen["grpo"]["learning_rate"], chosen["grpo"]["candidates"]) == (1.6e-3, 5)
    assert (chosen["sd"]["arm"], chosen["sd"]["candidates"]) == ("sd-0.0004-0.05", 4)
    assert "The best grpo has the largest optimiser.learning_rate" in capsys.readouterr().err
