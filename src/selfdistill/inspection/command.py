"""The ``inspect`` command: scores a model's completions and writes three files with the credit of each method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdistill.config.run import config_for
from selfdistill.config.sampler import SamplerConfig
from selfdistill.config.sections import SamplingConfig, limits_on
from selfdistill.config.sources import find_source
from selfdistill.config.suggest import choices
from selfdistill.contexts.chat import Chat, usual_length
from selfdistill.contexts.templates import Template, load_templates
from selfdistill.errors import ConfigError, DataError
from selfdistill.evaluation.words import load_classes
from selfdistill.files.records import RolloutLine, read_rollouts
from selfdistill.files.text import counted
from selfdistill.inspection.credit import inspect_groups, plan
from selfdistill.inspection.drift import load_with_teachers, measure_drift
from selfdistill.inspection.files import ANSWER_ONLY, TokenTable, check_place, summarise, token_table, write_findings
from selfdistill.inspection.plan import choose_methods, hyperparameters
from selfdistill.methods.base import Method
from selfdistill.models.fit import decodable_rows
from selfdistill.models.policy import Policy
from selfdistill.report import numbers
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.engines import command_engines
from selfdistill.sampling.rollouts import fitting, longest_prompt, sample_and_verify
from selfdistill.seeds import derive
from selfdistill.tasks.build import build_task, fitted
from selfdistill.tracking.progress import log
from selfdistill.training.banner import in_short
from selfdistill.training.run_folder import Weights, on_this_machine
from selfdistill.types import STUDENT, Example, Rollout, RolloutGroup, Task, Verdict

MOST_EPOCHS = 100
"""Number of epochs in which the form of a problem that a stored completion answered is searched."""


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What to inspect: sampled completions of some problems, or those of a run's ``rollouts.jsonl``.

    ``methods`` and ``configs`` are arguments of :func:`~selfdistill.inspection.plan.choose_methods`. ``built`` are
    further methods as objects, by label.
    """

    methods: Sequence[str] | None
    configs: Sequence[str] = ()
    contexts: Sequence[str] = ()
    problems: int = 16
    samples: int = 4
    split: str = "train"
    temperature: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    rollouts: Path | None = None
    words: Path | None = None
    checkpoint: str | None = None
    engine: str | None = None
    built: Mapping[str, Method] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InspectResult:
    """The result of an inspection: the numbers of every token, their summary, and the chat that decodes tokens."""

    table: TokenTable
    summary: dict[str, Any]
    chat: Chat
    warnings: Sequence[str] = ()

    def write(self, out: Path) -> None:
        """Write ``tokens.parquet``, ``summary.json`` and ``index.html``.

        Raises:
            ConfigError: the folder contains other files.
        """
        check_place(out)
        write_findings(out, self.table, self.summary, self.chat)


def inspect_model(
    model: str,
    task: str | None,
    options: InspectOptions,
    out: Path,
    *,
    overrides: Sequence[str],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Inspect a model and write the three files into ``out``. Returns the summary.

    Raises:
        UserError: the model, the task, a method or a context cannot be used, or ``out`` contains other files.
    """
    check_place(out)
    result = inspect(model, task, options, overrides=overrides, log=log)
    result.write(out)
    return result.summary


def describe_inspection(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the weights, a table of the signals, what was left out or skipped, and warnings, as lines of text.

    The table has a row for u of each context and for the credit of each method: its mean over the tokens of right and
    of wrong completions, and the share of tokens where it is positive. ``summary["signals"]`` holds these numbers.
    """
    yield f"weights: {Weights(summary['weights'], summary['checkpoint'], summary['step']).describe()}"
    outcomes = {name: count for name, count in summary["outcomes"].items() if count}
    judged = ", ".join(f"{count} {name}" for name, count in outcomes.items())
    count, problems, tokens = (summary[key] for key in ("completions", "problems", "tokens"))
    yield f"{count} completions of {problems} problems ({judged}), {tokens} tokens"
    rows = [["mean of a token", *(f"if {name}" for name in outcomes), "positive", "tokens"]]
    for signal, statistics in summary["signals"].items():
        means = {row["name"]: row["mean"] for row in statistics["by_outcome"]}
        cells = [numbers.with_sign(means[name]) for name in outcomes]
        balance = statistics["balance"]
        rows.append([signal, *cells, numbers.percent(balance.get("positive")), numbers.whole(balance["tokens"])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows if len(rows) > 1 else ():
        yield "  ".join([name.ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(cells, widths[1:], strict=True))])
    for name, reason in summary["left_out"].items():
        yield f"left out: {name}, because {reason}"
    for reason, count in summary["skipped"].items():
        yield f"skipped: {count} × {reason}"
    for warning in summary["templates"]["warnings"]:
        yield f"warning: {warning}"


def inspect(
    model: str,
    task: str | Mapping[str, Any] | None,
    options: InspectOptions,
    *,
    overrides: Sequence[str],
    log: Callable[[str], None] = lambda message: None,
    loaded: tuple[Policy, Chat] | None = None,
    judge: Task | None = None,
) -> InspectResult:
    """Inspect a model without writing files.

    ``loaded`` is a model in memory that replaces the one at ``model``; ``judge`` a task object that replaces ``task``.

    Raises:
        UserError: the model, the task, a method or a context cannot be used.
    """
    configs = list(options.configs)
    unset = options.methods is None and not configs and not options.built
    if unset and loaded is None and find_source(model).kind in ("config", "run"):
        # A config or a run names a method of its own, which is the default here.
        configs = [model]
    methods, rest = choose_methods(options.methods, configs, overrides)
    methods.update(options.built)
    patterns = load_classes(options.words)
    config, moved = on_this_machine(model, config_for(model, task, rest, command="inspect", engine=options.engine))
    judge = judge or build_task(config.task, seed=config.seed, reward=config.reward)
    templates = _templates(config.contexts or judge.contexts, options)
    own = load_with_teachers(model, config, methods, loaded, checkpoint=options.checkpoint, judge=judge)
    policy, chat, weights, judge = own.policy, own.chat, own.weights, fitted(judge, own.chat)
    prompts = [example.prompt for example in judge.examples(options.split)]
    warnings = (*moved, *weights.warnings, *chat.unknown_warnings(prompts), *own.warnings)
    for warning in warnings:
        log(warning)
    if options.rollouts is not None:
        groups, unused = read_groups(options.rollouts, judge, options, chat, policy, config.sampling.thinking)
    else:
        groups, unused = _sampled(config.sampling, config.sampler, judge, options, chat, policy, weights.path)
    scoring_plan = plan(methods, options.contexts, templates, also=[ANSWER_ONLY] if ANSWER_ONLY in templates else [])
    completions = counted(sum(len(group.rollouts) for group in groups), "completion")
    log(f"{completions} of {counted(len(groups), 'problem')}, to be scored under {', '.join(scoring_plan.roles)}")
    limits = limits_on(policy.device.type, config.limits)
    findings = inspect_groups(
        policy,
        chat,
        groups,
        scoring_plan,
        templates,
        thinking=config.sampling.thinking,
        seed=derive(options.seed, "contrast", 1),
        prompts=config.sampling.prompts,
        max_tokens=limits.max_tokens_per_microbatch,
        max_logits_per_chunk=limits.max_logits_per_chunk,
    )
    measure_drift(findings, own, limits)
    findings.skipped += unused
    table = token_table(findings, chat, patterns)
    origin = _origin(model, weights, options) | {"quantised": policy.quantised, "task": config.task.kind}
    origin["hyperparameters"] = hyperparameters(methods, findings.credits)
    return InspectResult(table, summarise(table, origin, chat), chat, warnings)


def _origin(model: str, weights: Weights, options: InspectOptions) -> dict[str, Any]:
    """Return the origin of the completions for the summary."""
    sampled = options.rollouts is None
    return {
        "model": model,
        "weights": weights.path,
        "checkpoint": weights.checkpoint,
        "step": weights.step,
        "split": options.split,
        "rollouts": None if sampled else str(options.rollouts),
        "temperature": options.temperature if sampled else None,
        "seed": options.seed,
    }


def _templates(source: str, options: InspectOptions) -> dict[str, Template]:
    """Load the templates of a file. Refuse options with unknown contexts, or with nothing to inspect."""
    templates = load_templates(source)
    for name in options.contexts:
        if name not in templates:
            raise ConfigError(f"unknown context {name!r}; {choices(name, sorted(templates))}")
    if options.methods == [] and not (options.built or options.configs or options.contexts):
        raise ConfigError("Nothing to inspect: pass --methods, --config or --contexts.")
    return templates


def _sampled(
    config: SamplingConfig,
    sampler: SamplerConfig,
    judge: Task,
    options: InspectOptions,
    chat: Chat,
    policy: Policy,
    model: str,
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Sample and verify completions of the first problems; also counts those that do not fit."""
    tokens = options.max_tokens or config.max_tokens or usual_length(chat)
    thinking = config.thinking
    examples, excluded = fitting(
        judge.examples(options.split)[: options.problems], chat, max_tokens=tokens, thinking=thinking
    )
    params = SamplingParams(
        count=options.samples,
        max_tokens=tokens,
        temperature=options.temperature,
        seed=derive(options.seed, "sampling", 1),
    )
    rows = config.max_batch_size or decodable_rows(policy, length=tokens + longest_prompt(examples, chat, thinking))
    log(in_short(policy, chat.name))
    with command_engines(sampler, policy, chat, model=model, max_batch_size=rows) as engines:
        return sample_and_verify(examples, judge, engines.of(policy), chat, params, thinking=thinking), excluded


def read_groups(
    path: Path, judge: Task, options: InspectOptions, chat: Chat, policy: Policy, thinking: bool | None
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Return the newest groups of the student's completions in a ``rollouts.jsonl``, and counts of unused ones.

    Raises:
        DataError: the file is missing, its ids are of another tokenizer, or no completion is of this task's problems.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; a run writes its completions to rollouts.jsonl")
    lines: dict[tuple[int, str], list[RolloutLine]] = {}
    unused: Counter[str] = Counter()
    for line in read_rollouts(path):
        if line.source != STUDENT:
            continue
        if not line.ids:
            unused["a stored completion has no tokens"] += 1
            continue
        lines.setdefault((line.step, line.example), []).append(line)
    if not lines:
        raise DataError(f"{path} holds no completion of the student")
    examples = {example.id: example for example in judge.examples(options.split)}
    groups: list[RolloutGroup] = []
    for (_, name), members in reversed(lines.items()):
        if len(groups) == options.problems:
            break
        example = _matching_form(examples.get(name), members[0].prompt)
        if example is None:
            unused["a stored completion's problem is not among the task's"] += len(members)
            continue
        groups.append(_stored(example, members[: options.samples], chat, policy, thinking, path))
    if not groups:
        stored_id, task_id = next(iter(lines))[1], next(iter(examples), "none")
        raise DataError(
            f"{path} holds no completion of a problem in the {options.split} split of this task: it is of another "
            f"task, its sizes or its seed (problems as {stored_id} there, as {task_id} here)"
        )
    return groups[::-1], unused


def _matching_form(example: Example | None, prompt: str) -> Example | None:
    """Return the form of the example with this prompt, or None. Some tasks change the form every epoch."""
    epochs = range(MOST_EPOCHS if example and example.redraw else 1)
    forms = (example.in_epoch(epoch) for epoch in epochs if example)
    return next((form for form in forms if form.prompt[-1].content == prompt), None)


def _stored(
    example: Example, lines: Sequence[RolloutLine], chat: Chat, policy: Policy, thinking: bool | None, path: Path
) -> RolloutGroup:
    rollouts, verdicts = [], []
    for line in lines:
        if max(line.ids) >= policy.vocab_size or chat.decode(line.ids) != line.text:
            raise DataError(f"{path}: the ids of {example.id} do not spell its text in this model's tokenizer")
        if line.episode and sum(turn.tokens for turn in line.episode.turns) != len(line.ids):
            raise DataError(f"{path}: the turns of {example.id} do not add up to its ids")
        prompt = chat.encode(line.episode.opening if line.episode else example.prompt, thinking=thinking)
        # The policy that sampled the completion is unknown. NaN is safe, because inspection sets the ratio to 1.
        logprobs = (float("nan"),) * len(line.ids)
        rollouts.append(Rollout(prompt, line.ids, logprobs, line.finished, line.text, 0, episode=line.episode))
        verdicts.append(Verdict(line.reward, feedback=line.feedback, success=line.correct))
    return RolloutGroup(example, tuple(rollouts), tuple(verdicts))
