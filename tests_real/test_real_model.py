"""The converted model is the file's model, and training, resuming and exporting work at its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.config.evaluation import General
from selfdistill.config.run import RunConfig, apply_overrides, parse_config
from selfdistill.contexts.chat import Chat
from selfdistill.evaluation.general import load_general
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.training.build import assemble
from selfdistill.training.clock import Clock
from selfdistill.training.run_folder import export_model
from selfdistill.types import Message
from support.runs import METHODS, outcome, train

QUESTION = (
    Message("user", "What is the capital of France?"),
    Message("assistant", "It is Paris."),
    Message("user", "Tom has 4 pens and buys 3 more.\nHow many pens are there? Write #### and the number."),
)
LORA = ("model.lora.rank=2", "model.lora.alpha=4")


def run_config(model: Path, problems: Path, method: object = "grpo", *overrides: str) -> RunConfig:
    """Two problems of two completions of at most eight tokens; every second word problem counts as right."""
    raw: dict[str, Any] = {
        "steps": 2,
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "task": {"kind": "math", "path": str(problems), "solution": "solution", "suffix": "", "worked_examples": 1},
        "reward": "support.rewards:even",
        "method": method,
        "sampling": {"prompts": 2, "completions": 2, "max_tokens": 8},
        "optimiser": {"learning_rate": 1e-4},
        "evaluation": {"every": 1, "problems": 2, "samples": 1, "also": [{"kind": "general", "size": 2}]},
        "checkpoint": {"every": 1},
    }
    apply_overrides(raw, overrides)
    return parse_config(raw, "a test")


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return found


def test_the_logits_are_those_of_the_file_as_transformers_reads_it(
    loaded: tuple[Policy, Chat], quantised: Path
) -> None:
    policy, chat = loaded
    theirs = AutoModelForCausalLM.from_pretrained(quantised.parent, gguf_file=quantised.name, dtype=torch.float32)
    ids = chat.encode(QUESTION)
    assert torch.equal(logits(policy.causal_lm, ids), logits(theirs.eval(), ids))


def test_the_logits_are_those_of_llama_cpp(loaded: tuple[Policy, Chat], quantised: Path) -> None:
    llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    policy, chat = loaded
    ids = chat.encode(QUESTION)
    engine = llama.Llama(str(quantised), logits_all=True, n_ctx=512, verbose=False)
    engine.eval(list(ids))
    theirs = torch.tensor(np.array(engine.scores[: len(ids)])).log_softmax(-1)
    ours = logits(policy.causal_lm, ids).log_softmax(-1)
    # Its matrix products are on 8-bit activations, so they agree to about a hundredth of a nat.
    divergence = (ours.exp() * (ours - theirs)).sum(-1)
    assert divergence.max() < 0.05
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


def test_a_weight_is_what_the_format_says(model: Path, quantised: Path) -> None:
    gguf = pytest.importorskip("gguf")
    [tensor] = [one for one in gguf.GGUFReader(quantised).tensors if one.name == "blk.3.ffn_up.weight"]
    assert tensor.tensor_type.name == "Q4_1"
    # Q4_1 by its definition: blocks of 32 weights, a scale and a minimum in float16, then 16 bytes of two nibbles.
    blocks = np.asarray(tensor.data).reshape(-1, 20)
    scale, lowest = (blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    with safe_open(model / "model.safetensors", "pt") as stored:
        ours = stored.get_tensor("model.layers.3.mlp.up_proj.weight")
    assert torch.equal(ours.reshape(-1), torch.from_numpy((scale * nibbles + lowest).reshape(-1)))


def test_greedy_text_is_that_of_transformers(loaded: tuple[Policy, Chat]) -> None:
    policy, chat = loaded
    ids = chat.encode(QUESTION[:1])
    greedy = SamplingParams(count=1, max_tokens=12, temperature=0.0)
    [[ours]] = policy_sampler(policy, chat, max_batch_size=1).sample([ids], greedy)
    theirs = policy.causal_lm.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)
    assert list(ours.ids) == theirs[0, len(ids) :].tolist()[: len(ours.ids)]
    assert "Paris" in chat.decode(ours.ids)


def test_prompt_ids_are_those_of_the_template(loaded: tuple[Policy, Chat], model: Path, quantised: Path) -> None:
    _, chat = loaded
    turns = [{"role": message.role, "content": message.content} for message in QUESTION]
    for tokenizer in (
        AutoTokenizer.from_pretrained(model),
        AutoTokenizer.from_pretrained(quantised.parent, gguf_file=quantised.name),
    ):
        theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(chat.encode(QUESTION)) == list(theirs)
        for text in load_general(General()).texts:
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("overrides", [(), LORA], ids=["all weights", "adapter"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_makes_a_step(model: Path, problems: Path, method: object, overrides: tuple[str, ...]) -> None:
    parts = assemble(run_config(model, problems, method, "evaluation.also=[]", *overrides))
    trained = parts.policy.trainable()
    before = [weight.detach().abs().sum(dtype=torch.float64) for weight in trained]
    groups = parts.worker.rollout(parts.examples[:2], seed=1, version=0)
    record = parts.trainer.step(groups, step=1, clock=Clock(parts.policy.device)).record
    assert record.tokens > 0
    assert math.isfinite(record.loss)
    assert math.isfinite(record.grad_norm)
    after = [weight.detach().abs().sum(dtype=torch.float64) for weight in trained]
    assert all(map(math.isfinite, after))
    assert (before != after) == (record.grad_norm > 0)


def test_a_run_is_resumed_exactly_and_its_export_is_its_model(model: Path, problems: Path, tmp_path: Path) -> None:
    config = run_config(model, problems, "opsd", *LORA)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    summary = train(config, whole)
    train(config, resumed, stop_after=1)
    train(config, resumed, resume=True)
    assert outcome(resumed) == outcome(whole)
    assert summary["before"]["also"]["general"]["kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert summary["after"]["also"]["general"]["kl"]["value"] > 0

    # The adapter alone, on the base that it names, and merged into a model of its own.
    export_model(whole, tmp_path / "adapter", step=None)
    export_model(whole, tmp_path / "merged", step=None, merge=True)
    ids = None
    found = []
    for folder in ("adapter", "merged"):
        policy, chat = load_policy(str(tmp_path / folder), dtype=torch.float32, device=torch.device("cpu"))
        ids = ids or chat.encode(QUESTION)
        found.append(logits(policy.causal_lm, ids).log_softmax(-1))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.allclose(found[1], logits(plain.eval(), ids or ()).log_softmax(-1), atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == chat.tokenizer.chat_template
