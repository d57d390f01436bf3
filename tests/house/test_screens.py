"""Every picture of a page that README and docs show has its raw numbers in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


def kept(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return result


def test_the_page_that_shows_a_picture_names_the_file_of_its_numbers() -> None:
    shown = {
        Path(target).name: page.read_text(encoding="utf-8")
        for page in sorted(ROOT.glob("docs/**/*.md"))
        for target in re.findall(r"!\[[^]]*\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8"))
    }
    in_readme = re.findall(r"!\[[^]]*\]\(docs/([^)]+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.png")} == set(shown) >= set(in_readme) != set()
    for name, text in shown.items():
        files = re.findall(r"`experiments/results/([\w-]+\.json)`", text)
        assert files, f"{name} is shown without the file of its numbers"
        assert all((RESULTS / file).is_file() for file in files)


def test_the_microscopes_numbers_are_those_of_one_completion() -> None:
    numbers = kept("microscope-picture.json")
    tokens = numbers["tokens"]
    assert numbers["command"].startswith("selfdistill inspect countdown-base --task countdown ")
    assert [token["position"] for token in tokens] == list(range(len(tokens)))
    assert len({(token["completion"], token["example"], token["index"]) for token in tokens}) == 1
    for token in tokens:
        u = token["logprob solution"] - token["logprob student"]
        assert token["u solution"] == pytest.approx(u, abs=1e-5)


def test_the_reports_numbers_are_those_of_the_whole_run() -> None:
    numbers = kept("report-picture.json")
    assert [line["step"] for line in numbers["metrics"]] == list(range(1, 21))
    assert [line["step"] for line in numbers["evaluations"]] == [0, 5, 10, 15, 20]
