"""Dry run: build a run up to its first step, print it, and write nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from selfdistill.config.run import RunConfig
from selfdistill.contexts.fields import role_prompt
from selfdistill.contexts.templates import HINDSIGHT
from selfdistill.distributed.world import World
from selfdistill.files.text import counted
from selfdistill.models.gguf import conversions
from selfdistill.tracking.progress import Progress
from selfdistill.tracking.trackers import require
from selfdistill.training.banner import banner, describe_role, warnings
from selfdistill.training.build import Parts, assemble
from selfdistill.training.forecast import forecast, too_large
from selfdistill.training.opening import check_steps, state_to_resume
from selfdistill.training.place import holds_run
from selfdistill.training.problem import build_problem
from selfdistill.types import STUDENT, Skipped, Task


def rehearse(config: RunConfig, folder: Path, *, resume: bool, progress: Progress, task: Task | None = None) -> None:
    """Build a run as training would, print its banner and the prompts of its first row, and write nothing.

    What can be computed without the model is printed before it is loaded: steps, tokens, memory and where its limit is.
    A model whose weights are larger than the device is not loaded.

    ``task`` replaces the task of ``config.task``.

    Raises:
        UserError: as training would: the config, the data, the model or the folder cannot be used.
    """
    exists = World.current().broadcast_from_rank_zero(lambda: holds_run(folder, resume=resume))
    require(config.sinks)
    converted = conversions()
    problem = build_problem(config, task)
    progress.table(forecast(problem))
    if (reason := too_large(problem)) is not None:
        progress.log(f"dry run: the model was not loaded, because {reason}; nothing was written")
        return
    parts = assemble(config, folder=folder, log=progress.log, problem=problem)
    if exists:
        _rehearse_resume(parts, folder, log=progress.log)
    elif resume:
        progress.log(f"nothing to resume in {folder}: this would be a new run")
    progress.table(banner(parts, folder))
    for message in (*warnings(parts), *_first_prompts(parts)):
        progress.log(message)
    new = ", ".join(map(str, sorted(conversions() - converted)))
    progress.log(
        f"dry run: nothing was sampled or trained, and only {new} written, which a run from this GGUF file reads too"
        if new
        else "dry run: nothing was sampled, trained or written"
    )


def _rehearse_resume(parts: Parts, folder: Path, *, log: Callable[[str], None]) -> None:
    """Log the step from which a run would continue, or refuse as a resume would."""
    path, state = state_to_resume(folder, parts.config, parts.task, parts.origin, log=log)
    if path is None:
        log(f"{folder} has no checkpoint yet: it would start over")
        return
    step = state["counters"]["step"]
    log(f"{folder} would be resumed after step {step} of {parts.config.steps}")
    check_steps(folder, step, parts.config.steps, log=log)


def _first_prompts(parts: Parts) -> Iterator[str]:
    """The prompts of the student and of every teacher for the first training example, as the model reads them."""
    example, thinking = parts.examples[0], parts.config.sampling.thinking
    prompts = {STUDENT: parts.chat.encode(example.prompt, thinking=thinking)}
    descriptions = {STUDENT: "what the model is asked"}
    # Fields that are known only after sampling are shown by their names.
    fields = {name: f"[{name}]" for name in HINDSIGHT} | dict(example.fields)
    for name, role in parts.method.roles().items():
        if role.context is None:
            continue
        prompt = role_prompt(
            role,
            example,
            fields,
            parts.templates,
            parts.chat,
            thinking=thinking,
            room=parts.config.sampling.max_tokens,
        )
        if isinstance(prompt, Skipped):
            yield f"── {name}: {describe_role(role)}: cannot be shown for {example.id}: {prompt.reason}"
        else:
            prompts[name], descriptions[name] = prompt, describe_role(role)
    for name, ids in prompts.items():
        yield f"── {name}: {descriptions[name]}; {example.id}, {counted(len(ids), 'token')}"
        yield str(parts.chat.tokenizer.decode(ids))
