"""A fixed reward model as the judge: the rewards of a run are its scores, taken in one batch a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForSequenceClassification

from selfdistill.methods import build_method
from selfdistill.methods.base import BatchScores
from selfdistill.objectives.analysis import expected_right_weight, reward_tilted
from selfdistill.types import View
from support.bytewise import save_bytewise_model
from support.runs import lines, metrics, tiny_run, train
from support.tiny import tiny_config

CALLS: list[list[float]] = []
JUDGE: list[tuple[object, torch.nn.Module]] = []


def score(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The scores of a sequence classifier with one label, between 0 and 1."""
    tokenizer, model = JUDGE[0]
    turns = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": c}]
        for p, c in zip(prompts, completions, strict=True)
    ]
    batch = tokenizer.apply_chat_template(turns, padding=True, return_tensors="pt", return_dict=True)  # type: ignore[attr-defined]
    with torch.no_grad():
        scores: list[float] = model(**batch).logits.squeeze(-1).sigmoid().tolist()
    CALLS.append(scores)
    return scores


@pytest.mark.usefixtures("no_page")
def test_the_rewards_of_a_run_are_the_models(model: Path, tmp_path: Path) -> None:
    settings = tiny_config(vocab_size=320, num_hidden_layers=1, max_position_embeddings=2048, pad_token_id=0)
    settings.num_labels = 1
    torch.manual_seed(0)
    judge = Qwen3ForSequenceClassification(settings).eval()
    torch.nn.init.normal_(judge.score.weight, std=0.3)
    JUDGE[:] = [(AutoTokenizer.from_pretrained(save_bytewise_model(tmp_path / "judge")), judge)]
    CALLS.clear()
    before = {name: value.clone() for name, value in judge.state_dict().items()}

    config = tiny_run(model, "pbsd_reward", "reward='test_reward_model:score'", "steps=2", "evaluation.every=2")
    train(config, tmp_path / "run")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    # All nine completions of a step at once; before the run, and for evaluations, it is asked as well.
    steps = [[row["reward"] for row in rollouts if row["step"] == step] for step in (1, 2)]
    assert all(step in CALLS for step in steps) and [len(step) for step in steps] == [9, 9]
    assert len(set(steps[0])) > 1 and all(0 < reward < 1 for reward in steps[0])
    assert all(row["loss"] > 0 for row in metrics(tmp_path / "run"))
    # It is fixed: the run learns, the judge does not.
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())
    # The weights of a group are the tilt by its scores, over samples of equal chance.
    group = steps[0][:3]
    views = [View({"student": (1,)}, (2,), (1.0,), (0.0,), 0.0, 0, i, "teacher", r) for i, r in enumerate(group)]
    tilt = build_method("pbsd_reward").on_batch(None, BatchScores({}, views))["tilt"]
    even = torch.full((3,), 1 / 3, dtype=torch.float64).log()
    expected = reward_tilted(even, torch.tensor(group, dtype=torch.float64), beta=0.1).exp()
    torch.testing.assert_close(torch.as_tensor(tilt) / 3, expected)


def test_the_page_has_the_bias_that_the_function_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods" / "pbsd_reward.md").read_text(encoding="utf-8")
    sizes = [int(k) for k in re.findall(r"K = (\d+) \|", page)]
    rows = re.findall(r"^\| ([\d.]+) \|((?: [\d.]+ \|)+)$", page, re.MULTILINE)
    assert len(sizes) == 6 and len(rows) == 3
    for beta, cells in rows:
        shown = [float(cell) for cell in cells.split("|")[:-1]]
        right = [expected_right_weight(0.1, beta=float(beta), samples=k) for k in sizes]
        wrong = torch.tensor([0.1, 0.9], dtype=torch.float64).log()
        best = reward_tilted(wrong, torch.tensor([1.0, 0.0], dtype=torch.float64), beta=float(beta)).exp()
        assert shown == [round(value, 3) for value in (*right, float(best[0]))]
