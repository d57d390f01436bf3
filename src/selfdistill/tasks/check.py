"""Check a file of rows before training (``selfdistill data check``), and list the tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfdistill.config.run import apply_overrides, parse_config
from selfdistill.config.tasks import RowsConfig, load_preset, shipped_presets, task_configs
from selfdistill.contexts.chat import readable
from selfdistill.contexts.control_marks import MARKS, any_of
from selfdistill.errors import ConfigError
from selfdistill.files.text import counted, plural
from selfdistill.tasks.build import build_row_task, build_task
from selfdistill.tasks.data import SPLITS, count_duplicates
from selfdistill.tasks.reasoning_gym.task import ReasoningGymTask
from selfdistill.tasks.rows import RowTask, leaks_between
from selfdistill.types import Example, Task, Verdict

_LINES_SHOWN = 20
_CHARACTERS_SHOWN = 1000
_TOKENS_SHOWN = 5


def check_data(
    path: str | Mapping[str, str] | None,
    *,
    task: str | None,
    preset: str | None,
    overrides: Sequence[str] = (),
    special_tokens: Sequence[str] = (),
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Read every row and verify each row's own reference.

    ``own`` is the task table of a config. ``path``, ``task`` and ``preset`` replace its keys if given.

    The reference is the row's solution. If there is none, or the verifier finds no answer in it
    (``silent_solutions``), the row's canonical answer is verified instead. ``verified`` is the share of usable rows
    whose reference scores 1; it is None if nothing can be verified. ``verified_rows`` is their number, ``unverified``
    lists the other rows. ``row`` is the first usable row as the task maps it. ``control_tokens`` counts the rows that
    spell out control tokens of known model families, or one of ``special_tokens``; ``first`` is the id of the first
    such row.

    Raises:
        UserError: the source is unreadable, or the task reads no rows.
    """
    spelled = any_of([*MARKS, *special_tokens])
    own_kind = task or (own or {}).get("kind") or ""
    if ":" in own_kind or own_kind == "reasoning_gym":
        own_table = {**(own or {}), "kind": own_kind, **({} if path is None else {"path": path})}
        report = _own_report(own_table, overrides, spelled)
        return {"task": own_kind, "preset": None, "path": own_table.get("path"), **report}
    if path is None and own is None:
        raise ConfigError(
            "name the rows to check with --path, as in selfdistill data check rows.jsonl --task math, or a config"
        )
    if task is None and preset is None and own is None:
        raise ConfigError(f"name a --task ({', '.join(_row_kinds())}) or a --preset ({', '.join(shipped_presets())})")
    named = {"kind": task, "preset": preset, "path": path}
    table: dict[str, Any] = {
        "method": "grpo",
        "task": {**(own or {}), "bad_rows": "skip", "validation_share": 0.0, "test_share": 0.0}
        | {key: value for key, value in named.items() if value is not None},
    }
    kind = table["task"].get("kind")
    if kind in task_configs() and kind not in _row_kinds():
        raise ConfigError(f"task {kind!r} makes its own problems, so there are no rows to check")
    apply_overrides(table, overrides)
    config = parse_config(table, "data check")
    assert isinstance(config.task, RowsConfig)
    row_task = build_row_task(config.task, seed=config.seed)
    source = config.task.path
    source_label = source if isinstance(source, str) else source.model_dump(exclude_none=True)
    return {"task": config.task.kind, "preset": config.task.preset, "path": source_label, **_report(row_task, spelled)}


def describe_check(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines for the terminal from :func:`check_data`."""
    # First, because in this case the share below is not that of the solutions.
    if silent := report["silent_solutions"]:
        states = counted(silent, "solution states", "solutions state")
        yield f"{states} no answer: their rows' canonical answers were verified"
    share = "nothing to verify" if report["verified"] is None else f"{report['verified']:.1%} verified"
    rejected = sum(map(len, report["rejected"].values()))
    yield f"{counted(report['rows'], 'row')}, {rejected} rejected, {report['checked']} checked, {share}"
    for reason, lines in report["rejected"].items():
        listed = ", ".join(map(str, lines[:_LINES_SHOWN]))
        more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
        yield f"rejected: {reason} ({plural(len(lines), 'line')} {listed}{more})"
    for row in report["unverified"]:
        yield f"unverified: {row['row']}: {row['why']}"
    if report["control_tokens"]["rows"]:
        control = report["control_tokens"]
        named = ", ".join(f"{token} in {rows}" for token, rows in list(control["tokens"].items())[:_TOKENS_SHOWN])
        more = f" and {len(control['tokens']) - _TOKENS_SHOWN} more" if len(control["tokens"]) > _TOKENS_SHOWN else ""
        stem, _, line = control["first"].rpartition(":")
        location = f"line {line} of {stem}" if line.isdecimal() else control["first"]
        yield (
            f"{counted(control['rows'], 'row spells', 'rows spell')} out control tokens, the first in {location} "
            f"({named}{more}): they are kept as text and open no turn"
        )
    if repeated := report["duplicates"]["repeated"]:
        yield f"{counted(repeated, 'question occurs', 'questions occur')} more than once"
    for pair, count in report["leaks"].items():
        yield f"leak: {counted(count, 'question')} of {pair}"


def describe_row(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines for the terminal: the first usable row of :func:`check_data` as the task maps it."""
    if report["row"] is not None:
        yield f"row {report['row']['row']} as the task maps it:"
        for message in report["row"]["prompt"]:
            yield f"  {message['role']}: {_indented(message['content'])}"
        for name, text in report["row"]["fields"].items():
            yield f"  {name}: {_indented(text)}"


def list_tasks() -> list[dict[str, Any]]:
    """Every kind of task with its description, required keys and presets."""
    presets = [load_preset(name) for name in shipped_presets()]
    kinds: list[dict[str, Any]] = [
        {
            "kind": kind,
            "description": str(table.__doc__).partition("\n")[0],
            "needs": [key for key, about in table.model_fields.items() if about.is_required() and key != "kind"],
            "presets": {preset.name: preset.description for preset in presets if preset.kind == kind},
        }
        for kind, table in task_configs().items()
    ]
    custom = {
        "kind": "custom",
        "description": "Any task above with a reward function of your own: the key reward beside the task. "
        "A whole task of your own is task.kind = 'package.module:Class'.",
        "needs": ['reward = "package.module:function"'],
        "presets": {},
    }
    return [*kinds, custom]


def describe_tasks(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines for the terminal from :func:`list_tasks`."""
    for task in tasks:
        yield f"{task['kind']}: {task['description']}"
        yield f"  needs: {', '.join(task['needs']) or 'nothing'}"
        for name, description in task["presets"].items():
            yield f"  preset {name}: {description}"


def _row_kinds() -> list[str]:
    return [kind for kind, table in task_configs().items() if issubclass(table, RowsConfig)]


def _mapped(example: Example | None) -> dict[str, Any] | None:
    """The messages of an example and the fields that contexts can show, such as the answer and the solution."""
    if example is None:
        return None
    prompt = [{"role": message.role, "content": message.content} for message in example.prompt]
    return {"row": example.id, "prompt": prompt, "fields": dict(example.fields)}


def _indented(text: str) -> str:
    """The text with lines after the first indented; long texts are cut."""
    shortened = text if len(text) <= _CHARACTERS_SHOWN else f"{text[:_CHARACTERS_SHOWN]}… ({len(text)} characters)"
    return shortened.strip("\n").replace("\n", "\n    ")


def _own_report(own_table: Mapping[str, Any], overrides: Sequence[str], spelled: re.Pattern[str]) -> dict[str, Any]:
    """The report on a task without rows: its references, repeated prompts, and prompts that splits share."""
    table: dict[str, Any] = {"method": "grpo", "task": dict(own_table)}
    apply_overrides(table, overrides)
    config = parse_config(table, "data check")
    task = build_task(config.task, seed=config.seed, reward=None)
    if isinstance(task, RowTask):
        return _report(task, spelled)
    examples = {split: task.examples(split) for split in SPLITS}
    questions = {split: [example.prompt[-1].content for example in row] for split, row in examples.items()}
    everything = [example for row in examples.values() for example in row]
    return {
        "rows": len(everything),
        "row": _mapped(next(iter(everything), None)),
        "rejected": {},
        # A task that is played in turns judges no single reference, unless it has a verifier too.
        **_verified(task, everything if hasattr(task, "verify") else []),
        "duplicates": asdict(count_duplicates([text for row in questions.values() for text in row])),
        "leaks": leaks_between(questions),
        "control_tokens": _control_tokens(everything, spelled),
    }


def _control_tokens(examples: Iterable[Example], spelled: re.Pattern[str]) -> dict[str, Any]:
    """How many examples spell out control tokens, which ones, and the id of the first."""
    tokens: Counter[str] = Counter()
    rows = []
    for example in examples:
        # Tool schemas are JSON with escaped characters, which a template unescapes.
        texts = [*(readable(message).content for message in example.prompt), *example.fields.values()]
        row_tokens = sorted({token for text in texts for token in spelled.findall(text)})
        tokens.update(row_tokens)
        rows += [example] if row_tokens else []
    first = min(rows, key=lambda example: _line(example) or 0).id if rows else None
    return {"rows": len(rows), "first": first, "tokens": dict(tokens.most_common())}


def _line(example: Example) -> int | None:
    line = example.id.rpartition(":")[2]
    return int(line) if line.isdecimal() else None


def _report(task: RowTask, spelled: re.Pattern[str]) -> dict[str, Any]:
    rejected: dict[str, list[int | str]] = {}
    files = {row.file for row in task.rejected}
    for row in task.rejected:
        rejected.setdefault(row.reason, []).append(row.line if len(files) == 1 else f"{row.file}:{row.line}")
    return {
        "rows": task.rows,
        "row": _mapped(next(iter(task.every_example()), None)),
        "rejected": rejected,
        **_verified(task, task.every_example()),
        "duplicates": asdict(task.duplicates),
        "leaks": dict(task.leaks),
        "control_tokens": _control_tokens(task.every_example(), spelled),
    }


def _verified(task: Task, examples: Iterable[Example]) -> dict[str, Any]:
    """The report on the verifier's verdicts on each example's own reference."""
    counts: Counter[str] = Counter()
    unverified = []
    for example in examples:
        verdict, silent = _reference_verdict(task, example)
        counts["silent"] += silent
        counts["judged"] += verdict.reward is not None
        counts["right"] += verdict.correct
        counts["all"] += 1
        if verdict.reward is not None and not verdict.correct:
            wrong = f"its reference says {verdict.answer}, its answer is {example.fields.get('answer')}"
            why = wrong if verdict.feedback is None else verdict.feedback
            unverified.append({"row": example.id, "line": _line(example), "why": why})
    return {
        "checked": counts["all"],
        "verified": counts["right"] / counts["judged"] if counts["judged"] else None,
        "verified_rows": counts["right"],
        "unverified": unverified,
        "silent_solutions": counts["silent"],
    }


def _reference_verdict(task: Task, example: Example) -> tuple[Verdict, bool]:
    """The verdict on the row's reference, and whether the row has a solution without an answer."""
    solution = example.fields.get("solution")
    # Other tasks have no reference except their solutions.
    reference = solution
    if isinstance(task, RowTask | ReasoningGymTask) and task.has_verifier:
        reference = task.reference(example)
    if solution is not None:
        verdict = task.verify(example, solution, finished=True)
        # In a code task the solution is the only reference, so there is no answer to find in it.
        is_reference = task.has_verifier and reference == solution
        stated = verdict.correct or verdict.answer is not None or is_reference
        if stated:
            return verdict, False
    if not task.has_verifier or reference is None:
        # Nothing is verified, so no solution counts as silent.
        return Verdict(None), False
    return task.verify(example, reference, finished=True), solution is not None
