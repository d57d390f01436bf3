"""The benchmark of sampling: rates and ratios by hand, and its table. `make test-vllm` runs its three sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sampling
import tables

MEASURED = {"outcome": "measured", "versions": {"torch": "2.13.0"}}


def report(**seconds: float) -> dict[str, Any]:
    return {**MEASURED, "seconds": {rows.removeprefix("rows"): [taken] for rows, taken in seconds.items()}}


REPORTS: dict[str, list[dict[str, Any]]] = {
    # Ours draws 1 · 6 tokens in 2 s and later in 3 s, and 4 · 6 in 4 s each time.
    "ours": [report(rows1=2.0, rows4=4.0), report(rows1=3.0, rows4=4.0)],
    # In the first round twice as fast as ours with one row, in the second three times; half as fast with four.
    "generate": [report(rows1=1.0, rows4=8.0), report(rows1=1.0, rows4=8.0)],
    "vllm": [{"outcome": "not installed"}, {"outcome": "not installed"}],
}


def test_rates_are_of_all_rows_and_ratios_of_the_same_round() -> None:
    one, four = sampling.cases("tiny", REPORTS, tokens=6)
    assert one["tokens_a_second_by_round"] == {"ours": [3.0, 2.0], "generate": [6.0, 6.0]}
    assert one["tokens_a_second"] == {"ours": 2.5, "generate": 6.0}
    assert one["over"]["generate"] == pytest.approx((1 / 2 + 1 / 3) / 2) and one["behind"] == ["generate"]
    assert (four["rows"], four["tokens_a_second"]) == (4, {"ours": 6.0, "generate": 3.0})
    assert four["over"] == {"generate": 2.0} and four["behind"] == []


def test_the_table_has_a_line_for_each_model_and_number_of_rows(tmp_path: Path) -> None:
    options = sampling.parse(["--models", "tiny", "--rows", "1", "4", "--tokens", "6", "--rounds", "2"])
    result = sampling.result_of(options, {"tiny": REPORTS})
    (tmp_path / "sampling.json").write_text(json.dumps(result), encoding="utf-8")
    told = tables.table("sampling", tmp_path)
    assert "| tiny | 1 | 2 | 6 | – | 0.42 | – | `generate` |" in told
    assert "| tiny | 4 | 6 | 3 | – | 2.00 | – | – |" in told
    assert "ours: torch 2.13.0; `generate`: torch 2.13.0; vLLM: not installed." in told
    assert sampling.table(result).endswith("ours measured, generate measured, vllm not installed")


def test_rows_that_are_no_whole_groups_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sampling.parse(["--rows", "4", "12"])
    assert "--rows 12 is no multiple of --group 8" in capsys.readouterr().err
