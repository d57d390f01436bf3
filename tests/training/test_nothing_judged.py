"""Runs whose task judges nothing: no accuracy, no best step and no interval, in files, terminal and page."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfdistill.cli.app import main
from selfdistill.comparison.analysis import analyse
from selfdistill.comparison.compare import plan
from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import ConfigError, DataError
from selfdistill.evaluation.evaluate import summarise
from selfdistill.tracking.progress import Progress
from selfdistill.training.atomic import checkpoints
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict
from support.arms import arm, evaluation, metrics, write_run
from support.bytewise import save_bytewise_model
from support.runs import as_toml, lines, open_run, train

LENGTH = 6


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def config(folder: Path, model: Path, **changes: Any) -> RunConfig:
    """Two steps of ``sft`` on solutions without answers, evaluated after each."""
    rows = [{"question": f"{n} + 1?", "solution": f"It is {n + 1}."} for n in range(6)]
    for name, part in (("rows", rows[:4]), ("held_out", rows[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    task = {"kind": "math", "answer": "", "solution": "solution", "path": str(folder / "rows.jsonl")}
    raw = {
        "steps": 2,
        "model": {"path": str(model)},
        "task": {**task, "validation_path": str(folder / "held_out.jsonl"), "test_share": 0.0},
        "method": {"name": "sft"},
        "optimiser": {"learning_rate": 0.01, "warmup": 0},
        "sampling": {"prompts": 2, "max_tokens": LENGTH},
        "evaluation": {"every": 1, "problems": 2, "samples": 3},
        "checkpoint": {"every": 1},
    }
    return parse_config({**raw, **changes}, "a test")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_that_judges_nothing_says_so_everywhere(tmp_path: Path, bytewise: Path) -> None:
    settings, folder = config(tmp_path, bytewise), tmp_path / "run"
    train(settings, folder, stop_after=1)
    assert weights(folder / "checkpoints" / "best") == weights(checkpoints(folder / "checkpoints")[0] / "model")
    summary = train(settings, folder, resume=True)

    # The files hold nulls, and the best weights are those of the newest evaluation, the last step.
    evaluations = lines(folder / "evaluations.jsonl")
    assert [row["step"] for row in evaluations] == [0, 1, 2]
    for row in (*evaluations, summary["before"], summary["after"]):
        assert (row["judged"], row["avg"], row["pass"], row["maj"], row["hits"]) == (0, None, None, None, None)
        assert row["length"] == sum(row["tokens"]) / 6
        assert row["entropy"] > 0
    assert (summary["best"], summary["best_by"], summary["after_step"]) == (None, "last", 2)
    assert weights(folder / "checkpoints" / "best") == weights(checkpoints(folder / "checkpoints")[-1] / "model")

    # A damaged copy of it is restored from the checkpoint of its step.
    whole = weights(folder / "checkpoints" / "best")
    (folder / "checkpoints" / "best" / "model.safetensors").write_bytes(whole[:-1])
    run = open_run(settings, folder, resume=True)
    run.hold.release()
    assert weights(folder / "checkpoints" / "best") == whole

    # The terminal shows what there is: no accuracy and no row for a best step.
    said = io.StringIO()
    progress = Progress(Console(file=said, width=120))
    progress.evaluation(2, evaluations[-1])
    progress.closing(summary, "page")
    text = said.getvalue()
    row = evaluations[-1]
    assert text.startswith(
        f"step    2  nothing is judged  length {row['length']:.1f}  truncated {row['truncated']:.1%}  "
        f"entropy {row['entropy']:.3f}  deliberation {row['deliberation']:.2f}\n"
    )
    assert re.search(r"^ *step +references +length +cut +delib\. *$", text, re.MULTILINE)
    assert not re.search(r"avg@|pass@|maj@|95 %|^best +\d", text, re.MULTILINE)
    assert f"step    2  references {row['loglikelihood']['value']:+.3f} nats a token\n" in text
    assert "best: the newest evaluation" in text

    # The page says the same.
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<span class="after">not judged</span>') == 1
    assert page.count("<td>not judged</td>") == 3, "the accuracy of three evaluations"
    assert "Nothing is judged on held-out problems: there is no accuracy to draw, and no best step." in page
    assert "<h2>Before and after</h2>" in page
    assert "<strong>No accuracy</strong>" in page
    # True too of a run whose reward function returned None for every completion.
    assert "neither a verifier nor a reward function judged a held-out completion" in page
    assert not re.search("Held-out accuracy|Solved on|>Best|0\\.0–0\\.0%|bootstrap", page)


def test_the_evaluate_command_shows_what_there_is(
    tmp_path: Path, bytewise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "own.toml"
    settings.write_text(as_toml(config(tmp_path, bytewise).model_dump(exclude_none=True)), encoding="utf-8")
    task = [f"task.path={tmp_path / 'held_out.jsonl'}", "task.answer=''", "task.test_share=0.5"]
    overrides = [part for one in task for part in ("--set", one)]
    arguments = ["evaluate", str(bytewise), "--task", "math", "--samples", "2", "--max-tokens", "4", *overrides]
    for temperature, known in (("1.0", True), ("0.7", False)):
        with pytest.raises(SystemExit):
            main([*arguments, "--temperature", temperature])
        said = capsys.readouterr().out
        assert said.startswith("nothing is judged  length ")
        assert ("entropy" in said) is known
        assert "avg@" not in said


def test_a_comparison_of_what_is_not_judged_is_refused(tmp_path: Path, bytewise: Path) -> None:
    source = tmp_path / "own.toml"
    source.write_text(as_toml(config(tmp_path, bytewise).model_dump(exclude_none=True)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^nothing is judged in this task, and arms are compared by accuracy"):
        plan([str(source)], ["task.answer=''"], seeds=[0], baseline=None, folder=tmp_path / "out")
    plan([str(source)], ["task.answer=solution"], seeds=[0], baseline=None, folder=tmp_path / "out")

    rows = [{**evaluation(step, (1,)), "judged": 4 * (step == 0), "hits": None if step else [1]} for step in (0, 1)]
    run = write_run(tmp_path / "run", rows, [metrics(1)])
    with pytest.raises(DataError, match=r"nothing is judged in its evaluation of step 1, and arms are compared"):
        analyse([arm("a", run)], baseline="a")


def test_completions_without_a_verdict_are_counted() -> None:
    example = Example("a", (Message("user", "?"),))
    rollouts = [Rollout((1,), (5, 2), logprobs, True, "", 0) for logprobs in ((-0.5, -1.5), (-1.0, 0.0))]
    group = RolloutGroup(example, tuple(rollouts), (Verdict(1.0, "5"), Verdict(None, "6")))
    result = summarise([group], samples=2, plain=True).to_json()
    assert (result["judged"], result["avg"]["value"], result["hits"], result["entropy"]) == (1, 0.5, [1], 0.75)
    said = io.StringIO()
    Progress(Console(file=said, width=120)).evaluation(1, result)
    assert said.getvalue().endswith("\n1 of 2 completions is not judged and counts as wrong\n")
    unknown = summarise([replace(group, verdicts=(Verdict(None),) * 2)], samples=2, plain=False).to_json()
    assert [unknown[key] for key in ("judged", "avg", "pass", "maj", "hits", "entropy")] == [0, *[None] * 5]
