"""The microscope's page in a browser: hostile text, picking, hover, keyboard, and its budget at 400,000 tokens."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.inspection.page import PageData, Sample, render_microscope
from selfdistill.report.tokens import Piece

CHROMIUM = shutil.which("chromium")
HOSTILE = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "\u202eé😀",
)
BUDGET_NODES = 6000
"""Elements of the page with a completion of 2,000 tokens picked and a second pane open."""
BUDGET_BYTES = 70
"""Bytes a token in a file with two contexts and two methods: 51 of numbers, in base64."""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium on the path and playwright: pip install '.[dev]'",
)


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
        "knobs": {name: {"method": name, "knobs": {}} for name in ("sd", "antisd")},
        "skipped": {},
        "signals": {name: {**tables, "balance": {"tokens": 0}} for name in names},
        "separation": {},
        "metrics": {},
        "agreement": [],
        "answer_leak": {"available": False, "reason": "none", "rows": []},
        "templates": {
            "contexts": [{"context": name, **row} for name in contexts],
            "finished": 1.0,
            "thinking": {"opened": 0, "closed": 0},
            "remarks": [],
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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


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


@needs_browser
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


@needs_browser
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


@needs_browser
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
