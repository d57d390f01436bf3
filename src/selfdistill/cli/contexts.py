"""The ``contexts`` command: print every prompt that training would score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.files.text import counted, plural
from selfdistill.seeds import derive
from selfdistill.tracking.progress import log
from selfdistill.training.banner import describe_role, in_short
from selfdistill.training.build import build_rollout_worker, choose_examples
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import load_models, on_this_machine
from selfdistill.training.trainer import prepare_step
from selfdistill.types import STUDENT, Role, View


def audit(
    config: RunConfig, *, examples: int, completions: int, source: str | None = None, checkpoint: str | None = None
) -> dict[str, Any]:
    """Return as plain JSON every prompt that training would score for a few examples, and counts of the skipped ones.

    Completions are sampled from the model, as in training, so siblings and feedback are real. ``source`` is the run
    folder that ``config`` was read from; unset: the config's own model.
    """
    config, moved = (config, []) if source is None else on_this_machine(source, config)
    models, weights = load_models(build_problem(config), source, checkpoint=checkpoint)
    chosen, _, unfit = choose_examples(models)
    log(in_short(models.policy, models.chat.name))
    seed = derive(config.seed, "audit")
    groups = build_rollout_worker(models).rollout(chosen[:examples], seed=seed, version=0, count=completions)
    method, chat, thinking = models.method, models.chat, config.sampling.thinking
    prepared = prepare_step(groups, method, models.templates, chat, thinking=thinking, seed=config.seed, step=1)
    return {
        "weights": weights.describe(),
        "warnings": [*moved, *weights.warnings],
        "completions": [
            {
                "example": groups[view.group].example.id,
                "index": view.index,
                "reward": groups[view.group].verdicts[view.index].reward,
                "tokens": len(view.completion_ids),
                "text": chat.decode(view.ids_after(STUDENT)),
                "prompts": _prompts(view, method.roles(), chat),
            }
            for view in prepared.views
        ],
        "control_tokens": sum(chat.control_tokens(group.example.prompt) for group in groups),
        "skipped": dict(sorted((prepared.skipped + unfit).items())),
        "scored": len(prepared.views),
        "left_out": prepared.dropped,
    }


def describe_audit(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the prompts of :func:`audit` as lines of text."""
    yield from report["warnings"]
    yield f"weights: {report['weights']}"
    for completion in report["completions"]:
        yield (
            f"══ {completion['example']}  completion {completion['index']}  reward {completion['reward']}  "
            f"{counted(completion['tokens'], 'token')}"
        )
        for prompt in completion["prompts"]:
            lengths = f"{counted(prompt['tokens'], 'token')}, {prompt['shared']} shared with the student from the start"
            yield f"── {prompt['role']}: {prompt['what']}; {lengths}"
            yield prompt["text"]
        yield f"── completion (the same ids under every prompt)\n{completion['text']}\n"
    if report["control_tokens"]:
        count = report["control_tokens"]
        are = plural(count, "is", "are")
        yield f"{count} control {plural(count, 'token')} in the prompts of these examples {are} encoded as text"
    for reason, count in report["skipped"].items():
        yield f"skipped: {count} × {reason}"
    yield f"{counted(report['scored'], 'completion')} scored, {report['left_out']} left out of the loss"


def _prompts(view: View, roles: Mapping[str, Role], chat: Any) -> list[dict[str, Any]]:
    student = view.prompts["student"]
    prompts = []
    for name, ids in view.prompts.items():
        role = roles.get(name)
        prompts.append(
            {
                "role": name,
                "what": describe_role(role) if role else "what the model is asked",
                "tokens": len(ids),
                "shared": sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(student, ids, strict=False))),
                # What a role reads between the turns is shown where it is not what the student read.
                "text": chat.tokenizer.decode(ids)
                if view.gaps.get(name) == view.gaps.get(STUDENT)
                else chat.tokenizer.decode((*ids, *view.ids_after(name))),
            }
        )
    return prompts
