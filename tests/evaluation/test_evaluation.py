"""Evaluation through whole runs: what moves between two of them is the model, never the draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import lines, tiny_run, train


@pytest.mark.usefixtures("no_page")
def test_weights_that_stand_still_answer_alike_at_every_evaluation(model: Path, tmp_path: Path) -> None:
    # AdamW's steps are as large as its rate: 1e-12 is lost in weights of 0.2.
    still = ("optimiser.learning_rate=1e-12", "steps=2", "evaluation.every=1", "evaluation.samples=8")
    train(tiny_run(model, "grpo", *still), tmp_path / "run")
    first, *others = lines(tmp_path / "run" / "evaluations.jsonl")
    assert (first.pop("step"), [each.pop("step") for each in others]) == (0, [1, 2])
    assert others == [first, first]
    # What is learnt from is drawn anew at each step.
    drawn = lines(tmp_path / "run" / "rollouts.jsonl")
    texts = [[each["ids"] for each in drawn if each["step"] == step] for step in (1, 2)]
    assert texts[0] != texts[1]
    # Another seed draws other completions.
    train(tiny_run(model, "grpo", *still, "seed=1"), tmp_path / "other")
    assert lines(tmp_path / "other" / "evaluations.jsonl")[0]["tokens"] != first["tokens"]
