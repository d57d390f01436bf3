"""How far a model is from Bayes' rule: what an answer in sight does to a completion, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.templates import Template, load_templates
from selfdistill.evaluation.compatibility import Compatibility, measure_compatibility
from selfdistill.models.policy import Policy
from selfdistill.types import Message, Role, RolloutGroup
from support.engine import CONTEXTS, SOLUTIONS, invent_groups, load_exact, token_logprobs


@pytest.fixture
def templates(tmp_path: Path) -> Mapping[str, Template]:
    path = tmp_path / "own.toml"
    path.write_text(CONTEXTS, encoding="utf-8")
    return load_templates(path)


def measured(
    policy: Policy, chat: Chat, groups: list[RolloutGroup], context: str, templates: Mapping[str, Template]
) -> Compatibility | None:
    role = Role(context, "frozen")
    return measure_compatibility(policy, chat, groups, role, templates, thinking=None, seed=0, max_tokens=64)


def logprob(policy: Policy, chat: Chat, prompt: str, answer: str) -> float:
    """log p(answer | prompt), summed over the answer's tokens and its end of turn, by one forward pass."""
    return float(
        token_logprobs(
            policy.model, chat.encode((Message("user", prompt),)), chat.response(answer), policy.vocab_size
        ).sum()
    )


def test_both_sides_by_brute_force(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    sums = []
    for g, group in enumerate(groups):
        question = group.example.prompt[-1].content
        for rollout in group.rollouts:
            said = rollout.text.rpartition("</think>")[2].strip()
            if not said or said == SOLUTIONS[g]:
                continue
            for answer, seen in ((said, SOLUTIONS[g]), (SOLUTIONS[g], said)):
                shown = f"{question} a correct solution is {seen} . now solve the problem"
                sums.append(logprob(policy, chat, shown, answer) - logprob(policy, chat, question, answer))
    forward, reverse = sums[::2], sums[1::2]
    found = measured(policy, chat, groups, "solution", templates)
    assert found is not None and found.completions == len(forward) > 3
    assert found.pmi == pytest.approx(sum(forward) / len(forward), rel=1e-6)
    assert found.reverse == pytest.approx(sum(reverse) / len(reverse), rel=1e-6)
    squares = [(f - r) ** 2 for f, r in zip(forward, reverse, strict=True)]
    assert found.rms == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-6)
    size = math.sqrt(sum(x * x for x in sums) / len(sums))
    assert found.violation == pytest.approx(found.rms / (math.sqrt(2) * size), rel=1e-6)
    assert found.difference == pytest.approx(found.pmi - found.reverse)
    assert found.violation is not None and found.violation > 0.1


def test_a_model_that_does_not_look_at_its_prompt_obeys_bayes(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    with torch.no_grad():
        for layer in policy.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    found = measured(policy, chat, invent_groups(policy, chat), "solution", templates)
    # Only the last token is seen, and it is the same in all prompts.
    assert found is not None and found.rms == pytest.approx(0.0, abs=1e-9)
    assert found.pmi == pytest.approx(0.0, abs=1e-9)


def test_only_a_context_that_shows_one_answer_can_be_turned_around(
    model: Path, templates: Mapping[str, Template]
) -> None:
    policy, chat = load_exact(model)
    groups = invent_groups(policy, chat)
    for context in ("feedback", "sibling_verdict", "reference_only_verdict", "bare", "wrong_sibling"):
        assert measured(policy, chat, groups, context, templates) is None
    # Of a choice, the completions that are shown a sibling are measured, those with feedback are not.
    sibling, either = (measured(policy, chat, groups, name, templates) for name in ("sibling", "sibling_or_feedback"))
    assert sibling == either and sibling is not None
