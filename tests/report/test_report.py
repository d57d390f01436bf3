"""The page of a run: what stands on it equals what stands in the files, and nothing in the files can act on it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import DataError
from selfdistill.report import files
from selfdistill.report import page as page_parts
from selfdistill.report.page import write_report
from support.pages import Page, assert_stands_alone, contrast, palettes

HOSTILE = "so </script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 \u202e end"
CONFIG = {
    "seed": 3,
    "steps": 2,
    "model": {"path": "/models/<b>base</b>"},
    "task": {"kind": "countdown"},
    "method": {"name": "antisd", "lambda": 0.1},
}


def score(value: float, k: int = 8) -> dict[str, float]:
    return {"k": k, "value": value, "low": value - 0.02, "high": value + 0.03}


def evaluation(value: float) -> dict[str, Any]:
    accuracies = {"avg": score(value), "pass": score(value + 0.2), "maj": score(value + 0.1)}
    return accuracies | {"length": 31.25, "truncated": 0.004, "deliberation": 1.5}


METRICS: list[dict[str, Any]] = [
    {"step": 0, "evaluation": evaluation(0.4125)},
    {
        "step": 1,
        "loss": 0.25,
        "reward": 0.375,
        "grad_norm": 1.5,
        "seconds": 2.0,
        "student_entropy": 0.61,
        "teacher_entropy": 0.52,
        "length": 30.5,
        "gate": 0,
        "pmi": -0.04,
        "skipped": {"no <sibling>": 2},
        "phase_seconds": {"sampling": 1.5, "training": 0.5},
    },
    {
        "step": 2,
        "loss": 0.125,
        "reward": 0.5,
        "grad_norm": 1.25,
        "seconds": 2.0,
        "student_entropy": 0.6,
        "teacher_entropy": None,
        "length": 35.5,
        "gate": 1,
        "pmi": -0.05,
        "skipped": {"no <sibling>": 3},
        "evaluation": evaluation(0.5325),
    },
]
SUMMARY = {
    "before": evaluation(0.4125),
    "after": evaluation(0.5325),
    "best": evaluation(0.5325),
    "best_step": 2,
    "steps": 2,
    "seconds": {"sampling": 190.0, "training": 62.4},
    "tokens_per_second": 2140.4,
    "finished": True,
}


def completion(step: int, example: str, index: int, reward: float | None, **more: Any) -> dict[str, Any]:
    tokens = ["wait", "so", "24", "<end>"]
    row = {
        "step": step,
        "example": example,
        "index": index,
        "prompt": "make 24",
        "text": "wait so 24",
        "ids": [1, 2, 3, 4],
        "tokens": tokens,
        "logprobs": [-0.125, -0.25, -0.5, 0.0],
        "reward": reward,
        "feedback": None,
        "u": [-1.25, 0.0, 0.5, 0.0],
    }
    return row | more


def write_run(folder: Path, rollouts: list[dict[str, Any]], **given: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(given.get("config", CONFIG)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given.get("metrics", METRICS)))
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    if given.get("summary", SUMMARY):
        (folder / "summary.json").write_text(json.dumps(given.get("summary", SUMMARY)))
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Page:
    rollouts = [completion(1, "a", 0, 0.0, text=HOSTILE, tokens=[HOSTILE], u=[-1.0], logprobs=[-0.5], feedback=HOSTILE)]
    rollouts += [completion(1, "a", 1, 1.0), completion(2, "b", 0, 1.0), completion(2, "b", 1, 0.0)]
    return Page(write_report(write_run(tmp_path / "run <i>7", rollouts)))


def test_the_page_asks_for_nothing_outside_itself(page: Page) -> None:
    assert_stands_alone(page)


def test_the_only_script_that_may_run_is_the_pages_own(page: Page) -> None:
    [own] = [text for attrs, text in page.scripts if not attrs]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    [policy] = [attrs["content"] or "" for tag, attrs in page.elements if attrs.get("http-equiv")]
    assert f"script-src 'sha256-{digest}';" in policy
    assert {attrs.get("type") for attrs, _ in page.scripts} == {None, "application/json"}


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    shown = "so </script><script>alert(1)</script><img src=x onerror=alert(2)> ⟨U+2028⟩ ⟨U+202E⟩ end"
    assert page.text.count(shown) == 2  # as completion and as feedback
    assert "run <i>7" in page.text
    assert "base</b>" in page.text
    assert "no <sibling> 5" in page.text
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "base", "form")]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_json_inside_a_script_cannot_end_it(tmp_path: Path) -> None:

    part = page_parts.Part("x", "reward", HOSTILE + "&")
    figure = page_parts.Figure("x", "", (part,))
    run = files.read_run(write_run(tmp_path / "run", []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_parts, "BEHAVIOUR", (figure,))
        source = page_parts.render_run(run)
    assert "\\u003c/script\\u003e\\u003cscript\\u003ealert(1)" in source
    assert "\\u2028" in source
    assert "\\u0026" in source
    assert "<script>alert(1)" not in source
    assert "\u2028" not in source.split("<svg")[0]


def test_numbers_on_the_page_are_those_of_the_files(page: Page) -> None:
    assert "41.2% → 53.2%" in page.text
    assert "interval 39.2–44.2% before, 51.2–56.2% after" in page.text
    assert "Better +12.0 points the intervals before and after do not overlap" in page.text
    assert "avg@8 41.2% 39.2–44.2% 53.2% 51.2–56.2% +12.0 points" in page.text
    assert "Method antisd Task countdown" in page.text
    assert "Steps 2 Time 4 min 12 s Speed 2,140 tokens/s Seed 3" in page.text
    assert "sampling 3 min 10 s 75.3% training 1 min 02 s 24.7%" in page.text
    assert "method.lambda 0.1" in page.text
    assert page.attributes("span", "data-u")[:5] == ["−1.250", "0.000", "+0.500", "0.000", "−1.000"]
    assert page.attributes("span", "data-p")[:4] == ["−0.125", "−0.250", "−0.500", "0.000"]


def test_hover_reads_out_the_numbers_of_the_files(page: Page) -> None:
    read = {
        (column["step"], label): value
        for chart in page.columns()
        for column in chart
        for label, value, _, _ in column["rows"]
    }
    assert read == {
        ("0", "avg@8"): "41.2% (39.2–44.2%)",
        ("2", "avg@8"): "53.2% (51.2–56.2%)",
        ("1", "training reward"): "0.375",
        ("2", "training reward"): "0.500",
        ("0", "held-out"): "31.2",
        ("2", "held-out"): "31.2",
        ("1", "training"): "30.5",
        ("2", "training"): "35.5",
        ("0", "deliberation words"): "1.50",
        ("2", "deliberation words"): "1.50",
        ("1", "student"): "0.610",
        ("2", "student"): "0.600",
        ("1", "teacher"): "0.520",
        ("1", "mean u"): "−0.040",
        ("2", "mean u"): "−0.050",
        ("1", "gate"): "off",
        ("2", "gate"): "on",
        ("1", "gradient norm"): "1.50",
        ("2", "gradient norm"): "1.25",
        ("1", "loss"): "0.250",
        ("2", "loss"): "0.125",
    }


def test_what_a_run_did_not_record_is_named(page: Page) -> None:
    assert "Not recorded in this run: share of clipped tokens." in page.text


@pytest.mark.parametrize(
    ("method", "lacks"),
    [
        ({"name": "grpo"}, "gradient norm, loss, share of clipped tokens"),
        ({"name": "sd", "context": "x"}, "teacher entropy, mean u, gradient norm, loss, share of clipped tokens"),
        ({"name": "antisd", "context": "x", "gated": True}, "teacher entropy, mean u, gate, gradient norm, loss, "),
        ("of an old run", "gradient norm, "),
    ],
)
def test_a_run_does_not_lack_what_its_method_never_records(tmp_path: Path, method: object, lacks: str) -> None:
    rows = [{"step": 1, "student_entropy": 1.0}]
    page = Page(write_report(write_run(tmp_path / "run", [], metrics=rows, config={**CONFIG, "method": method})))
    assert f"deliberation words, {lacks}" in page.text


def test_a_run_with_nothing_but_a_config_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    page = Page(write_report(tmp_path))
    assert "not finished" in page.text
    assert "No comparison yet" in page.text
    assert "No evaluation on held-out problems yet." in page.text
    assert "No completions yet." in page.text
    assert page.columns() == []


def test_what_a_finished_run_lacks_is_not_awaited(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], metrics=METRICS[1:2], summary={"steps": 1, "finished": True})
    page = Page(write_report(folder))
    assert "This run has no evaluation on held-out problems." in page.text
    assert "This run has written no completions." in page.text
    assert "Not recorded in this run: held-out length, " in page.text


def test_the_axis_of_a_run_that_goes_on_reaches_its_last_planned_step(tmp_path: Path) -> None:
    config = CONFIG | {"steps": 40}
    going = Page(write_report(write_run(tmp_path / "going", [], config=config, summary=None)))
    over = Page(write_report(write_run(tmp_path / "over", [], config=config)))
    assert going.columns()[0][-1]["x"] != over.columns()[0][-1]["x"] == "670"
    assert ">40</text>" in going.source
    assert ">40</text>" not in over.source


def test_the_evaluation_before_training_stands_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [], metrics=METRICS[1:])
    before = {"step": 0, **evaluation(0.4125)}
    (folder / "evaluations.jsonl").write_text(2 * (json.dumps(before) + "\n"))
    [wide, *_] = Page(write_report(folder)).columns()
    assert [(column["step"], len(column["rows"])) for column in wide] == [("0", 1), ("2", 1)]


def test_an_unfinished_run_reads_its_ends_from_the_metrics(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", [], summary=None)))
    assert "not finished" in page.text
    assert "41.2% → 53.2%" in page.text
    assert "sampling 1.5 s 75.0% training 0.5 s 25.0%" in page.text


def test_the_faults_of_episodes_are_named_by_what_they_are(tmp_path: Path) -> None:
    played = [{**row, "turns": 3.0, "unended": 0.125, "tool_errors": 0.5} for row in METRICS]
    page = Page(write_report(write_run(tmp_path / "run", [], metrics=played)))
    _, _, chart = page.source.partition("Faults of episodes")
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", chart.partition("</figure>")[0])
    assert {"not ended", "tool errors"} <= set(labels) and "teacher" not in labels


def test_numbers_that_are_none_or_nan_are_gaps(tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": loss} for step, loss in ((1, 0.5), (2, float("nan")), (3, None), (4, 0.25))]
    page = Page(write_report(write_run(tmp_path / "run", [], metrics=metrics, summary=None)))
    assert [[column["step"] for column in chart] for chart in page.columns()] == [["1", "4"]]


def test_a_run_that_was_judged_in_part_still_has_a_best_step(tmp_path: Path) -> None:
    unjudged = evaluation(0.0) | {"judged": 0, "avg": None, "pass": None, "maj": None}
    metrics = [{"step": 0, "evaluation": unjudged}, *METRICS[1:]]
    summary = SUMMARY | {"before": unjudged}
    page = Page(write_report(write_run(tmp_path / "run", [], metrics=metrics, summary=summary)))
    assert "Best, step 2" in page.text
    assert "Before, after, best" in page.text


def test_a_loss_of_rounding_errors_is_shown_as_zero_with_a_reason(tmp_path: Path) -> None:
    metrics = [{"step": 1, "loss": -1.2e-9}, {"step": 2, "loss": 3e-8}]
    page = Page(write_report(write_run(tmp_path / "still", [], metrics=metrics)))
    assert "Loss 0 → 0 0 up to rounding: its gradient, not its value, moves the weights" in page.text
    assert "e−" not in page.text
    page = Page(write_report(write_run(tmp_path / "moves", [], metrics=[{"step": 1, "loss": 0.02}, *metrics[1:]])))
    assert "the quantity optimised" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config\.json"):
        write_report(tmp_path)


def test_a_second_report_replaces_the_first_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [])
    assert write_report(folder) == write_report(folder) == folder / "report.html"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "report.html",
        "rollouts.jsonl",
        "summary.json",
    ]


def test_without_a_teacher_there_are_no_colours(tmp_path: Path) -> None:
    row = completion(1, "a", 0, 1.0)
    del row["u"]
    page = Page(write_report(write_run(tmp_path / "run", [row])))
    assert "No teacher scored these completions" in page.text
    assert page.attributes("span", "data-u") == []
    assert page.attributes("span", "data-p") == ["−0.125", "−0.250", "−0.500", "0.000"]


def test_text_can_be_read_on_every_tint() -> None:
    for colours in palettes():
        for ink, ground in [("ink", "less"), ("ink", "more"), ("ink", "card"), ("soft", "card"), ("soft", "paper")]:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
