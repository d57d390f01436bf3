"""A best value at the edge of what was tried is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.grids import grid_edges
from selfdistill.comparison.tables import markdown
from support.arms import arm, given_terms, simple_run


def candidate(name: str, final: float, rate: float, method: str = "sd", **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "method": {"name": method, "gated": True, **settings},
        "optimiser": {"learning_rate": rate, "schedule": "constant"},
        "accuracy": {"final": {"value": final}},
    }


def test_a_best_within_its_grid_is_not_mentioned() -> None:
    assert grid_edges([candidate("a", 0.1, 1e-4), candidate("b", 0.3, 2e-4), candidate("c", 0.2, 4e-4)]) == []


def test_a_best_at_an_edge_is_named_with_what_was_tried() -> None:
    arms = [candidate("a", 0.1, 1e-4), candidate("b", 0.2, 2e-4), candidate("c", 0.3, 4e-4)]
    assert grid_edges(arms) == [
        "The best sd has the largest optimiser.learning_rate that was tried, 0.0004 of 0.0001, 0.0002, 0.0004: "
        "a better one may lie beyond, so widen the grid."
    ]


def test_every_setting_that_varies_is_looked_at_for_each_method_by_itself() -> None:
    arms = [
        candidate("a", 0.3, 2e-4, strength=0.05, divergence={"beta": 0.5}),
        candidate("b", 0.2, 2e-4, strength=0.1, divergence={"beta": 0.5}),
        candidate("c", 0.1, 1e-4, strength=0.5, divergence={"beta": 0.5}),
        candidate("d", 0.9, 1.0, method="grpo"),
        candidate("e", 0.8, 2.0, method="grpo"),
    ]
    found = grid_edges(arms)
    assert [sentence.split(" that was")[0] for sentence in found] == [
        "The best sd has the smallest method.strength",
        "The best sd has the largest optimiser.learning_rate",
    ]


def test_the_notes_of_a_comparison_say_so(tmp_path: Path) -> None:
    arms = [arm(name, simple_run(tmp_path / name, (1, 1), (n, n)), method="grpo") for n, name in enumerate("abc")]
    assert "may lie beyond" not in markdown(given_terms() | analyse(arms, baseline="a"), "x")
    for rate, one in zip((1e-4, 2e-4, 4e-4), arms, strict=True):
        one.optimiser["learning_rate"] = rate  # type: ignore[index]
    text = markdown(given_terms() | analyse(arms, baseline="a"), "x")
    assert "- The best grpo has the largest optimiser.learning\\_rate that was tried" in text
