"""The pages with measured tables say what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tables

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", tables.PAGES)
def test_a_committed_page_has_the_tables_of_the_committed_results(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    assert tables.filled(page) == page, "run benchmarks/tables.py"
    assert "<!-- table: " in page


def test_tables_are_made_of_the_results_and_nothing_else_is_touched(tmp_path: Path) -> None:
    terms = {"weights": {"measured_mib": 200.0, "computed_mib": 150.0}}
    origin = {
        "date": "2026-01-02",
        "machine": {"system": "Linux", "architecture": "x86_64", "cpus": 2},
        "versions": {"selfdistill": "0.1.0", "torch": "2.13.0", "trl": None},
        "threads": 1,
    }
    (tmp_path / "sizing.json").write_text(json.dumps({**origin, "terms": terms}), encoding="utf-8")
    page = "before\n<!-- table: sizing-check -->\nold\n<!-- end -->\nafter\n<!-- table: loss -->\n<!-- end -->\n"
    told = tables.filled(page, tmp_path)
    assert told.startswith("before\n") and "\nafter\n" in told and "old" not in told
    assert "| weights | 200 MiB | 150 MiB | 0.75 |" in told
    assert "Linux on x86_64, 2 cores, no GPU, 1 thread a process; torch 2.13.0." in told
    assert "Not measured yet." in told.split("after")[1]
    assert tables.filled(told, tmp_path) == told
