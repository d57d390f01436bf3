"""Equal budgets: how many steps each arm makes, where it is read, and figures from problems that nobody tuned on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.compare import plan, run_comparison, write_results
from selfdistill.comparison.headline import headline
from selfdistill.comparison.matching import limits_of_arms
from selfdistill.comparison.options import check_match
from selfdistill.comparison.page import render_comparison
from selfdistill.comparison.tables import closing, markdown
from selfdistill.distributed.signals import StopRequest
from selfdistill.errors import CheckpointError, ConfigError, DataError
from selfdistill.tracking.progress import Progress
from selfdistill.training.atomic import checkpoints, write_folder
from selfdistill.training.forecast import forecast
from selfdistill.training.problem import build_problem, resolve
from support.arms import arm, ended_run, evaluation, given_terms, metrics, simple_run, write_run
from support.runs import as_toml, lines, tiny_run, train


def of(result: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [one for one in result["arms"] if one["name"] == name]
    assert isinstance(found, dict)
    return found


def limits(model: Path, *methods: str, match: str = "completions", each: int = 20, **more: str) -> list[dict[str, Any]]:
    settings = [f"steps={each}", *(f"{key}={value}" for key, value in more.items())]
    return limits_of_arms([resolve(tiny_run(model, method, *settings)) for method in methods], match)


def steps(model: Path, *methods: str, match: str = "completions", each: int = 20) -> list[int]:
    found = limits(model, *methods, match=match, each=each)
    assert all(set(limit) == {"steps"} for limit in found)
    return [limit["steps"] for limit in found]


def test_an_arm_that_draws_twice_as_much_a_step_makes_half_the_steps(model: Path) -> None:
    # PBSD's student and its teacher both draw; the teacher alone draws for the other form; sft draws nothing.
    assert steps(model, "grpo", "pbsd", "pbsd_reward", "sft") == [20, 10, 20, 20]
    assert steps(model, "pbsd", "sft") == [20, 20]
    assert steps(model, "grpo", "pbsd", each=5) == [5, 2]
    for match in ("steps", "tokens", "seconds"):
        assert steps(model, "grpo", "pbsd", match=match) == [20, 20]
    with pytest.raises(ConfigError, match=r"an arm would make no step.* use --match steps"):
        steps(model, "grpo", "pbsd", each=1)


@pytest.mark.parametrize(
    ("match", "split", "sentence"),
    [
        (
            "token",
            "validation",
            "--match 'token' is no budget; did you mean 'tokens'? choose from: completions, tokens, steps, seconds",
        ),
        ("steps", "train", "--final-split 'train' is no split; choose from: validation, test"),
        ("tokens", "test", "the test split is answered only at its end"),
        ("seconds", "test", "--match seconds reads arms at an evaluation in the course of training"),
    ],
)
def test_a_budget_or_split_that_cannot_be_is_one_sentence(match: str, split: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_match(match, split)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def two_lengths(folder: Path) -> list[Any]:
    """Two arms with evaluations at steps 0, 2, 4 and 6; the other draws twice the tokens, in half the time."""
    quick = {"generation": 1.0, "student": 1.0}
    base = simple_run(folder / "base", (1, 1), (1, 2), (2, 2), (3, 3), generated=50)
    other = simple_run(folder / "other", (1, 1), (2, 3), (3, 4), (4, 4), generated=100, phases=quick)
    return [arm("base", base), arm("other", other)]


def test_at_equal_tokens_an_arm_is_read_where_it_had_drawn_what_the_most_frugal_drew(tmp_path: Path) -> None:
    result = analyse(two_lengths(tmp_path), baseline="base", match="tokens")
    other = of(result, "other")["accuracy"]
    # The baseline drew 300 tokens in all. The other had drawn 200 at step 2 and 400 at step 4.
    assert (other["read_at"], other["compared_at"], other["final"]["value"]) == ([2], [2], 0.625)
    assert other["against_baseline"]["value"] == 0.625 - 0.75
    assert of(result, "base")["accuracy"]["read_at"] == [6]
    assert result["match"] == "tokens"
    text = markdown(given_terms() | result, "x")
    assert "- Arms are read at equal tokens drawn, those of teachers too: each at its last evaluation within" in text
    assert "62.5% (0.0–100.0%; step 2)" in text
    assert "→ 62.5% (0.0–100.0%; step 2)  −12.5 points (−100.0 to +100.0; step 2) against base;" in "\n".join(
        closing(given_terms() | result)
    )


def late_arms(folder: Path, *, seeds: int = 1) -> list[Any]:
    """Two arms with evaluations at steps 0 and 2. The other draws twice the tokens: step 2 is beyond the budget.

    It has twice the accuracy there. With two seeds only the first draws that much.
    """
    base = [simple_run(folder / f"base-{seed}", (1, 1), (2, 2), generated=50) for seed in range(seeds)]
    drawn = (100, 50)[:seeds]
    other = [simple_run(folder / f"other-{s}", (1, 1), (4, 4), generated=drawn[s]) for s in range(seeds)]
    return [arm("base", *base), arm("other", *other)]


def test_an_arm_without_an_evaluation_within_the_budget_is_not_judged_by_its_start(tmp_path: Path) -> None:
    terms: dict[str, Any] = given_terms()
    result = terms | analyse(late_arms(tmp_path), baseline="base", match="tokens") | {"problem": None}
    result["terms"] |= {"steps": 2}
    other = of(result, "other")
    for measure in ("accuracy", "deliberation", "length"):
        assert [other[measure][key] for key in ("final", "change", "against_baseline")] == [None] * 3, measure
    assert (other["accuracy"]["read_at"], other["accuracy"]["late_change"], other["reach"]) == ([0], None, None)
    assert other["accuracy"]["late_steps"] == [[0, 0]]
    assert (other["pass_curve"], other["truncated"]) == ([], {"before": 0.25, "final": None})
    # It is said in every place where a figure would stand.
    why = "no evaluation within the budget; evaluation.every is 2"
    row = f"| other | 25.0% (no spread) | – ({why}) | – | – | 100.0% (no spread; step 2) | – |"
    assert row in markdown(result, "x")
    assert "| other | – | – | – | – | – |" in markdown(result, "x")
    assert closing(result)[1] == f"other  25.0% (no spread) → – ({why}); deliberation 0.25 → –"
    first, *others = headline(result)
    assert first.endswith(f"base rose to 50.0% and other has no final figure ({why}).")
    assert not any("other" in sentence for sentence in others)
    page = render_comparison(result, "x")
    assert "not compared with base" in page
    assert why in page
    # A baseline that cannot be read has nothing compared with it.
    turned = analyse(late_arms(tmp_path / "turned"), baseline="other", match="tokens")
    assert of(turned, "base")["accuracy"]["final"]["value"] == 0.5
    assert (of(turned, "base")["accuracy"]["against_baseline"], of(turned, "base")["reach"]) == (None, None)
    # One seed of it is enough.
    turned = analyse(late_arms(tmp_path / "two", seeds=2), baseline="other", match="tokens")
    assert (of(turned, "base")["accuracy"]["against_baseline"], of(turned, "base")["reach"]) == (None, None)


def test_what_was_evaluated_besides_has_no_final_level_either_without_an_evaluation_within_the_budget(
    tmp_path: Path,
) -> None:
    arms = late_arms(tmp_path)
    for path in tmp_path.glob("*/evaluations.jsonl"):
        rows = [line | {"also": {"sums": {"samples": 4, "hits": line["hits"]}}} for line in lines(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = analyse(arms, baseline="base", match="tokens")
    levels = {name: of(result, name)["also"]["sums"]["accuracy"] for name in ("base", "other")}
    assert (levels["base"]["final"]["value"], levels["base"]["change"]["value"]) == (0.5, 0.25)
    assert levels["other"]["before"]["value"] == 0.25
    assert [levels["other"][key] for key in ("final", "change", "against_baseline")] == [None] * 3


def test_one_seed_without_an_evaluation_within_the_budget_is_named(tmp_path: Path) -> None:
    result = given_terms() | analyse(late_arms(tmp_path, seeds=2), baseline="base", match="tokens")
    other = of(result, "other")
    assert (other["accuracy"]["read_at"], other["accuracy"]["final"]) == ([0, 2], None)
    assert "→ – (no evaluation within the budget of seed 0; evaluation.every is 2);" in closing(result)[1]


def test_a_level_that_is_reached_beyond_the_whole_of_the_baseline_counts_as_the_whole(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        two_lengths(tmp_path / seed)
    arms = [arm(name, tmp_path / "0" / name, tmp_path / "1" / name) for name in ("base", "other")]
    reach = of(analyse(arms, baseline="base", match="tokens"), "other")["reach"]
    # The other gets there at step 4 with 400 tokens; the baseline, at its end, with 300.
    assert (reach["steps"], reach["unit"], reach["against_baseline"]["value"]) == ([4, 4], "tokens", 0.0)


def test_at_equal_seconds_the_slower_arm_is_cut(tmp_path: Path) -> None:
    result = analyse(two_lengths(tmp_path), baseline="base", match="seconds")
    # The other took 12 seconds for its six steps; the baseline had taken 8 at step 2 and 16 at step 4.
    assert of(result, "base")["accuracy"]["read_at"] == [2]
    assert of(result, "other")["accuracy"]["read_at"] == [6]
    assert of(result, "other")["accuracy"]["against_baseline"]["value"] == 1.0 - 0.375
    # The late change is taken from what was read, too.
    assert of(result, "base")["accuracy"]["late_steps"] == [[0, 2]]


def test_an_arm_that_draws_nothing_is_read_at_its_end(tmp_path: Path) -> None:
    arms = two_lengths(tmp_path)
    given = arm("given", simple_run(tmp_path / "given", (1, 1), (1, 1), (1, 1), (4, 4)), generates=False)
    result = analyse([*arms, given], baseline="base", match="tokens")
    assert of(result, "given")["accuracy"]["read_at"] == [6]
    assert of(result, "other")["accuracy"]["read_at"] == [2]


def test_a_run_that_an_alarm_ended_does_not_cut_the_others(tmp_path: Path) -> None:
    arms = two_lengths(tmp_path)
    ended = ended_run(tmp_path / "ended", (1, 1), (4, 4), steps=3, by=["entropy_collapse"])
    result = analyse([*arms, arm("ended", ended)], baseline="base", match="tokens")
    assert of(result, "other")["accuracy"]["read_at"] == [2]
    assert of(result, "base")["accuracy"]["read_at"] == [6]
    # It had drawn 200 tokens at its last evaluation, the baseline 200 at step 4.
    found = of(result, "ended")["accuracy"]
    assert (found["read_at"], found["compared_at"]) == ([2], [2])
    assert found["against_baseline"]["value"] == 1.0 - 0.5


def test_a_run_that_counted_no_completions_is_compared_with_an_ended_one_in_steps(tmp_path: Path) -> None:
    older = simple_run(tmp_path / "older", (1, 1), (2, 2), (3, 3))
    rows = [{key: value for key, value in row.items() if key != "budget"} for row in lines(older / "metrics.jsonl")]
    (older / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ended = ended_run(tmp_path / "ended", (1, 1), (4, 4), steps=3, by=["entropy_collapse"])
    result = analyse([arm("older", older), arm("ended", ended)], baseline="older", match="completions")
    found = of(result, "ended")["accuracy"]
    assert (found["compared_at"], found["against_baseline"]["value"]) == ([2], 0.5)


def test_arms_that_set_no_budget_are_read_at_their_ends(tmp_path: Path) -> None:
    by = ["entropy_collapse"]
    ended = {
        name: ended_run(tmp_path / name, (1, 1), (2, 2), (4, 4), steps=n, by=by) for name, n in (("a", 4), ("b", 5))
    }
    result = analyse([arm(name, run) for name, run in ended.items()], baseline="a", match="tokens")
    assert [of(result, name)["accuracy"]["read_at"] for name in ended] == [[4], [4]]
    given = {name: simple_run(tmp_path / f"given-{name}", (1, 1), (3, 3)) for name in "ab"}
    for run in given.values():
        rows = [{**row, "generated": 0} for row in lines(run / "metrics.jsonl")]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = analyse([arm(name, run, generates=False) for name, run in given.items()], baseline="a", match="tokens")
    assert [of(result, name)["accuracy"]["read_at"] for name in given] == [[2], [2]]


def test_arms_of_nearly_equal_completions_are_read_at_their_ends_too(tmp_path: Path) -> None:
    """The other arm draws a little more in each of its steps; nothing was drawn in the place of others."""
    more = {"completions": {"student": 9}, "drawn": {"student": 100}, "scored": {}, "trained": 0}
    base = simple_run(tmp_path / "base", (1, 1), (2, 2), (3, 3))
    other = simple_run(tmp_path / "other", (1, 1), (2, 2), (4, 4), budget=more)
    result = analyse([arm("base", base), arm("other", other)], baseline="base", match="completions")
    assert of(result, "other")["accuracy"]["read_at"] == [4]


def test_arms_of_equal_completions_are_read_at_their_ends(tmp_path: Path) -> None:
    """The other arm draws twice as many a step, and stops after half the steps."""
    double = {"completions": {"student": 8, "teacher": 8}, "drawn": {"student": 100}, "scored": {}, "trained": 0}
    base = simple_run(tmp_path / "base", (1, 1), (2, 2), (3, 3))
    other = simple_run(tmp_path / "other", (1, 1), (4, 4), budget=double)
    arms = [arm("base", base), arm("other", other)]
    with pytest.raises(DataError, match="evaluations at steps"):
        analyse(arms, baseline="base", match="steps")
    result = analyse(arms, baseline="base", match="completions")
    found = of(result, "other")
    assert (found["accuracy"]["read_at"], found["accuracy"]["against_baseline"]["value"]) == ([2], 0.25)
    assert found["runs"][0]["budget"]["completions"] == {"student": 16, "teacher": 16}
    # It reached 3/4 after 32 completions, as many as the baseline.
    assert (found["reach"]["unit"], found["reach"]["steps"]) == ("completions", [2])
    table = markdown(given_terms() | result, "x")
    assert "| other | 2 | 32 (student 16, teacher 16) |" in table
    assert "- All arms drew equally many completions, those of teachers too;" in table


def final_run(folder: Path, validation: tuple[int, int], test: tuple[int, int]) -> Path:
    """A run whose final split is answered before and after its two steps."""
    run = simple_run(folder, (1, 1), validation)
    rows = [
        {"step": step, "samples": 4, "truncated": 0.0, "hits": hits, "words": [0] * 2, "tokens": [4] * 2}
        for step, hits in ((0, [2, 2]), (2, list(test)))
    ]
    (run / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


def test_verdicts_may_come_from_problems_that_nobody_tuned_on(tmp_path: Path) -> None:
    arms = [
        arm("base", final_run(tmp_path / "base", (2, 2), (4, 4))),
        arm("other", final_run(tmp_path / "other", (4, 4), (3, 3))),
    ]
    seen = of(analyse(arms, baseline="base"), "other")["accuracy"]
    assert (seen["before"]["value"], seen["final"]["value"], seen["against_baseline"]["value"]) == (0.25, 1.0, 0.5)
    result = analyse(arms, baseline="base", split="test")
    final = of(result, "other")["accuracy"]
    assert (final["before"]["value"], final["final"]["value"], final["against_baseline"]["value"]) == (0.5, 0.75, -0.25)
    # Curves stay with the validation split.
    assert of(result, "other")["curves"]["evaluations"]["accuracy"]["mean"] == [0.25, 1.0]
    terms: dict[str, Any] = given_terms()
    told = terms | result | {"terms": terms["terms"] | {"steps": 2}}
    assert headline(told)[0].startswith("From 50.0% right before training, base rose to 100.0%")
    assert "- Final figures come from the test split" in markdown(told, "x")
    without = arm("base", simple_run(tmp_path / "without", (1, 1), (2, 2)))
    with pytest.raises(DataError, match="no evaluation on its final split"):
        analyse([without], baseline="base", split="test")


def test_a_run_answers_its_final_split_before_and_after_and_once_more_where_it_went_on(
    model: Path, tmp_path: Path
) -> None:
    config = tiny_run(model, "grpo", "evaluation.final=test")
    whole = tmp_path / "whole"
    train(config, whole)
    rows = lines(whole / "test.jsonl")
    assert [row["step"] for row in rows] == [0, 5]
    assert rows[0]["problem_set"] == rows[1]["problem_set"] != lines(whole / "evaluations.jsonl")[0]["problem_set"]
    assert {row["problems"] for row in rows} == {3}
    torn = tmp_path / "torn"
    train(config, torn, stop_after=3)
    assert [row["step"] for row in lines(torn / "test.jsonl")] == [0]
    train(config, torn, resume=True)
    assert lines(torn / "test.jsonl") == rows
    train(config, torn, resume=True)
    assert lines(torn / "test.jsonl") == rows
    with pytest.raises(ConfigError, match="are both 'test'"):
        train(tiny_run(model, "grpo", "evaluation.final=test", "evaluation.split=test"), tmp_path / "both")


@pytest.mark.long
def test_pbsd_and_grpo_draw_equally_many_completions(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src") + ":" + str(Path(__file__).parents[1]))
    for method in ("grpo", "pbsd"):
        table = tiny_run(model, method, "steps=4").model_dump(exclude_none=True)
        Path(f"{method}.toml").write_text(as_toml(table), encoding="utf-8")
    comparison = plan(["grpo.toml", "pbsd.toml"], [], seeds=[0], baseline=None, folder=tmp_path / "out", split="test")
    assert [one.config.steps for one in comparison.arms] == [4, 2]
    assert run_comparison(comparison, jobs=2, progress=Progress(), stop=StopRequest())
    result = write_results(comparison)
    spent = [sum(one["runs"][0]["budget"]["completions"].values()) for one in result["arms"]]
    assert spent == [36, 36]
    assert (result["match"], result["verdict_split"], result["terms"]["steps"]) == ("completions", "test", 4)
    assert of(result, "pbsd")["accuracy"]["read_at"] == [2]
    again = plan(
        ["grpo.toml", "pbsd.toml"], [], seeds=[0], baseline=None, folder=tmp_path / "out", match="steps", split="test"
    )
    with pytest.raises(CheckpointError, match="steps"):
        run_comparison(again, jobs=2, progress=Progress(), stop=StopRequest())


def test_an_arm_whose_draws_are_known_only_afterwards_is_ended_by_the_budget(model: Path) -> None:
    # tiny_run draws 3 prompts of 3 completions. HDPO's teacher draws on demand, PBSD's always.
    assert limits(model, "grpo", "hdpo", "pbsd") == [
        {"steps": 20},
        {"steps": 20, "max_completions": 180},
        {"steps": 10},
    ]
    configs = [resolve(tiny_run(model, "grpo", f"signal.equal={equal}")) for equal in ("keep", "resample")]
    assert limits_of_arms(configs, "completions") == [{"steps": 5}, {"steps": 5, "max_completions": 45}]
    for match in ("steps", "tokens", "seconds"):
        assert limits(model, "grpo", "hdpo", match=match) == [{"steps": 20}, {"steps": 20}]


def test_a_forecast_counts_the_steps_that_the_completions_have_room_for(model: Path) -> None:
    told = forecast(build_problem(tiny_run(model, "grpo", "steps=50", "max_completions=30")))
    assert told["steps"].startswith("at most 3 steps of 3 prompts × 3 completions, 30 completions in all, 3 updates;")
    tokens = tiny_run(model, "grpo").sampling.max_tokens
    assert tokens is not None
    assert told["tokens"].startswith(f"at most {9 * tokens:,} sampled a step, {27 * tokens:,} in all;")


def test_the_runs_of_an_arm_may_end_at_different_steps(tmp_path: Path) -> None:
    """Each is read at its end, and the curves are of the steps that all of them evaluated."""

    def run(name: str, *steps: int) -> Path:
        levels = [evaluation(step, (step, step)) for step in steps]
        return write_run(tmp_path / name, levels, [metrics(step) for step in range(1, steps[-1] + 1)])

    arms = [arm("base", run("a", 0, 2, 4), run("b", 0, 2, 4)), arm("other", run("c", 0, 2, 3), run("d", 0, 2, 4))]
    result = analyse(arms, baseline="base", match="completions")
    other = of(result, "other")
    assert (other["accuracy"]["read_at"], other["accuracy"]["final"]["value"]) == ([3, 4], 0.875)
    assert other["accuracy"]["against_baseline"]["value"] == -0.125
    curve = other["curves"]["evaluations"]
    assert (curve["step"], curve["accuracy"]["mean"], curve["tokens"]) == ([0, 2], [0.0, 0.5], [0, 200])
    assert "step 3, 4" in markdown(given_terms() | result, "x")
    assert "other" in render_comparison(given_terms() | result | {"problem": None}, "x")


def test_a_limit_of_the_configs_is_the_budget(model: Path) -> None:
    found = limits(model, "grpo", "hdpo", "pbsd", max_completions="100")
    assert found == [{"steps": 11}, {"steps": 11, "max_completions": 100}, {"steps": 5}]


@pytest.mark.parametrize("setting", ["signal.equal=keep", "signal.equal=resample"])
def test_a_run_ends_before_the_step_that_could_exceed_its_completions(
    setting: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A break changes nothing: what was drawn before it counts."""
    config = tiny_run(model, "grpo", setting, "steps=5", "max_completions=30", "evaluation.every=2")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    train(config, whole)
    drawn = [sum(line["budget"]["completions"].values()) for line in lines(whole / "metrics.jsonl")]
    assert sum(drawn[:-1]) + 9 <= 30 < sum(drawn) + 9
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["stopped_by"]) == (True, len(drawn), [])
    # The last step is evaluated and saved, as it is where the steps end the run.
    assert lines(whole / "evaluations.jsonl")[-1]["step"] == len(drawn) < 5
    train(config, torn, stop_after=1)
    assert not json.loads((torn / "summary.json").read_text())["finished"]
    train(config, torn, resume=True)
    assert [line["loss"] for line in lines(torn / "metrics.jsonl")] == [
        line["loss"] for line in lines(whole / "metrics.jsonl")
    ]
    # A higher limit goes on.
    train(tiny_run(model, "grpo", setting, "steps=5", "evaluation.every=2"), torn, resume=True)
    assert len(lines(torn / "metrics.jsonl")) == 5


def test_a_checkpoint_of_an_older_version_counts_its_completions_by_its_lines(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model, "grpo", "steps=5", "max_completions=30")
    train(config, tmp_path / "run", stop_after=2)
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    older = newest.rename(tmp_path / "older")

    def fill(folder: Path) -> None:
        shutil.copytree(older, folder, dirs_exist_ok=True)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        assert state["counters"].pop("completions") == 18
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        (folder / "manifest.json").unlink()

    write_folder(newest, fill)
    train(config, tmp_path / "run", resume=True)
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("method", "most", "sentence"),
    [
        ("grpo", 8, "max_completions = 8: the first step draws 9 completions, so set it to that or more"),
        ("sft", 8, "max_completions = 8: method 'sft' samples no completions; limit the run by steps"),
    ],
)
def test_a_limit_that_no_step_fits_into_is_one_sentence(
    method: str, most: int, sentence: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        train(tiny_run(model, method, f"max_completions={most}"), tmp_path / "run")
    assert str(caught.value) == sentence
    assert not (tmp_path / "run").exists()
