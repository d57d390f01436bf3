"""Lines of a run that stand twice, are missing or are torn: the page says so, in every way it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import DataError
from selfdistill.report.page import write_report
from selfdistill.report.server import Follower

Change = Callable[[list[str]], list[str]]
DAMAGE: dict[str, tuple[str, Change, str]] = {
    "a step twice": ("metrics", lambda ls: [*ls, ls[-1]], "metrics.jsonl holds step 4 more than once"),
    "a run over a run": ("metrics", lambda ls: ls + ls[1:], "metrics.jsonl holds steps 2, 3, 4 more than once"),
    "a step lost": ("metrics", lambda ls: [ls[0], *ls[2:]], "metrics.jsonl lacks step 2."),
    "a step lost after a step 0": (
        "metrics",
        lambda ls: [json.dumps({"step": 0}), ls[0], *ls[2:]],
        "metrics.jsonl lacks step 2.",
    ),
    "the first steps lost": ("metrics", lambda ls: ls[2:], "metrics.jsonl lacks steps 1, 2."),
    "a step far beyond the others": (
        "metrics",
        lambda ls: [*ls, json.dumps({"step": 10**12})],
        "metrics.jsonl lacks steps 5, 6, 7, 8, 9 and 999999999990 more.",
    ),
    "steps torn off": ("metrics", lambda ls: [*ls[:-1], ls[-1][:9]], "The last line of metrics.jsonl is torn"),
    "a run over a longer run": (
        "metrics",
        lambda ls: [json.dumps({"step": step}) for step in (*range(1, 7), *range(1, 7))],
        "metrics.jsonl holds steps 1, 2, 3, 4, 5 and 1 more more than once",
    ),
    "an evaluation torn off": ("evaluations", lambda ls: [ls[0], ls[1][:5]], "of evaluations.jsonl is torn"),
    "an evaluation twice": ("evaluations", lambda ls: [*ls, ls[0]], "evaluations.jsonl holds step 0 more than once."),
    "a completion twice": ("rollouts", lambda ls: [ls[0], *ls], "rollouts.jsonl holds 1 completion of steps"),
    "completions of a run over a run": ("rollouts", lambda ls: ls + ls[:4], "rollouts.jsonl holds 4 completions"),
    "completions torn off": ("rollouts", lambda ls: [*ls[:-1], ls[-1][:9]], "The last line of rollouts.jsonl is torn"),
}


def save(folder: Path) -> Path:
    """A run of four steps of two completions."""
    folder.mkdir()
    completions = [(step, index) for step in range(1, 5) for index in range(2)]
    files: dict[str, list[dict[str, Any]]] = {
        "metrics": [{"step": step, "loss": 0.5} for step in range(1, 5)],
        "evaluations": [{"step": 0}, {"step": 4}],
        "rollouts": [
            {"step": step, "index": index, "example": "a", "prompt": "p", "text": f"said {step}"}
            for step, index in completions
        ],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name in ("config", "summary"):
        (folder / f"{name}.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_lines_are_told_on_the_page(case: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "run")
    assert "Damaged files" not in write_report(folder).read_text(encoding="utf-8")
    follower = Follower(folder)
    assert "Damaged files" not in follower.page(still=True)
    name, change, sentence = DAMAGE[case]
    path = folder / f"{name}.jsonl"
    text = "\n".join(change(path.read_text(encoding="utf-8").splitlines()))
    path.write_text(text if "torn" in case else text + "\n", encoding="utf-8")
    # The page of a file, of a server that begins now, and of one that followed the run.
    for page in (write_report(folder).read_text(encoding="utf-8"), Follower(folder).page(still=True)):
        assert sentence in page and "--resume mends" in page
    if name != "rollouts":
        assert sentence in follower.page(still=True)


def test_a_completion_that_stands_twice_is_shown_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "run")
    plain = write_report(folder).read_text(encoding="utf-8").count("said 4")
    path = folder / "rollouts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[-1], ""]), encoding="utf-8")
    assert write_report(folder).read_text(encoding="utf-8").count("said 4") == plain > 0


def test_a_line_that_a_run_is_writing_is_no_damage(tmp_path: Path) -> None:
    folder = save(tmp_path / "run")
    (folder / "summary.json").unlink()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5')
    assert "Damaged files" not in write_report(folder).read_text(encoding="utf-8")


def test_a_torn_line_in_the_middle_is_refused_with_its_number(tmp_path: Path) -> None:
    folder = save(tmp_path / "run")
    path = folder / "rollouts.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0][:20], *lines[1:], ""]), encoding="utf-8")
    with pytest.raises(DataError, match=r"rollouts\.jsonl, line 1: not valid JSON"):
        write_report(folder)
