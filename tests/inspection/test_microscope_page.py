"""The microscope's page in a browser: hostile text, picking, hover, keyboard, and its budget at 400,000 tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.inspection.page import PageData, Sample, render_microscope
from selfdistill.report.tokens import Piece
from support.browser import chromium, needs_browser

HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "\u202eé😀",
)
BUDGET_NODES = 6000
"""Elements of the page with a completion of 2,000 tokens picked and a second pane open."""
BUDGET_BYTES = 70
"""Bytes a token in a file with two contexts and two methods: 51 of numbers, in base64."""


def page_data(completions: int, tokens: int, bodies: tuple[str, ...]) -> PageData:
    """Numbers that rise from −1 to 1 within each completion."""
    count = completions * tokens
    ramp = np.tile(np.linspace(-1, 1, tokens), completions)
    pieces = [Piece(" " if n else "", bodies[n % len(bodies)]) for n in range(tokens)]
    samples = [Sample(f"p{c}<b>", 0, "<i>what</i>?", "", float(c % 2), True, pieces) for c in range(completions)]
    names = ("u solution", "u feedback", "credit sd", "credit antisd")
    table = [{"name": "other", "tokens": count, "mean": 0.0, "sum": 0.0, "positive": 0.5, "share": 1.0}]
    tables = dict.fromkeys(("by_class", "by_position", "by_entropy", "by_outcome"), table)
    contexts = ["student", "solution", "feedback"]
    row = {"completions": 1, "first_token": None, "other_tokens": 1.0, "end": -1.0, "shared_ending": 3}
    summary: dict[str, Any] = {
        "model": "<script>",
        "task": "countdown",
        "problems": completions,
        "completions": completions,
        "tokens": count,
        "outcomes": {"correct": completions // 2, "wrong": completions - completions // 2, "not judged": 0},
        "contexts": contexts,
        "methods": ["sd", "antisd"],
        "left_out": {},
        "hyperparameters": {name: {"method": name, "hyperparameters": {}} for name in ("sd", "antisd")},
        "skipped": {},
        "signals": {name: {**tables, "balance": {"tokens": 0}} for name in names},
        "separation": {},
        "drift": {},
        "metrics": {},
        "agreement": [],
        "answer_leak": {"available": False, "reason": "none", "rows": []},
        "templates": {
            "contexts": [{"context": name, **row} for name in contexts],
            "finished": 1.0,
            "thinking": {"opened": 0, "closed": 0},
            "warnings": [],
        },
    }
    likely = np.tile(np.array([[0, 1, 2]], dtype=np.int32), (count, 1)), np.full((count, 3), -1.0, dtype=np.float32)
    return PageData(
        summary=summary,
        samples=samples,
        contexts=contexts,
        teacher="solution",
        methods=["sd", "antisd"],
        signals={name: ramp * (n + 1) for n, name in enumerate(names)},
        logprobs={name: ramp.astype(np.float32) - 2 for name in contexts},
        entropies={name: ramp.astype(np.float32) + 1 for name in contexts},
        class_names=["other"],
        class_N=np.zeros(count, dtype=np.uint8),
        alternatives={"student": likely, "teacher": likely},
        words=dict(enumerate(HOSTILE)),
        outcome_C=["correct" if c % 2 else "wrong" for c in range(completions)],
    )


def test_model_text_stands_in_the_file_as_text_only() -> None:
    page = render_microscope(page_data(2, 7, HOSTILE))
    assert "document.title='taken'</script>" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert len(re.findall(r"<script(?: |>)", page)) == page.count("</script>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


def opened(browser: Any, page: str, folder: Path) -> tuple[Any, list[str]]:
    """The page in a tab, and everything that it complains about or asks the network for."""
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    tab = browser.new_page()
    tab.set_default_timeout(0)
    trouble: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
    tab.goto(path.as_uri())
    return tab, trouble


@needs_browser()
def test_picking_hover_and_keyboard(browser: Any, tmp_path: Path) -> None:
    tab, trouble = opened(browser, render_microscope(page_data(3, 7, HOSTILE)), tmp_path)
    tokens = tab.locator("#left .t")
    assert tokens.count() == 7
    assert tokens.nth(0).text_content() == HOSTILE[0]
    assert tab.title() == "Microscope: <script>"
    assert tab.locator("#left .shade").text_content() == "u solution"
    assert "n" in (tokens.nth(0).get_attribute("class") or "").split()
    assert "p" in (tokens.nth(6).get_attribute("class") or "").split()

    tokens.nth(6).hover()
    detail = tab.locator("#detail")
    assert "token 7 of 7" in detail.text_content()
    rows = [row.all_text_contents() for row in (detail.locator("tr").nth(n).locator("th,td") for n in range(4))]
    assert rows[1:3] == [
        ["student", "−1.000", "–", "2.000"],
        ["solution", "+0.000".replace("+", ""), "+1.000", "2.000"],
    ]
    assert "36.8%" in detail.text_content()
    assert "u solution +1.000" in tab.locator("#tip").text_content()

    tab.select_option("#beside", label="credit antisd")
    assert tab.locator("#right .t").count() == 7
    tokens.nth(5).hover()
    assert tab.locator("#right .twin").count() == 1

    tab.locator("#left .tokens").focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    assert "token 6 of 7" in detail.text_content()
    tab.locator("#next").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#completion").input_value() == "1"
    assert tab.title() == "Microscope: <script>"
    assert trouble == []
    tab.close()


@needs_browser()
def test_what_an_environment_said_stands_greyed_before_the_next_turn(browser: Any, tmp_path: Path) -> None:
    data = page_data(2, 7, HOSTILE)
    episode = replace(data.samples[0], said={3: f"user: {HOSTILE[0]}", 6: "user: lower"})
    tab, trouble = opened(browser, render_microscope(replace(data, samples=[episode, data.samples[1]])), tmp_path)
    tokens = tab.locator("#left .t")
    said = [tokens.nth(n).get_attribute("data-said") for n in range(7)]
    # The sums of u over the first three tokens and the next three, from −1 to 1 in seven steps.
    assert [text for text in said if text] == [
        f"turn 1: Σ −2.000\nuser: {HOSTILE[0]}\n",
        "turn 2: Σ +1.000\nuser: lower\n",
    ]
    assert (said[3] is None, said[6] is None, tokens.count()) == (False, False, 7)
    assert tab.locator("#left .total").text_content() == "Σ 0.000, turn 3: Σ +1.000"
    tokens.nth(3).hover()
    assert "token 4 of 7" in tab.locator("#detail").text_content()
    tab.locator("#next").click()
    assert [tokens.nth(n).get_attribute("data-said") for n in range(7)] == [None] * 7
    assert trouble == []
    tab.close()


@needs_browser()
def test_a_turn_without_numbers_has_no_sum_and_the_panel_has_both_parts_of_u(browser: Any, tmp_path: Path) -> None:
    data = page_data(1, 4, ("word",))
    parts = {"pmi solution (ema)": [0.5, 0.25, np.nan, np.nan], "drift solution (ema)": [-0.125, 0.0, 0.0, 1.0]}
    signals = {**{name: np.array(values) for name, values in parts.items()}, **data.signals}
    episode = replace(data.samples[0], said={2: "user: lower", 3: "user: higher"})
    tab, trouble = opened(browser, render_microscope(replace(data, samples=[episode], signals=signals)), tmp_path)
    tab.select_option("#signal", label="pmi solution (ema)")
    tokens = tab.locator("#left .t")
    assert tokens.nth(2).get_attribute("data-said") == "turn 1: Σ +0.750\nuser: lower\n"
    assert tokens.nth(3).get_attribute("data-said") == "turn 2: Σ –\nuser: higher\n"
    assert tab.locator("#left .total").text_content() == "Σ +0.750, turn 3: Σ –"
    tokens.nth(0).hover()
    assert "solution (ema)+0.500−0.125" in tab.locator("#detail").text_content()
    assert trouble == []
    tab.close()


@needs_browser()
def test_completions_are_filtered_sorted_and_searched(browser: Any, tmp_path: Path) -> None:
    # Four tokens: the ids of pieces then begin within a group of base64.
    data = page_data(4, 4, ("alpha", "beta", "gamma"))
    # The sums of u are 0 by the ramp, so the second and the third completion get their own.
    data.signals["u solution"][4:8] = [0.0, 0.0, 0.0, 2.0]
    data.signals["u solution"][8:12] = -1.0
    samples = list(data.samples)
    samples[2] = replace(samples[2], pieces=[*samples[2].pieces[:3], Piece(" ", "needle")], reward=-0.5)
    samples[0] = replace(samples[0], reward=0.25)
    tab, trouble = opened(browser, render_microscope(replace(data, samples=samples)), tmp_path)

    def listed() -> list[str]:
        values: list[str] = tab.eval_on_selector_all("#completion option", "all => all.map(one => one.value)")
        return values

    assert listed() == ["0", "1", "2", "3"]
    # A reward below that of success is no plain wrong.
    told = tab.locator("#completion option").all_text_contents()
    assert [option.split(",")[0] for option in told[:3]] == ["1. partly right", "2. correct", "3. wrong"]
    tab.select_option("#sort", "sum")
    assert listed() == ["2", "1", "0", "3"]
    assert tab.locator("#completion").input_value() == "2", "the largest is shown at once"
    tab.select_option("#sort", "reward")
    assert listed() == ["1", "3", "0", "2"]
    tab.select_option("#outcome", "wrong")
    assert listed() == ["0", "2"]
    assert tab.locator("#count").text_content() == "2 of 4 completions"
    assert tab.locator("#completion").input_value() == "0", "what was shown is right, so the first of the list is"
    tab.locator("#next").click()
    tab.locator("#next").click()
    assert tab.locator("#completion").input_value() == "0", "the list is a circle"
    tab.locator("#search").fill("Needle")
    assert listed() == ["2"]
    assert tab.locator("#next").is_disabled()
    tab.locator("#search").fill("nowhere")
    assert listed() == []
    assert tab.locator("#completion").is_disabled()
    tab.locator("#search").fill("p3<b>")
    assert listed() == [], "it is right, and wrong ones are asked for"
    tab.select_option("#outcome", "")
    assert listed() == ["3"]
    assert trouble == []
    tab.close()


@needs_browser()
def test_a_link_leads_to_a_completion_and_a_token(browser: Any, tmp_path: Path) -> None:
    tab, trouble = opened(browser, render_microscope(page_data(3, 7, ("word",))), tmp_path)
    tab.locator("#left .t").nth(4).click()
    assert tab.evaluate("location.hash") == "#completion=1&token=5"
    tab.locator("#next").click()
    assert tab.evaluate("location.hash") == "#completion=2"
    assert tab.locator(".pinned").count() == 0
    tab.select_option("#outcome", "correct")
    tab.evaluate("location.hash = '#completion=3&token=7'")
    tab.wait_for_function("document.getElementById('completion').value === '2'")
    assert "token 7 of 7" in tab.locator("#detail").text_content()
    assert tab.locator("#outcome").input_value() == "", "the filter gives way to the link"
    tab.goto(f"{tab.url.split('#')[0]}#completion=2&token=3")
    tab.reload()
    assert tab.locator("#completion").input_value() == "1"
    assert "token 3 of 7" in tab.locator("#detail").text_content()
    for nonsense in ("#completion=99", "#completion=1&token=99", "#token=x", "#&&="):
        tab.evaluate("hash => { location.hash = hash; }", nonsense)
    assert trouble == []
    tab.close()


@needs_browser()
def test_sections_are_folded_until_the_contents_lead_there(browser: Any, tmp_path: Path) -> None:
    tab, _ = opened(browser, render_microscope(page_data(2, 7, ("word",))), tmp_path)
    assert tab.locator("details[open]").count() == 0
    tab.locator(".contents a", has_text="Distributions").click()
    tab.locator("#distributions").wait_for(state="visible")
    assert tab.locator("details[open]").count() == 1
    # The numbers of a token stay in sight however far the reader has scrolled in its completion.
    assert tab.evaluate("getComputedStyle(document.getElementById('detail')).position") == "sticky"
    tab.close()


@needs_browser()
def test_signals_of_a_unit_share_a_scale_unless_asked_otherwise(browser: Any, tmp_path: Path) -> None:
    tab, _ = opened(browser, render_microscope(page_data(2, 7, ("word",))), tmp_path)
    ends = {}
    for scale in ("limit", "own"):
        tab.select_option("#scale", scale)
        for signal in ("u solution", "u feedback", "credit sd"):
            tab.select_option("#signal", label=signal)
            ends[scale, signal] = tab.locator("#left .scale i").last.text_content()
    # u solution reaches 1 and u feedback 2; the credits reach 3 and 4.
    assert ends["limit", "u solution"] == ends["limit", "u feedback"] == "+2"
    assert ends["limit", "credit sd"] == "+4"
    assert (ends["own", "u solution"], ends["own", "u feedback"], ends["own", "credit sd"]) == ("+1", "+2", "+3")
    tab.close()


def test_what_is_missing_stands_on_top() -> None:
    data = page_data(2, 7, ("word",))
    summary = dict(data.summary) | {"skipped": {"no <sibling>": 3}, "left_out": {"sft": "it samples nothing"}}
    page = render_microscope(replace(data, summary=summary))
    banner = page.index("no &lt;sibling&gt;</bdi> (3 ×)")
    assert banner < page.index("<bdi>sft</bdi>, because it samples nothing") < page.index('<nav class="contents"')
    assert 'class="banner"' not in render_microscope(data)


def test_curves_show_the_tails() -> None:
    page = render_microscope(page_data(2, 7, ("word",)))
    distributions = page[page.index('id="distributions"') : page.index('id="totals"')]
    columns = json.loads(distributions.split('<script type="application/json">')[1].split("</script>")[0])
    assert (columns[0]["step"], columns[-1]["step"]) == ("0.1", "99.9")
    # A ramp from −1 to 1 over seven tokens: its 0.1st percentile lies 0.001 of the way.
    assert columns[0]["rows"][0][:2] == ["correct", "−0.998"]
    assert ">99.9</text>" in distributions
    # Blue and orange are the signs of a signal; curves of right and wrong completions are solid and dashed.
    assert "tone-student" not in page.split("</style>")[1]
    assert "tone-teacher" not in page.split("</style>")[1]


@needs_browser()
@pytest.mark.parametrize("width", [360, 1280])
def test_no_width_makes_the_page_scroll_sideways(width: int, browser: Any, tmp_path: Path) -> None:
    tab, _ = opened(browser, render_microscope(page_data(2, 7, ("word",))), tmp_path)
    tab.set_viewport_size({"width": width, "height": 800})
    tab.select_option("#beside", label="credit antisd")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    # A table scrolls within itself, but not its caption.
    ends = "[...document.querySelectorAll('caption > span')].map(each => each.getBoundingClientRect().right)"
    assert 0 < max(tab.evaluate(ends)) <= width
    tab.close()


@pytest.mark.long
@needs_browser()
def test_400_000_tokens_stay_within_the_budget(browser: Any, tmp_path: Path) -> None:
    page = render_microscope(page_data(200, 2000, tuple(f"word{n}" for n in range(1500))))
    assert len(page.encode()) < BUDGET_BYTES * 400_000
    tab, trouble = opened(browser, page, tmp_path)
    tab.select_option("#beside", label="credit sd")
    for place in ("199", "100"):
        tab.select_option("#completion", place)
        assert tab.locator("#left .t").count() == tab.locator("#right .t").count() == 2000
        assert tab.evaluate("document.querySelectorAll('*').length") < BUDGET_NODES
    assert trouble == []
    tab.close()
