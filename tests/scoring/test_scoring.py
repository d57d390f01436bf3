"""Scoring: packed, shared and joined, every role's scores are those of one plain forward a row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from selfdistill.config.sections import Limits, LoraConfig
from selfdistill.models.policy import Policy, load_external, load_policy
from selfdistill.models.teachers import Teachers
from selfdistill.scoring.score import head_inputs, score_roles, score_views
from selfdistill.types import STUDENT, External, View, Weights
from support.engine import (
    distance,
    invent_groups,
    load_exact,
    make_bench,
    numbers_of,
    own_templates,
    perturb,
    token_logprobs,
)
from support.runs import open_run, recorder, tiny_run
from support.tiny import keep_float64, save_model, save_tiny_model, tiny_settings

LORA = LoraConfig(rank=3, alpha=6)
OTHER = External("another model")
ROLES: dict[str, Weights] = {STUDENT: "live", "teacher": "frozen", "base": "frozen", "average": "ema", "other": OTHER}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("other"), seed=4)


def ids(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(8, 90), k=count))


def views() -> list[View]:
    """Two groups of four whose prompts begin with the same 30 tokens; a teacher's prompts are the group's and more."""
    head, made = ids(30, 0), []
    for g in range(2):
        question = (*head, *ids(10 + g, g + 1))
        shown = {STUDENT: question, "base": question, "teacher": (*question, *ids(24, 5 + g)), "other": question}
        for i in range(4):
            average = {"average": (*question, *ids(i + 1, 20))} if i else {}
            size = 3 + 4 * i + g
            made.append(View({**shown, **average}, ids(size, 40 + 4 * g + i), (1.0,) * size, (0.0,) * size, 0.0, g, i))
    return made


def teachers_of(folder: Path, other: Path, lora: LoraConfig | None) -> Teachers:
    """Every kind of weights, all different."""
    policy, chat = load_exact(folder, lora=lora)
    stranger = load_external(str(other), policy, chat, dtype=torch.float64, device=torch.device("cpu"))
    external = {OTHER: keep_float64(stranger).double()}
    perturb(policy, seed=7)
    teachers = Teachers(policy, needed=set(ROLES.values()), rate=0.5, external=external)
    perturb(policy, seed=8)
    teachers.update()
    perturb(policy, seed=9)
    return teachers


def by_rows(teachers: Teachers, role: str) -> list[Tensor | None]:
    """One plain forward of the transformers model a row."""
    with teachers.weights(ROLES[role]) as policy:
        return [
            token_logprobs(policy.model, view.prompts[role], view.completion_ids, policy.vocab_size)
            if role in view.prompts
            else None
            for view in views()
        ]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_scores_of_every_role_are_those_of_plain_rows_however_they_are_cut(
    lora: LoraConfig | None, folder: Path, other: Path
) -> None:
    teachers = teachers_of(folder, other, lora)
    assert teachers.pack
    order = random.Random(1).sample(range(8), 8)
    for budget in (1, 100, 10_000):
        found = score_roles(
            teachers, [views()[i] for i in order], ROLES, max_tokens=budget, max_logits_per_chunk=5 * 96
        )
        for role in ROLES:
            expected = by_rows(teachers, role)
            for place, i in enumerate(order):
                mine, theirs = found[role][place], expected[i]
                assert (mine is None) == (theirs is None) == (role == "average" and i % 4 == 0)
                if mine is not None and theirs is not None:
                    torch.testing.assert_close(mine.target_N, theirs, rtol=1e-12, atol=1e-12)


def test_scores_in_float32_are_those_of_plain_rows(folder: Path) -> None:
    policy, _ = load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    found = score_views(policy, views(), "teacher", max_tokens=10_000, max_logits_per_chunk=1 << 20)
    for score, view in zip(found, views(), strict=True):
        plain = token_logprobs(policy.model, view.prompts["teacher"], view.completion_ids, policy.vocab_size)
        torch.testing.assert_close(score.target_N, plain, rtol=1e-5, atol=1e-5)


@contextmanager
def forwards(policy: Policy) -> Iterator[list[int]]:
    """Tokens of every forward pass of a policy's model."""
    seen: list[int] = []
    embedding = policy.causal_lm.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    yield seen
    handle.remove()


def test_a_group_scores_its_prompt_once(folder: Path) -> None:
    policy, _ = load_exact(folder)
    group = [view for view in views() if view.group == 0]
    completions = sum(len(view.completion_ids) for view in group)
    with forwards(policy) as tokens:
        score_views(policy, group, "teacher", max_tokens=10_000, max_logits_per_chunk=1 << 20)
        score_views(policy, views(), "teacher", max_tokens=10_000, max_logits_per_chunk=1 << 20)
    # Two prompts of 64 and 65 tokens that begin alike for 30.
    both = sum(len(view.completion_ids) for view in views())
    assert tokens == [64 + completions, 30 + 34 + 35 + both]


def test_roles_under_the_same_weights_are_one_forward_and_share_what_their_prompts_begin_with(folder: Path) -> None:
    policy, _ = load_exact(folder)
    teachers = Teachers(policy, needed={"frozen", "live"}, rate=0.0)
    weights: dict[str, Weights] = {"teacher": "frozen", "base": "frozen", "other": "live"}
    group = [view for view in views() if view.group == 1]
    completions = sum(len(view.completion_ids) for view in group)
    target_N = torch.tensor([token for view in group for token in view.completion_ids])
    with forwards(teachers.copies["frozen"]) as frozen, forwards(policy) as live:
        head_inputs(teachers, group, weights, target_N)
        score_roles(teachers, group, weights, max_tokens=10_000, max_logits_per_chunk=1 << 20)
    assert frozen == [41 + 24 + 2 * completions] * 2
    assert live == [41 + completions] * 2


@pytest.mark.parametrize("name", ["grpo", "sdpo", "antisd", "credit", "purified", "opsd"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_step_is_the_same_packed_shared_and_padded(
    name: str, lora: LoraConfig | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for packs, share_from, limits in (
        (False, 64, None),
        (True, 10**6, None),
        (True, 1, None),
        (True, 1, Limits(max_tokens_per_microbatch=90, max_logits_per_chunk=7 * 96)),
    ):
        monkeypatch.setattr("selfdistill.models.packing.SHARE_FROM", share_from)
        policy, chat = load_exact(folder, lora=lora)
        bench = make_bench(policy, chat, own_templates(tmp_path), name, {}, limits=limits, move=perturb)
        for one in {policy, *bench.trainer.teachers.copies.values()}:
            one.packs = packs
        record = bench.step(invent_groups(policy, chat)).record
        found.append((bench.gradient(), record))
    gradient, record = found[0]
    for other_gradient, other_record in found[1:]:
        assert distance(other_gradient, gradient) < 1e-10
        assert numbers_of(other_record) == pytest.approx(numbers_of(record), rel=1e-10)


# --- models that cannot be packed -------------------------------------------------------------------------------------

TOLD = "so batches are padded and no prompt is shared"
UNFIT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a state space": ("MambaForCausalLM", "MambaConfig", {"state_size": 8, "conv_kernel": 4, "time_step_rank": 4}),
    "its own attention": ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4}),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_whose_tokens_meet_elsewhere_is_scored_row_by_row(kind: str, tmp_path: Path) -> None:
    model, config, own = UNFIT[kind]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**tiny_settings(**own)))
    policy, _ = load_policy(str(save_model(tmp_path, made)), dtype=torch.float32, device=torch.device("cpu"))
    assert not policy.packs
    found = score_views(policy, views(), "teacher", max_tokens=150, max_logits_per_chunk=1 << 20)
    for score, view in zip(found, views(), strict=True):
        plain = token_logprobs(policy.model, view.prompts["teacher"], view.completion_ids, policy.vocab_size)
        torch.testing.assert_close(score.target_N, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fits", [True, False])
def test_a_run_says_that_it_cannot_pack(fits: bool, tmp_path: Path) -> None:
    if fits:
        folder = save_tiny_model(tmp_path / "model")
    else:
        config = transformers.MambaConfig(**tiny_settings(state_size=8, conv_kernel=4, time_step_rank=4))
        folder = save_model(tmp_path / "model", transformers.MambaForCausalLM(config))
    settings = tiny_run(folder, "sdft", "steps=1", "sampling.prompts=1", "sampling.completions=2")
    run = open_run(settings, tmp_path / "run")
    run.train(recorder(run).stop)
    assert [sentence.endswith(TOLD) for sentence in recorder(run).said].count(True) == (not fits)
