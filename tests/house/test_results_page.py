"""The tables of docs/results-2026-11-21.md are what the kept comparisons say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = runpy.run_path(str(ROOT / "experiments" / "tables.py"))


def test_every_table_of_the_results_is_written_from_the_kept_comparisons() -> None:
    page = (ROOT / "docs" / "results-2026-11-21.md").read_text(encoding="utf-8")
    assert TABLES["filled"](page) == page
    shown = set(re.findall(r"<!-- table ([\w-]+) -->", page))
    kept = {path.stem for path in (ROOT / "experiments" / "results" / "2026-11-21").glob("*.json")}
    assert {name for name in kept if name.endswith(("-final", "-tune", "-doses"))} == shown


def test_a_score_is_written_in_percent_and_a_difference_in_points() -> None:
    score = {"value": 0.0136719, "low": -0.0703125, "high": 0.103516}
    assert TABLES["share"](score) == "1.4 % [-7.0, 10.4]"
    assert TABLES["difference"](score) == "+1.4 [−7.0, +10.4]"
    assert TABLES["difference"](None) == ""
