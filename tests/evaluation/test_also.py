"""What is evaluated beside a run's task, against numbers worked out by brute force or by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.cli.app import main
from selfdistill.config.evaluation import General
from selfdistill.config.run import parse_config
from selfdistill.config.sections import limits_on
from selfdistill.contexts.chat import Chat
from selfdistill.errors import ConfigError, DataError
from selfdistill.evaluation.also import values_of
from selfdistill.evaluation.general import GeneralScorer, GeneralSet, load_general
from selfdistill.evaluation.statistics import paired_difference
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.types import Message
from support.bytewise import save_bytewise_model
from support.engine import load_exact
from support.runs import LORA, lines, open_run, outcome, recorder, tiny_run, train

TEXTS = ("try 3 + 4 = 7 . wait", "let me use the numbers 1 2 5 to make 8", "9")
PROMPTS = (("use 3 4 to make 12 .", "3 × 4"), ("make 9 .", "answer 9 . yes"), ("hmm", "perhaps not"))
SOME = GeneralSet(PROMPTS, TEXTS)


def logprobs(policy: Policy, ids: tuple[int, ...]) -> torch.Tensor:
    """The model's own log-probabilities [L, V] after each of these ids, real entries of the vocabulary alone."""
    with torch.no_grad():
        logits: torch.Tensor = policy.causal_lm(torch.tensor([ids])).logits[0, :, : policy.vocab_size]
    return logits.double().log_softmax(-1)


def moved(policy: Policy, *, by: float = 0.05) -> None:
    """Add noise to all weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable():
            weight += by * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def scorer(policy: Policy, chat: Chat, chosen: GeneralSet = SOME, *, tokens: int = 64) -> GeneralScorer:
    limits = limits_on("cpu").model_copy(update={"max_tokens_per_microbatch": tokens})
    teachers = Teachers(policy, needed={"frozen"}, rate=0.0)
    return GeneralScorer(chosen=chosen, teachers=teachers, start="frozen", chat=chat, limits=limits, thinking=None)


def test_perplexity_and_divergence_by_brute_force(model: Path) -> None:
    policy, chat = load_exact(model)
    start, _ = load_exact(model)
    asked = scorer(policy, chat)
    moved(policy)
    found = asked.measure()

    # The one word of the third text has nothing before it and nothing after: it cannot be scored.
    texts = [tuple(chat.tokenizer(text)["input_ids"]) for text in TEXTS[:2]]
    level = [
        math.fsum(float(logprobs(policy, ids)[at, ids[at + 1]]) for at in range(len(ids) - 1)) / (len(ids) - 1)
        for ids in texts
    ]
    assert found["each"]["loglikelihood"] == pytest.approx(level, abs=1e-6)
    assert found["loglikelihood"]["value"] == pytest.approx(sum(level) / 2, rel=1e-6)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(-sum(level) / 2), rel=1e-6)
    assert found["perplexity"]["low"] <= found["perplexity"]["value"] <= found["perplexity"]["high"]
    assert found["left_out"] == 1

    divergences = []
    for prompt, answer in PROMPTS:
        before, said = chat.encode((Message("user", prompt),)), chat.response(answer)
        then, now = (logprobs(one, (*before, *said)) for one in (start, policy))
        each = (then.exp() * (then - now)).sum(-1)[len(before) - 1 : -1]
        assert len(each) == len(said)
        divergences.append(float(each.mean()))
    assert found["each"]["kl"] == pytest.approx(divergences, rel=1e-5, abs=1e-6)
    assert min(divergences) > 1e-3
    assert found["kl"]["value"] == pytest.approx(sum(divergences) / 3, rel=1e-5)


def test_the_numbers_do_not_depend_on_how_the_work_is_cut(model: Path) -> None:
    policy, chat = load_exact(model)
    one, many = scorer(policy, chat, tokens=4096), scorer(policy, chat, tokens=8)
    moved(policy)
    whole, cut = one.measure(), many.measure()
    assert cut["each"]["kl"] == pytest.approx(whole["each"]["kl"], abs=1e-6)
    assert cut["each"]["loglikelihood"] == pytest.approx(whole["each"]["loglikelihood"], abs=1e-6)


def test_an_untrained_model_has_not_moved(model: Path) -> None:
    policy, chat = load_exact(model)
    assert scorer(policy, chat).measure()["kl"]["value"] == pytest.approx(0.0, abs=1e-12)


def test_a_prompt_that_does_not_fit_is_left_out_and_none_that_fit_are_refused(model: Path) -> None:
    policy, chat = load_exact(model)
    long = " ".join(["try"] * chat.window)
    found = scorer(policy, chat, GeneralSet((*PROMPTS, ("make 9 .", long)), (*TEXTS[:2], f"{long} try"))).measure()
    assert found["left_out"] == 2
    assert len(found["each"]["kl"]) == 3
    with pytest.raises(DataError, match="do not fit the window of .* leave 'general' out"):
        scorer(policy, chat, GeneralSet(((long, "9"), PROMPTS[0]), TEXTS)).measure()


def test_the_shipped_set_is_chosen_by_its_seed() -> None:
    whole, some, other = (load_general(General(size=size, seed=seed)) for size, seed in ((24, 0), (5, 0), (5, 1)))
    assert len(set(whole.texts)) == len({prompt for prompt, _ in whole.prompts}) == 24
    assert len(some.texts) == len(some.prompts) == 5
    assert set(some.texts) < set(whole.texts)
    assert some == load_general(General(size=5))
    assert len({one.fingerprint for one in (whole, some, other)}) == 3


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))
