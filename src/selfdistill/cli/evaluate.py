"""The ``evaluate`` command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdistill.config.run import config_for
from selfdistill.contexts.chat import Chat, usual_length
from selfdistill.evaluation.evaluate import evaluate
from selfdistill.models.policy import Policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.sampling.rollouts import fitting
from selfdistill.seeds import derive
from selfdistill.tasks.build import build_task, fitted
from selfdistill.training.run_folder import Weights, load_model
from selfdistill.types import Task


def evaluate_model(
    model: str,
    task: str | Mapping[str, Any] | None,
    *,
    samples: int | None,
    limit: int | None,
    split: str,
    temperature: float | None,
    max_tokens: int | None,
    seed: int,
    overrides: Sequence[str] | Mapping[str, Any],
    checkpoint: str | None = None,
    loaded: tuple[Policy, Chat] | None = None,
    judge: Task | None = None,
) -> dict[str, Any]:
    """Evaluate the model of a config, a run folder, a checkpoint, a model directory, a hub id or a shipped name.

    A config and a run have a task, an evaluation and a token limit of their own; a model needs ``task``. ``checkpoint``
    chooses among those of a run. ``loaded`` and ``judge`` are a model and a task in memory that replace them.

    Returns:
        The evaluation as plain JSON, with the arguments, the checkpoint, the skipped problems and remarks.

    Raises:
        UserError: the model or the task cannot be loaded or used.
    """
    # Models are measured on the same problems, whatever seed they were trained with.
    first = {"seed": 0, **overrides} if isinstance(overrides, Mapping) else ["seed=0", *overrides]
    config = config_for(model, task, first, command="evaluate")
    policy, chat, weights = load_model(model, config, loaded, checkpoint=checkpoint)
    judge = fitted(judge or build_task(config.task, seed=config.seed, reward=config.reward), chat)
    own = config.evaluation
    tokens = max_tokens or own.max_tokens or config.sampling.max_tokens or usual_length(chat)
    thinking = config.sampling.thinking if own.thinking is None else own.thinking
    params = SamplingParams(
        count=samples or own.samples,
        max_tokens=tokens,
        temperature=own.temperature if temperature is None else temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        seed=derive(seed, "evaluation"),
    )
    examples, unfit = fitting(judge.examples(split)[:limit], chat, max_tokens=tokens, thinking=thinking)
    sampler = policy_sampler(policy, chat, max_batch_size=config.sampling.max_batch_size)
    result = evaluate(examples, judge, sampler, chat, params, thinking=thinking).to_json()
    return {
        "model": model,
        "weights": weights.path,
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "task": config.task.kind,
        "split": split,
        **{key: getattr(params, key) for key in ("max_tokens", "temperature", "top_p", "top_k")},
        "seed": seed,
        **result,
        "skipped": dict(unfit),
        "remarks": list(weights.remarks),
    }


def describe_evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what belongs to the accuracy of :func:`evaluate_model`: counts, weights, what was skipped and remarks."""
    yield f"{result['problems']} problems × {result['samples']} samples, truncated {result['truncated']:.3f}"
    yield f"weights: {Weights(result['weights'], result['checkpoint'], result['step']).describe()}"
    for reason, count in sorted(result["skipped"].items()):
        yield f"skipped: {count} × {reason}"
    for remark in result["remarks"]:
        yield f"remark: {remark}"
