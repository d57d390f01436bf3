"""What a step hands on: a role's temperature to its scores, and its micro-batches to the line of progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from selfdistill.config.sections import Limits
from selfdistill.contexts.templates import Template
from selfdistill.methods.grpo import GRPO
from selfdistill.tracking.progress import Progress, activity
from selfdistill.types import STUDENT, Role
from support.engine import invent_groups, load_exact, make_bench


class Tempered(GRPO):
    """GRPO with two teachers that have the student's prompt and weights: one is scored early, one in the loss."""

    def roles(self) -> Mapping[str, Role]:
        """Each at a temperature of its own."""
        return {"early": Role(None, temperature=3.0), "compared": Role(None, temperature=2.0)}

    def precompute(self) -> Sequence[str]:
        """One of the two."""
        return ("early",)


def test_every_role_is_scored_at_its_own_temperature(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    result = make_bench(policy, chat, templates, "test_step:Tempered", {}).step(invent_groups(policy, chat))
    assert len(result.views) == 12
    for n, view in enumerate(result.views):
        prompt, completion = view.prompts[STUDENT], torch.tensor(view.completion_ids)
        with torch.no_grad():
            logits_LV = policy.model(torch.tensor([[*prompt, *view.completion_ids]])).logits[0]
        logits_NV = logits_LV[len(prompt) - 1 : -1, : policy.vocab_size]
        for role, temperature in ((STUDENT, 1.0), ("compared", 2.0), ("early", 3.0)):
            logprobs_NV = (logits_NV / temperature).log_softmax(-1)
            scores = result.scores[role][n]
            assert scores is not None
            torch.testing.assert_close(scores.target_N, logprobs_NV[range(len(completion)), completion])
            torch.testing.assert_close(scores.entropy_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1))


def test_a_step_counts_its_micro_batches_in_the_activity(model: Path, templates: Mapping[str, Template]) -> None:
    policy, chat = load_exact(model)
    one_each = Limits(max_tokens_per_microbatch=1, max_logits_per_chunk=1000)
    bench = make_bench(policy, chat, templates, "grpo", {}, limits=one_each)
    groups = invent_groups(policy, chat)
    with Progress() as progress, activity("training", unit="micro-batches"):
        bench.step(groups)
        [training] = progress.activities
        assert (training.done, training.of) == (12, 12)
