"""Draw docs/report.png and docs/microscope.png again, and keep their raw numbers: ``python scripts/docs_screens.py``.

The first is the page of one run, an arm of the demo by the demo's settings; its metrics and evaluations are kept in
``experiments/results/report-picture.json``. The second is the microscope at one token of the shipped base model; the
numbers of the shown completion are kept in ``experiments/results/microscope-picture.json``. Runs that have finished in
``--out`` are not made again. Needs Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from playwright.sync_api import Page, sync_playwright

from demo import HALVES, SETTINGS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "experiments" / "results"
ARM = "countdown-antisd"
RATE = next(half.learning_rate for half in HALVES if ARM in half.arms)
TRAIN = [
    "train",
    ARM,
    *(part for setting in (*SETTINGS, f"optimiser.learning_rate={RATE}") for part in ("--set", setting)),
]
METHODS = "grpo,sd,antisd,opsd,credit,purified,sdpo"
INSPECT = ["inspect", "countdown-base", "--task", "countdown", "--methods", METHODS, "--max-tokens", "256"]
COMPLETION, TOKEN = 12, 18
"""What the microscope shows: a completion's number, from 1, and a token's. The token is a "wait" of a right answer."""
SIGNAL, BESIDE = "u solution", "credit antisd"


def selfdistill(command: list[str], out: Path) -> None:
    """Run a command of the product, unless its folder is complete."""
    if not (out / "summary.json").is_file():
        subprocess.run([sys.executable, "-m", "selfdistill", *command, "--out", str(out)], check=True)


def keep(name: str, command: list[str], **tables: list[dict[str, Any]]) -> None:
    """Write tables of raw numbers beside the command that made them, a row in each line."""
    rows = {key: ",\n".join(json.dumps(row, ensure_ascii=False) for row in table) for key, table in tables.items()}
    body = "".join(f',\n"{key}": [\n{text}\n]' for key, text in rows.items())
    command_line = json.dumps(" ".join(["selfdistill", *command]))
    (RESULTS / f"{name}.json").write_text(f'{{"command": {command_line}{body}}}\n', encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(page: Page, out: Path) -> None:
    """Train the arm, draw the top of its page, and keep what the page's curves show."""
    selfdistill(TRAIN, out)
    page.set_viewport_size({"width": 1100, "height": 1700})
    page.goto((out / "report.html").as_uri())
    page.screenshot(path=DOCS / "report.png")
    keep("report-picture", TRAIN, metrics=lines(out / "metrics.jsonl"), evaluations=lines(out / "evaluations.jsonl"))


def microscope(page: Page, out: Path) -> None:
    """Inspect the base model, draw the chosen token, and keep every number of its completion."""
    selfdistill(INSPECT, out)
    page.set_viewport_size({"width": 1120, "height": 640})
    page.goto(f"{(out / 'index.html').as_uri()}#completion={COMPLETION}&token={TOKEN}")
    page.select_option("#signal", label=SIGNAL)
    page.select_option("#beside", label=BESIDE)
    page.locator("nav").first.evaluate("nav => nav.scrollIntoView()")
    page.screenshot(path=DOCS / "microscope.png")
    table = pq.read_table(out / "tokens.parquet")
    shown = table.filter(pc.equal(table["completion"], COMPLETION - 1))
    columns = [name for name in shown.schema.names if not name.startswith("top ")]
    keep("microscope-picture", INSPECT, tokens=shown.select(columns).to_pylist())


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/screens"))
    out = parser.parse_args().out.resolve()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not on the path")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        microscope(page, out / "microscope")
        report(page, out / ARM)
        browser.close()


if __name__ == "__main__":
    main()
