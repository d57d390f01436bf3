"""The ``contexts`` command: print every prompt that training would score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.seeds import derive
from selfdistill.tracking.progress import tell
from selfdistill.training.banner import describe_role, in_short
from selfdistill.training.build import build_models, build_rollout_worker, choose_examples
from selfdistill.training.problem import build_problem
from selfdistill.training.trainer import prepare_step
from selfdistill.types import Role, View


def audit(config: RunConfig, *, examples: int, completions: int) -> Iterator[str]:
    """Yield, as lines of text, every prompt that training would score for a few examples, and the skipped ones.

    Completions are sampled from the model, as in training, so siblings and feedback are real.
    """
    models = build_models(build_problem(config))
    chosen, _, unfit = choose_examples(models)
    tell(in_short(models.policy, models.chat.name))
    seed = derive(config.seed, "audit")
    groups = build_rollout_worker(models).rollout(chosen[:examples], seed=seed, version=0, count=completions)
    method, chat, thinking = models.method, models.chat, config.sampling.thinking
    prepared = prepare_step(groups, method, models.templates, chat, thinking=thinking, seed=config.seed, step=1)
    for view in prepared.views:
        group = groups[view.group]
        reward = group.verdicts[view.index].reward
        yield f"══ {group.example.id}  completion {view.index}  reward {reward}  {len(view.completion_ids)} tokens"
        yield from _prompts(view, method.roles(), chat)
        yield f"── completion (the same ids under every prompt)\n{chat.decode(view.completion_ids)}\n"
    control_tokens = sum(chat.control_tokens(group.example.prompt) for group in groups)
    if control_tokens:
        yield f"{control_tokens} control tokens in the prompts of these examples are encoded as text"
    for reason, count in sorted((prepared.skipped + unfit).items()):
        yield f"skipped: {count} × {reason}"
    yield f"{len(prepared.views)} completions scored, {prepared.dropped} left out of the loss"


def _prompts(view: View, roles: Mapping[str, Role], chat: Any) -> Iterator[str]:
    student = view.prompts["student"]
    for name, ids in view.prompts.items():
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(student, ids, strict=False)))
        role = roles.get(name)
        what = describe_role(role) if role else "what the model is asked"
        yield f"── {name}: {what}; {len(ids)} tokens, {shared} shared with the student from the start"
        yield chat.tokenizer.decode(ids)
