"""The terminal of a run: speed and time left by hand, and what the closing table adds in words."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from selfdistill.evaluation.evaluate import summarise
from selfdistill.tracking import progress as module
from selfdistill.tracking.progress import Progress
from selfdistill.training.loop import Run
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.runs import tiny_run

pytestmark = pytest.mark.usefixtures("no_page")


def printed() -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(Console(file=text, width=200)), text


def test_an_evaluation_is_no_training_speed_and_its_time_is_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    progress, text = printed()
    line = {"reward": None, "loss": 0.5, "generated": 200}
    # Two seconds of training and ten of evaluation, then four seconds of training.
    now[0] = 112.0
    first = {"step": 1, "seconds": 12.0, "phase_seconds": {"generation": 2.0, "evaluation": 10.0}}
    progress.step(line | first, total=4, evaluation_left=20.0)
    now[0] = 126.0
    second = {"step": 2, "seconds": 4.0, "phase_seconds": {"generation": 4.0}}
    progress.step(line | second, total=4, evaluation_left=20.0)
    assert [row.split("loss +0.5000  ")[-1] for row in text.getvalue().splitlines()] == [
        "the first step took 2 s: about 26 s for the 3 steps left",
        "100 tokens/s  0:26 left",  # 3 steps of 2 s and 20 s
        "67 tokens/s  0:36 left",  # 400 tokens in 6 s of steps; 2 steps of 8 s, with what lies between, and 20 s
    ]


class _Left(Progress):
    """Keeps the evaluations that the loop announces, in evaluations of mean length."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None
        self.left: list[float] = []

    def step(self, line: Mapping[str, Any], *, total: int, evaluation_left: float = 0.0) -> None:
        assert self.run is not None
        done = 1 + line["step"] // 2
        self.left.append(evaluation_left * done / self.run.counters.seconds["evaluation"])


def test_the_loop_knows_how_many_evaluations_are_to_come(tmp_path: Path, model: Path) -> None:
    progress = _Left()
    progress.run = Run(tiny_run(model), tmp_path / "run", progress=progress)
    progress.run.train()
    # Of five steps the second, the fourth and the last are evaluated.
    assert progress.left == pytest.approx([3, 2, 2, 1, 0])


def evaluation(reward: float) -> dict[str, Any]:
    """The evaluation of one completion with that reward."""
    rollout = Rollout((1,), (5, 2), (-0.5, -1.5), True, "", 0)
    group = RolloutGroup(Example("a", (Message("user", "?"),)), (rollout,), (Verdict(reward, "5"),))
    return summarise([group], samples=1, plain=True).to_json()


def closing(reward: float, *, steps: int, after_step: int) -> str:
    """The closing lines of a run whose evaluations all gave that reward."""
    progress, text = printed()
    numbers = dict.fromkeys(("before", "after", "best"), evaluation(reward))
    about = {"steps": steps, "after_step": after_step, "best_step": 0, "seconds": {"update": 1.0}}
    progress.closing(about | numbers, "page")
    return text.getvalue()


GRADED = {
    "avg": {"k": 16, "value": 0.25, "low": 0.125, "high": 0.375},
    "reward": {"value": -12.5, "low": -13.25, "high": -11.75},
}
JUDGED = GRADED | {"reward": {"value": 0.25, "low": 0.125, "high": 0.375}}
TEXT: Mapping[str, Any] = {
    "avg": None,
    "loglikelihood": {"value": -106.449},
    "teacher_gap": {"value": 11.955},
    "teacher_shift": {"value": 10.02},
}


def held_out(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation with these numbers and long completions."""
    common = {"pass": {"value": 1.0}, "maj": {"value": 1.0}, "problems": 8, "samples": 16, "judged": 128}
    return common | {"length": 12345.6, "truncated": 1.0, "deliberation": 123.45, "entropy": None} | dict(numbers)


@pytest.mark.parametrize(
    ("numbers", "reward", "shown"),
    [
        (JUDGED, 0.5, "reward 0.500  held-out avg@16 0.250  loss"),
        (GRADED, 2.0, "reward 2.000  held-out reward -12.500  avg@16 0.250  loss"),
        (TEXT, None, "loss"),
        (None, None, "loss"),
    ],
)
def test_a_step_shows_its_own_reward_and_what_is_held_out_by_its_name(
    numbers: Mapping[str, Any] | None, reward: float | None, shown: str
) -> None:
    progress, text = printed()
    if numbers is not None:
        progress.evaluation(0, held_out(numbers))
    line = {"step": 2, "seconds": 1.0, "phase_seconds": {}, "reward": reward, "loss": 0.5, "generated": 3}
    progress.step(line, total=2)
    assert text.getvalue().splitlines()[-1].startswith(f"step 2/2  {shown} +0.5000  ")


@pytest.mark.parametrize("numbers", [JUDGED, GRADED, TEXT])
def test_the_closing_table_cuts_no_number_short_in_eighty_columns(numbers: Mapping[str, Any]) -> None:
    text = io.StringIO()
    rows = dict.fromkeys(("before", "after", "best"), held_out(numbers))
    about = {"steps": 1000, "after_step": 1000, "best_step": 1000, "seconds": {"update": 1.0}, "best_by": "reward"}
    Progress(Console(file=text, width=80)).closing(about | rows, "page")
    assert "…" not in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80
    for number in ("12345.6", "100.0%", "123.45", *(["-106.449", "+11.955", "+10.020"] if numbers is TEXT else [])):
        assert text.getvalue().count(number) == 3


def test_steps_that_no_evaluation_has_seen_are_named() -> None:
    assert "\nthe newest evaluation is that of step 2: steps 3 to 5 are in none of these rows\n" in closing(
        1.0, steps=5, after_step=2
    )
    assert "\nthe newest evaluation is that of step 4: step 5 is in none of these rows\n" in closing(
        1.0, steps=5, after_step=4
    )
    assert "newest evaluation" not in closing(1.0, steps=5, after_step=5)


@pytest.mark.parametrize(("steps", "name"), [(2, "after"), (3, "newest")])
def test_an_evaluation_before_the_last_step_is_not_called_after(steps: int, name: str) -> None:
    rows = [row.split()[0] for row in closing(1.0, steps=steps, after_step=2).splitlines() if " 1.000 " in row]
    assert rows == ["before", name, "best"]


@pytest.mark.parametrize(("reward", "none_right"), [(0.0, True), (1.0, False)])
def test_a_best_step_without_a_right_completion_is_called_none(reward: float, none_right: bool) -> None:
    said = closing(reward, steps=2, after_step=2)
    assert ("\n best " in said) is not none_right
    assert ("\nno held-out completion was right in any evaluation: no step is the best, " in said) is none_right


def test_an_evaluation_outside_a_run_names_no_step() -> None:
    progress, text = printed()
    progress.evaluation(None, evaluation(1.0))
    progress.evaluation(3, evaluation(1.0))
    first, note, second = text.getvalue().splitlines()
    assert (first.split(" 1.000")[0], second.split(" 1.000")[0]) == ("avg@1", "step    3  avg@1")
    # One problem has no spread, which is said once.
    assert first.startswith("avg@1 1.000 [no spread]  pass@1 1.000  ")
    assert note.startswith("no spread: every problem came out alike, or there is only one, ")


def test_an_evaluation_leads_with_the_metric_that_chooses_the_best() -> None:
    progress, text = printed()
    for by in ("reward", "success"):
        progress.evaluation(None, held_out(GRADED), by=by)
    progress.evaluation(None, held_out(JUDGED), by="reward")  # a reward of 0 and 1 is the accuracy
    progress.evaluation(None, held_out(GRADED | {"maj": None}), by="success")
    accuracy = "avg@16 0.250 [0.125, 0.375]  pass@16 1.000  "
    assert [line.split("length")[0] for line in text.getvalue().splitlines()] == [
        f"reward -12.500 [-13.250, -11.750]  {accuracy}maj@16 1.000  ",
        f"{accuracy}maj@16 1.000  reward -12.500  ",
        f"{accuracy}maj@16 1.000  ",
        f"{accuracy}reward -12.500  ",
    ]


def test_the_interval_of_the_closing_table_is_that_of_the_metric_that_chose_the_best() -> None:
    rows = dict.fromkeys(("before", "after", "best"), held_out(GRADED))
    about = {"steps": 2, "after_step": 2, "best_step": 0, "seconds": {"update": 1.0}, "tokens_per_second": 640.4}
    shown = {}
    for by in ("reward", "success"):
        progress, text = printed()
        progress.closing(about | rows | {"best_by": by}, "page")
        said = text.getvalue().splitlines()
        assert said[0].strip() == "2 steps, 0:01, 640 tokens/s"
        [shown[by]] = [line.split()[2:-3] for line in said if line.split()[:1] == ["before"]]
    assert shown["reward"] == ["-12.500", "-13.2–-11.8", "0.250", "1.000"]
    assert shown["success"] == ["0.250", "0.125–0.375", "1.000", "-12.500"]


def test_a_loss_of_rounding_noise_has_no_sign() -> None:
    progress, text = printed()
    common = {"seconds": 1.0, "phase_seconds": {}, "reward": None, "generated": 3}
    progress.step({"step": 2, "loss": -1e-9, **common}, total=2)
    assert "loss +0.0000  " in text.getvalue()
