"""Alarms: each is raised at the step computed by hand, says the numbers, is active until they are back, and resumes."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from selfdistill.cli.app import main
from selfdistill.config.run import parse_config
from selfdistill.config.sections import AlarmName, AlarmsConfig
from selfdistill.distributed.signals import STOPPED_BY_ALARM
from selfdistill.errors import ConfigError
from selfdistill.tracking.alarms import ALARMS, Alarm, AlarmWatch
from support.runs import as_toml, lines, metrics, open_run, outcome, recorder, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

DEFAULTS = AlarmsConfig(window=2, no_success=2)
"""The shipped limits over two steps, which is little enough to add up by hand."""


def heard(*history: Mapping[str, Any], thresholds: AlarmsConfig = DEFAULTS) -> list[Alarm]:
    watch = AlarmWatch(thresholds, right="from a reward of 1 on (reward.success)")
    return [alarm for step, line in enumerate(history, start=1) for alarm in watch.update({"step": step, **line})]


def column(key: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    return [{key: value} for value in values]


CASES: dict[str, tuple[str, list[dict[str, Any]], list[int], str]] = {
    # The start is (1 + 1) / 2; the limit a quarter of it. Means of two: 1, .65, .3, .2 at step 5; .3 clears it (above
    # .275) at step 7, and .2 raises it again at 9.
    "student entropy": (
        "entropy_collapse",
        column("student_entropy", [1, 1, 0.3, 0.3, 0.1, 0.3, 0.3, 0.3, 0.1, 0.1]),
        [5, 9],
        "entropy of the student over the last 2 steps is 0.2000 nats a token, 20% of 1.0000 at the start (limit 25%)",
    ),
    "teacher entropy": (
        "teacher_entropy_collapse",
        column("teacher_entropy", [0.8, 1.2, 0.1, 0.1]),
        [4],
        "mean entropy of the teacher over the last 2 steps is 0.1000 nats a token, 10% of 1.0000",
    ),
    # By the mean of two: 1.5 at step 3, 2.25 at 4; 1.25 at 7 clears it, and 2 at 8 raises it again.
    "student entropy rises": (
        "entropy_explosion",
        column("student_entropy", [1, 1.5, 1.5, 3, 3, 1.5, 1, 3, 3]),
        [4, 8],
        "entropy of the student over the last 2 steps is 1.2500 nats a token above the first step's 1.0000 (limit 1)",
    ),
    # Mean of 150 and 250 is exactly twice 100.
    "length grows": (
        "length_explosion",
        column("length", [100, 100, 150, 250, 250]),
        [4],
        "completions of the last 2 steps have 200.0 tokens on average, 2.00 × the 100.0 at the start (limit 2 ×)",
    ),
    "length shrinks": (
        "length_shrinkage",
        column("length", [100, 100, 60, 41, 40]),
        [5],
        "have 40.5 tokens on average, 0.41 × the 100.0 at the start (limit 0.5 ×)",
    ),
    "deliberation": (
        "deliberation_vanishing",
        column("deliberation", [4, 4, 3, 2, 1.5]),
        [5],
        "1.75 deliberation words a completion over the last 2 steps, 44% of 4.00 at the start (limit 50%)",
    ),
    "reference leak": (
        "reference_leak",
        column("leak", [0.0, 0.1, 0.1, 0.0]),
        [3],
        "10% of the completions mention a reference, such as a given solution, that they never saw over the last",
    ),
    "truncated": (
        "truncated_completions",
        column("truncated", [0.0, 0.2, 0.3, 0.4, 0.2, 0.2, 0.5]),
        [4, 7],
        "35% of the completions were cut by the token limit over the last 2 steps (limit 30%)",
    ),
    "episodes without end": (
        "unended_episodes",
        column("unended", [0.25, 0.5, 0.5, 0.25, 0.5, 0.75]),
        [3, 6],
        "50% of the episodes were not ended by their environment over the last 2 steps (limit 50%)",
    ),
    "tool errors": (
        "tool_errors",
        column("tool_errors", [0.25, 0.75, 0.5]),
        [2],
        "50% of the turns were answered with an error over the last 2 steps (limit 50%)",
    ),
    # Four turns after the first at the start; a tenth of them is left at 1.4.
    "turns shrink": (
        "turns_shrinking",
        column("turns", [4, 6, 2, 1.5, 1.3, 1.5]),
        [5],
        "episodes of the last 2 steps have 1.40 turns on average, 5.00 at the start (limit: 10% of the turns after",
    ),
    # Rewards from 0.2 to 0.6 that are never right; step 4 is right once and clears it.
    "graded rewards": (
        "no_success",
        [
            *({"success": 0.0, "reward_low": low, "reward_high": 0.6} for low in (0.2, 0.3)),
            *({"success": share, "reward_low": 0.3, "reward_high": 0.6} for share in (0.0, 0.5, 0.0, 0.0)),
        ],
        [2, 6],
        "over the last 2 steps no completion is right, which it is from a reward of 1 on (reward.success), while "
        "rewards go from 0.2 to 0.6",
    ),
    "rewards beyond success": (
        "no_success",
        [{"success": 1.0, "reward_low": 3.0, "reward_high": 5.4}] * 2,
        [2],
        "every completion is right",
    ),
    "skipped": (
        "skipped_completions",
        column("left_out", [0.25, 0.75]),
        [2],
        "50% of the completions were left out of the loss over the last 2 steps (limit 50%)",
    ),
    "no signal": (
        "no_signal",
        column("no_signal", [0.5, 0.75, 1.0]),
        [3],
        "88% of the groups taught nothing over the last 2 steps (limit 80%)",
    ),
    "mean ratio": (
        "importance_ratios",
        column("ratio", [1.0, 1.05, 0.85, 1.12]),
        [3],
        "the mean importance ratio of the step is 0.8500 (limit 1 ± 0.1)",
    ),
    "clipped tokens behind a mean ratio of 1": (
        "importance_ratios",
        [{"ratio": 1.0, "clip_share": share} for share in (0.1, 0.25, 0.19, 0.1, 0.2)],
        [2, 5],
        "25% of the tokens left the clip range of importance ratios (limit 20%)",
    ),
    "an engine that is not the learner": (
        "sampler_gap",
        column("sampler_gap", [0.02, 0.12, 0.1, 0.05]),
        [3],
        "the learner's log-probabilities differ from the sampler's by 0.1100 nats a token (limit 0.1)",
    ),
    # Gaps .03, .01, −.02 and −.04: means of two .02, −.005 at step 3.
    "u does not tell right from wrong": (
        "teacher_worse",
        [{"u_correct": right, "u_wrong": -0.1} for right in (-0.07, -0.09, -0.12, -0.14)],
        [3],
        "the context adds -0.1050 nats a token to correct completions and -0.1000 to wrong ones (limit 0 apart)",
    ),
    "a context that changes nothing": ("teacher_worse", [{"u_correct": 0.0, "u_wrong": 0.0}] * 3, [2], "+0.0000"),
    "the teacher's own completions are worse": (
        "teacher_worse",
        [{"reward": 0.5, "teacher_reward": reward, "u_correct": 1, "u_wrong": 0} for reward in (0.6, 0.5, 0.3, 0.3)],
        [3],
        "the teacher's own completions earn 0.400, the student's 0.500 (limit 0.05 more than the teacher's)",
    ),
    # The median of the (up to 8) steps before is 1 at step 6, 2.5 at step 9, and 3 lies well below ten times 2.
    "gradient": (
        "gradient_jump",
        column("grad_norm", [1, 2, 1, 1, 9.9, 10, 50, 3, 25]),
        [6, 9],
        "gradient norm 10 is 10.0 × the median 1 of the steps before (limit 10 ×)",
    ),
    # Means of two: 50 %, 20 % at step 3; a rate of a tenth of the highest is not judged, and 25 % clears it at step 6.
    "updates that round to nothing": (
        "vanishing_updates",
        [
            {"moved": share, "learning_rate": rate}
            for share, rate in (
                (0.9, 1e-6),
                (0.1, 1e-6),
                (0.3, 1e-6),
                (0.0, 1e-7),
                (0.2, 1e-6),
                (0.3, 1e-6),
                (0.0, 1e-6),
            )
        ],
        [3, 7],
        "updates of the last 2 steps changed 20.00% of the weights with a gradient (limit 20%)",
    ),
    "an average that rounds to nothing": (
        "vanishing_updates",
        [{"moved": 1.0, "average_moved": share} for share in (0.005, 0.0018)],
        [2],
        "updates of the last 2 steps changed 0.34% of the averaged weights behind the student (limit 20%)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alarm_sounds_at_the_step_that_a_hand_computes(case: str) -> None:
    name, history, steps, evidence = CASES[case]
    found = heard(*history)
    assert [(alarm.name, alarm.step) for alarm in found] == [(name, step) for step in steps]
    assert evidence in found[0].evidence
    assert found[0].suggestion == ALARMS[name].suggestion


NEAR: dict[str, list[dict[str, Any]]] = {
    "entropy_collapse": column("student_entropy", [1, 1, 0.26, 0.26]),
    "entropy_explosion": column("student_entropy", [1, 1, 1.99, 2]),
    "teacher_entropy_collapse": column("teacher_entropy", [1, 1, 0.26, 0.26]),
    "length_explosion": column("length", [100, 100, 199, 200]),
    "length_shrinkage": column("length", [100, 100, 50, 51]),
    "deliberation_vanishing": column("deliberation", [4, 4, 2, 2.1]),
    "reference_leak": column("leak", [0.1, 0.09]),
    "truncated_completions": column("truncated", [0.3, 0.29]),
    "unended_episodes": column("unended", [0.5, 0.49]),
    "tool_errors": column("tool_errors", [0.49, 0.5]),
    "turns_shrinking": column("turns", [5, 5, 1.4, 1.41]),
    "skipped_completions": column("left_out", [0.5, 0.49]),
    "no_signal": column("no_signal", [0.8, 0.79]),
    # None is right, and no reward says that one is better than another.
    "no_success": [{"success": 0.0, "reward_low": 0.0, "reward_high": 0.0}] * 3,
    "importance_ratios": [{"ratio": 1.09, "clip_share": 0.19}, {"ratio": 0.91, "clip_share": 0.0}],
    "sampler_gap": column("sampler_gap", [0.1, 0.09]),
    "teacher_worse": [{"u_correct": 0.01, "u_wrong": 0.0, "reward": 0.5, "teacher_reward": 0.46}] * 2,
    "gradient_jump": column("grad_norm", [1, 1, 1, 1, 9.9]),
    # Where a schedule ends, nothing need move.
    "vanishing_updates": [
        *({"moved": share, "average_moved": 0.9, "learning_rate": 1e-6} for share in (0.2, 0.21)),
        *({"moved": 0.0, "average_moved": 0.0, "learning_rate": rate} for rate in (1e-7, 1e-8, 0.0)),
    ],
}
"""Histories that stay just inside the limit; of ``validation_falls`` they follow below."""


@pytest.mark.parametrize("name", NEAR)
def test_just_inside_its_limit_an_alarm_is_silent(name: str) -> None:
    assert heard(*NEAR[name]) == []
    assert {*NEAR, "validation_falls"} == set(ALARMS)


def test_episodes_that_had_one_turn_from_the_start_cannot_shrink() -> None:
    assert heard(*column("turns", [1] * 6)) == []


def test_every_alarm_is_heard_in_a_case() -> None:
    assert {name for name, *_ in CASES.values()} | {"validation_falls"} == set(ALARMS)


def scored(accuracy: float, high: float) -> dict[str, Any]:
    return {"avg": {"k": 1, "value": accuracy, "low": accuracy - 0.02, "high": high}}


@pytest.mark.parametrize(
    ("accuracies", "rewards", "steps"),
    [
        ([0.5, 0.48, 0.44], [0.3, 0.4, 0.5, 0.6], [4]),
        ([0.5, 0.44, 0.43], [0.3, 0.4, 0.5, 0.6], [2]),  # it is raised once
        ([0.5, 0.6, 0.44], [0.3, 0.4, 0.4, 0.3], []),  # the reward was .35 at the best evaluation, and still is
        ([0.5, 0.51, 0.49], [0.3, 0.4, 0.5, 0.6], []),  # too little
    ],
)
def test_validation_that_falls_beside_a_rising_reward(
    accuracies: list[float], rewards: list[float], steps: list[int]
) -> None:
    watch = AlarmWatch(DEFAULTS)
    watch.update({"step": 0, "evaluation": scored(accuracies[0], accuracies[0] + 0.01)})
    found = []
    for step, reward in enumerate(rewards, start=1):
        line: dict[str, Any] = {"step": step, "reward": reward}
        if step % 2 == 0:
            line["evaluation"] = scored(accuracies[step // 2], accuracies[step // 2] + 0.01)
        found += [(alarm.name, alarm.step) for alarm in watch.update(line)]
    # Before the first step there is no training reward: the first two steps stand for it, so a fall by step 2 beside
    # them is beside an equal reward and waits for step 4.
    assert found == [("validation_falls", max(step, 4)) for step in steps]


def test_evaluations_that_judged_nothing_are_passed_over() -> None:
    watch = AlarmWatch(DEFAULTS)
    unjudged = {"judged": 0, "avg": None}
    watch.update({"step": 0, "evaluation": scored(0.5, 0.51)})
    for step, reward in enumerate((0.3, 0.4, 0.5), start=1):
        assert watch.update({"step": step, "reward": reward, "evaluation": unjudged}) == ()
    [alarm] = watch.update({"step": 4, "reward": 0.6, "evaluation": scored(0.4, 0.41)})
    assert alarm.name == "validation_falls"
    # It stands, and an evaluation that says nothing does not end it.
    watch.update({"step": 5, "reward": 0.6, "evaluation": unjudged})
    assert "validation_falls" in watch.active


def test_a_fall_inside_its_interval_is_none() -> None:
    watch = AlarmWatch(DEFAULTS)
    watch.update({"step": 0, "evaluation": scored(0.5, 0.6)})
    for step, reward in enumerate((0.3, 0.4, 0.5), start=1):
        watch.update({"step": step, "reward": reward})
    assert watch.update({"step": 4, "reward": 0.6, "evaluation": scored(0.4, 0.5)}) == ()
    [alarm] = watch.update({"step": 5, "reward": 0.6, "evaluation": scored(0.4, 0.49)})
    assert alarm.evidence == (
        "held-out accuracy fell from 0.500 at step 0 to 0.400 (upper end 0.490) while the training reward rose from "
        "0.350 to 0.600 (limit 0.03)"
    )


@pytest.mark.parametrize("by", ["success", "reward"])
def test_a_graded_run_is_told_by_its_mean_reward_where_that_chooses_the_best(by: str) -> None:
    """Nothing is ever right, and the mean reward falls: the accuracy of 0 says nothing."""
    watch = AlarmWatch(DEFAULTS, by=by)
    levels = {0: 0.8, 4: 0.6}
    raised: list[str] = []
    for step, reward in enumerate((None, 0.3, 0.4, 0.5, 0.6)):
        line: dict[str, Any] = {"step": step} if reward is None else {"step": step, "reward": reward}
        if step in levels:
            graded = {"value": levels[step], "high": levels[step] + 0.05}
            line["evaluation"] = {"avg": {"value": 0.0, "high": 0.0}, "reward": graded}
        raised += [alarm.evidence for alarm in watch.update(line)]
    told = (
        "held-out mean reward fell from 0.800 at step 0 to 0.600 (upper end 0.650) while the training reward rose from "
        "0.350 to 0.550 (limit 0.03)"
    )
    assert raised == ([told] if by == "reward" else [])


def test_rewards_that_are_the_hits_are_told_as_accuracy() -> None:
    watch = AlarmWatch(DEFAULTS, by="reward")
    watch.update({"step": 0, "evaluation": {"avg": {"value": 0.5, "high": 0.6}, "reward": {"value": 0.5, "high": 0.6}}})
    for step in (1, 2, 3):
        watch.update({"step": step, "reward": 0.3})
    low = {"value": 0.2, "high": 0.3}
    [alarm] = watch.update({"step": 4, "reward": 0.6, "evaluation": {"avg": low, "reward": low}})
    assert alarm.evidence.startswith("held-out accuracy fell from 0.500 at step 0 to 0.200")


@pytest.mark.parametrize("gap", [None, float("nan"), float("inf")])
def test_a_step_without_the_number_changes_nothing(gap: float | None) -> None:
    found = heard(*column("truncated", [0.4, gap, 0.4, gap, gap, 0.4]))
    assert [alarm.step for alarm in found] == [3]
    assert heard(*[{}] * 30) == []


def test_an_alarm_stands_until_its_number_is_back_by_a_tenth_of_the_limit() -> None:
    watch = AlarmWatch(DEFAULTS)
    active = []
    for step, share in enumerate([0.3, 0.3, 0.28, 0.28, 0.25, 0.25], start=1):
        watch.update({"step": step, "truncated": share})
        active.append("truncated_completions" in watch.active)
    assert active == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["entropy_colapse"], "stop_on: unknown name 'entropy_colapse'; did you mean 'entropy_collapse'?"),
        (["qqq"], "stop_on: unknown name 'qqq'; known: entropy_collapse, "),
        ("entropy_collapse", "stop_on: "),
        ([3], "stop_on.0: "),
    ],
)
def test_unknown_names_to_stop_on_are_refused(names: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", "stop_on": names}, "a test")
    assert sentence in str(error.value)


# --- in a run --------------------------------------------------------------------------------------------------------

# One step a window, and limits that the tiny model meets: its completions of 10 tokens are mostly cut.
EAGER = ("alarms.window=1", "alarms.truncated=0.1", "alarms.gradient=1.01", "alarms.no_signal=0.3")


def test_alarms_are_said_and_written_and_stand_in_the_metrics(model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_run(model, "sdpo", *EAGER), tmp_path)
    summary = run.train(recorder(run).stop)
    written = lines(tmp_path / "alarms.jsonl")
    assert written
    assert summary["alarms"] == written
    assert summary["stopped_by"] == []
    again = AlarmWatch(run.config.alarms)
    for line in lines(tmp_path / "metrics.jsonl"):
        found = again.update(line)
        assert [one for one in written if one["step"] == line["step"]] == [alarm.to_json() for alarm in found]
        assert line["alarms"] == sorted(again.active)
    said = [sentence for sentence in recorder(run).said if sentence.startswith("alarm ")]
    assert said == [Alarm(**one).message() for one in written]


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_taken_up_again_hears_the_same_alarms(stop_after: int, model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "sdpo", *EAGER)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", stop_after=stop_after)
    later = {"step": 4, "name": "no_signal", "evidence": "", "suggestion": ""}
    with (tmp_path / "stopped" / "alarms.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(later) + '\n{"step": 1, "na')
    train(config, tmp_path / "stopped", resume=True)
    whole, stopped = outcome(tmp_path / "whole"), outcome(tmp_path / "stopped")
    assert stopped["metrics"] == whole["metrics"]
    assert stopped["summary"] == whole["summary"]
    assert (tmp_path / "stopped" / "alarms.jsonl").read_bytes() == (tmp_path / "whole" / "alarms.jsonl").read_bytes()


def test_a_chosen_alarm_ends_the_run_and_taking_it_out_lets_it_go_on(model: Path, tmp_path: Path) -> None:
    summary = train(tiny_run(model, "sdpo", *EAGER, "stop_on=['truncated_completions']"), tmp_path / "run")
    first = lines(tmp_path / "run" / "alarms.jsonl")[0]
    assert (summary["steps"], summary["finished"]) == (first["step"], False)
    assert summary["stopped_by"] == ["truncated_completions"]
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").is_file()
    stopped = outcome(tmp_path / "run")
    train(tiny_run(model, "sdpo", *EAGER, "stop_on=['truncated_completions']"), tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == stopped, "the same config stops at the same step"
    train(tiny_run(model, "sdpo", *EAGER), tmp_path / "run", resume=True)
    train(tiny_run(model, "sdpo", *EAGER), tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_a_run_older_than_the_alarms_can_be_taken_up(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "sdpo")
    train(config, tmp_path, stop_after=2)
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for key in ("alarms", "stop_on"):
        del stored[key]
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    assert train(config, tmp_path, resume=True)["finished"]


def test_the_command_says_which_alarm_ended_it_and_exits_with_3(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(model, "sdpo", *EAGER, "stop_on=['truncated_completions']")
    path = tmp_path / "config.toml"
    path.write_text(as_toml(config.model_dump(exclude_none=True)), encoding="utf-8")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main(["train", str(path), "--out", str(tmp_path / "run")])
    assert end.value.code == STOPPED_BY_ALARM == 3
    assert signal.getsignal(signal.SIGTERM) is handler
    said = " ".join(capsys.readouterr().out.split())
    assert "ended after step 1 by truncated_completions; the best checkpoint, of step" in said


def test_a_config_may_stop_on_every_alarm() -> None:
    assert tuple(ALARMS) == get_args(AlarmName)
