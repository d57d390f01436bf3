"""What a comparison says of run folders written by hand, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.comparison.analysis import analyse, late_lag
from selfdistill.comparison.curves import MOST_POINTS
from selfdistill.comparison.headline import headline
from selfdistill.comparison.kept import kept_values
from selfdistill.comparison.notes import notes
from selfdistill.comparison.pass_at import pass_curve_of
from selfdistill.comparison.runs import ArmRuns
from selfdistill.comparison.tables import closing, tables
from selfdistill.errors import DataError
from selfdistill.evaluation.intervals import over_seeds
from support.arms import PHASES, alarm, arm, ended_run, evaluation, given_terms, metrics, simple_run, write_run


def of(result: dict[str, Any], name: str) -> dict[str, Any]:
    """One arm of a comparison."""
    [found] = [one for one in result["arms"] if one["name"] == name]
    assert isinstance(found, dict)
    return found


def ends(value: dict[str, float]) -> tuple[float, float, float]:
    return value["value"], value["low"], value["high"]


def spent(steps: int) -> dict[str, Any]:
    """What the hand-written steps have spent."""
    tokens = {"drawn": {"student": 100 * steps}, "scored": {"teacher": 90 * steps}, "trained": 80 * steps}
    return {"completions": {"student": 8 * steps}, **tokens}


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Any]:
    """A baseline that rises, and an arm that rises, falls and partly recovers; two seeds, two problems, four samples.

    Accuracies of the baseline: 1/4, 1/2, 3/4 and 1/4, 1/4, 1/2. Of the other arm: 1/4, 7/8, 1/2 and 1/4, 1/8, 3/8.
    """
    slow = {**PHASES, "teacher": 1.0, "evaluation": 9.0}
    base = [
        simple_run(tmp_path / "b0", (1, 1), (2, 2), (4, 2)),
        simple_run(tmp_path / "b1", (1, 1), (1, 1), (3, 1)),
    ]
    other = [
        simple_run(tmp_path / "o0", (1, 1), (4, 3), (4, 0), phases=slow, generated=50, teacher_entropy=0.5, gate=1.0),
        simple_run(tmp_path / "o1", (1, 1), (1, 0), (2, 1), phases=slow, generated=50, teacher_entropy=0.5, gate=0.0),
    ]
    return analyse([arm("base", *base), arm("other", *other)], baseline="base")


def test_final_and_best_are_means_over_seeds(two: dict[str, Any]) -> None:
    accuracy = of(two, "other")["accuracy"]
    assert accuracy["before"]["value"] == 0.25
    assert accuracy["final"]["value"] == (1 / 2 + 3 / 8) / 2
    assert accuracy["final"]["sd"] == pytest.approx(1 / 8 / 2**0.5, rel=1e-5)
    assert accuracy["best"]["value"] == (7 / 8 + 3 / 8) / 2
    assert accuracy["best_steps"] == [2, 4]
    assert (accuracy["final"]["k"], accuracy["final"]["n"]) == (4, 4)


def test_the_late_change_is_taken_between_evaluations_that_were_fixed_beforehand(tmp_path: Path) -> None:
    # Seven evaluations: the last is compared with the one two before it, whatever stands between.
    run = simple_run(tmp_path / "run", (0, 0), (4, 4), (4, 4), (0, 0), (2, 2), (4, 4), (1, 4))
    accuracy = of(analyse([arm("a", run)], baseline="a"), "a")["accuracy"]
    assert accuracy["late_steps"] == [[8, 12]]
    assert accuracy["late_change"]["value"] == 0.125
    assert [late_lag(end) for end in range(8)] == [1, 1, 1, 1, 1, 2, 2, 2]


def test_a_flat_curve_changes_late_by_nothing_where_a_fall_from_its_best_is_seen() -> None:
    generator = np.random.default_rng(0)
    curves = generator.normal(size=(4000, 9))
    late = curves[:, -1] - curves[:, -1 - late_lag(8)]
    fall = np.array([curve[curve.argmax() :].min() - curve.max() for curve in curves])
    error = float(late.std()) / 4000**0.5
    assert abs(float(late.mean())) < 3 * error
    assert float(fall.mean()) < -20 * error


def test_a_tie_for_the_best_goes_to_the_earlier_and_the_start_may_be_the_best(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "run", (3, 3), (2, 4), (1, 1), (2, 2))
    accuracy = of(analyse([arm("a", run)], baseline="a"), "a")["accuracy"]
    assert accuracy["best_steps"] == [0]
    assert accuracy["best"]["value"] == 0.75


def test_differences_are_those_of_the_pairs(two: dict[str, Any]) -> None:
    assert of(two, "base")["accuracy"]["against_baseline"] is None
    accuracy = of(two, "other")["accuracy"]
    # Problem by problem, finals differ by 0, −1/2 for one seed and −1/4, 0 for the other.
    value, low, high = ends(accuracy["against_baseline"])
    assert value == (-0.25 - 0.125) / 2
    # Means of the seeds −1/4 and −1/8: standard error 1/16, and t with one degree of freedom is 12.7062.
    assert (low, high) == pytest.approx((value - 12.7062 / 16, value + 12.7062 / 16), rel=1e-4)
    assert accuracy["change"]["value"] == (1 / 4 + 1 / 8) / 2
    assert two["interval"]["over"] == "seeds and problems"


def test_arms_that_answer_alike_do_not_differ_at_all(tmp_path: Path) -> None:
    hits = ((1, 3, 0), (2, 4, 1), (4, 0, 3))
    arms = [arm(name, *(simple_run(tmp_path / f"{name}{s}", *hits) for s in range(3))) for name in ("a", "b")]
    result = analyse(arms, baseline="a")
    zero = (0.0, 0.0, 0.0)
    for measure in ("accuracy", "deliberation", "length"):
        assert ends(of(result, "b")[measure]["against_baseline"]) == zero
    # Differences without any spread estimate no error, so that equality is not shown either.
    assert of(result, "b")["accuracy"]["against_baseline"]["equal"] is False
    assert result["same_start"] is True


def test_a_constant_lead_has_an_interval_without_width(tmp_path: Path) -> None:
    base = [simple_run(tmp_path / f"b{s}", (1, 3, 0), (1, 3, 0)) for s in range(2)]
    lead = [simple_run(tmp_path / f"l{s}", (1, 3, 0), (2, 4, 1)) for s in range(2)]
    result = analyse([arm("base", *base), arm("lead", *lead)], baseline="base")
    assert ends(of(result, "lead")["accuracy"]["against_baseline"]) == (0.25, 0.25, 0.25)
    assert ends(of(result, "lead")["accuracy"]["change"]) == (0.25, 0.25, 0.25)
    # The accuracies themselves do vary from problem to problem.
    assert of(result, "lead")["accuracy"]["final"]["low"] < of(result, "lead")["accuracy"]["final"]["high"]


def test_with_one_seed_problems_alone_are_drawn(tmp_path: Path) -> None:
    rows = ((0, 0, 0, 0), (4, 4, 0, 4))
    base, other = simple_run(tmp_path / "a", rows[0], rows[0]), simple_run(tmp_path / "b", *rows)
    result = analyse([arm("a", base), arm("b", other)], baseline="a")
    assert result["interval"]["over"] == "problems"
    # Four problems differ by 1, 1, 0 and 1: standard error 1/4, and t with three degrees of freedom is 3.18245.
    value, low, high = ends(of(result, "b")["accuracy"]["against_baseline"])
    assert (value, high) == (0.75, 1.0)
    assert low == pytest.approx(0.75 - 3.18245 / 4, abs=1e-4)
    assert of(result, "b")["accuracy"]["against_baseline"]["sd"] is None


def test_a_problem_lost_for_a_problem_won_is_no_difference_of_no_width(tmp_path: Path) -> None:
    base, other = simple_run(tmp_path / "a", (0, 4), (0, 4)), simple_run(tmp_path / "b", (0, 4), (4, 0))
    found = of(analyse([arm("a", base), arm("b", other)], baseline="a"), "b")["accuracy"]
    # The pairs differ by +1 and −1; sorted, both runs hold the same two accuracies.
    for name in ("against_baseline", "change"):
        assert ends(found[name]) == (0.0, -1.0, 1.0)


def test_the_intervals_of_a_column_hold_together(tmp_path: Path) -> None:
    hits = {"a": (1, 1, 2, 1), "b": (2, 1, 3, 1), "c": (2, 2, 2, 1), "d": (1, 2, 3, 4)}
    arms = [
        arm(name, *(simple_run(tmp_path / f"{name}{s}", (1,) * 4, row[s:] + row[:s]) for s in range(2)))
        for name, row in hits.items()
    ]
    result = analyse(arms, baseline="a")
    found = of(result, "d")["accuracy"]
    assert (found["against_baseline"]["family"], found["change"]["family"], found["final"]["family"]) == (3, 4, 1)
    values = [[0.0, 0.25, 0.25, 0.75], [0.25, 0.25, 0.75, 0.0]]
    exact = over_seeds(values, k=4, family=3, bounds=(-1, 1)).as_dict()
    assert {name: found["against_baseline"][name] for name in exact} == pytest.approx(exact, rel=1e-5)
    assert of(analyse(arms[:1], baseline="a"), "a")["accuracy"]["change"]["family"] == 1


def test_problems_that_all_seeds_share_are_drawn_too(tmp_path: Path) -> None:
    def runs(name: str, *last: int, sets: tuple[str, str]) -> list[Path]:
        return [
            write_run(
                tmp_path / f"{name}{s}",
                [evaluation(step, row) | {"problem_set": sets[s]} for step, row in ((0, (1, 1, 1)), (1, last))],
                [metrics(1)],
            )
            for s in range(2)
        ]

    for case, sets, shared in (("same", ("x", "x"), True), ("own", ("x", "y"), False)):
        arms = [
            arm("a", *runs(f"{case}a", 1, 1, 1, sets=sets)),
            arm("b", *runs(f"{case}b", 4, 0, 2, sets=sets)),
        ]
        result = analyse(arms, baseline="a")
        found = of(result, "b")["accuracy"]["against_baseline"]
        assert result["interval"]["shared_problems"] is shared
        # Both seeds differ by 3/4, −1/4 and 1/4: nothing between seeds, 1/2 between problems, of three or of six.
        assert found["error"] == pytest.approx(0.5 / (3 if shared else 6) ** 0.5, rel=1e-5)
        # The levels are those of 1, 0 and 1/2, which vary by 1/2 too; so is pass@1.
        levels = [of(result, "b")["accuracy"]["final"], of(result, "b")["pass_curve"][0]["final"]]
        levels.append(of(result, "b")["pass_curve"][0]["against_baseline"])
        assert [level["error"] for level in levels] == pytest.approx([found["error"]] * 3, rel=1e-5)
        assert "equal" in found
        assert "equal" not in of(result, "b")["length"]["against_baseline"]


def test_other_problems_of_the_same_number_cannot_be_paired(tmp_path: Path) -> None:
    folders = [
        write_run(
            tmp_path / name,
            [evaluation(step, (1, 2)) | {"problem_set": name} for step in (0, 1)],
            [metrics(1)],
        )
        for name in ("x", "y")
    ]
    with pytest.raises(DataError, match=r"cannot be paired: it has problem sets \['y', None\]"):
        analyse([arm("a", folders[0]), arm("b", folders[1])], baseline="a")


def test_every_interval_can_be_made_again_from_what_is_kept(two: dict[str, Any]) -> None:
    kept: dict[str, Any] = json.loads(json.dumps(two))
    base, other = of(kept, "base"), of(kept, "other")
    for measure, most in (("accuracy", 1.0), ("deliberation", math.inf), ("length", math.inf)):
        finals = [kept_values(run, measure, 4) for run in other["results"]]
        rivals = [kept_values(run, measure, 4) for run in base["results"]]
        level = over_seeds(finals, k=4, bounds=(0, most)).as_dict()
        assert other[measure]["final"] == pytest.approx(level, rel=1e-5)
        gaps = [[own - rival for own, rival in zip(*rows, strict=True)] for rows in zip(finals, rivals, strict=True)]
        gap = over_seeds(gaps, k=4, bounds=(-most, most)).as_dict()
        assert {name: other[measure]["against_baseline"][name] for name in gap} == pytest.approx(gap, rel=1e-5)


def test_the_baseline_is_reached_at_an_evaluation_not_between_two(two: dict[str, Any]) -> None:
    reach = of(two, "other")["reach"]
    assert reach["targets"] == [0.75, 0.5]
    assert reach["steps"] == [2, None]
    assert (reach["reached"], reach["of"], reach["limits"]) == (1, 2, [4, 4])
    # The second seed never reaches it and counts with all 4 steps. A step has 50 tokens and 5 seconds without
    # evaluation.
    assert reach["mean"] == {"step": 3.0, "tokens": 150.0, "seconds": 15.0}
    # Two steps sooner, and none.
    assert (reach["against_baseline"]["value"], reach["against_baseline"]["family"]) == (-1.0, 1)
    own = of(two, "base")["reach"]
    assert (own["steps"], own["mean"]["step"], own["against_baseline"]["value"]) == ([4, 4], 4.0, 0.0)


def test_nobody_reaches_what_nobody_reached(tmp_path: Path) -> None:
    base, other = simple_run(tmp_path / "a", (1, 1), (4, 4)), simple_run(tmp_path / "b", (1, 1), (2, 2))
    reach = of(analyse([arm("a", base), arm("b", other)], baseline="a"), "b")["reach"]
    assert (reach["steps"], reach["reached"], reach["against_baseline"]) == ([None], 0, None)
    assert reach["mean"] == {"step": 2.0, "tokens": 200.0, "seconds": 8.0}


def test_an_arm_that_is_the_baseline_but_for_luck_reaches_it_as_soon_on_average(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    seeds = 150
    folders: dict[str, list[Path]] = {"a": [], "b": []}
    for seed in range(seeds):
        for name, runs in folders.items():
            hits = generator.binomial(4, 0.5, size=(5, 8)).tolist()
            runs.append(simple_run(tmp_path / f"{name}{seed}", *hits))
    found = of(analyse([arm(name, *runs) for name, runs in folders.items()], baseline="a"), "b")["reach"]
    # Among the seeds that reach it alone, it would seem to be sooner by more than a standard error of the mean.
    assert found["against_baseline"]["low"] < 0 < found["against_baseline"]["high"]
    assert abs(found["against_baseline"]["value"]) < 2 * found["against_baseline"]["error"]
    reached = [step for step in found["steps"] if step is not None]
    assert sum(reached) / len(reached) < found["mean"]["step"] - 2 * found["against_baseline"]["error"]


def test_scoring_is_weighed_against_the_step_of_the_baseline(two: dict[str, Any]) -> None:
    cost = of(two, "other")["cost"]
    assert cost["seconds"] == {"generation": 2.0, "scoring": 1.0, "learning": 3.0, "step": 5.0}
    # The baseline's step takes 4 seconds, 2 of them without sampling.
    assert cost["against_baseline"] == {
        "scoring_to_learning": 0.5,
        "scoring_to_step": 0.25,
        "learning": 1.5,
        "step": 1.25,
    }
    assert (cost["tokens"], cost["total_seconds"]) == (200.0, 20.0)
    assert of(two, "base")["cost"]["against_baseline"]["scoring_to_step"] == 0.0


def resampling_run(folder: Path, *seconds: float) -> Path:
    """A run that draws 4 further completions of 60 tokens a step, in so many seconds; 6 of 12 leave the loss."""
    lines = [
        metrics(
            step,
            phases={**PHASES, "resampling": each},
            generated=160,
            budget={"completions": {"student": 12}, "drawn": {"student": 160}, "scored": {}, "trained": 70},
            resampled_completions=4,
            resampled_tokens=60,
            dropped=6.0,
            tokens=70,
        )
        for step, each in enumerate(seconds, start=1)
    ]
    return write_run(folder, [evaluation(step, (1, 1)) for step in (0, len(seconds))], lines)


def test_drawing_further_prompts_is_sampling_and_not_learning(tmp_path: Path) -> None:
    plain = simple_run(tmp_path / "plain", (1, 1), (2, 2))
    more = [resampling_run(tmp_path / f"more{s}", *seconds) for s, seconds in enumerate(((1.0, 3.0), (2.0, 2.0)))]
    arms = [arm("plain", plain, plain), arm("more", *more, signal={"equal": "resample"})]
    result = analyse(arms, baseline="plain", match="steps")
    # A step takes 4 seconds and the further prompts; 2 of them and no more are learning.
    cost = of(result, "more")["cost"]
    assert cost["seconds"] == {"generation": 4.0, "scoring": 0.0, "learning": 2.0, "step": 6.0}
    assert cost["against_baseline"]["learning"] == 1.0
    assert of(result, "plain")["cost"]["seconds"]["generation"] == 2.0
    assert of(result, "more")["signal"] == {
        "settings": {"equal": "resample"},
        "completions": 8.0,
        "tokens": 120.0,
        "seconds": 4.0,
        "left_out": 12.0,
        "left_out_tokens": 180.0,
    }
    nothing = dict.fromkeys(("completions", "tokens", "seconds", "left_out", "left_out_tokens"))
    assert of(result, "plain")["signal"] == {"settings": {}, **nothing}


def test_entropies_gates_and_deliberation(tmp_path: Path) -> None:
    lines = [metrics(step, student_entropy=step / 10, gate=float(step > 15)) for step in range(1, 21)]
    rows = [evaluation(0, (1, 1), words=8, tokens=40), evaluation(20, (1, 1), words=2, tokens=60)]
    one = of(analyse([arm("a", write_run(tmp_path / "a", rows, lines))], baseline="a"), "a")
    # A tenth of 20 steps: (0.1 + 0.2) / 2 and (1.9 + 2) / 2.
    assert one["entropy"] == {"student": {"first": 0.15, "last": 1.95}, "teacher": None}
    assert one["gate"] == 0.25
    assert (one["deliberation"]["before"]["value"], one["deliberation"]["final"]["value"]) == (2.0, 0.5)
    assert ends(one["deliberation"]["change"]) == (-1.5, -1.5, -1.5)
    assert ends(one["length"]["change"]) == (5.0, 5.0, 5.0)
    assert one["truncated"] == {"before": 0.25, "final": 0.25}


def test_curves_are_means_with_the_lowest_and_the_highest_seed(two: dict[str, Any]) -> None:
    curves = of(two, "other")["curves"]
    evaluations = curves["evaluations"]
    assert (evaluations["step"], evaluations["tokens"], evaluations["seconds"]) == (
        [0, 2, 4],
        [0, 100, 200],
        [0, 10, 20],
    )
    assert evaluations["accuracy"] == {
        "mean": [0.25, 0.5, 0.4375],
        "low": [0.25, 0.125, 0.375],
        "high": [0.25, 0.875, 0.5],
    }
    training = curves["training"]
    assert training["step"] == [1, 2, 3, 4]
    assert training["gate"] == {"mean": [0.5] * 4, "low": [0.0] * 4, "high": [1.0] * 4}
    assert "gate" not in of(two, "base")["curves"]["training"]
    assert set(training) == {"step", "block", "reward", "length", "student_entropy", "teacher_entropy", "gate"}
    assert two["interval"] == {
        "kind": "t",
        "confidence": 0.95,
        "over": "seeds and problems",
        "shared_problems": False,
        "margin": 0.02,
    }


def test_a_long_run_is_averaged_in_blocks(tmp_path: Path) -> None:
    steps = 2 * MOST_POINTS + 1
    lines = [metrics(step, reward=None if step == 1 else float(step)) for step in range(1, steps + 1)]
    run = write_run(tmp_path / "a", [evaluation(0, (1, 1)), evaluation(steps, (1, 1))], lines)
    training = of(analyse([arm("a", run)], baseline="a"), "a")["curves"]["training"]
    assert training["block"] == 3
    assert training["step"][:2] == [3, 6]
    assert training["step"][-1] == steps
    assert training["reward"]["mean"][:2] == [2.5, 5.0]


def test_an_arm_that_generates_nothing_spends_no_tokens(tmp_path: Path) -> None:
    arms = [
        arm("grpo", simple_run(tmp_path / "a", (1, 1), (2, 2))),
        arm("sft", simple_run(tmp_path / "b", (1, 1), (2, 2)), generates=False),
    ]
    sft = of(analyse(arms, baseline="grpo"), "sft")
    assert sft["cost"]["tokens"] == 0.0
    assert sft["curves"]["evaluations"]["tokens"] == [0, 0]


def test_another_start_is_said(tmp_path: Path) -> None:
    arms = [
        arm("a", simple_run(tmp_path / "a", (1, 1), (2, 2))),
        arm("b", simple_run(tmp_path / "b", (1, 2), (2, 2))),
    ]
    assert analyse(arms, baseline="a")["same_start"] is False


def test_runs_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    def refused(other: Path) -> str:
        with pytest.raises(DataError) as caught:
            analyse([arm("a", base), arm("b", other)], baseline="a")
        return str(caught.value)

    base = simple_run(tmp_path / "base", (1, 1), (2, 2))
    short = simple_run(tmp_path / "short", (1, 1), (2, 2), (2, 2))
    assert "it has evaluations at steps [0, 2, 4], the baseline's run has [0, 2]" in refused(short)
    assert "it has held-out problems 3, the baseline's run has 2" in refused(
        simple_run(tmp_path / "w", (1, 1, 1), (2,) * 3)
    )
    (tmp_path / "empty").mkdir()
    assert "holds no finished run" in refused(tmp_path / "empty")
    old = [{key: value for key, value in evaluation(0, (1, 1)).items() if key != "words"}]
    assert "has no 'words' per problem" in refused(write_run(tmp_path / "old", old, [metrics(1)]))


def test_an_arm_keeps_its_settings(tmp_path: Path) -> None:
    run = simple_run(tmp_path / "a", (1, 1), (2, 2))
    one = ArmRuns("a", {"name": "antisd", "strength": 0.5}, {"learning_rate": 0.0002}, True, {7: run})
    result = analyse([one], baseline="a")
    assert (result["seeds"], result["baseline"], result["problems"], result["samples"]) == ([7], "a", [2], 4)
    assert result["arms"][0]["method"] == {"name": "antisd", "strength": 0.5}
    assert result["arms"][0]["optimiser"] == {"learning_rate": 0.0002}


def test_a_run_that_an_alarm_ended_is_told_apart_where_both_still_trained(tmp_path: Path) -> None:
    """Accuracies of the baseline: 1/4, 1/2, 1 in both seeds. The other arm's first run ends after step 3, at 3/4."""
    base = [simple_run(tmp_path / f"b{s}", (1, 1), (2, 2), (4, 4)) for s in range(2)]
    collapse = alarm("entropy_collapse", 3)
    short = ended_run(
        tmp_path / "o0", (1, 1), (3, 3), steps=3, alarms=[collapse], by=["entropy_collapse"],
        active={3: ["entropy_collapse"]},
    )  # fmt: skip
    whole = ended_run(tmp_path / "o1", (1, 1), (2, 2), (2, 2), steps=4)
    result = analyse([arm("base", *base), arm("other", short, whole)], baseline="base")
    other = of(result, "other")
    assert other["runs"] == [
        {
            "seed": 0,
            "steps": 3,
            "evaluated": 2,
            "ended_by": ["entropy_collapse"],
            "budget": spent(3),
            "alarms": [{**collapse, "cleared": None}],
        },
        {"seed": 1, "steps": 4, "evaluated": 4, "ended_by": [], "budget": spent(4), "alarms": []},
    ]
    accuracy = other["accuracy"]
    assert accuracy["final"]["value"] == (3 / 4 + 1 / 2) / 2
    # 3/4 against 1/2 at step 2, 1/2 against 1 at step 4.
    assert accuracy["compared_at"] == [2, 4]
    assert accuracy["against_baseline"]["value"] == (1 / 4 - 1 / 2) / 2
    assert other["curves"]["evaluations"]["step"] == [0, 2]
    assert other["curves"]["evaluations"]["accuracy"]["mean"] == [0.25, (3 / 4 + 1 / 2) / 2]
    assert other["curves"]["training"]["step"] == [1, 2, 3]
    # Three steps and four of a hundred tokens.
    assert other["cost"]["tokens"] == 350.0
    assert of(result, "base")["runs"][0]["alarms"] is None, "made before there were alarms"
    assert of(result, "base")["curves"]["evaluations"]["step"] == [0, 2, 4]
    again = analyse([arm("other", short, whole), arm("base", *base)], baseline="other")
    assert of(again, "base")["accuracy"]["compared_at"] == [2, 4]
    assert of(again, "base")["accuracy"]["against_baseline"]["value"] == (1 / 2 - 1 / 4) / 2
    assert of(again, "base")["reach"]["targets"] == [0.75, 0.5]


def test_a_run_that_is_short_without_an_alarm_is_refused(tmp_path: Path) -> None:
    base = simple_run(tmp_path / "base", (1, 1), (2, 2), (4, 4))
    torn = ended_run(tmp_path / "torn", (1, 1), (2, 2), steps=2)
    with pytest.raises(DataError, match=r"it has evaluations at steps \[0, 2\], the baseline's run has \[0, 2, 4\]"):
        analyse([arm("a", base), arm("b", torn)], baseline="a")


def test_an_alarm_is_cleared_at_the_first_step_at_which_it_no_longer_stands(tmp_path: Path) -> None:
    alarms = [alarm("no_signal", 1), alarm("gradient_jump", 2), alarm("no_signal", 4)]
    active = {1: ["no_signal"], 2: ["gradient_jump", "no_signal"], 4: ["no_signal"]}
    run = ended_run(tmp_path / "a", (1, 1), (1, 1), (1, 1), steps=4, alarms=alarms, active=active)
    [found] = of(analyse([arm("a", run)], baseline="a"), "a")["runs"]
    assert [(one["name"], one["step"], one["cleared"]) for one in found["alarms"]] == [
        ("no_signal", 1, 3),
        ("gradient_jump", 2, 3),
        ("no_signal", 4, None),
    ]


def test_pass_at_k_by_hand(tmp_path: Path) -> None:
    # Of 4 samples 0, 1, 2 and 4 are right. Both of two are wrong in 6, 3, 1 and 0 of the 6 pairs.
    base = simple_run(tmp_path / "b", (0, 0, 0, 0), (0, 1, 2, 4))
    other = simple_run(tmp_path / "o", (0, 0, 0, 0), (1, 1, 3, 4))
    result = analyse([arm("base", base), arm("other", other)], baseline="base")
    curve = of(result, "base")["pass_curve"]
    assert [point["k"] for point in curve] == [1, 2, 4]
    assert [point["final"]["value"] for point in curve] == pytest.approx([7 / 16, (1 / 2 + 5 / 6 + 1) / 4, 3 / 4], 1e-5)
    assert [point["against_baseline"] for point in curve] == [None] * 3
    # At k = 2 the problems are at 0, 1/2, 5/6 and 1: variance 7/36, and t with three degrees of freedom is 3.18245.
    assert curve[1]["final"]["error"] == pytest.approx((7 / 36 / 4) ** 0.5, rel=1e-5)
    assert ends(curve[1]["final"]) == pytest.approx((7 / 12, 0.0, 1.0), rel=1e-5)
    assert curve[0]["final"]["low"] == curve[2]["final"]["low"] == 0.0
    # The other arm leads by 1/2 of the first problem and 1/6 of the third at k = 2; at k = 4 by the whole first one.
    leads = [point["against_baseline"] for point in of(result, "other")["pass_curve"]]
    assert {lead["family"] for lead in leads} == {1}
    lead = [lead["value"] for lead in leads]
    assert lead == pytest.approx([2 / 16, (1 / 2 + 1 / 6) / 4, 1 / 4], rel=1e-5)


def test_pass_at_k_over_seeds_holds_together_over_arms(tmp_path: Path) -> None:
    final = {"a": ((1, 1), (1, 3)), "b": ((2, 1), (4, 3)), "c": ((1, 1), (1, 3))}
    arms = [
        arm(name, *(simple_run(tmp_path / f"{name}{s}", (1, 1), row) for s, row in enumerate(rows)))
        for name, rows in final.items()
    ]
    found = of(analyse(arms, baseline="a"), "b")
    assert found["reach"]["against_baseline"]["family"] == 2
    [one, two, four] = found["pass_curve"]
    # At k = 2 one, two, three and four of 4 right are 1/2, 5/6, 1 and 1: seeds lead by 1/6 and by 1/4.
    exact = over_seeds([[1 / 3, 0.0], [1 / 2, 0.0]], k=2, family=2, bounds=(-1, 1)).as_dict()
    assert {key: two["against_baseline"][key] for key in exact} == pytest.approx(exact, rel=1e-5)
    assert (one["against_baseline"]["value"], four["against_baseline"]["value"]) == (0.25, 0.0)


def test_pass_at_k_has_the_confidence_and_the_bounds_that_are_asked_for() -> None:
    def rows(*hits: int) -> list[dict[str, Any]]:
        return [{"samples": 2, "hits": [each, 2 - each]} for each in hits]

    rivals, owns = rows(2, 2, 2), rows(0, 0, 1)
    pairs = list(zip(rivals, owns, strict=True))
    for confidence in (0.5, 0.99):
        point = pass_curve_of(owns, pairs, shared=False, family=2, confidence=confidence)[0]
        # Own shares of right ones are 0 and 1, 0 and 1, ½ and ½; the rival's 1 and 0 in every run.
        level = over_seeds([[0, 1], [0, 1], [0.5, 0.5]], k=1, bounds=(0, 1), confidence=confidence)
        lead = over_seeds([[-1, 1], [-1, 1], [-0.5, 0.5]], k=1, family=2, bounds=(-1, 1), confidence=confidence)
        assert (point["final"], point["against_baseline"]) == (level.as_dict(), lead.as_dict())
    # t is so large here that both ends are those of the scale.
    lost = [{"samples": 2, "hits": hits} for hits in ([0, 0], [1, 0])]
    won = [{"samples": 2, "hits": [2, 2]}] * 2
    [point, _] = pass_curve_of(lost, list(zip(won, lost, strict=True)), shared=False, family=1, confidence=0.99)
    assert point["against_baseline"]["low"] == -1.0 and point["final"]["low"] == 0.0


def test_one_sample_a_problem_has_no_curve_of_pass_at_k(tmp_path: Path) -> None:
    rows = [evaluation(0, (0, 1), samples=1), evaluation(1, (1, 1), samples=1)]
    result = analyse([arm("a", write_run(tmp_path / "a", rows, [metrics(1)]))], baseline="a")
    assert of(result, "a")["pass_curve"] == []


def test_what_was_evaluated_besides_is_compared_pair_by_pair(tmp_path: Path) -> None:
    def run(name: str, hits: tuple[list[int], list[int]], each: tuple[list[float], list[float]]) -> Path:
        rows = [
            evaluation(step, (1, 1))
            | {"also": {"sums": {"samples": 4, "hits": solved}, "general": {"each": {"loglikelihood": level}}}}
            for step, solved, level in zip((0, 2), hits, each, strict=True)
        ]
        return write_run(tmp_path / name, rows, [metrics(1), metrics(2)])

    base = run("base", ([4, 2], [4, 4]), ([-1.0, -3.0], [-1.5, -3.5]))
    other = run("other", ([4, 2], [2, 0]), ([-1.0, -3.0], [-2.0, -3.0]))
    result = analyse([arm("base", base), arm("other", other)], baseline="base")
    sums, general = of(result, "other")["also"]["sums"]["accuracy"], of(result, "other")["also"]["general"]
    values = [sums[key]["value"] for key in ("before", "final", "change", "against_baseline")]
    assert values == [0.75, 0.25, -0.5, -0.75]
    assert (sums["change"]["family"], sums["against_baseline"]["family"]) == (2, 1)
    assert sums["against_baseline"]["sd"] is None
    level = general["loglikelihood"]
    assert [level[key]["value"] for key in ("before", "final", "change")] == [-2.0, -2.5, -0.5]
    # −2 − (−1.5) and −3 − (−3.5): no difference, though each text differs.
    assert ends(level["against_baseline"])[0] == 0.0 and ends(level["against_baseline"])[1] < -0.4
    assert of(result, "base")["also"]["sums"]["accuracy"]["against_baseline"] is None
    kept = of(result, "other")["results"][0]["also"]
    assert kept == {"sums": {"accuracy": ["1 0.5", "0.5 0"]}, "general": {"loglikelihood": ["-1 -3", "-2 -3"]}}

    result |= given_terms()
    captions = {table.caption: table for table in tables(result)}
    shown = dict(captions["Not trained on: sums, accuracy"].rows)["other"]
    assert [cell[0] for cell in shown] == ["75.0%", "25.0%", "−50.0 points", "−75.0 points"]
    assert "Not trained on: general, log-likelihood, nats a token" in captions


def test_a_run_that_an_alarm_ended_between_two_evaluations_is_read_on_its_final_split(tmp_path: Path) -> None:
    """Evaluations at steps 0, 2 and 4. The other run ends after step 3 and answers the final split there."""
    levels = {"b": (-1.0, -2.0, -4.0), "o": (-1.0, -3.0)}

    def rows(name: str) -> list[dict[str, Any]]:
        general = [{"also": {"general": {"each": {"loglikelihood": [level, level]}}}} for level in levels[name]]
        return [evaluation(2 * i, (1, 1)) | also for i, also in enumerate(general)]

    base = write_run(tmp_path / "b", rows("b"), [metrics(step) for step in range(1, 5)])
    ended = {"alarms": [alarm("entropy_collapse", 3)], "stopped_by": ["entropy_collapse"]}
    other = write_run(tmp_path / "o", rows("o"), [metrics(step) for step in range(1, 4)], ended)
    for folder, last in ((base, 4), (other, 3)):
        lines = [json.dumps(evaluation(step, hits)) + "\n" for step, hits in ((0, (1, 1)), (last, (2, 2)))]
        (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    result = analyse([arm("base", base), arm("other", other)], baseline="base", split="test")
    assert of(result, "other")["accuracy"]["read_at"] == [3]
    level = of(result, "other")["also"]["general"]["loglikelihood"]
    # What was evaluated besides is that of the last evaluation up to the step: −3 at step 2 against −4 at step 4.
    assert [level[key]["value"] for key in ("before", "final", "against_baseline")] == [-1.0, -3.0, 1.0]


def test_arms_whose_best_is_chosen_by_the_reward_are_compared_by_it(tmp_path: Path) -> None:
    def run(name: str, *earned: tuple[float, float], by: str = "reward") -> Path:
        rows = [
            evaluation(2 * place, (0, 0))
            | {"earned": list(row), "reward": {"value": sum(row) / 2}, "avg": {"value": 0.0}}
            for place, row in enumerate(earned)
        ]
        lines = [metrics(step) for step in range(1, 2 * len(earned) - 1)]
        return write_run(tmp_path / name, rows, lines, {"best_by": by, "alarms": []})

    base = run("base", (0.25, 0.5), (0.5, 0.5), (0.25, 0.75))
    other = run("other", (0.25, 0.5), (0.75, 1.0), (0.5, 1.0))
    result = analyse([arm("base", base), arm("other", other)], baseline="base")
    assert result["measure"] == "reward"
    levels = of(result, "other")["reward"]
    assert [levels[end]["value"] for end in ("before", "final", "best")] == [0.375, 0.75, 0.875]
    assert (levels["best_steps"], levels["against_baseline"]["value"], levels["change"]["value"]) == ([2], 0.25, 0.375)
    assert of(result, "other")["reach"]["steps"] == [2]
    assert of(result, "other")["curves"]["evaluations"]["reward"]["mean"] == [0.375, 0.875, 0.75]
    assert kept_values(of(result, "other")["results"][0], "reward", 4) == [0.5, 1.0]
    told = given_terms() | result
    assert headline(told)[0].startswith("From a mean reward of 0.375 before training, base stood at 0.500 ")
    assert headline(told)[1] == "Against base, in this one seed: clearly above for other (+0.250, no spread)."
    assert not any("points" in note for note in notes(told))
    assert any("No clear difference is no claim of equality" in note for note in notes(told))
    assert tables(told)[0].caption.startswith("Held-out mean reward, validation problems")
    assert tables(told)[1].caption.startswith("Held-out accuracy, avg@4, validation problems")
    assert closing(told)[1].startswith(
        "other  0.375 (−1.21–1.96) → 0.750 (−2.43–3.93)  +0.250 (no spread) against base; "
    )
    # One run that was chosen by success is enough to compare by it.
    mixed = analyse(
        [arm("base", base), arm("other", run("own", (0.0, 0.5), (0.5, 0.5), (0.5, 0.5), by="success"))], baseline="base"
    )
    assert mixed["measure"] == "accuracy"
    assert "reward" not in of(mixed, "other")
