"""Rows and models as people have them: a BPE tokenizer, a chat template, JSON lines, a reward of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from selfdistill.cli.app import main
from support.tiny import tiny_config

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    {
        "question": f"Ann has {a} pens and buys {b} more. How many pens has she now?",
        "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} pens.\n#### {a + b}",
    }
    for a in range(2, 8)
    for b in range(3, 8)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a BPE tokenizer trained on the rows, and more embeddings than the tokenizer has ids."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["question"] + " " + row["answer"] for row in ROWS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    Qwen3ForCausalLM(tiny_config(vocab_size=448, max_position_embeddings=512)).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Path:
    """A config of a few lines on rows of one's own."""
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(
        f"""
        method.name = "antisd"
        model.path = "{model}"
        task = {{ kind = "math", path = "{rows}", solution = "answer", solution_remove = "<<[^>]*>>" }}
        steps = 2
        sampling = {{ prompts = 2, completions = 2, max_tokens = 12 }}
        evaluation = {{ problems = 2, samples = 2 }}
        """,
        encoding="utf-8",
    )
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(*arguments: str) -> None:
    """The command line, which ends quietly when all is well."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def pens(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
    """A reward of one's own: half for a question about pens whose column arrived, whatever was said."""
    assert len(prompts) == len(completions) == len(answer) > 1, "a batch comes at once"
    assert all(isinstance(completion, str) for completion in completions)
    rows = zip(prompts, answer, strict=True)
    return [0.5 if "pens" in prompt and "####" in known else None for prompt, known in rows]


def test_rows_of_ones_own_train_with_the_shipped_defaults(config: Path, tmp_path: Path) -> None:
    run("train", str(config), "--out", str(tmp_path / "run"))

    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
    assert [line["step"] for line in metrics] == [1, 2]
    assert len(rollouts) == 2 * 2 * 2
    for rollout in rollouts:
        assert len(rollout["ids"]) == len(rollout["tokens"]) == len(rollout["logprobs"]) == len(rollout["u"])
        assert max(rollout["ids"]) < 400, "an id of the padded vocabulary was drawn"
        assert rollout["reward"] == 0.0
    assert metrics[0]["pmi"] == pytest.approx(
        sum(u for r in rollouts[:4] for u in r["u"]) / sum(len(r["u"]) for r in rollouts[:4]), abs=1e-4
    )


def test_a_reward_of_ones_own_takes_the_verifiers_place(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    run("train", str(config), "--out", str(tmp_path / "run"), "--set", f"reward={Path(__file__).stem}:pens")

    assert [line["reward"] for line in lines(tmp_path / "run" / "metrics.jsonl")] == [0.5, 0.5]


def test_contexts_prints_what_the_teacher_would_see(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("contexts", str(config), "--examples", "1", "--completions", "1")

    printed = capsys.readouterr().out
    assert "student: what the model is asked" in printed
    assert "teacher: context sibling_or_solution_verdict, live weights" in printed
    assert "She has" in printed.split("teacher:")[1]
    assert "<<" not in printed, "solution_remove was not applied"
    assert "1 completion scored, 0 left out of the loss" in printed


def test_a_bfloat16_model_trains_too(config: Path, tmp_path: Path) -> None:
    settings = ("model.dtype=bfloat16", "steps=1", "method.name=sd", "optimiser.learning_rate=0.01")
    run("train", str(config), "--out", str(tmp_path / "run"), *(part for key in settings for part in ("--set", key)))

    (line,) = lines(tmp_path / "run" / "metrics.jsonl")
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000001" / "model" / "model.safetensors")
    assert line["grad_norm"] > 0
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
