"""Find the task of a file of rows, by trying presets and mappings of common column names on the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any

from selfdistill.config.run import parse_config
from selfdistill.config.tasks import RowsConfig, SourceConfig, load_preset, shipped_presets, task_configs
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.text import counted, plural
from selfdistill.tasks.build import build_row_task
from selfdistill.tasks.data import SPLITS, MemoryRows, Rejected, scan_rows
from selfdistill.tasks.rows import RowTask
from selfdistill.tasks.text.forms import preference_form
from selfdistill.types import Example

TRIED, VERIFIED = 200, 12
"""Number of rows that a candidate is tried on, and the number of references among them that are verified."""
SPECIFIC = ("text", "math", "choice", "tools", "code")
"""Kinds of tasks in the order of what they require of a row. The last kind that fits is chosen."""
PROMPTS = ("prompt", "question", "problem", "query", "instruction", "input", "request", "text", "task")
ANSWERS = (
    "answer",
    "final_answer",
    "ground_truth",
    "target",
    "label",
    "gold",
    "correct_answer",
    "expected_answer",
    "output",
)
SOLUTIONS = (
    *("solution", "rationale", "explanation", "reasoning", "worked_solution", "worked", "reference_solution", "cot"),
    *("completion", "response", "generation", "output"),
)
CHOICES = ("choices", "options")
PATTERNS = (None, r"####\s*(.+)", r"\\boxed\{(.+)\}", r"(?i)the (?:final )?answer is:?\s*(.+?)\.?$")
"""Patterns of an answer at the end of its column; None takes the whole column."""


@dataclass(frozen=True, slots=True)
class FoundTask:
    """A task that fits the rows, with the measurements that it was chosen by."""

    kind: str
    table: Mapping[str, Any]
    """Keys of the task's table besides ``path``."""
    how: str
    name: str
    """Name of the rows' source."""
    usable: float
    verified: float | None
    """Share of tried rows whose reference is verified; None if the task verifies nothing."""
    has_solutions: bool
    reasons: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    rejected: int = 0
    train: int = 0
    validation: int = 0
    examples: Sequence[Example] = ()

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sort key, higher is better: share of usable and verified rows, then the specific kind, then solutions."""
        share = self.usable * (0.5 if self.verified is None else self.verified)
        # Among presets that fit equally well, the one that the file is named after wins.
        preset = str(self.table.get("preset", ""))
        named = bool(preset) and preset.partition("-")[0] in self.name.lower()
        return round(share, 1), SPECIFIC.index(self.kind), self.has_solutions, named, bool(preset)


def find_task(data: str | Mapping[str, str]) -> FoundTask:
    """Find the task that fits the rows of a file, a saved folder or a hub data set best.

    Raises:
        DataError: the rows cannot be read, or no task fits them; the message names their columns.
    """
    source = data if isinstance(data, str) else SourceConfig.model_validate(data)
    name = data if isinstance(data, str) else data["path"]
    everything: list[Mapping[str, Any]] = []
    unread: list[Rejected] = []
    for row in scan_rows(source):
        if isinstance(row, Rejected):
            unread.append(row)
        else:
            everything.append(row.values)
    if not everything:
        raise DataError(f"none of {counted(len(unread), 'row')} of {name} can be read, the first: {unread[0]}")
    columns = list(dict.fromkeys(key for values in everything[:TRIED] for key in values))
    # A label that says whether a completion is wanted would pass for an answer.
    has_prompt = any(str(column).lower() in PROMPTS for column in columns)
    preferences = preference_form(everything[0], has_prompt=has_prompt)
    sample = MemoryRows(list(islice(everything, TRIED)), name)
    fitting = [
        candidate for table, how in _candidates(columns) if (candidate := _tried(table, how, sample)) is not None
    ]
    labelled = preferences is not None and "label" in columns
    if preferences is not None and (labelled or not fitting):
        raise DataError(
            f"no task fits the rows of {name}: {preferences}; init does not choose, so write the config by hand "
            '(task.preset = "trl")'
        )
    if not fitting:
        beside = (
            f"; {len(unread)} other {plural(len(unread), 'row')} cannot be read, the first: {unread[0]}"
            if unread
            else ""
        )
        raise DataError(
            f"no task fits the rows of {name} (columns {', '.join(map(str, columns)) or 'none'}): rename a column to "
            f"question and one to answer or solution, or write the [task] table by hand (selfdistill tasks){beside}"
        )
    best = max(fitting, key=lambda candidate: candidate.rank)
    return _split(best, MemoryRows(everything, name), unread)


def _candidates(columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the tables of tasks that may fit the columns, each with its origin."""
    for name in shipped_presets():
        yield {"preset": name, "kind": load_preset(name).kind}, f"preset {name}"

    def columns_named(names: Sequence[str]) -> list[str]:
        lower = {str(column).lower(): str(column) for column in columns}
        return [lower[name] for name in names if name in lower]

    prompts, answers, solutions, choices = map(columns_named, (PROMPTS, ANSWERS, SOLUTIONS, CHOICES))
    for prompt in prompts[:2]:
        for answer in answers[:3]:
            if answer == prompt:
                continue
            for options in choices[:1]:
                yield {"kind": "choice", "prompt": prompt, "choices": options, "answer": answer}, "column names"
            yield {"kind": "choice", "prompt": prompt, "answer": answer}, "column names"
            yield {"kind": "tools", "prompt": prompt, "answer": answer}, "column names"
            worked = [{"solution": solution} for solution in solutions[:1] if solution not in (prompt, answer)]
            for pattern in PATTERNS:
                form = {} if pattern is None else {"answer_pattern": pattern, "solution": answer}
                for solution_keys in [form] if pattern else [*worked, {}]:
                    yield {"kind": "math", "prompt": prompt, "answer": answer, **solution_keys}, "column names"
        for solution in solutions[:2]:
            if solution == prompt:
                continue
            if "text" in task_configs():
                yield {"kind": "text", "prompt": prompt, "completion": solution}, "column names"
            else:
                yield (
                    {"kind": "math", "prompt": prompt, "answer": "", "solution": solution, "suffix": ""},
                    "column names",
                )


def _tried(table: Mapping[str, Any], how: str, sample: MemoryRows) -> FoundTask | None:
    """Return the candidate with its shares of usable and verified rows; None if one of them is below a half."""
    try:
        task = _task(table, sample)
    except (ConfigError, DataError):
        return None
    examples = list(task.every_example())
    usable = len(examples) / max(1, task.rows)
    if usable < 0.5:
        return None
    # In a text task every completion counts as solved, however short it is.
    is_text = table["kind"] == "text"
    solved = any(
        any(example.fields.values()) if is_text else _is_worked(example.fields) for example in examples[:VERIFIED]
    )
    # Programs are not run: the sandbox takes seconds and may be missing. Rows that have tests count as verified.
    if table["kind"] == "code":
        verified: float | None = 1.0
    elif task.has_verifier:
        checked = [
            task.verify(example, task.reference(example), finished=True).correct for example in examples[:VERIFIED]
        ]
        verified = sum(checked) / len(checked)
    else:
        verified = None
    if (verified is not None and verified < 0.5) or (verified is None and not solved):
        return None
    if table["kind"] == "math" and verified is not None and not _short(examples):
        return None
    return FoundTask(str(table["kind"]), dict(table), how, sample.path, usable, verified, solved)


def _is_worked(fields: Mapping[str, str]) -> bool:
    """Whether a row has a solution that is longer than its answer."""
    return len(fields.get("solution", "")) > len(fields.get("answer", "")) + 10


def _short(examples: Sequence[Example]) -> bool:
    """Whether most answers are short enough to be final answers and not the solutions themselves."""
    lengths = sorted(len(example.fields.get("answer", "")) for example in examples)
    return lengths[len(lengths) // 2] <= 60


def _split(task_found: FoundTask, rows: MemoryRows, unread: Sequence[Rejected]) -> FoundTask:
    """Return the task with split shares that leave rows in every split, and with its counts of rows.

    ``unread`` are the rows of the source that are no objects.
    """
    # Hold out at least four rows if possible, else one. Rows go to splits by hash, so few rows are split unevenly.
    for least, share in product((4, 1), (0.1, 0.2, 0.4)):
        shares = {"validation_share": share, "test_share": share if share == 0.1 else 0.0}
        task = _task({**task_found.table, **shares}, rows)
        sizes = {split: task.size(split) for split in SPLITS}
        if sizes["validation"] >= least and sizes["train"] and (share > 0.1 or sizes["test"] >= least):
            break
    else:
        # A split takes all rows of a question, so that no question is trained on and held out.
        questions, total = task.duplicates.distinct, task.rows + len(unread)
        unusable = [*unread, *task.rejected]
        beside = f"; {counted(len(unusable), 'row')} cannot be used, the first: {unusable[0]}" if unusable else ""
        raise DataError(
            f"{rows.path} holds {questions} different {plural(questions, 'question')} in {total} "
            f"{plural(total, 'row')}, too few to hold any out: give at least ten{beside}"
        )
    table = {**task_found.table, **({} if share == 0.1 else shares)}
    reasons = {
        "preset": f"the schema of the columns; it fills the keys that are not here ({task_found.how})",
        "kind": "what the rows are, and so how a completion is verified"
        if task_found.verified is not None
        else "what the rows are: nothing verifies a completion",
        "answer_pattern": "what stands before the answer in its column",
        "validation_share": "a larger share than 0.1, because there are few rows",
        "test_share": "none, because there are few rows: evaluate with --split validation",
    }
    rejected = [*unread, *task.rejected]
    if rejected:
        table["bad_rows"] = "skip"
        reasons["bad_rows"] = f"{counted(len(rejected), 'row')} cannot be used, the first: {rejected[0]}"
    return replace(
        task_found,
        table=table,
        reasons=reasons,
        rows=task.rows + len(unread),
        rejected=len(rejected),
        train=sizes["train"],
        validation=sizes["validation"],
        examples=list(task.every_example()),
    )


def _task(table: Mapping[str, Any], rows: MemoryRows) -> RowTask:
    usual = {"path": rows.path, "bad_rows": "skip"}
    config = parse_config({"method": "grpo", "task": {**usual, **table}}, "init").task
    assert isinstance(config, RowsConfig)
    return build_row_task(config, seed=0, rows={"path": rows})
