"""The ``evaluate`` command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.config.sections import limits_on
from selfdistill.contexts.chat import Chat, usual_length
from selfdistill.evaluation.evaluate import evaluate, evaluation_params
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.models.fit import decodable_rows
from selfdistill.models.policy import Policy
from selfdistill.models.teachers import Teachers
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import fitting, longest_prompt
from selfdistill.tasks.build import build_task, fitted
from selfdistill.tracking.progress import tell
from selfdistill.training.banner import in_short
from selfdistill.training.run_folder import config_for, load_model
from selfdistill.types import Task


def evaluate_model(
    model: str,
    task: str | Mapping[str, Any] | None,
    *,
    samples: int,
    limit: int | None,
    split: str,
    temperature: float | None,
    max_tokens: int | None,
    seed: int,
    overrides: Sequence[str] | Mapping[str, Any],
    loaded: tuple[Policy, Chat] | None = None,
    judge: Task | None = None,
) -> dict[str, Any]:
    """Evaluate a model directory, a checkpoint, a run's newest checkpoint, a hub id or a shipped model.

    A run folder has its own task and evaluation settings; for anything else ``task`` is required. ``loaded`` is a
    model in memory that replaces the one at ``model``; ``judge`` is a task object that replaces ``task``.

    Returns:
        The evaluation as plain JSON, with the arguments, the skipped problems and remarks.

    Raises:
        UserError: the model or the task cannot be loaded or used.
    """
    config = config_for(model, task, overrides, command="evaluate")
    policy, chat, path, remarks = load_model(model, config, loaded)
    judge = fitted(judge or build_task(config.task, seed=config.seed, reward=config.reward), chat)
    # What is not asked for is as in the run's own evaluations.
    own = config.evaluation
    tokens = max_tokens or own.max_tokens or config.sampling.max_tokens or usual_length(chat)
    asked = {"samples": samples, "max_tokens": tokens, **({} if temperature is None else {"temperature": temperature})}
    thinking = config.sampling.thinking if own.thinking is None else own.thinking
    params = evaluation_params(own.model_copy(update=asked), max_tokens=tokens, seed=seed)
    examples, unfit = fitting(judge.examples(split)[:limit], chat, max_tokens=tokens, thinking=thinking)
    longest = longest_prompt(examples, chat, thinking)
    rows = config.sampling.max_batch_size or decodable_rows(policy, length=tokens + longest)
    sampler = policy_sampler(policy, chat, max_batch_size=rows)
    tell(in_short(policy, path))
    # Where nothing judges, how likely the references are is what there is to say.
    references = ReferenceScorer(
        teachers=Teachers(policy, needed=set(), rate=0.0),
        chat=chat,
        limits=limits_on(policy.device.type, config.limits),
        thinking=thinking,
        templates={},
    )
    more = None if judge.has_verifier else references
    result = evaluate(examples, judge, sampler, chat, params, thinking=thinking, references=more).to_json()
    origin = {"model": model, "weights": path, "task": config.task.kind, "split": split, "max_tokens": tokens}
    drawn = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    remarks = [*remarks, *chat.unknown_remarks([example.prompt for example in examples])]
    return {**origin, **drawn, "seed": seed, **result, "skipped": dict(unfit), "remarks": remarks}
