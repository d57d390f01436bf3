"""The families that people train now: loaded, scored, sampled, trained, exported and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from docs_site import families
from selfdistill.config.sections import LoraConfig
from selfdistill.errors import ModelError
from selfdistill.models.policy import Policy, load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import HFSampler
from selfdistill.scoring.batching import collate
from selfdistill.training.run_folder import export_model
from selfdistill.types import STUDENT, View
from support.engine import token_logprobs
from support.families import CURRENT, REFUSED, TOWERS, save_current, saved
from support.runs import lines, open_run, tiny_run
from support.tiny import STOP

CPU = torch.device("cpu")
PROMPTS = ((20, 21, 22), tuple(range(30, 47)), (70,))
SAID = ((31, 8, 9, 50), (60, 61), tuple(range(40, 60)))
ADAPTER = ("model.lora.rank=2", "model.lora.alpha=4")


def scores(policy: Policy) -> Tensor:
    """Log-probabilities of :data:`SAID`, as training has them: prompts of three lengths in one batch."""
    views = [
        View({STUDENT: prompt}, said, (1.0,) * len(said), (0.0,) * len(said), 0.0, 0, i)
        for i, (prompt, said) in enumerate(zip(PROMPTS, SAID, strict=True))
    ]
    return policy.score(collate(views, STUDENT, packed=policy.packs), max_logits_per_chunk=1 << 20).target_N


@torch.no_grad()
def plain_scores(model: Any, real: int) -> Tensor:
    """The same by a library's own model, each sequence alone."""
    return torch.cat([token_logprobs(model, p, said, real) for p, said in zip(PROMPTS, SAID, strict=True)])


def check_scores_and_samples(policy: Policy, model: Any) -> None:
    """Compare with a plain forward: what is scored, and what is sampled."""
    real = policy.vocab_size
    torch.testing.assert_close(scores(policy), plain_scores(model, real), rtol=0, atol=2e-5)
    sampler = HFSampler(policy, stop_ids=[STOP, *range(8, 90, 9)])
    for prompt, row in zip(
        PROMPTS, sampler.sample(PROMPTS, SamplingParams(count=2, max_tokens=12, seed=9)), strict=True
    ):
        for one in row:
            with torch.no_grad():
                expected = token_logprobs(model, prompt, one.ids, real)
            torch.testing.assert_close(torch.tensor(one.logprobs), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("adapter", [(), ADAPTER], ids=["full", "lora"])
@pytest.mark.parametrize("family", CURRENT)
def test_a_family_is_used_and_trained_as_transformers_has_it(
    family: str, adapter: tuple[str, ...], tmp_path: Path
) -> None:
    folder = save_current(tmp_path / "model", family)
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=CPU)
    check_scores_and_samples(policy, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    trained_and_exported(folder, adapter, tmp_path, scores(policy))


def trained_and_exported(folder: Path, adapter: tuple[str, ...], tmp_path: Path, before: Tensor) -> None:
    """Train for a step, export, and read what was written with transformers alone and with our own reader."""
    small = ("steps=1", "sampling.prompts=2", "sampling.completions=2", "evaluation.problems=1")
    run = open_run(tiny_run(folder, "sft", *small, *adapter), tmp_path / "run")
    run.train()
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["grad_norm"] > 0
    trained = scores(run.parts.policy)
    assert (trained - before).abs().max() > 1e-3
    export_model(tmp_path / "run", tmp_path / "exported", step=None, merge=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    torch.testing.assert_close(plain_scores(theirs, run.parts.policy.vocab_size), trained, rtol=0, atol=5e-5)
    again, _ = load_policy(
        str(tmp_path / "run" / "checkpoints" / "step-000001" / "model"), dtype=torch.float32, device=CPU
    )
    torch.testing.assert_close(scores(again), trained, rtol=0, atol=5e-5)


@pytest.mark.parametrize("adapter", [(), ADAPTER], ids=["full", "lora"])
@pytest.mark.parametrize("family", TOWERS)
def test_a_checkpoint_with_a_tower_for_images_is_trained_on_texts(
    family: str, adapter: tuple[str, ...], tmp_path: Path
) -> None:
    folder = save_current(tmp_path / "model", family, tower=True)
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=CPU)
    check_scores_and_samples(policy, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    trained_and_exported(folder, adapter, tmp_path, scores(policy))


@pytest.mark.parametrize("family", TOWERS)
def test_an_adapter_leaves_towers_alone(family: str, tmp_path: Path) -> None:
    """Every adapted layer gets a gradient: nothing that no token of a text passes through is trained."""
    folder = save_current(tmp_path, family, tower=True)
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=CPU, lora=LoraConfig(rank=2, alpha=4.0))
    head = policy.head_input(
        collate([View({STUDENT: PROMPTS[1]}, SAID[2], (1.0,) * 20, (0.0,) * 20, 0.0, 0, 0)], STUDENT)
    )
    head.logprobs(slice(None))[:, 8].sum().backward()
    assert policy.trained()
    assert not [name for name, parameter in policy.trained().items() if parameter.grad is None]


@pytest.mark.parametrize("name", ["falcon-h1", "nemotron-h, time steps with a limit"])
def test_all_linear_on_a_state_space_model_is_trained_and_exported(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", name)
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=CPU)
    trained_and_exported(folder, ADAPTER, tmp_path, scores(policy))


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_is_refused_is_refused_with_an_adapter_too(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=REFUSED[name][3]) as caught:
        load_policy(str(saved(tmp_path, name)), dtype=torch.float32, device=CPU, lora=LoraConfig(rank=2, alpha=4.0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_page_says_of_a_family_what_its_replica_does(family: str) -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    assert families.line(family) in page.splitlines(), "run PYTHONPATH=scripts:tests python -m docs_site.families"
