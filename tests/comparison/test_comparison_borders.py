"""Comparisons of runs that are as short as can be, and numbers whose sign, seed or place could be taken for another."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from selfdistill.comparison import compare
from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.runs import last_step
from selfdistill.distributed.children import Child, State
from selfdistill.errors import DataError
from selfdistill.evaluation.intervals import over_seeds
from selfdistill.tracking.progress import Progress
from support.arms import alarm, arm, ended_run, evaluation, metrics, simple_run, write_run


def of(result: dict[str, Any], name: str) -> dict[str, Any]:
    """One arm of a comparison."""
    [found] = [one for one in result["arms"] if one["name"] == name]
    assert isinstance(found, dict)
    return found


def test_a_run_that_ended_before_its_second_evaluation_is_compared_at_the_start(tmp_path: Path) -> None:
    whole = simple_run(tmp_path / "whole", (1, 1, 2), (2, 2, 2))
    nothing = [alarm("no_signal", 1)]
    short = ended_run(tmp_path / "short", (1, 1, 2), steps=1, alarms=nothing, by=["no_signal"])
    for baseline, other in (("whole", "short"), ("short", "whole")):
        result = analyse([arm("whole", whole), arm("short", short)], baseline=baseline)
        assert (result["samples"], result["problems"]) == (4, [3])
        accuracy = of(result, other)["accuracy"]
        assert accuracy["compared_at"] == [0]
        gap = accuracy["against_baseline"]
        assert (gap["value"], gap["low"], gap["high"], gap["k"], gap["n"]) == (0.0, 0.0, 0.0, 4, 3)
        assert of(result, "short")["accuracy"]["final"]["value"] == pytest.approx(1 / 3, rel=1e-5)


def test_a_summary_without_alarms_has_ended_by_none(tmp_path: Path) -> None:
    rows, lines = [evaluation(0, (1, 1)), evaluation(1, (2, 2))], [metrics(1)]
    plain = write_run(tmp_path / "plain", rows, lines)
    older = write_run(tmp_path / "older", rows, lines, {"steps": 1})
    for name, folder in (("plain", plain), ("older", older)):
        [run] = of(analyse([arm(name, folder)], baseline=name), name)["runs"]
        assert (run["ended_by"], run["alarms"]) == ([], None)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("metrics", steps) for steps in ((1, 1, 2), (2,), (1,), (2, 1))),
        *(("evaluations", steps) for steps in ((0, 1, 1, 2), (0, 2, 1), (0, 1, 7))),
    ],
)
def test_lost_and_doubled_lines_are_not_compared(name: str, steps: tuple[int, ...], tmp_path: Path) -> None:
    rows = [evaluation(step, (1, 1)) for step in (steps if name == "evaluations" else (0, 1, 2))]
    lines = [metrics(step) for step in (steps if name == "metrics" else (1, 2))]
    run = write_run(tmp_path / "run", rows, lines, {"steps": 2})
    with pytest.raises(DataError, match=r"run/\w+\.jsonl has lost, doubled or changed lines: train with --resume"):
        analyse([arm("a", run)], baseline="a")


def test_what_is_better_than_the_baseline_is_positive(tmp_path: Path) -> None:
    base = simple_run(tmp_path / "base", (1, 1), (2, 2), (1, 1))
    other = simple_run(tmp_path / "other", (1, 1), (3, 4), (2, 1))
    accuracy = of(analyse([arm("base", base), arm("other", other)], baseline="base"), "other")["accuracy"]
    assert (accuracy["best"]["value"], accuracy["against_baseline"]["value"]) == (0.875, 0.125)
    for name in ("before", "final", "change", "best", "late_change", "against_baseline"):
        assert (accuracy[name]["k"], accuracy[name]["n"]) == (4, 2)


def test_whether_an_arm_generates_is_kept(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", (1, 1), (2, 2))
    for generates in (True, False):
        assert of(analyse([arm("a", run, generates=generates)], baseline="a"), "a")["generates"] is generates


def test_an_interval_is_that_of_the_means_of_the_seeds(tmp_path: Path) -> None:
    hits = [(0, 3, 1, 4, 2, 2, 1), (4, 0, 2, 2, 1, 3, 3)]
    runs = [simple_run(tmp_path / f"{s}", (1,) * 7, row) for s, row in enumerate(hits)]
    found = of(analyse([arm("a", *runs)], baseline="a"), "a")["accuracy"]["final"]
    rows = [[hit / 4 for hit in row] for row in hits]
    exact = over_seeds(rows, k=4, bounds=(0, 1), confidence=0.95).as_dict()
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in exact.items()}


def test_one_number_has_no_interval(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", (1,), (2,))
    with pytest.raises(DataError, match="one seed with one held-out problem has no interval"):
        analyse([arm("a", run)], baseline="a")


@pytest.mark.parametrize(("steps", "block"), [(120, 1), (121, 2), (240, 2), (241, 3)])
def test_a_curve_has_120_points_at_most(steps: int, block: int, tmp_path: Path) -> None:
    lines = [metrics(step) for step in range(1, steps + 1)]
    run = write_run(tmp_path / "run", [evaluation(0, (1, 1)), evaluation(steps, (1, 1))], lines)
    training = of(analyse([arm("a", run)], baseline="a"), "a")["curves"]["training"]
    assert (training["block"], len(training["step"])) == (block, -(-steps // block))


def test_a_run_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    base = simple_run(tmp_path / "base", (1, 1), (2, 2))
    other = simple_run(tmp_path / "other", (1, 1, 1), (2, 2, 2))
    with pytest.raises(DataError, match=rf"^{other} cannot be paired"):
        analyse([arm("a", base), arm("b", other)], baseline="a")
    for name, rows, lines in (("no_steps", [evaluation(0, (1,))], []), ("no_evaluations", [], [metrics(1)])):
        folder = write_run(tmp_path / name, rows, lines)
        with pytest.raises(DataError, match=rf"^{folder} holds no finished run"):
            analyse([arm("a", folder)], baseline="a")


def test_a_phase_that_no_step_has_takes_no_time(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", (1, 1), (2, 2), phases={"views": 0.5, "student": 1.0})
    cost = of(analyse([arm("a", run)], baseline="a"), "a")["cost"]
    assert cost["seconds"] == {"generation": 0.0, "scoring": 0.0, "learning": 1.5, "step": 1.5}


def test_a_step_without_seconds_has_no_ratio(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", (1, 1), (2, 2), phases={"evaluation": 1.0})
    cost = of(analyse([arm("a", run)], baseline="a"), "a")["cost"]
    assert set(cost["against_baseline"].values()) == {None}


def test_what_only_one_run_records_is_drawn_and_has_no_mean_over_runs(tmp_path: Path) -> None:
    evaluations = [evaluation(0, (1, 1)), evaluation(3, (1, 1))]
    with_it = [metrics(step, teacher_entropy=value) for step, value in ((1, None), (2, 2.0), (3, 6.0))]
    without = [metrics(step) for step in (1, 2, 3)]
    runs = [write_run(tmp_path / f"{s}", evaluations, lines) for s, lines in enumerate((with_it, without))]
    one = of(analyse([arm("a", *runs)], baseline="a"), "a")
    known = [None, 2.0, 6.0]
    assert one["curves"]["training"]["teacher_entropy"] == {"mean": known, "low": known, "high": known}
    assert one["entropy"]["teacher"] == {"first": None, "last": None}


def test_a_tenth_of_a_short_run_is_one_step(tmp_path: Path) -> None:
    lines = [metrics(step, student_entropy=value) for step, value in ((1, 1.0), (2, 2.0), (3, 6.0))]
    run = write_run(tmp_path / "run", [evaluation(0, (1, 1)), evaluation(3, (1, 1))], lines)
    found = of(analyse([arm("a", run)], baseline="a"), "a")["entropy"]["student"]
    assert found == {"first": 1.0, "last": 6.0}


@pytest.mark.parametrize("width", [10, 70_000, 400_000])
def test_the_last_step_is_that_of_the_last_whole_line(width: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text("")
    assert last_step(path) == 0
    lines = "".join(json.dumps({"step": step, "hits": "1" * width}) + "\n" for step in (1, 2))
    path.write_text(lines)
    assert last_step(path) == 2
    path.write_text(lines + '{"step": 3')
    assert last_step(path) == 2
    path.write_text('{"step": 1' + "1" * width)
    assert last_step(path) == 0


def test_a_comparison_in_a_log_tells_steps_and_accuracies_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(compare, "time", SimpleNamespace(monotonic=lambda: now[0]))
    text = io.StringIO()
    arms = (SimpleNamespace(config=SimpleNamespace(steps=9, model_dump=dict)),)
    folders, comparison = {name: tmp_path / name for name in "ab"}, cast(Any, SimpleNamespace(arms=arms))
    watch = compare._Watch(Progress(Console(file=text, width=200)), folders, comparison, 2)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 3}\n', encoding="utf-8")
    (tmp_path / "a" / "evaluations.jsonl").write_text('{"step": 2, "avg": {"value": 0.25}}\n', encoding="utf-8")
    (tmp_path / "b" / "evaluations.jsonl").write_text('{"step": 2, "avg": null}\n', encoding="utf-8")
    state = State((Child("a", (), tmp_path), Child("b", (), tmp_path)), 0)
    for seconds in (0.0, 29.0, 31.0, 32.0, 62.0):
        now[0] = seconds
        watch(state)
    line = "0 of 2 runs done · a step 3/9, accuracy 0.250 · b step 3/9"
    assert text.getvalue().splitlines() == ["a: started", "b: started", line, line]
