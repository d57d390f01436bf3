"""The ``evaluate`` command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selfdistill.config.evaluation import General
from selfdistill.config.run import RunConfig, config_for
from selfdistill.config.sections import limits_on
from selfdistill.contexts.chat import Chat, usual_length
from selfdistill.evaluation.also import build_also
from selfdistill.evaluation.best import best_by
from selfdistill.evaluation.evaluate import evaluate, evaluation_params
from selfdistill.evaluation.references import ReferenceScorer
from selfdistill.files.text import counted
from selfdistill.models.fit import decodable_rows
from selfdistill.models.policy import Policy, load_external
from selfdistill.models.teachers import Teachers
from selfdistill.report import numbers
from selfdistill.sampling.base import Sampler
from selfdistill.sampling.engines import command_engines
from selfdistill.sampling.rollouts import fitting, longest_prompt
from selfdistill.tasks.build import build_task, fitted
from selfdistill.tracking.progress import log
from selfdistill.training.banner import in_short, quantised_warnings
from selfdistill.training.run_folder import Weights, load_model, on_this_machine
from selfdistill.types import Example, External, Task


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
    engine: str | None = None,
) -> dict[str, Any]:
    """Evaluate the model of a config, a run folder, a checkpoint, a model directory, a hub id or a shipped name.

    A config or a run brings its task, evaluation and token limit; a model needs ``task``. ``checkpoint`` selects one of
    a run. ``loaded`` and ``judge`` replace the model and the task by ones in memory, ``engine`` the config's sampler.

    Returns:
        The evaluation as plain JSON, with the arguments, the checkpoint, the skipped problems and warnings.

    Raises:
        UserError: the model or the task cannot be loaded or used.
    """
    # The same problems for all models, whatever seed they were trained with.
    first = {"seed": 0, **overrides} if isinstance(overrides, Mapping) else ["seed=0", *overrides]
    config, moved = on_this_machine(model, config_for(model, task, first, command="evaluate", engine=engine))
    policy, chat, weights = load_model(model, config, loaded, checkpoint=checkpoint)
    judge = fitted(judge or build_task(config.task, seed=config.seed, reward=config.reward), chat)
    evaluation = config.evaluation
    tokens = max_tokens or evaluation.max_tokens or config.sampling.max_tokens or usual_length(chat)
    options = {"samples": samples, "max_tokens": tokens, "temperature": temperature}.items()
    evaluation = evaluation.model_copy(update={key: value for key, value in options if value is not None})
    thinking = evaluation.thinking_after(config.sampling.thinking)
    params = evaluation_params(evaluation, max_tokens=tokens, seed=seed)
    examples, unfit = fitting(judge.examples(split)[:limit], chat, max_tokens=tokens, thinking=thinking)
    length = tokens + longest_prompt(examples, chat, thinking)
    rows = config.sampling.max_batch_size or decodable_rows(policy, length=length)
    log(in_short(policy, weights.describe()))
    # Without a verifier the only measurement is the likelihood of the references.
    references = None if judge.has_verifier else _references(policy, chat, config, thinking)
    config = config.model_copy(update={"evaluation": evaluation})
    with command_engines(config.sampler, policy, chat, model=weights.path, max_batch_size=rows) as engines:
        sampler = engines.of(policy)
        result = evaluate(examples, judge, sampler, chat, params, thinking=thinking, references=references).to_json()
        result |= _also(policy, chat, sampler, config, weights, split=split, seed=seed)
    origin = {"model": model, "weights": weights.path, "checkpoint": weights.checkpoint, "step": weights.step}
    terms = {"task": config.task.kind, "split": split, "engine": config.sampler.kind, "seed": seed}
    return {
        **origin,
        **terms,
        **{key: getattr(params, key) for key in ("max_tokens", "temperature", "top_p", "top_k")},
        **result,
        "best_by": best_by(evaluation.best, judge),
        "skipped": dict(unfit),
        "warnings": [*moved, *weights.warnings, *_warnings(policy, chat, examples, config)],
    }


def _warnings(policy: Policy, chat: Chat, examples: Sequence[Example], config: RunConfig) -> list[str]:
    unknown = chat.unknown_warnings([example.prompt for example in examples])
    return [*unknown, *quantised_warnings(policy, config.sampler)]


def _references(policy: Policy, chat: Chat, config: RunConfig, thinking: bool | None) -> ReferenceScorer:
    return ReferenceScorer(
        teachers=Teachers(policy, needed=set(), rate=0.0),
        chat=chat,
        limits=limits_on(policy.device.type, config.limits),
        thinking=thinking,
        templates={},
    )


def _also(
    policy: Policy, chat: Chat, sampler: Sampler, config: RunConfig, weights: Weights, *, split: str, seed: int
) -> dict[str, Any]:
    """What ``evaluation.also`` measures. A run's model is compared with the one that its run began from."""
    start: External | None = None
    external: dict[External, Policy] = {}
    if weights.checkpoint is not None and any(isinstance(entry, General) for entry in config.evaluation.also):
        start = External(config.model.path)
        dtype = policy.dtype or next(policy.parameters()).dtype
        external[start] = load_external(
            start.path,
            policy,
            chat,
            dtype=dtype,
            device=policy.device,
            quantisation=config.model.quantisation,
        )
    also = build_also(
        config.evaluation,
        config.sampling,
        split=split,
        seed=seed,
        teachers=Teachers(policy, needed=set(), rate=0.0, external=external),
        start=start,
        chat=chat,
        limits=limits_on(policy.device.type, config.limits),
    )
    return {"also": also.measure(sampler)} if also else {}


def describe_evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the accuracy of :func:`evaluate_model`: counts, weights, skipped problems and warnings."""
    problems, samples = result["problems"], result["samples"]
    counts = f"{counted(problems, 'problem')} × {counted(samples, 'sample')}"
    yield f"{counts}, truncated {result['truncated']:.3f}"
    if result.get("turns"):
        shown = []
        for key, words in (("turns", "turns"), ("episode_tokens", "tokens"), ("tool_errors", "errors of tools")):
            if key in result:
                mean = result[key]
                span = numbers.interval(mean["low"], mean["high"], "{:.2f}".format, between=", ")
                shown.append(f"{mean['value']:.2f} {words} [{span}]")
        yield f"an episode has {', '.join(shown)}"
        yield f"ended: {', '.join(f'{n} × {reason}' for reason, n in sorted(result['ended'].items()))}"
    yield f"weights: {Weights(result['weights'], result['checkpoint'], result['step']).describe()}"
    for reason, count in sorted(result["skipped"].items()):
        yield f"skipped: {count} × {reason}"
    for warning in result["warnings"]:
        yield f"warning: {warning}"
