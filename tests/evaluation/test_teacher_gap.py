"""Preference gap and shift: exact where student and teacher agree, equal to sums by hand where they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods_by_hand as hand
from selfdistill.cli.app import main
from selfdistill.contexts.templates import Template
from selfdistill.errors import ConfigError, DataError, ModelError
from selfdistill.evaluation.teacher_gap import TeacherGap, measure_teacher_gap
from selfdistill.methods import build_method
from selfdistill.models.policy import load_external
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.seeds import derive
from selfdistill.training.build import assemble
from selfdistill.training.problem import check_contexts
from selfdistill.types import Example, Message, Role
from support.engine import load_exact
from support.runs import as_toml, lines, open_run, recorder, tiny_run, train
from support.tiny import save_tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary, whose head is padded to another number of rows."""
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=9, vocab_size=110)


def measured(model: Path, role: Role, method: Any = "opsd") -> TeacherGap:
    parts = assemble(tiny_run(model, method))
    gap = measure_teacher_gap(role, parts.worker, parts.examples[:4], samples=3, seed=1, max_tokens=200)
    assert isinstance(gap, TeacherGap)
    return gap


def test_a_teacher_that_sees_the_same_is_nowhere_else(model: Path) -> None:
    gap = measured(model, Role(None, "frozen"))
    for shift in (gap.shift_on_student, gap.shift_on_teacher):
        assert (shift.value, shift.low, shift.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-5)
    assert (gap.problems, gap.completions, dict(gap.skipped)) == (4, 12, {})


def test_the_gap_is_the_difference_of_the_shares(model: Path) -> None:
    gap = measured(model, Role("solution", "frozen"))
    assert gap.gap.value == pytest.approx(gap.teacher.value - gap.student.value, abs=1e-12)
    assert gap.gap.low <= gap.gap.value <= gap.gap.high


def test_each_shift_is_the_mean_log_ratio_on_its_own_sides_samples(model: Path) -> None:
    """log S − log T on what the student drew, log T − log S on what the teacher drew: both estimate divergences."""
    plain = ("sampling.temperature=1", "sampling.top_p=1", "sampling.top_k=0")
    parts = assemble(tiny_run(model, "opsd", *plain))
    examples = parts.examples[:2]
    gap = measure_teacher_gap(Role("solution", "frozen"), parts.worker, examples, samples=2, seed=1, max_tokens=1)
    assert isinstance(gap, TeacherGap)
    params = SamplingParams(count=2, max_tokens=parts.worker.params.max_tokens, seed=derive(1, "student"))
    sampler = policy_sampler(parts.policy, parts.chat)
    groups = sample_and_verify(examples, parts.task, sampler, parts.chat, params)
    prompts, pairs = [], []
    for group in groups:
        text = group.example.prompt[-1].content
        shown = f"{text}\na correct solution is {group.example.fields['solution']} .\nnow solve the problem yourself ."
        prompt = parts.chat.tokenizer(f"<|user|> {shown} <|end|> <|assistant|> <think>", add_special_tokens=False)
        for rollout in group.rollouts:
            prompts.append(tuple(prompt["input_ids"]))
            pairs.append((rollout.prompt_ids, rollout.completion_ids))
    drawn = sampler.sample(prompts, replace(params, count=1, seed=derive(1, "teacher")))
    taught = [(own, completion.ids) for (own, _), [completion] in zip(pairs, drawn, strict=True)]
    for sign, side, shift, per_token in (
        (1.0, pairs, gap.shift_on_student, gap.per_token_on_student),
        (-1.0, taught, gap.shift_on_teacher, gap.per_token_on_teacher),
    ):
        ratios = []
        for (own, ids), prompt in zip(side, prompts, strict=True):
            mine, theirs = (
                hand.rows(parts.policy.model, before, ids, parts.policy.vocab_size) for before in (own, prompt)
            )
            each = zip(mine, theirs, ids, strict=True)
            ratios.append(sign * sum(float((s[token] - t[token]).detach()) for s, t, token in each))
        assert shift.value == pytest.approx(sum(ratios) / len(ratios), rel=1e-4)
        assert per_token == pytest.approx(sum(ratios) / sum(len(ids) for _, ids in side), rel=1e-4)


def test_a_context_that_nothing_can_fill_is_said(model: Path) -> None:
    parts = assemble(tiny_run(model, "opsd", "reward=support.rewards:never"))
    role = Role("sibling", "frozen")
    gap = measure_teacher_gap(role, parts.worker, parts.examples[:2], samples=2, seed=1, max_tokens=200)
    assert gap == {"context sibling: no sibling": 4}


def test_the_command_reports_every_teacher(
    model: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    weights = {"kind": "external", "path": str(other)}
    run = tiny_run(model, {"name": "purified", "weights": weights})
    config.write_text(as_toml(run.model_dump(exclude_none=True)), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["teachers", str(config), "--problems", "3", "--samples", "2", "--json"])
    assert not end.value.code
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"teacher", "reference_only"}
    assert report["teacher"]["what"] == f"context solution, weights of {other}"
    assert report["teacher"]["shift_on_student"]["value"] > 0
    with pytest.raises(SystemExit):
        main(["teachers", str(config), "--problems", "3", "--samples", "2"])
    assert "preference gap: " in capsys.readouterr().out


def test_a_method_without_a_teacher_is_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(as_toml(tiny_run(model, "grpo").model_dump(exclude_none=True)), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["teachers", str(config)])
    assert end.value.code == 2
    assert capsys.readouterr().err == "selfdistill: method 'grpo' has no teacher to measure\n"


# --- another model as teacher ----------------------------------------------------------------------------------------


def test_a_head_of_another_width_gives_the_same_probabilities(model: Path, other: Path) -> None:
    policy, chat = load_exact(model)
    teacher = load_external(str(other), policy, chat, dtype=torch.float64, device=torch.device("cpu"))
    hidden = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    narrow = teacher.head_of(hidden).logprobs(slice(0, 5))
    teacher.padded_vocab_size = None
    wide = teacher.head_of(hidden).logprobs(slice(0, 5))
    assert (narrow.shape, wide.shape) == ((5, 96), (5, 110))
    assert torch.equal(narrow[:, : policy.vocab_size], wide[:, : policy.vocab_size])
    assert bool((narrow[:, policy.vocab_size :] == -torch.inf).all())
    teacher.padded_vocab_size = 120
    padded = teacher.head_of(hidden).logprobs(slice(0, 5))
    assert torch.equal(padded[:, :110], wide) and bool((padded[:, 110:] == -torch.inf).all())


def test_another_vocabulary_is_refused_by_its_first_token(model: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "foreign", seed=1)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["bonjour"])
    tokenizer.save_pretrained(folder)
    policy, chat = load_exact(model)
    with pytest.raises(ModelError, match=r"has a token that .* lacks: 'bonjour'"):
        load_external(str(folder), policy, chat, dtype=torch.float64, device=torch.device("cpu"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace('"hmm":', '"hum":')
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"another vocabulary than .*: token 'hmm' is absent there and 12 here"):
        load_external(str(folder), policy, chat, dtype=torch.float64, device=torch.device("cpu"))


def test_a_shorter_window_is_refused(model: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "short", seed=1, max_position_embeddings=64)
    policy, chat = load_exact(model)
    with pytest.raises(ModelError, match=r"has a window of 64, .* one of 256"):
        load_external(str(folder), policy, chat, dtype=torch.float64, device=torch.device("cpu"))


def test_a_misspelt_external_teacher_is_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(as_toml(tiny_run(model, "opsd").model_dump(exclude_none=True)), encoding="utf-8")
    for change, said in {
        'method.weights={ kind = "external", folder = "x" }': "method.weights",
        'method.weights={ kind = "external", path = "nowhere" }': "model 'nowhere' not found",
        "method.weights=lively": "method.weights",
    }.items():
        with pytest.raises(SystemExit) as end:
            main(["train", str(config), "--set", change, "--out", str(tmp_path / "run")])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_run_under_an_external_teacher_resumes_only_with_the_same_one(
    model: Path, other: Path, tmp_path: Path
) -> None:
    run = tiny_run(model, {"name": "opsd", "weights": {"kind": "external", "path": str(other)}})
    train(run, tmp_path / "run", stop_after=2)
    train(run, tmp_path / "run", resume=True)
    assert [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert "+" in json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/state.json")).read_text())["origin"]


# --- two sides that sample -------------------------------------------------------------------------------------------


def test_both_sides_of_pbsd_are_judged_and_counted(model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "pbsd"), tmp_path / "run")
    line = lines(tmp_path / "run" / "metrics.jsonl")[0]
    drawn = [one for one in lines(tmp_path / "run" / "rollouts.jsonl") if one["step"] == 1]
    roles = {"student": "", "teacher": "teacher_"}
    for source, prefix in roles.items():
        mine = [one for one in drawn if one["source"] == source]
        assert len(mine) == 9
        assert line[f"{prefix}reward"] == pytest.approx(sum(one["reward"] for one in mine) / 9)
        assert line[f"{prefix}length"] == pytest.approx(sum(len(one["ids"]) for one in mine) / 9)
    assert line["generated"] == sum(len(one["ids"]) for one in drawn)
    assert line["pairs"] == 9.0
    # What is drawn, scored and trained is counted for every role.
    tokens = {source: sum(len(one["ids"]) for one in drawn if one["source"] == source) for source in roles}
    assert line["budget"]["completions"] == {"student": 9, "teacher": 9}
    assert line["budget"]["drawn"] == tokens
    written = lines(tmp_path / "run" / "metrics.jsonl")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["budget"]["drawn"]["teacher"] == sum(one["budget"]["drawn"]["teacher"] for one in written)
    assert summary["budget"]["trained"] == sum(one["budget"]["trained"] for one in written)
    assert summary["tokens"] == sum(summary["budget"]["drawn"].values())


def test_where_only_the_teacher_samples_the_student_has_no_reward(model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "pbsd_reward"), tmp_path / "run")
    line = lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert line["reward"] is None and line["length"] is None
    assert line["teacher_reward"] is not None


@pytest.mark.parametrize(("method", "warned"), [("pbsd", True), ("grpo", False)])
def test_more_than_one_update_a_batch_is_a_warning_where_theory_asks_for_one(
    method: str, warned: bool, model: Path, tmp_path: Path
) -> None:
    run = open_run(tiny_run(model, method, "optimiser.updates_per_batch=2", "steps=1"), tmp_path / "run")
    run.train(recorder(run).stop)
    assert any("meant for one optimiser step a batch" in said for said in recorder(run).said) == warned


def test_a_contrast_needs_as_many_questions(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(as_toml(tiny_run(model, "credit").model_dump(exclude_none=True)), encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(["train", str(config), "--set", "method.contrasts=3", "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "contrast 3 needs 4 questions a step, sampling.prompts is 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "prompts", "error", "said"),
    [
        # The field that is missing decides, not the name of the template.
        ("$question $hint", 9, DataError, "context other_question_hint: no hint in the data"),
        ("$other_question", 1, ConfigError, "contrast 1 needs 2 questions a step, sampling.prompts is 1"),
    ],
)
def test_a_context_is_refused_for_the_field_that_it_lacks(
    text: str, prompts: int, error: type[Exception], said: str
) -> None:
    templates = {"other_question_hint": Template("other_question_hint", "", text=text)}
    method = build_method("sdpo", {"context": "other_question_hint"})
    with pytest.raises(error, match=said):
        check_contexts(method, templates, Example("one", (Message("user", "?"),), {}), prompts=prompts)
