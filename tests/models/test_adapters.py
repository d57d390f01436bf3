"""Adapters: where they may go, the base that they name, and what Transformers and peft make of what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfdistill.cli.evaluate import evaluate_model
from selfdistill.config.sections import LoraConfig
from selfdistill.errors import ModelError
from selfdistill.models.loading import quiet_peft
from selfdistill.models.policy import load_policy, save_policy
from selfdistill.training.run_folder import export_model
from support.runs import open_run, outcome, tiny_run, train
from support.tiny import save_tiny_model

ADAPTED = ("model.lora.rank=2", "model.lora.alpha=4", "optimiser.learning_rate=0.1", "evaluation.every=9")
IDS = torch.arange(8, 40)[None]


def logits(folder: Path, reader: Any = AutoModelForCausalLM) -> Tensor:
    """What a library's own reader makes of a directory."""
    with torch.no_grad(), quiet_peft():
        found: Tensor = reader.from_pretrained(folder)(IDS).logits
    return found


def adapter_on(model: Path, folder: Path, *overrides: str, stop_after: int | None = None) -> Path:
    """Train an adapter for two steps; the newest model directory."""
    config = tiny_run(Path(model), "sft", "steps=2", "checkpoint.every=1", *ADAPTED, *overrides)
    train(config, folder, stop_after=stop_after)
    return folder / "checkpoints" / f"step-{stop_after or 2:06d}" / "model"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an adapter on a random Qwen3 named by ``./qwen3`` from its own folder."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_model(folder / "qwen3", num_hidden_layers=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        adapter_on(Path("qwen3"), folder / "run", "model.path='./qwen3'")
    return folder


def test_an_adapter_on_a_relative_path_is_read_from_any_folder(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = first / "run" / "checkpoints" / "step-000002" / "model"
    expected = logits(stored)
    assert not torch.allclose(expected, logits(first / "qwen3"), atol=0.1)
    options: dict[str, Any] = {"split": "test", "temperature": 1.0, "max_tokens": 4, "seed": 0, "overrides": []}
    assert evaluate_model(str(first / "run"), None, samples=1, limit=1, **options)["problems"] == 1
    export_model(first / "run", tmp_path / "plain", step=None)
    torch.testing.assert_close(logits(tmp_path / "plain", AutoPeftModelForCausalLM), expected)
    export_model(first / "run", tmp_path / "wide", step=None, dtype="float32")
    torch.testing.assert_close(logits(tmp_path / "wide"), expected)


def test_an_adapter_that_no_run_trained_names_its_base_by_its_place(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first)
    policy, chat = load_policy(
        "./qwen3", dtype=torch.float32, device=torch.device("cpu"), lora=LoraConfig(rank=2, alpha=4.0)
    )
    save_policy(policy, chat, tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    # A new adapter changes nothing yet.
    torch.testing.assert_close(logits(tmp_path / "saved"), logits(first / "qwen3"))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_merged_export_is_a_plain_model(first: Path, tmp_path: Path, dtype: str | None) -> None:
    expected = logits(first / "run" / "checkpoints" / "step-000002" / "model")
    export_model(first / "run", tmp_path / "merged", step=None, dtype=dtype, merge=True)
    assert not list((tmp_path / "merged").glob("**/adapter*"))
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)
    policy, _ = load_policy(str(tmp_path / "merged"), dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(policy.causal_lm(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "names no base model: write where it is now as base_model_name_or_path in .*adapter_config.json"),
        ("./qwen3", r"belongs to the model in \./qwen3, which is not there: write where it is now as base_model"),
        ("{}/gone", "belongs to the model in .*/gone, which is not there: write where it is now"),
        ("gone", "belongs to the model in gone, which is not there"),
        ("models/gone", "cannot be put on its base model: .* from models/gone: .*; if it has moved, write where"),
    ],
)
def test_a_base_that_has_moved_is_named(first: Path, tmp_path: Path, base: str | None, said: str) -> None:
    stored = shutil.copytree(first / "run" / "checkpoints" / "step-000002" / "model", tmp_path / "adapter")
    config = json.loads((stored / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base and base.format(tmp_path)
    (stored / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        load_policy(str(stored), dtype=torch.float32, device=torch.device("cpu"))


def test_training_on_from_an_adapter_leaves_what_transformers_reads_right(first: Path, tmp_path: Path) -> None:
    begun = first / "run" / "checkpoints" / "step-000002" / "model"
    run = open_run(tiny_run(begun, "sft", "steps=1", "checkpoint.every=1", *ADAPTED), tmp_path / "run")
    summary = run.train()
    assert summary["steps"] == 1
    with torch.no_grad():
        expected = run.parts.policy.causal_lm(IDS).logits
    assert not torch.allclose(expected, logits(begun), atol=0.1)
    for folder in (tmp_path / "run" / "checkpoints" / "step-000001" / "model", tmp_path / "exported"):
        if folder.name == "exported":
            export_model(tmp_path / "run", folder, step=None)
            assert not (folder / "adapter").exists()
        torch.testing.assert_close(logits(folder), expected, rtol=1e-4, atol=1e-4)


def test_a_run_on_an_adapter_resumes_bit_for_bit(first: Path, tmp_path: Path) -> None:
    begun = first / "run" / "checkpoints" / "step-000002" / "model"
    adapter_on(begun, tmp_path / "whole")
    adapter_on(begun, tmp_path / "parts", stop_after=1)
    config = tiny_run(begun, "sft", "steps=2", "checkpoint.every=1", *ADAPTED)
    train(config, tmp_path / "parts", resume=True)
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], 'the list is empty; write "all-linear" or names among down_proj, gate_proj, k_proj, o_proj, q_proj, '),
        (["q_proj", "qproj"], "no module of the model is called 'qproj'; write"),
        (".*qproj", "no module of the model is called"),
        ("([q", "is no regular expression"),
        (["lm_head"], "lm_head is the head or the embedding"),
        (["embed_tokens"], "model.embed_tokens is the head or the embedding"),
        (["mlp"], r"model.layers.0.mlp \(Qwen3MLP\) is no plain linear map"),
        (["norm"], r"model.norm \(Qwen3RMSNorm\) is no plain linear map"),
    ],
)
def test_targets_that_take_no_adapter_are_one_sentence(targets: str | list[str], said: str, model: Path) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_policy(
            str(model),
            dtype=torch.float32,
            device=torch.device("cpu"),
            lora=LoraConfig(rank=2, alpha=4.0, target_modules=targets),
        )
    assert "\n" not in str(caught.value)
