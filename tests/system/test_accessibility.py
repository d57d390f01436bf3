"""Every page in Chromium, wide and narrow, light and dark: axe finds no violation and nothing scrolls sideways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from comparison.test_compare_page import alarmed_result
from comparison.test_headline import two_arms
from inspection.test_microscope_page import page_data
from report import test_index, test_report
from selfdistill.comparison.completions import side_by_side
from selfdistill.comparison.page import Joined, write_comparison, write_joined
from selfdistill.inspection.page import render_microscope
from selfdistill.report.index import write_index
from selfdistill.report.page import write_report
from support.browser import chromium, needs_browser

pytestmark = needs_browser("axe_playwright_python")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind."""
    top = tmp_path_factory.mktemp("pages")
    rollouts = [test_report.completion(1, "a", 0, 0.0), test_report.completion(2, "a", 1, 1.0)]
    run = write_report(test_report.write_run(top / "run", rollouts))
    going = write_report(test_report.write_run(top / "going", rollouts, summary=None))
    result = alarmed_result(top / "arms") | {"problem": side_by_side(two_arms(top / "two"))}
    for row, arm in zip(result["problem"]["arms"], result["arms"], strict=True):
        row["name"] = arm["name"]
    (top / "cmp").mkdir()
    (top / "cmp" / "compare.json").write_text(json.dumps(result), encoding="utf-8")
    write_comparison(top / "cmp")
    write_joined(top / "joined.html", "Joined", [Joined("One", "About it.", top / "cmp")])
    microscope = page_data(2, 7, ("word",))
    (top / "look.html").write_text(render_microscope(microscope), encoding="utf-8")
    test_index.write_run(top / "runs" / "one", steps=3, evaluations=(0.25, 0.5), finished=True)
    return {
        "run": run,
        "going": going,
        "compare": top / "cmp" / "compare.html",
        "joined": top / "joined.html",
        "microscope": top / "look.html",
        "index": write_index(top / "runs"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as launched:
        yield launched


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["run", "going", "compare", "joined", "microscope", "index"])
def test_axe_finds_nothing(name: str, width: int, scheme: Any, browser: Any, pages: dict[str, Path]) -> None:
    # A page lets no script but its own run, and axe is one.
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    tab = context.new_page()
    tab.set_default_timeout(0)
    tab.goto(pages[name].as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    tab.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []
    context.close()
