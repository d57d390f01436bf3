"""The ``teachers`` command: preference gap and shift of every teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfdistill.config.run import RunConfig
from selfdistill.errors import ConfigError, DataError
from selfdistill.evaluation.teacher_gap import measure_teacher_gap
from selfdistill.files.text import counted
from selfdistill.report import numbers
from selfdistill.seeds import derive
from selfdistill.tasks.turns import environment_of
from selfdistill.tracking.progress import log
from selfdistill.training.banner import describe_role, in_short
from selfdistill.training.build import build_rollout_worker, choose_examples
from selfdistill.training.problem import build_problem
from selfdistill.training.run_folder import load_models, on_this_machine


def measure(
    config: RunConfig,
    *,
    problems: int,
    samples: int,
    seed: int,
    source: str | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Measure the preference gap and the shift of every teacher of a method, on its training problems.

    ``source`` is the run folder that ``config`` was read from; unset: the config's own model.

    Returns:
        For each teacher the student's weights and its gap as plain JSON, shifts in nats per completion.

    Raises:
        UserError: the task has no verifier, the method has no teacher, or a teacher's context could not be rendered.
    """
    config, moved = (config, []) if source is None else on_this_machine(source, config)
    problem = build_problem(config)
    if not problem.task.has_verifier:
        raise ConfigError("without a verifier no sample is right or wrong, so there is no preference gap to measure")
    if environment_of(problem.task) is not None:
        raise ConfigError(f"task {problem.task.name!r} is played in turns, which teachers are not measured on yet")
    roles = {name: role for name, role in problem.method.roles().items() if role.context is not None}
    if not roles:
        raise ConfigError(f"method {config.method['name']!r} has no teacher to measure")
    models, weights = load_models(problem, source, checkpoint=checkpoint)
    chosen, _, _ = choose_examples(models)
    for warning in (*moved, *weights.warnings):
        log(warning)
    log(in_short(models.policy, models.chat.name))
    report: dict[str, Any] = {}
    with TemporaryDirectory(prefix="selfdistill-weights-") as folder:
        worker = build_rollout_worker(models, log, folder=Path(folder), trains=False)
        try:
            for name, role in roles.items():
                gap = measure_teacher_gap(
                    role,
                    worker,
                    chosen[:problems],
                    samples=samples,
                    seed=derive(seed, "teaching"),
                    max_tokens=models.config.limits.max_tokens_per_microbatch,
                )
                if isinstance(gap, Counter):
                    reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(gap.items()))
                    raise DataError(f"teacher {name!r} could be shown beside no completion: {reasons}")
                report[name] = {"what": describe_role(role), "weights": weights.describe(), **gap.to_json()}
        finally:
            worker.engines.close()
    return report


def describe_gap(name: str, gap: Mapping[str, Any]) -> Iterator[str]:
    """Yield the numbers of a teacher as lines of text, and what an interval without width means."""
    spans: list[str] = []

    def text(estimate: Mapping[str, float], digits: int = 3) -> str:
        span = numbers.interval(estimate["low"], estimate["high"], lambda end: f"{end:z.{digits}f}", between=", ")
        spans.append(span)
        return f"{estimate['value']:z.{digits}f} [{span}]"

    completions, problems = gap["completions"], gap["problems"]
    of = f"{counted(completions, 'completion')} of {counted(problems, 'problem')}"
    yield f"{name} ({gap['what']}), {of} by {gap['weights']}"
    yield f"  right: student {text(gap['student'])}, teacher {text(gap['teacher'])}"
    yield f"  preference gap: {text(gap['gap'])}"
    for side, formula in (("student", "KL(student || teacher)"), ("teacher", "KL(teacher || student)")):
        per_token = gap[f"per_token_on_{side}"]
        yield (
            f"  shift on the {side}'s samples, {formula}: {text(gap[f'shift_on_{side}'], 2)} nats a completion, "
            f"{per_token:z.4f} a token"
        )
    if (compatibility := gap["compatibility"]) is not None:
        share = (
            ""
            if compatibility["violation"] is None
            else f" ({compatibility['violation']:.0%} of their size; 0 is Bayes' rule)"
        )
        yield (
            f"  posterior compatibility: sum of u {compatibility['pmi']:z.2f} nats, with answer and context exchanged "
            f"{compatibility['reverse']:z.2f}; they differ by {compatibility['rms']:.2f} nats a completion{share}"
        )
    if numbers.NO_SPREAD in spans:
        yield f"  {numbers.NO_SPREAD_NOTE}"
    for reason, count in sorted(gap["skipped"].items()):
        yield f"  skipped: {count} × {reason}"
