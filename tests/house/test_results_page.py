"""The tables of the pages of results are what the kept files say."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture(scope="module")
def tables() -> Any:
    """The names of experiments/tables.py, whose own folder is on the path as for a script."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        yield runpy.run_path(str(EXPERIMENTS / "tables.py"))
    finally:
        sys.path.remove(str(EXPERIMENTS))


def test_every_table_of_the_results_is_written_from_the_kept_files(tables: Any) -> None:
    shown: dict[Path, set[str]] = {}
    for page, folder in tables["PAGES"].items():
        text = page.read_text(encoding="utf-8")
        assert tables["filled"](text, folder) == text
        shown.setdefault(folder, set()).update(re.findall(r"<!-- table ([\w-]+) -->", text))
    ends = ("-final", "-tune", "-doses", "-gate", "-continued", "-pass", "-teachers")
    for folder, names in shown.items():
        kept = {path.stem for path in folder.glob("*.json")}
        assert {name for name in kept if name.endswith(ends)} <= names | {
            f"{name.removeprefix('teachers-')}-teachers" for name in names if name.startswith("teachers-")
        }


def test_a_score_is_written_in_percent_and_a_difference_in_points(tables: Any) -> None:
    score = {"value": 0.0136719, "low": -0.0703125, "high": 0.103516}
    assert tables["share"](score) == "1.4 % [-7.0, 10.4]"
    assert tables["difference"](score) == "+1.4 [−7.0, +10.4]"
    assert tables["difference"](None) == ""


def compared(hits: dict[str, list[list[int]]]) -> dict[str, Any]:
    """A kept comparison: the right samples of each problem after training, by arm and seed; none before it."""

    def results(row: list[int]) -> dict[str, Any]:
        texts = ["0 " * len(row), " ".join(map(str, row))]
        test = {"steps": [0, 20], "hits": texts, "words": texts, "tokens": texts}
        return {"samples": 4, "test": test}

    arms = [{"name": name, "results": [results(row) for row in rows]} for name, rows in hits.items()]
    return {"samples": 4, "interval": {"shared_problems": False}, "arms": arms}


def test_a_verdict_is_what_the_interval_of_its_family_says(tables: Any, tmp_path: Path) -> None:
    """Three seeds, of which each ends with one, two or three more right of four problems × four samples."""
    claims = tables["claims"]
    grpo, credit = [[1, 2, 0, 1], [2, 1, 1, 0], [0, 0, 1, 1]], [[2, 2, 0, 1], [3, 1, 1, 1], [1, 1, 2, 1]]
    (tmp_path / "x.json").write_text(json.dumps(compared({"grpo": grpo, "credit": credit})), encoding="utf-8")
    result = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    one = claims.lead("credit", "grpo")(result, 1)
    # The means of the seeds are 1/16, 2/16 and 3/16, so that their mean is 1/8 and the error (1/16)/√3.
    assert one.value == pytest.approx(0.125) and one.error == pytest.approx(0.0625 / 3**0.5)
    assert (one.family, one.freedom) == (1, 2) and one.sd == pytest.approx(0.0625)
    assert one.low == pytest.approx(0.125 - 4.302653 * 0.0625 / 3**0.5, abs=1e-5)
    ten = claims.lead("credit", "grpo")(result, 10)
    assert ten.low < 0 < one.low + 0.1 and ten.value == one.value
    assert claims.change("grpo")(result, 1).value == pytest.approx((4 + 4 + 2) / 48)
    # The verdict is that of the interval, on the side that the paper claims.
    above, below = (claims.Claim("", "x", claims.lead("credit", "grpo"), side) for side in ("above", "below"))
    wide = claims.SeedEstimate(0.1, -0.1, 0.3, 0.1, 0.05, 2, 1, 4, 12)
    clear = claims.SeedEstimate(0.1, 0.05, 0.15, 0.1, 0.01, 2, 1, 4, 12)
    tight = claims.SeedEstimate(0.001, -0.004, 0.006, 0.1, 0.001, 2, 1, 4, 12)
    assert [claims.verdict(score, above) for score in (wide, clear, tight)] == [
        "not seen",
        "**seen**",
        "equal within 2 points",
    ]
    assert claims.verdict(clear, below) == "the opposite"
    kept = claims.Claim("", "x", claims.late_change("credit"), "not below")
    down = claims.SeedEstimate(-0.1, -0.15, -0.05, 0.1, 0.01, 2, 1, 4, 12)
    assert [claims.verdict(score, kept) for score in (tight, wide, down)] == ["**seen**", "not shown", "the opposite"]


def test_a_claim_that_was_not_run_says_so(tables: Any, tmp_path: Path) -> None:
    claims = tables["claims"]
    text = claims.table("antisd", tmp_path)
    assert text.count("| not run | | |") == len(claims.CLAIMS["antisd"]) == 10
    assert "hold together at 95 % (Bonferroni, 10 claims)" in text
    # An arm that a stopped stage did not reach.
    (tmp_path / "toolbox-final.json").write_text(json.dumps(compared({"grpo": [[1]], "sdpo": [[1]]})), encoding="utf-8")
    assert "tuned ends above SDPO, toolbox | not run |" in claims.table("credit", tmp_path)


def test_without_any_spread_nothing_is_seen_and_a_single_seed_is_named(tables: Any) -> None:
    claims = tables["claims"]
    same = claims.SeedEstimate(-4.0, -4.0, -4.0, 0.0, 0.0, 2, 1, 1, 3)
    for side in ("above", "below", "not below"):
        assert claims.verdict(same, claims.Claim("", "x", claims.sooner("a"), side, "steps")) == "no spread"
    one = claims.lead("a", "b")(compared({"a": [[4, 4, 3, 4]], "b": [[0, 0, 0, 1]]}), 1)
    assert one.sd is None and one.low > 0
    assert claims.verdict(one, claims.Claim("", "x", claims.lead("a", "b"), "above")) == "**seen**, in this one seed"


def test_a_late_change_is_taken_from_the_results_of_its_two_evaluations(tables: Any) -> None:
    """Its interval is that of its family: the error of the comparison's own family need not be the widest here."""
    claims = tables["claims"]
    before, after = ["4 2 0", "3 3 1"], ["4 0 0", "1 3 0"]
    results = [
        {"samples": 4, "steps": [0, 8, 12], "hits": ["0 0 0", one, other]}
        for one, other in zip(before, after, strict=True)
    ]
    arm = {"name": "a", "results": results, "accuracy": {"late_steps": [[8, 12], [8, 12]]}}
    found = claims.late_change("a")({"samples": 4, "interval": {"shared_problems": True}, "arms": [arm]}, 7)
    changes = [[0.0, -0.5, 0.0], [-0.5, 0.0, -0.25]]
    assert found == claims.over_seeds(changes, k=4, shared=True, family=7)
    assert found.value == pytest.approx(-1.25 / 6)


def test_what_a_single_seed_cannot_say_is_not_run_and_a_damaged_file_is_an_error(tables: Any, tmp_path: Path) -> None:
    claims = tables["claims"]
    terms = {"sampling": {"prompts": 8, "completions": 8}}
    reach = {"unit": "steps", "against_baseline": None}
    arm = {"name": "antisd-published", "reach": reach}
    with pytest.raises(claims.NotRun):
        claims.sooner("antisd-published")({"terms": terms, "arms": [arm]}, 1)
    damaged = {**compared({"grpo": [[1]], "sdpo": [[1]], "credit": [[1]]}), "interval": {}}
    (tmp_path / "toolbox-final.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(KeyError, match="shared_problems"):
        claims.table("credit", tmp_path)


def test_a_table_of_one_seed_has_no_deviations(tables: Any, tmp_path: Path) -> None:
    arm = {"name": "grpo", "accuracy": {"final": {"sd": None}}}
    (tmp_path / "x.json").write_text(json.dumps({"arms": [arm]}), encoding="utf-8")
    metrics = {"grpo": {"loss": {"first": 2.0, "last": 1.0, "all": 1.5}}}
    (tmp_path / "x-metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert tables["stability"]("x", tmp_path).endswith("| `grpo` |  | 1.5 |  |\n")


def test_the_parts_of_the_difference_are_those_of_arms_that_tell_them_apart(tables: Any, tmp_path: Path) -> None:
    told = {"cos_total_reference": {"all": 0.8}, "cos_total_question": {"all": -0.05}, "grad_norm": {"all": 0.25}}
    metrics = {"opsd": {"grad_norm": {"all": 1.5}}, "purified": told}
    (tmp_path / "x-metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert tables["parts"]("x", tmp_path).splitlines()[4:] == ["| `purified` | 0.800 | −0.050 | 0.250 |"]


def test_episodes_are_told_from_the_first_step_to_the_last(tables: Any, tmp_path: Path) -> None:
    told = {"reward": (0.2, 0.75), "turns": (3.2, 2.25), "length": (120.4, 80.6), "tool_errors": (0.5, 0.125)}
    metrics = {"grpo": {key: {"first": first, "last": last} for key, (first, last) in told.items()}}
    metrics["sdpo"] = {"turns": {"first": 3.0, "last": 2.0}}
    (tmp_path / "x-metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert tables["turns"]("x", tmp_path).splitlines()[4:] == [
        "| `grpo` | 0.20 → 0.75 | 3.20 → 2.25 | 120 → 81 | 50 % → 12 % |",
        "| `sdpo` |  | 3.00 → 2.00 |  |  |",
    ]


def test_steps_sooner_are_the_difference_of_completions_by_those_of_a_step(tables: Any) -> None:
    claims = tables["claims"]
    score = {"value": -256.0, "low": -512.0, "high": 0.0, "sd": 128.0, "error": 64.0, "freedom": 4.0}
    reach = {"unit": "completions", "against_baseline": {**score, "family": 3, "k": 1, "n": 5}}
    terms = {"sampling": {"prompts": 8, "completions": 8}}
    found = claims.sooner("antisd")({"terms": terms, "arms": [{"name": "antisd", "reach": reach}]}, 1)
    assert (found.value, found.sd, found.family) == (-4.0, 2.0, 1)
    assert found.low == pytest.approx(-4.0 - 2.776445, abs=1e-4)


def test_the_lead_in_pass_at_k_by_hand(tables: Any) -> None:
    claims = tables["claims"]
    hits = {"grpo": {"0": [0, 2], "1": [1, 0]}, "antisd-published": {"0": [1, 2], "1": [4, 0]}}
    kept = {"samples": 4, "baseline": "grpo", "hits": hits, "shared_problems": False}
    # 1 − C(3, 2)/C(4, 2) = 1/2 for one right of four, 1 − 1/6 for two.
    assert claims.passes(kept, "grpo", 2) == [[0.0, pytest.approx(5 / 6)], [0.5, 0.0]]
    assert claims.pass_lead("antisd-published", 2)(kept, 3).family == 3
    assert claims.pass_lead("antisd-published", 2)(kept, 1).value == pytest.approx((0.5 + 0.0 + 0.5 + 0.0) / 4)
    # The same problems for all seeds: a chance in their choice is one of the whole mean, and the interval is wider.
    problems = {"0": [0, 2, 0, 1, 4, 0], "1": [1, 0, 0, 1, 4, 0]}
    others = {"0": [4, 2, 1, 1, 4, 0], "1": [4, 0, 0, 2, 4, 0]}
    drawn = {"samples": 4, "baseline": "grpo", "hits": {"grpo": problems, "antisd": others}}
    apart, shared = (claims.pass_lead("antisd", 2)({**drawn, "shared_problems": same}, 1) for same in (False, True))
    assert apart.value == shared.value and shared.error > 1.2 * apart.error
    assert "| against `grpo` | +25.0 [−100.0, +100.0] | +25.0 " in claims.pass_table(kept)
