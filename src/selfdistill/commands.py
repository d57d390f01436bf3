"""What the command line does besides training: evaluate a model, print the contexts that would be scored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from selfdistill import checkpoint
from selfdistill.assembly import assemble, build_policy
from selfdistill.chat import Chat, usual_length
from selfdistill.config import RunConfig, apply_overrides, parse_config
from selfdistill.errors import CheckpointError, ConfigError, DataError
from selfdistill.evaluation import evaluate
from selfdistill.policy import DTYPES, Policy, save_policy
from selfdistill.report.files import read_object
from selfdistill.rollouts import fitting
from selfdistill.samplers.hf import Decoding, HFSampler
from selfdistill.saving import load_trained
from selfdistill.seeds import derive
from selfdistill.tasking import build_task
from selfdistill.teaching import lesson_of
from selfdistill.types import External, Role, Skipped, Task, View


def evaluate_model(
    model: str,
    task: str | Mapping[str, Any] | None,
    *,
    samples: int,
    limit: int | None,
    split: str,
    temperature: float,
    max_tokens: int | None,
    seed: int,
    overrides: Sequence[str] | Mapping[str, Any],
    loaded: tuple[Policy, Chat] | None = None,
    judge: Task | None = None,
) -> dict[str, Any]:
    """Evaluate a model directory, a checkpoint, a run's newest checkpoint, a hub id or a shipped model.

    A run's folder brings its own task and token limit; anything else must name a task. ``loaded`` is a model in
    memory, which ``model`` then only names, and ``judge`` a task object in the place of what ``task`` describes.

    Raises:
        UserError: one sentence.
    """
    config = config_for(model, task, overrides, command="evaluate")
    policy, chat, path, remarks = load_model(model, config, loaded)
    judge = judge or build_task(config.task, seed=config.seed, reward=config.reward)
    tokens = max_tokens or config.sampling.max_tokens or usual_length(chat)
    examples, unfit = fitting(judge.examples(split)[:limit], chat, max_tokens=tokens, thinking=config.sampling.thinking)
    sampler = HFSampler(
        policy, stop_ids=chat.stop_ids, decoding=Decoding(temperature), max_rows=config.sampling.max_rows
    )
    result = evaluate(
        examples,
        judge,
        sampler,
        chat,
        samples=samples,
        max_tokens=tokens,
        thinking=config.sampling.thinking,
        seed=derive(seed, "evaluation"),
    ).to_json()
    origin = {"model": model, "weights": path, "task": config.task.kind, "split": split, "max_tokens": tokens}
    return {**origin, "temperature": temperature, "seed": seed, **result, "skipped": dict(unfit), "remarks": remarks}


def load_model(
    model: str, config: RunConfig, loaded: tuple[Policy, Chat] | None = None
) -> tuple[Policy, Chat, str, list[str]]:
    """The model that is looked at, where its weights are, and remarks on them; ``loaded`` where it is in memory.

    Raises:
        UserError: it cannot be found or used.
    """
    if loaded is not None:
        return (*loaded, loaded[1].name, [])
    path, remarks = model_path(model)
    policy, chat = build_policy(config.model.model_copy(update={"path": path}), seed=config.seed)
    return policy, chat, path, remarks


def model_path(model: str) -> tuple[str, list[str]]:
    """Where the weights are: a run's newest whole checkpoint, a checkpoint's model folder, or the path itself."""
    folder = Path(model)
    if (folder / "checkpoints").is_dir():
        newest, remarks = checkpoint.newest_whole(folder / "checkpoints")
        if newest is None:
            raise CheckpointError(f"{model} has no checkpoint yet")
        if not (newest / "model").is_dir():
            raise CheckpointError(
                f"{newest} holds shards and no model directory: make one with selfdistill export {model} --out DIR"
            )
        return str(newest / "model"), remarks
    return (str(folder / "model") if (folder / "model").is_dir() else model), []


def export_model(run: Path, out: Path, *, step: int | None, dtype: str | None = None) -> Path:
    """Write a checkpoint's model, sharded or whole, as a directory that transformers reads; the checkpoint's path.

    ``step`` names the checkpoint; None is the newest whole one. ``dtype`` is the weights' number type; None is the
    run's ``model.dtype``, in which the model computes.

    Raises:
        CheckpointError: there is no such checkpoint, it is torn, or ``out`` holds something.
        ConfigError: no such number type.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is no number type: write one of {', '.join(DTYPES)}")
    saved = run / "checkpoints"
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another --out")
    path = checkpoint.newest_whole(saved)[0] if step is None else checkpoint.checkpoint_path(saved, step)
    kept = ", ".join(str(int(found.name.removeprefix("step-"))) for found in checkpoint.checkpoints(saved))
    if not kept:
        raise CheckpointError(f"{run} holds no checkpoint: give the folder of a run that has saved one")
    if path is None or not path.is_dir():
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it keeps: {kept}")
    reason = checkpoint.torn(path)
    if reason is not None:
        raise CheckpointError(f"checkpoint {path.name} is torn ({reason})")
    if (path / "model").is_dir() and dtype is None:
        shutil.copytree(path / "model", out, dirs_exist_ok=True)
        return path
    config = RunConfig.model_validate(read_object(run / "config.json"))
    wanted = {"device": "cpu", "dtype": dtype or config.model.dtype}
    policy, chat = build_policy(config.model.model_copy(update=wanted), seed=config.seed)
    load_trained(path, policy)
    save_policy(policy, chat, out)
    return path


def config_for(
    model: str,
    task: str | Mapping[str, Any] | None,
    overrides: Sequence[str] | Mapping[str, Any],
    *,
    command: str,
) -> RunConfig:
    """The config of a model that is looked at and not trained: its run's own task, the kind that is named, or a table.

    Raises:
        UserError: neither names a task, the run's config cannot be read, or an override cannot be.
    """
    for override in overrides:
        if override.partition("=")[0].strip().partition(".")[0] == "method":
            raise ConfigError(f"--set {override}: {command} trains nothing, so it has no method to set")
    raw: dict[str, Any] = {"method": {"name": "grpo"}}
    if task is None:
        if not (Path(model) / "checkpoints").is_dir():
            raise ConfigError(
                f"{model} is no run folder, so it names no task: add --task, for example --task countdown"
            )
        run = read_object(Path(model) / "config.json")
        if "task" not in run:
            raise DataError(f"{model} is no run folder: its config.json is missing or names no task")
        raw.update({key: run[key] for key in ("task", "reward", "contexts") if key in run})
        sampling = run.get("sampling", {})
        raw["sampling"] = {key: sampling[key] for key in ("max_tokens", "thinking", "max_rows") if key in sampling}
    else:
        raw["task"] = {"kind": task} if isinstance(task, str) else dict(task)
    apply_overrides(raw, overrides)
    return parse_config(raw, command)


def teach(config: RunConfig, *, problems: int, samples: int, seed: int) -> dict[str, Any]:
    """Preference gap and shift of every teacher of a method, on its training problems.

    Raises:
        UserError: one sentence; among them that the task judges nothing, or the method has no teacher.
    """
    parts = assemble(config)
    if not parts.task.judges:
        raise ConfigError("without a verifier no sample is right or wrong, so there is no preference gap to measure")
    roles = {name: role for name, role in parts.method.roles().items() if role.context is not None}
    if not roles:
        raise ConfigError(f"method {config.method['name']!r} has no teacher to measure")
    report: dict[str, Any] = {}
    for name, role in roles.items():
        lesson = lesson_of(
            role,
            parts.collector,
            parts.examples[:problems],
            samples=samples,
            seed=derive(seed, "teaching"),
            max_tokens=parts.trainer.limits.tokens,
        )
        if isinstance(lesson, Skipped):
            raise DataError(f"teacher {name!r} could be shown beside no completion: {lesson.reason}")
        report[name] = {"what": _what(role), **lesson.to_json()}
    return report


def describe_lesson(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """A teacher's numbers in words."""

    def shown(estimate: Mapping[str, float], digits: int = 3) -> str:
        return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(estimate[k] for k in ("value", "low", "high")), d=digits)

    yield f"{name} ({found['what']}), {found['completions']} completions of {found['problems']} problems"
    yield f"  right: student {shown(found['student'])}, teacher {shown(found['teacher'])}"
    yield f"  preference gap: {shown(found['gap'])}"
    for side, formula in (("student", "KL(student || teacher)"), ("teacher", "KL(teacher || student)")):
        per_token = found[f"per_token_on_{side}"]
        yield (
            f"  shift on the {side}'s samples, {formula}: {shown(found[f'shift_on_{side}'], 2)} nats a completion, "
            f"{per_token:.4f} a token"
        )
    for reason, count in sorted(found["skipped"].items()):
        yield f"  skipped: {count} × {reason}"


def audit(config: RunConfig, *, examples: int, completions: int) -> Iterator[str]:
    """Every prompt that training would score for a few examples, line by line, and what would be skipped.

    Completions are sampled from the model, as in training, so siblings and feedback are real.
    """
    parts = assemble(config)
    seed = derive(parts.config.seed, "audit")
    groups = parts.collector.groups(parts.examples[:examples], seed=seed, version=0, completions=completions)
    views = parts.trainer.views(groups, step=1)
    for view in views.views:
        group = groups[view.group]
        reward = group.verdicts[view.index].reward
        yield f"══ {group.example.id}  completion {view.index}  reward {reward}  {len(view.completion_ids)} tokens"
        yield from _prompts(view, parts.method.roles(), parts.chat)
        yield f"── completion (the same ids under every prompt)\n{parts.chat.decode(view.completion_ids)}\n"
    for reason, count in sorted((views.skipped + parts.unfit).items()):
        yield f"skipped: {count} × {reason}"
    yield f"{len(views.views)} completions scored, {views.dropped} left out of the loss"


def _what(role: Role) -> str:
    shown = f"context {role.context}" if role.context else "the student's prompt"
    return f"{shown}, " + (
        f"weights of {role.weights.path}" if isinstance(role.weights, External) else f"{role.weights} weights"
    )


def _prompts(view: View, roles: Mapping[str, Role], chat: Any) -> Iterator[str]:
    student = view.prompts["student"]
    for name, ids in view.prompts.items():
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(student, ids, strict=False)))
        role = roles.get(name)
        what = _what(role) if role else "what the model is asked"
        yield f"── {name}: {what}; {len(ids)} tokens, {shared} shared with the student from the start"
        yield chat.tokenizer.decode(ids)
