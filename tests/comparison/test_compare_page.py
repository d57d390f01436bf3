"""The page and the table of a comparison: every number as in ``compare.json``, and nothing in it can act."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.page import write_comparison
from selfdistill.comparison.tables import closing, markdown, short_names, verdict
from selfdistill.report import numbers
from selfdistill.report.charts import Series, curve_chart
from support.arms import PHASES, alarm, arm, ended_run, given_terms, simple_run
from support.pages import Page, assert_stands_alone, contrast, palettes

HOSTILE = "so|</script><script>alert(1)</script>`*\n\u202e"


def result_of(folder: Path, *, names: tuple[str, str] = ("base", "other"), seeds: int = 2) -> dict[str, Any]:
    """Two arms on two problems; the other arm asks a teacher for a second a step, and loses a quarter."""
    slow = {**PHASES, "teacher": 1.0}
    scored = {"phases": slow, "teacher_entropy": 0.5, "gate": 1.0}
    base = [simple_run(folder / f"b{s}", (1, 1), (2, 2), (3 + s, 3 + s)) for s in range(seeds)]
    other = [simple_run(folder / f"o{s}", (1, 1), (4, 4), (2 + s, 2 + s), **scored) for s in range(seeds)]
    arms = [arm(names[0], *base, method="grpo"), arm(names[1], *other, method="opsd")]
    return given_terms() | analyse(arms, baseline=names[0])


def write_page(folder: Path, result: dict[str, Any]) -> Page:
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps(result), encoding="utf-8")
    write_comparison(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["compare.html", "compare.json", "compare.md"]
    return Page(folder / "compare.html")


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    return result_of(tmp_path)


@pytest.fixture
def page(tmp_path: Path, result: dict[str, Any]) -> Page:
    return write_page(tmp_path / "page", result)


def test_the_page_asks_for_nothing_outside_itself(page: Page) -> None:
    assert_stands_alone(page)


def test_the_outcome_stands_first(page: Page) -> None:
    assert "base 87.5% 0.0–100.0%, from 25.0% (no spread) the baseline" in page.text
    assert "other 62.5% 0.0–100.0%, from 25.0% (no spread) below base : −25.0 points (no spread)" in page.text
    assert "deliberation words per completion 0.25 → 0.25" in page.text
    assert "Lines are means over 2 seeds; bands reach from the lowest seed to the highest." in page.text


def test_tables_hold_the_numbers_of_the_file(page: Page) -> None:
    assert "−25.0 points no spread; SD 0.0 100.0% no spread; step 2" in page.text
    assert "−37.5 points −100.0 to +100.0; SD 17.7; step 2 to 4" in page.text
    assert "base 2 of 2 4 4, 4 – 400 16.0 s" in page.text
    assert "other 2 of 2 2 2, 2 −2.0 no spread 200 10.0 s" in page.text
    assert "other 1.00 → 1.00 0.500 → 0.500 100.0%" in page.text
    assert "base 1.00 → 1.00 – –" in page.text
    assert "other 2.00 1.00 3.00 5.00 50.0% 25.0% 1.25 × 400" in page.text
    assert "method.name grpo opsd" in page.text
    assert "evaluation.every 2" in page.text


def test_charts_have_a_line_an_arm_over_steps_tokens_and_seconds(page: Page) -> None:
    columns = page.columns()
    wide, narrow, passes, tokens, seconds = columns[:5]
    assert wide == [{**one, "x": mine["x"], "rows": mine["rows"]} for one, mine in zip(narrow, wide, strict=True)]
    last = [row[:2] for row in wide[-1]["rows"]]
    assert last == [["base", "87.5% (75.0–100.0%)"], ["other", "62.5% (50.0–75.0%)"]]
    assert [column["step"] for column in tokens] == ["0", "200", "400"]
    assert [column["step"] for column in seconds] == ["0", "8", "10", "16", "20"]
    assert page.attributes("svg", "data-x") == ["step", "step", "k", "tokens", "seconds", *["step"] * 6]
    assert [column["step"] for column in passes] == ["1", "2", "4"]
    # Two seeds with 3 and 4 of 4 right have pass@2 of 1.
    assert [row[:2] for row in passes[1]["rows"]] == [
        ["base", "100.0% (no spread)"],
        ["other", "91.7% (0.0–100.0%)"],
    ]
    summary = page.attributes("svg", "aria-label")[0]
    assert (
        summary
        == "Held-out accuracy (avg@4): base: 25.0% at step 0, 87.5% at step 4; other: 25.0% at step 0, 62.5% at step 4"
    )
    assert page.text.count("Entropy of the teacher") == 1


def test_what_no_arm_has_is_not_drawn(tmp_path: Path) -> None:
    runs = [simple_run(tmp_path / name, (1, 1), (2, 2)) for name in ("a", "b")]
    found = given_terms() | analyse([arm("a", runs[0]), arm("b", runs[1], generates=False)], baseline="a")
    page = write_page(tmp_path / "page", found)
    assert "Entropy of the teacher" not in page.text
    assert "Gate of" not in page.text
    [tokens] = [chart for chart in page.columns() if chart[-1]["step"] == "200"]
    assert {row[0] for column in tokens for row in column["rows"]} == {"a"}
    assert "b learns from given solutions and generates nothing." in page.text


@pytest.fixture
def alarmed(tmp_path: Path) -> tuple[dict[str, Any], Page, str]:
    """A comparison with alarms, its page and its Markdown."""
    found = alarmed_result(tmp_path)
    page = write_page(tmp_path / "page", found)
    return found, page, (tmp_path / "page" / "compare.md").read_text(encoding="utf-8")


def alarmed_result(folder: Path) -> dict[str, Any]:
    """Two seeds: the baseline hears nothing, the other arm an alarm twice in one seed, and is ended in the other."""
    base = [ended_run(folder / f"b{s}", (1, 1), (2, 2), (3, 3), steps=4) for s in range(2)]
    often = ended_run(
        folder / "o0", (1, 1), (2, 2), (2, 2), steps=4, active={1: ["no_signal"], 3: ["no_signal"]},
        alarms=[alarm("no_signal", 1, HOSTILE), alarm("no_signal", 3)],
    )  # fmt: skip
    ended = ended_run(
        folder / "o1", (1, 1), (3, 3), steps=3, by=["entropy_collapse"], active={3: ["entropy_collapse"]},
        alarms=[alarm("entropy_collapse", 3, "20% of 1.0 at the start")],
    )  # fmt: skip
    return given_terms() | analyse([arm("base", *base), arm("other", often, ended)], baseline="base")


def test_alarms_stand_in_the_tables_with_their_evidence(alarmed: tuple[dict[str, Any], Page, str]) -> None:
    _, page, text = alarmed
    assert "base none – – – – –" in page.text
    assert "other no signal 1 of 2 1, – 2 0 of 2 0 of 2" in page.text
    assert "other entropy collapse 1 of 2 –, 3 1 1 of 2 1 of 2" in page.text
    assert "Every alarm with its evidence, 3" in page.text
    assert "other 1 3 entropy collapse – 20% of 1.0 at the start try less" in page.text
    assert "other 0 3 no signal 4 so it is try less" in page.text
    assert "<script>alert" not in page.source
    assert "| other | entropy collapse | 1 of 2 | –, 3 | 1 | 1 of 2 | 1 of 2 |" in text
    assert "| other | 1 | 3 | entropy collapse | – | 20% of 1.0 at the start | try less |" in text
    assert "alert(1)</script>" not in text


def test_a_run_that_was_ended_is_marked_wherever_its_numbers_stand(alarmed: tuple[dict[str, Any], Page, str]) -> None:
    found, page, text = alarmed
    # 1/2 at step 4 and 3/4 at step 2; the baseline has 3/4 at step 4 and 1/2 at step 2.
    assert "other 62.5% 0.0–100.0%; step 4, 2, from 25.0%" in page.text
    assert "0.0 points (−100.0 to +100.0; step 4, 2)" in page.text
    assert "ended early: seed 1 after step 3 by entropy collapse" in page.text
    assert "alarms: no signal (1 of 2 runs), entropy collapse (1 of 2 runs)" in page.text
    assert "base 75.0% no spread, from" in page.text
    assert "- Alarms ended runs before their last step: other (seed 1 after step 3 by entropy collapse). Their" in text
    assert text.count("; step 4, 2)") == 6, "final and difference of accuracy, deliberation and length"
    assert closing(found)[1].endswith(
        "; ended: seed 1 after step 3 by entropy collapse; "
        "alarms: no signal (1 of 2 runs), entropy collapse (1 of 2 runs)"
    )


def test_silence_is_said_and_told_from_runs_in_which_nobody_listened(tmp_path: Path, result: dict[str, Any]) -> None:
    quiet = ended_run(tmp_path / "quiet", (1, 1), (2, 2), (3, 3), steps=4)
    heard = markdown(given_terms() | analyse([arm("a", quiet)], baseline="a"), "x")
    assert "- No alarm was raised in any run." in heard
    assert "Alarms in training" not in heard
    assert "Some runs are older than the alarms" in markdown(result, "x")


def test_pass_at_k_has_two_tables(page: Page, result: dict[str, Any]) -> None:
    assert "Final pass@k, validation problems: at least one of k completions is right" in page.text
    # The other arm has 2 and 3 of 4 right: pass@2 is 5/6 and 1.
    assert "other 62.5% 0.0–100.0% 91.7% 0.0–100.0% 100.0% no spread" in page.text
    assert "Final pass@k vs base; differences of a column hold together (Bonferroni, 2 arms)" in page.text
    assert "other −25.0 points no spread −8.3 points −100.0 to +97.6 0.0 points no spread" in page.text
    # A file of an earlier version has no curve.
    for row in result["arms"]:
        del row["pass_curve"]
    assert "pass@" not in markdown(result, "old")


def test_what_a_signal_cost_has_a_table_of_its_own(tmp_path: Path, page: Page) -> None:
    assert "What the settings of signal cost" not in page.text
    counts = {"resampled_completions": 4, "resampled_tokens": 25, "dropped": 6.0, "tokens": 50}
    more = simple_run(tmp_path / "m", (1, 1), (2, 2), phases={**PHASES, "resampling": 1.0}, **counts)
    arms = [arm("base", simple_run(tmp_path / "b", (1, 1), (2, 2))), arm("more", more, signal={"equal": "resample"})]
    found = given_terms() | analyse(arms, baseline="base", match="steps")
    text = write_page(tmp_path / "signal", found).text
    # Two steps of 100 tokens and 5 seconds.
    assert "more equal = resample 8 50 25.0% of all 2.0 s 20.0% of all 12 100 50.0% of all 200 10.0 s" in text
    assert "base – – – – – – 200 8.0 s" in text
    assert "signal.equal – resample" in text
    # A file of an earlier version has no such numbers.
    for row in found["arms"]:
        del row["signal"]
    assert "What the settings of signal cost" not in markdown(found, "old")


def test_an_arm_that_is_named_as_its_method_is_named_once(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page", result_of(tmp_path, names=("grpo", "other")))
    legend = page.source.partition('aria-label="Legend"')[2].partition("</ul>")[0]
    assert re.findall(r"<bdi>(\w+)</bdi>(?: <span class=\"method\">(\w+))?", legend) == [
        ("grpo", ""),
        ("other", "opsd"),
    ]


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    found = result_of(tmp_path, names=("base", HOSTILE))
    page = write_page(tmp_path / "page", found)
    assert "so|</script><script>alert(1)</script>`*" in page.text
    assert "⟨U+202E⟩" in page.text
    assert {attrs.get("type") for attrs, _ in page.scripts} == {None, "application/json"}
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "base", "form")]
    text = (tmp_path / "page" / "compare.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5, 6, 7, 8, 10}  # columns and one
    assert "so\\|\\</script\\>\\<script\\>alert(1)\\</script\\>\\`\\*" in text


def test_the_markdown_says_the_same(result: dict[str, Any]) -> None:
    text = markdown(result, "a comparison")
    assert text.startswith("# a comparison\n\nModel models/base, task countdown, 4 steps of 3 problems, seeds 0, 1, ")
    assert (
        "| other | 25.0% (no spread; SD 0.0) | 62.5% (0.0–100.0%; SD 17.7) | "
        "+37.5 points (−100.0 to +100.0; SD 17.7) | −25.0 points (no spread; SD 0.0) | "
        "100.0% (no spread; step 2) | −37.5 points (−100.0 to +100.0; SD 17.7; step 2 to 4) |"
    ) in text
    assert "- 2 seeds: the intervals are as wide as 2 runs an arm allow." in text
    assert "hold together (Bonferroni, 2 arms)**" in text
    assert "| base | 4 | 32 | 400 | 360 (teacher 360) | 320 | 16.0 s |" in text
    assert "- All arms made equally many steps; what else they spent stands in the table." in text
    assert "If anything was tuned on them, they flatter" in text
    assert "- Seconds count training, not evaluation, with 2 runs at a time with 1 thread each." in text


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page", result_of(tmp_path, seeds=1))
    assert "One seed: the lines have no band." in page.text
    assert "Intervals are 95% t intervals of the mean over problems;" in page.text
    assert "One seed: nothing here says how another seed would have come out." in page.text
    assert "75.0%" in page.columns()[0][-1]["rows"][0][1]
    assert "(" not in page.columns()[0][-1]["rows"][0][1]


def test_another_start_is_named(result: dict[str, Any]) -> None:
    assert "they began from the same weights" in markdown(result, "x")
    assert "Accuracy is known every 2 steps only" in markdown(result, "x")
    assert "the arms did not give the same answers" in markdown(result | {"same_start": False}, "x")


def test_the_terminal_gets_a_line_an_arm(result: dict[str, Any]) -> None:
    assert closing(result) == [
        "base   25.0% (no spread) → 87.5% (0.0–100.0%); deliberation 0.25 → 0.25",
        "other  25.0% (no spread) → 62.5% (0.0–100.0%)  −25.0 points (no spread) against base; "
        "deliberation 0.25 → 0.25",
        numbers.NO_SPREAD_NOTE,
    ]


def test_a_difference_is_called_one_only_when_its_interval_leaves_zero_out() -> None:
    assert verdict({"low": 0.01, "high": 0.2}) == "above"
    assert verdict({"low": -0.2, "high": -0.01}) == "below"
    shown = {"low": -0.01, "high": 0.01, "equal": True}
    assert verdict(shown, 0.02) == "within 2 points of"
    assert verdict(shown | {"low": 0.001}, 0.02) == "above"
    assert verdict(shown | {"equal": False}, 0.02) == "no clear difference from"
    assert verdict({"low": 0.0, "high": 0.0}) == verdict({"low": -0.1, "high": 0.2}) == "no clear difference from"


def test_names_lose_what_all_begin_with() -> None:
    assert short_names(["countdown-grpo", "countdown-opsd-first"]) == ["grpo", "opsd-first"]
    assert short_names(["countdown-opsd", "countdown-opsd-first"]) == ["opsd", "opsd-first"]
    assert short_names(["countdown", "countdown-opsd"]) == ["countdown", "countdown-opsd"]
    assert short_names(["countdown-grpo"]) == ["countdown-grpo"]
    assert short_names(["grpo", "my-grpo"]) == ["grpo", "my-grpo"]


def test_rivals_are_drawn_from_zero_and_all_are_summed_up() -> None:
    series = [
        Series("one", [0, 20_000], [200.0, 300.0], low=[150.0, 250.0], high=[250.0, 350.0]),
        Series("other", [0, 20_000], [0.5, 200.0]),
    ]
    chart = curve_chart("length", series, rivals=True, x_name="tokens")
    assert (chart.y_ticks[0][1], chart.change, chart.x_name) == ("0", "", "tokens")
    assert (
        chart.summary
        == "length: one: 200.0 at tokens 0, 300.0 at tokens 20,000; other: 0.500 at tokens 0, 200.0 at tokens 20,000"
    )
    assert chart.columns[0]["rows"][0][1] == "200.0 (150.0–250.0)"  # type: ignore[index]
    assert [word for _, word in chart.x_ticks][-1] == "20k"
    assert curve_chart("length", series, rivals=True, labels=False).drawn[0].label_y is None
    assert [numbers.compact(value) for value in (1200, 9999, 40_000, 1_500_000)] == ["1,200", "9,999", "40k", "1.5M"]


def test_every_arm_can_be_read_in_light_and_in_dark() -> None:
    for colours in palettes():
        arms = [colour for name, colour in colours.items() if name.startswith("arm")]
        assert len(arms) == 6
        assert min(contrast(colour, colours["card"]) for colour in arms) >= 4.5
