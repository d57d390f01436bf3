"""The ``contexts`` command: print every prompt that training would score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.contexts.chat import Chat
from selfdistill.contexts.marks import CLOSE, OPEN, mark_changes, shared_prefix
from selfdistill.files.text import counted, plural
from selfdistill.seeds import derive
from selfdistill.tracking.progress import log
from selfdistill.training.banner import describe_role, in_short
from selfdistill.training.build import build_rollout_worker, choose_examples
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import load_models, on_this_machine
from selfdistill.training.trainer import prepare_step
from selfdistill.types import STUDENT, Role, View
from selfdistill.types.conversation import segments_of


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
                "turns": _turns(view, STUDENT, chat.tokens(view.ids_after(STUDENT))) if view.gaps.get(STUDENT) else [],
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
    if any(len(completion["prompts"]) > 1 for completion in report["completions"]):
        yield f"{OPEN} {CLOSE} marks what a role reads and the student does not; empty: the student reads more here"
    for completion in report["completions"]:
        yield (
            f"══ {completion['example']}  completion {completion['index']}  reward {completion['reward']}  "
            f"{counted(completion['tokens'], 'token')}"
        )
        for prompt in completion["prompts"]:
            lengths = f"{counted(prompt['tokens'], 'token')}, {prompt['shared']} shared with the student from the start"
            yield f"── {prompt['role']}: {prompt['what']}; {lengths}"
            yield prompt["marked"]
            yield from _turn_lines(prompt["turns"])
        yield "── completion (the same ids under every prompt)"
        yield from _turn_lines(completion["turns"]) if completion["turns"] else [completion["text"]]
        yield ""
    if report["control_tokens"]:
        count = report["control_tokens"]
        are = plural(count, "is", "are")
        yield f"{count} control {plural(count, 'token')} in the prompts of these examples {are} encoded as text"
    for reason, count in report["skipped"].items():
        yield f"skipped: {count} × {reason}"
    yield f"{counted(report['scored'], 'completion')} scored, {report['left_out']} left out of the loss"


def _turn_lines(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for part in turns:
        who = f"turn {part['turn']}" if part["turn"] else "environment"
        yield f"{who:>11} │ {part['text'].strip()}"


def _prompts(view: View, roles: Mapping[str, Role], chat: Chat) -> list[dict[str, Any]]:
    """What each role reads. What stands between the turns is shown where it is not what the student reads."""
    student = view.prompts[STUDENT]
    prompts = []
    for name, ids in view.prompts.items():
        role = roles.get(name)
        own_words = view.gaps.get(name) != view.gaps.get(STUDENT)
        after, student_after = (view.ids_after(each) if own_words else () for each in (name, STUDENT))
        pieces = mark_changes(chat.tokens((*ids, *after)), (*ids, *after), (*student, *student_after))
        prompts.append(
            {
                "role": name,
                "what": describe_role(role) if role else "what the model is asked",
                "tokens": len(ids),
                "shared": shared_prefix(student, ids),
                "text": chat.tokenizer.decode((*ids, *after)),
                "marked": "".join(pieces[: len(ids)]),
                "turns": _turns(view, name, pieces[len(ids) :]) if own_words else [],
            }
        )
    return prompts


def _turns(view: View, role: str, pieces: Sequence[str]) -> list[dict[str, Any]]:
    """The pieces of text after a role's prompt, joined turn by turn; turn 0 is what stands between two of them."""
    turns: list[dict[str, Any]] = []
    for turn, piece in zip(segments_of(len(view.completion_ids), view.gaps.get(role, ())), pieces, strict=True):
        if not turns or turns[-1]["turn"] != turn:
            turns.append({"turn": turn, "text": ""})
        turns[-1]["text"] += piece
    return turns
