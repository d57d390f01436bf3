"""The index of a folder of runs: a row a run, links that lead to pages, and no other file."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.test_watching import CONFIG, HOSTILE, Browser, append, completion, measured
from selfdistill.errors import DataError
from selfdistill.report import server as watching
from selfdistill.report.index import find_runs, write_index
from selfdistill.report.server import server_of
from support.browser import chromium, needs_browser
from support.pages import Page


def write_run(folder: Path, *, steps: int, evaluations: tuple[float, ...] = (), **summary: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    append(folder / "metrics.jsonl", *(measured(step) for step in range(1, steps + 1)))
    append(folder / "rollouts.jsonl", *(completion(step) for step in range(1, steps + 1)))
    for step, value in enumerate(evaluations):
        score = {"k": 4, "value": value, "low": value - 0.1, "high": value + 0.1}
        append(folder / "evaluations.jsonl", {"step": step, "avg": score})
    if summary:
        (folder / "summary.json").write_text(json.dumps({"steps": steps, **summary}), encoding="utf-8")
    return folder


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A finished run, one that goes on, one of a comparison, one that cannot be read, and a model."""
    top = tmp_path / "runs"
    write_run(top / "done", steps=9, evaluations=(0.25, 0.75), finished=True)
    write_run(top / "a&b going", steps=2, evaluations=(0.5,))
    write_run(top / "cmp" / "runs" / "arm" / "seed-0", steps=3, finished=False, stopped_by=["no_signal"])
    (top / "cmp" / "compare.json").write_text(
        json.dumps({"arms": [{"name": f"x{HOSTILE}", "accuracy": {"final": {"value": 0.5}}}]}), encoding="utf-8"
    )
    (top / "cmp" / "compare.html").write_text("the comparison", encoding="utf-8")
    broken = write_run(top / "broken", steps=1)
    (broken / "evaluations.jsonl").write_text("<oops>\n{}\n", encoding="utf-8")
    model = top / "done" / "checkpoints" / "best"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (top / "model").mkdir()
    shutil.copy(model / "config.json", top / "model" / "config.json")
    return top


def test_every_run_has_a_row_and_a_link_to_its_page(top: Path) -> None:
    page = Page(write_index(top))
    assert "4 runs, 1 not finished; 1 comparison." in page.text
    assert "done opsd countdown 9 avg@4 25.0% 75.0% 65.0–85.0% finished none" in page.text
    assert "a&b going opsd countdown 2 of 9 avg@4 50.0% 50.0% 40.0–60.0% not finished none" in page.text
    assert "cmp/runs/arm/seed-0 opsd countdown 3 of 9 avg@k – – ended by no signal none" in page.text
    assert "line 1: not valid JSON" in page.text
    assert "cmp x</span><script>alert(1)</script>" in page.text
    links = page.attributes("a", "href")
    assert links == [
        "cmp/compare.html",
        "a%26b%20going/report.html",
        "cmp/runs/arm/seed-0/report.html",
        "done/report.html",
    ]
    for link in ("done", "a&b going", "cmp/runs/arm/seed-0"):
        assert (top / link / "report.html").is_file()
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page.source)


def test_a_page_that_is_newer_than_its_run_stays(top: Path) -> None:
    write_index(top)
    page = top / "done" / "report.html"
    page.write_text("kept", encoding="utf-8")
    write_index(top)
    assert page.read_text(encoding="utf-8") == "kept"


def test_runs_are_found_and_models_are_not(top: Path) -> None:
    runs, comparisons = find_runs(top)
    assert [place.name for place in runs] == ["a&b going", "broken", "cmp/runs/arm/seed-0", "done"]
    assert [place.name for place in comparisons] == ["cmp"]
    with pytest.raises(DataError, match="holds no run"):
        write_index(top / "model")


@pytest.fixture
def browse(top: Path) -> Iterator[Browser]:
    with server_of(top, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Browser(int(server.server_address[1]))
        server.shutdown()
        thread.join()


def test_the_index_and_every_run_are_served(browse: Browser, top: Path) -> None:
    response, page = browse()
    assert response.status == 200
    assert re.findall('<a href="([^"]*)"', page) == [
        "cmp/compare.html",
        "a%26b%20going/",
        "broken/",
        "cmp/runs/arm/seed-0/",
        "done/",
    ]
    response, page = browse("/a%26b%20going/")
    assert 'data-every="5"' in page
    assert '<a href="../">all runs</a>' in page
    assert "number2" in page
    assert "Held still" in browse("/a%26b%20going/still")[1]
    assert '<a href="../../../../">all runs</a>' in browse("/cmp/runs/arm/seed-0/")[1]
    assert browse("/cmp/compare.html")[1] == "the comparison"
    assert browse("/broken/")[0].status == 500
    append(top / "a&b going" / "rollouts.jsonl", completion(3))
    assert "number3" in browse("/a%26b%20going/")[1]


@pytest.mark.parametrize(
    "path",
    ["/done/config.json", "/done", "/model/", "/../runs/done/", "/compare.html", "/done/checkpoints/best/", "/x/"],
)
def test_nothing_else_is_served(path: str, browse: Browser) -> None:
    assert browse(path)[0].status == 404


@needs_browser()
def test_a_page_takes_in_what_is_new_and_keeps_what_the_reader_did(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.05)
    run = top / "a&b going"
    with server_of(run, host="127.0.0.1", port=0) as server, chromium() as browser:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        tab = browser.new_page()
        tab.set_default_timeout(0)
        trouble: list[str] = []
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        tab.locator("summary", has_text="Configuration").click()
        append(run / "metrics.jsonl", measured(3))
        append(run / "rollouts.jsonl", completion(3))
        tab.locator(".t", has_text="number3").wait_for()
        assert tab.locator("details[open] summary", has_text="Configuration").count() == 1
        # What was put in can be pointed at like what was there before.
        tab.locator(".t", has_text="number3").hover()
        assert "log-prob −0.500" in (tab.locator("#tip").text_content() or "")
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write("<oops>\n{}\n")
        tab.get_by_text("not valid JSON").wait_for()
        assert tab.locator(".t", has_text="number3").count() == 1
        server.shutdown()
        thread.join()
    assert trouble == []
