"""The benchmark of episodes: ratios by hand, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import episodes
import tables

# Rounds in seconds: episodes are 2 and 4 times slower than single answers, and 1.5 and 2 times faster than the others.
ROUNDS = [
    {episodes.SINGLE: 1.0, episodes.KEPT: 2.0, episodes.AGAIN: 3.0},
    {episodes.SINGLE: 1.0, episodes.KEPT: 4.0, episodes.AGAIN: 8.0},
]
SAID = {
    episodes.SINGLE: {"rows": 8, "turns": 8, "own": 80, "all": 240},
    episodes.KEPT: {"rows": 8, "turns": 20, "own": 200, "all": 480},
    episodes.AGAIN: {"rows": 8, "turns": 20, "own": 200, "all": 480},
}


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    assert episodes.ratio(ROUNDS, episodes.KEPT, episodes.SINGLE) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert episodes.ratio(ROUNDS, episodes.KEPT, episodes.AGAIN) == pytest.approx((1.5 + 2) / 2)


def test_the_table_has_rates_and_what_was_said(tmp_path: Path) -> None:
    ratios = {way: episodes.ratio(ROUNDS, episodes.KEPT, way) for way in (episodes.SINGLE, episodes.AGAIN)}
    found = {
        "date": "2026-01-02",
        "machine": {"system": "Linux", "architecture": "x86_64", "cpus": 2},
        "versions": {"selfdistill": "0.1.0", "torch": "2.13.0"},
        "threads": 2,
        "problems": 2,
        "completions": 4,
        "rounds": 2,
        "tasks": {"toolbox": {"seconds": ROUNDS, "said": SAID, "ratios": ratios}},
    }
    (tmp_path / "episodes.json").write_text(json.dumps(found), encoding="utf-8")
    told = tables.filled("<!-- table: episodes -->\n<!-- end -->\n", tmp_path)
    assert "2 × 4 rows at once, the median of 2 rounds." in told
    assert "| toolbox | single answers | 1.00 | 10 | 8.0 | 0.38 |" in told
    assert "| toolbox | episodes | 2.50 | 25 | 2.7 |  |" in told
    assert "| toolbox | episodes, read again every turn | 2.50 | 25 | 1.5 | 1.75 |" in told


def test_both_ways_play_the_same_episodes(tmp_path: Path) -> None:
    out = tmp_path / "episodes.json"
    episodes.main(
        [
            "--tasks",
            "toolbox",
            "--problems",
            "1",
            "--completions",
            "2",
            "--rounds",
            "1",
            "--threads",
            "1",
            "--out",
            str(out),
        ]
    )
    [task] = json.loads(out.read_text(encoding="utf-8"))["tasks"].values()
    assert task["said"][episodes.KEPT] == task["said"][episodes.AGAIN]
    assert task["said"][episodes.KEPT]["turns"] > task["said"][episodes.SINGLE]["turns"] == 2
    assert len(task["seconds"]) == 1
