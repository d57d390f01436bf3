"""Evaluation through whole runs: what moves between two of them is the model, never the draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from support.runs import lines, tiny_run, train


@pytest.mark.usefixtures("no_page")
def test_weights_that_stand_still_answer_alike_at_every_evaluation(model: Path, tmp_path: Path) -> None:
    # AdamW's steps are as large as its rate: 1e-12 is lost in weights of 0.2.
    still = ("optimiser.learning_rate=1e-12", "steps=2", "evaluation.every=1", "evaluation.samples=8")
    train(tiny_run(model, "grpo", *still), tmp_path / "run")
    first, *others = lines(tmp_path / "run" / "evaluations.jsonl")
    assert [point["k"] for point in first["pass_curve"]] == [1, 2, 4, 8]
    assert first["pass_curve"][-1] == first["pass"] and first["pass_curve"][0]["value"] == first["avg"]["value"]
    assert sum(first["markers"].values()) == sum(first["words"])
    assert (first.pop("step"), [each.pop("step") for each in others]) == (0, [1, 2])
    assert others == [first, first]
    # What is learnt from is drawn anew at each step.
    drawn = lines(tmp_path / "run" / "rollouts.jsonl")
    texts = [[each["ids"] for each in drawn if each["step"] == step] for step in (1, 2)]
    assert texts[0] != texts[1]
    # Another seed draws other completions.
    train(tiny_run(model, "grpo", *still, "seed=1"), tmp_path / "other")
    assert lines(tmp_path / "other" / "evaluations.jsonl")[0]["tokens"] != first["tokens"]


@pytest.mark.usefixtures("no_page")
def test_evaluations_sample_by_settings_of_their_own(model: Path, tmp_path: Path) -> None:
    def evaluations(name: str, *settings: str) -> list[dict[str, Any]]:
        config = tiny_run(model, "grpo", "steps=1", "evaluation.every=1", *settings)
        train(config, tmp_path / name)
        return lines(tmp_path / name / "evaluations.jsonl")

    greedy = evaluations("greedy", "evaluation.temperature=0")
    # One token to choose from, or a nucleus that none but the likeliest enters, is greedy too.
    assert [row["tokens"] for row in evaluations("k", "evaluation.top_k=1")] == [row["tokens"] for row in greedy]
    nucleus = evaluations("p", "evaluation.top_p=1e-6", "evaluation.max_tokens=3")
    assert [row["tokens"] for row in nucleus] == [[min(6, total) for total in row["tokens"]] for row in greedy]
    assert greedy[0]["tokens"] == [20, 20, 20]
    # What was learnt from is drawn as ever.
    drawn = [lines(tmp_path / name / "rollouts.jsonl") for name in ("greedy", "p")]
    assert [row["ids"] for row in drawn[0]] == [row["ids"] for row in drawn[1]]
    # The command takes them over from the run's folder.
    again = sd.evaluate(tmp_path / "p", split="validation", limit=3, samples=2)
    assert (again["tokens"], again["top_p"], again["max_tokens"]) == (nucleus[-1]["tokens"], 1e-6, 3)
    other = sd.evaluate(tmp_path / "p", split="validation", limit=3, samples=2, max_tokens=2, temperature=0.5)
    assert (other["tokens"], other["temperature"]) == ([4, 4, 4], 0.5)
