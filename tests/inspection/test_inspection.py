"""The whole microscope on the tiny model: its numbers against plain forwards, its files, and who is left out."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from selfdistill.cli.app import main
from selfdistill.evaluation.words import load_classes
from selfdistill.inspection.command import describe_inspection
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.inspection.files import summarise, token_table
from selfdistill.methods import build_method
from selfdistill.models.head import token_credit
from selfdistill.types import TokenSlice
from support.engine import invent_groups, load_exact, own_templates, token_logprobs

NAMES = ("sd", "antisd", "opsd", "sdpo", "credit", "purified")


def tokens_of(advantage: float) -> TokenSlice:
    """One token of probability ¼ under the student and ½ under the teacher, of three."""
    student = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    inputs = {"advantage": torch.tensor([advantage], dtype=torch.float64), "old_logprob": student[:, 0]}
    return TokenSlice(torch.tensor([0]), {"student": student, "teacher": teacher}, inputs)


def test_credit_of_a_policy_gradient_is_its_advantage_times_one_minus_the_probability() -> None:
    assert token_credit(build_method("grpo", {}).loss, tokens_of(2.0)).item() == pytest.approx(2.0 * 0.75)


def test_credit_of_a_forward_divergence_is_the_difference_of_probabilities() -> None:
    loss = build_method("opsd", {"divergence": {"kind": "forward_kl"}, "score_temperature": 1.0}).loss
    assert token_credit(loss, tokens_of(0.0)).item() == pytest.approx(0.5 - 0.25)


def test_credit_of_a_reverse_divergence_is_weighed_against_its_mean() -> None:
    loss = build_method("opsd", {"divergence": {"kind": "reverse_kl"}, "score_temperature": 1.0}).loss
    # KL(S‖T) = ¼ ln ½ + ½ ln 2 = ¼ ln 2; −∂/∂logit = S (u + KL), u = ln 2.
    assert token_credit(loss, tokens_of(0.0)).item() == pytest.approx(0.25 * 1.25 * math.log(2))


def test_the_sums_of_credit_over_completions(model: Path, tmp_path: Path) -> None:
    policy, chat = load_exact(model)
    templates, groups = own_templates(tmp_path), invent_groups(policy, chat)
    wanted = plan({"credit": build_method("credit", {"strength": 0.3})}, [], templates)
    found = inspect_groups(policy, chat, groups, wanted, templates, thinking=None, seed=0)
    summary = summarise(token_table(found, chat, load_classes()), {}, chat)
    teacher, other, student = (found.logprobs[n] for n in ("sibling_or_feedback", "other_question", "student"))
    sums: dict[str, list[float]] = {"credit_score": [], "credit_specific": []}
    end = np.cumsum(found.lengths)
    for start, stop in zip([0, *end[:-1]], end, strict=True):
        if not np.isnan(teacher[start]):
            t, n, s = (float(row[start:stop].astype(np.float64).sum()) for row in (teacher, other, student))
            sums["credit_score"].append(t - s - 0.3 * n)
            sums["credit_specific"].append(t - n)
    assert len(sums["credit_score"]) == 9
    for name, values in sums.items():
        row = summary["sequence"]["credit"][name]
        assert row["mean"] == pytest.approx(sum(values) / 9, rel=1e-5)
        # 9 is over 3 groups; unjudged completions have a sum and no side.
        assert (row["correct"], row["wrong"]) == (2, 5)


def test_every_context_scores_as_a_plain_forward_and_cutting_changes_nothing(model: Path, tmp_path: Path) -> None:
    policy, chat = load_exact(model)
    templates, groups = own_templates(tmp_path), invent_groups(policy, chat)
    wanted = plan({name: build_method(name, {}) for name in NAMES}, ["bare"], templates)
    whole, pieces = (
        inspect_groups(
            policy,
            chat,
            groups,
            wanted,
            templates,
            thinking=None,
            prompts=3,
            max_tokens=m,
            max_logits_per_chunk=e,
            seed=1,
        )
        for m, e in ((10_000, 1 << 24), (60, 300))
    )
    assert (whole.teacher, whole.contexts[:2]) == ("bare", ["student", "bare"])
    at = 0
    for (g, i), prompts in zip(whole.places, whole.prompts, strict=True):
        ids = groups[g].rollouts[i].completion_ids
        rows = slice(at, at + len(ids))
        for name in whole.contexts:
            found = torch.from_numpy(whole.logprobs[name][rows])
            if name in prompts:
                exact = token_logprobs(policy.model, prompts[name], ids, policy.vocab_size)
                assert torch.allclose(found.double(), exact, atol=1e-4)
            else:
                assert found.isnan().all()
        at += len(ids)
    for mine, theirs in ((whole.logprobs, pieces.logprobs), (whole.credits, pieces.credits)):
        for name in mine:
            assert torch.allclose(
                torch.from_numpy(mine[name]), torch.from_numpy(theirs[name]), atol=1e-5, equal_nan=True
            ), name
    assert set(whole.metrics["credit"]) >= {"credit_specific", "credit_generic"}
    assert "cos_total_question" in whole.metrics["purified"]
    assert not torch.from_numpy(whole.credits["antisd"]).isnan().any()
    # The second group has a wrong completion without feedback: no context, so no credit.
    assert torch.from_numpy(whole.credits["sdpo"]).isnan().any()


def test_the_command_writes_table_summary_and_page(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main_ends(
        "inspect", model, "--task", "countdown", "--set", "task.difficulty=easy",
        "--methods", "grpo,sd,opsd,kl=opsd,pbsd,sft", "--set", "kl.divergence.kind=forward_kl",
        "--set", "kl.score_temperature=1",
        "--problems", "3", "--samples", "2", "--max-tokens", "12", "--out", out,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "left out: pbsd, because it learns from samples of its teacher too" in said
    assert "left out: sft, because it learns from reference solutions" in said
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    table = pq.read_table(out / "tokens.parquet").to_pydict()
    assert len(table["id"]) == summary["tokens"]
    assert summary["completions"] == 6
    assert summary["methods"] == ["grpo", "sd", "opsd", "kl"]
    assert summary["hyperparameters"]["kl"]["hyperparameters"]["divergence"] == {
        "kind": "forward_kl",
        "support": {"kind": "full"},
    }
    columns = (table[name] for name in ("logprob student", "logprob solution", "u solution", "credit kl"))
    for student, teacher, u, credit in zip(*columns, strict=True):
        assert u == pytest.approx(teacher - student, abs=1e-5)
        assert credit == pytest.approx(math.exp(teacher) - math.exp(student), abs=1e-5)
    assert sum(row["tokens"] for row in summary["signals"]["credit opsd"]["by_class"]) == summary["tokens"]
    leak = summary["answer_leak"]
    assert (leak["available"], leak["same"]) == (True, ["solution"]), "a solution of Countdown is but its answer"
    assert {row["context"]: row["r2"] for row in leak["rows"]}["solution"] == pytest.approx(1.0)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert (
        '<th scope="row">kl</th><td>opsd</td><td>divergence.kind = forward_kl, divergence.support.kind = full, '
        "score_temperature = 1.0</td>" in page
    )


def test_stored_completions_are_looked_at_again(model: Path, tmp_path: Path) -> None:
    from selfdistill.config.tasks import CountdownConfig
    from selfdistill.tasks.countdown.task import CountdownTask
    from support.tiny import tiny_tokenizer

    example = CountdownTask(CountdownConfig(difficulty="easy")).examples("train")[0]
    text = "try 3 + 4 = 7 . </think> answer 3 + 4"
    ids = [*tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], 2]
    row = {"step": 1, "example": example.id, "index": 0, "prompt": example.prompt[-1].content, "text": text,
           "ids": ids, "reward": 1.0, "finished": True, "feedback": None}  # fmt: skip
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "example": "nowhere"}) + "\n", encoding="utf-8")
    arguments = ("inspect", model, "--task", "countdown", "--set", "task.difficulty=easy", "--methods", "opsd")
    main_ends(*arguments, "--rollouts", path, "--out", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["completions"], summary["tokens"], summary["outcomes"]["correct"]) == (1, len(ids), 1)
    assert summary["skipped"]["a stored completion's problem is not among the task's"] == 1
    path.write_text(json.dumps({**row, "text": "something else"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        main([str(a) for a in (*arguments, "--rollouts", path, "--out", tmp_path / "other")])
    assert not (tmp_path / "other").exists()


ROW = {"step": 1, "example": "countdown-1.2.3-6", "index": 0, "prompt": "?", "text": "a", "ids": [3], "reward": 1.0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no completion of the student"),
        (json.dumps({**ROW, "source": "teacher"}), "holds no completion of the student"),
        ("{oops\n" + json.dumps(ROW), "line 1: not valid JSON"),
        ("[1]\n", "line 1: not a JSON object"),
        (json.dumps({**ROW, "ids": None}), "completion 1: 'ids' is not what a run writes (got 'None')"),
        (json.dumps({**ROW, "ids": [-3]}), "completion 1: 'ids' is not what a run writes (got '[-3]')"),
        (json.dumps({**ROW, "ids": ["a"]}), "completion 1: 'ids' is not what a run writes"),
        (json.dumps({**ROW, "reward": "x"}), "completion 1: 'reward' is not what a run writes (got 'x')"),
        (json.dumps({**ROW, "text": 3}), "completion 1: 'text' is not what a run writes (got '3')"),
        (
            json.dumps(ROW),
            "it is of another task, its sizes or its seed (problems as countdown-1.2.3-6 there, as toolbox-",
        ),
    ],
)
def test_stored_completions_that_cannot_be_used_are_one_sentence(
    text: str, sentence: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(text, encoding="utf-8")
    assert sentence in refused(capsys, model, "--task", "toolbox", "--rollouts", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stored_completion_without_tokens_is_counted(model: Path, tmp_path: Path) -> None:
    from selfdistill.tasks.toolbox.task import ToolboxTask

    example = ToolboxTask().examples("train")[0]
    whole = {**ROW, "example": example.id, "prompt": example.prompt[-1].content, "text": "answer try", "ids": [8, 9]}
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps({**whole, "ids": []}) + "\n" + json.dumps(whole) + "\n", encoding="utf-8")
    main_ends("inspect", model, "--task", "toolbox", "--methods", "opsd", "--rollouts", path, "--out", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["completions"], summary["tokens"]) == (1, 2)
    assert summary["skipped"]["a stored completion has no tokens"] == 1


def test_only_an_earlier_look_gives_way(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "summary.json").write_text("{}", encoding="utf-8")
    (place / "metrics.jsonl").write_text("", encoding="utf-8")
    said = refused(capsys, model, "--task", "countdown", "--out", place)
    assert said.endswith("run holds other things (metrics.jsonl): choose another --out")
    assert (place / "summary.json").read_text(encoding="utf-8") == "{}"
    assert "is a file: choose another --out" in refused(
        capsys, model, "--task", "countdown", "--out", place / "metrics.jsonl"
    )


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "is no run folder: its config.json is missing or names no task"),
        ("{oops", "config.json is not valid JSON"),
        ('{"steps": 3}', "is no run folder: its config.json is missing or names no task"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_one_sentence(
    config: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    if config is not None:
        (tmp_path / "run" / "config.json").write_text(config, encoding="utf-8")
    assert sentence in refused(capsys, tmp_path / "run", "--out", tmp_path / "out")


def test_ctrl_c_leaves_an_earlier_look_as_it_was(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("earlier", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONUNBUFFERED": "1"}
    arguments = ["inspect", str(model), "--task", "countdown", "--max-tokens", "100", "--problems", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "selfdistill", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert "to be scored under" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert errors.startswith("loading torch\nmodel: ") and errors.endswith("\nselfdistill: stopped\n")
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text(encoding="utf-8") == "earlier"


def test_the_terminal_gets_a_line_a_signal() -> None:
    def of_tokens(right: float, wrong: float | None, positive: float, tokens: int) -> dict[str, Any]:
        outcomes = [{"name": "correct", "mean": right}, {"name": "wrong", "mean": wrong}]
        return {"by_outcome": outcomes, "balance": {"positive": positive, "tokens": tokens}}

    unscored = {"by_outcome": [{"name": name, "mean": None} for name in ("correct", "wrong")], "balance": {"tokens": 0}}
    summary: dict[str, Any] = {
        "weights": "base",
        "checkpoint": None,
        "step": None,
        "completions": 4,
        "problems": 2,
        "tokens": 1204,
        "outcomes": {"correct": 1, "wrong": 3, "not judged": 0},
        "signals": {
            "u solution": of_tokens(0.5, -0.0125, 0.75, 1204),
            "credit antisd": of_tokens(-12.5, None, 0.125, 600),
            "u sibling": unscored,
        },
        "left_out": {"sft": "it learns from solutions"},
        "skipped": {"no sibling": 3},
        "templates": {"warnings": []},
    }
    assert list(describe_inspection(summary)) == [
        "weights: base",
        "4 completions of 2 problems (1 correct, 3 wrong), 1204 tokens",
        "mean of a token  if correct  if wrong  positive  tokens",
        "u solution           +0.500    −0.013     75.0%   1,204",
        "credit antisd         −12.5         –     12.5%     600",
        "u sibling                 –         –         –       0",
        "left out: sft, because it learns from solutions",
        "skipped: 3 × no sibling",
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence that ``inspect`` refuses with."""
    with pytest.raises(SystemExit) as end:
        main(["inspect", *(str(argument) for argument in arguments)])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("selfdistill: ")
    assert said.err.count("\n") == 1
    return said.err.strip()


def main_ends(*arguments: object) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code
