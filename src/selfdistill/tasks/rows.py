"""Base class of tasks over rows of data: it reads and splits all rows, and counts duplicates and leaks.

A row becomes an example or is rejected with a reason. All rows are read before training starts, so a malformed last
line cannot stop a run after hours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from selfdistill.config.suggest import choices
from selfdistill.config.tasks import RowsConfig, SourceConfig
from selfdistill.errors import ConfigError, DataError
from selfdistill.files.text import counted, lone_surrogate, plural
from selfdistill.tasks.data import (
    SPLITS,
    Duplicates,
    FieldMapping,
    MemoryRows,
    Rejected,
    Row,
    count_duplicates,
    map_row,
    scan_rows,
    split_prompts,
)
from selfdistill.types import Example, Message, Verdict

_SHOWN = 3


class RowTask(ABC):
    """A task whose examples are rows of data. A subclass turns a row into an example and verifies completions.

    A split without a source of its own gets a share of ``path``, chosen by a stable hash. ``limit`` keeps the first
    examples of a split in file order.

    Args:
        config: the task's table.
        rows: rows in memory, by the config key that they replace (``path``, ``test_path`` …).

    Raises:
        DataError: a source or a row that cannot be used, with its line number.
    """

    name: str
    contexts = "default"
    has_verifier = True

    def __init__(self, config: RowsConfig, rows: Mapping[str, MemoryRows] | None = None) -> None:
        keys = {"train": "path", "validation": "validation_path", "test": "test_path"}
        sources = {split: (rows or {}).get(key, getattr(config, key)) for split, key in keys.items()}
        self._label = sources["train"] if isinstance(sources["train"], str) else sources["train"].path
        self.rows = 0
        """Number of rows read, rejected ones included."""
        rejected: list[Rejected] = []
        separate = [split for split in ("validation", "test") if sources[split]]
        shares = {"validation": config.validation_share, "test": config.test_share} | dict.fromkeys(separate, 0.0)
        pairs = _split(list(self._read(sources["train"], rejected)), **shares)
        for split in separate:
            pairs[split] = list(self._read(sources[split], rejected))
        self.rejected: Sequence[Rejected] = tuple(rejected)
        """Rows that cannot be used."""
        if rejected and config.bad_rows == "refuse":
            raise DataError(_refusal(rejected, self.rows))
        self.duplicates: Duplicates = count_duplicates([question for split in SPLITS for question, _ in pairs[split]])
        """How often questions repeat, over all splits."""
        questions = {split: [question for question, _ in pairs[split]] for split in SPLITS}
        self.leaks: Mapping[str, int] = leaks_between(questions)
        """``"train in test"`` → number of questions that both splits contain, ignoring spacing and case."""
        worked = _worked([example for _, example in pairs["train"]], config.worked_examples)
        self._examples = {
            split: tuple(_below(worked, example) for _, example in pairs[split] if example not in worked)[
                : config.limit
            ]
            for split in SPLITS
        }

    @abstractmethod
    def example_of(self, row: Row) -> tuple[str, Example]:
        """The row's question, whose hash decides the split, and the example.

        Raises:
            DataError: the row cannot be used.
        """

    @abstractmethod
    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        """Judge a completion."""

    @abstractmethod
    def reference(self, example: Example) -> str:
        """A completion that contains only the row's answer."""

    def examples(self, split: str) -> Sequence[Example]:
        """Examples of ``"train"``, ``"validation"`` or ``"test"``, in the order of their source.

        Raises:
            DataError: the split is empty.
        """
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}; {choices(split, SPLITS)}")
        if not self._examples[split]:
            raise DataError(f"no row of {self._label} is in the {split} split: give it a file or a larger share")
        return self._examples[split]

    def size(self, split: str) -> int:
        """Number of examples of a split, which may be 0."""
        return len(self._examples[split])

    def every_example(self) -> Iterator[Example]:
        """All examples of all splits."""
        for split in SPLITS:
            yield from self._examples[split]

    def warnings(self) -> list[str]:
        """Warnings about the rows, one sentence each: rows left out, repeated questions, splits that overlap."""
        warnings = []
        if self.rejected:
            are = plural(len(self.rejected), "is", "are")
            of = f"{len(self.rejected)} of {counted(self.rows, 'row')}"
            warnings.append(f"{of} {are} left out, the first: {self.rejected[0]}")
        repeated, distinct = self.duplicates.repeated, self.duplicates.distinct
        if repeated:
            warnings.append(
                f"{repeated} of {counted(distinct, 'question')} {plural(repeated, 'occurs', 'occur')} more than once"
            )
        warnings += [
            f"{counted(count, 'question')} of {pair.replace(' in ', plural(count, ' is in ', ' are in '))} as well"
            for pair, count in self.leaks.items()
        ]
        return warnings

    def _read(self, source: str | SourceConfig | MemoryRows, rejected: list[Rejected]) -> Iterator[tuple[str, Example]]:
        for row in scan_rows(source):
            self.rows += 1
            if isinstance(row, Rejected):
                rejected.append(row)
                continue
            try:
                question, example = self.example_of(row)
                _check_unicode(row, example)
                yield question, example
            except DataError as error:
                rejected.append(Rejected(row.line, str(error).removeprefix(f"{row.location}: "), row.file))


def _worked(examples: Sequence[Example], count: int) -> list[Example]:
    """The first ``count`` examples that have a solution.

    Raises:
        DataError: there are fewer, or no row would be left to train on.
    """
    worked = [example for example in examples if example.fields.get("solution")][:count]
    if len(worked) < count:
        raise DataError(
            f"task.worked_examples is {count}, and "
            f"{counted(len(worked), 'training row has', 'training rows have')} a solution: map a column to "
            "task.solution, or ask for fewer"
        )
    if count and len(worked) == len(examples):
        raise DataError(
            f"task.worked_examples is {count}, which leaves none of {counted(len(examples), 'row')} to train on"
        )
    return worked


def _below(worked: Sequence[Example], example: Example) -> Example:
    """The example with the worked examples as earlier turns, after its system message and tools."""
    if not worked:
        return example
    turns = [
        message
        for worked_example in worked
        for message in (worked_example.prompt[-1], Message("assistant", worked_example.fields["solution"]))
    ]
    heads = takewhile(lambda message: message.role in ("system", "tools"), example.prompt)
    head = tuple(heads)
    redraw = example.redraw
    return replace(
        example,
        prompt=(*head, *turns, *example.prompt[len(head) :]),
        redraw=None if redraw is None else lambda epoch: _below(worked, redraw(epoch)),
    )


def _check_unicode(row: Row, example: Example) -> None:
    texts = {message.role: message.content for message in example.prompt} | dict(example.fields)
    for name, text in texts.items():
        surrogate = lone_surrogate(text)
        if surrogate is not None:
            label = "the prompt" if name == "user" else f"{name!r}"
            raise DataError(
                f"{row.location}: {label} holds half a character ({surrogate}), which no tokenizer can encode"
            )


def question_and_fields(row: Row, mapping: FieldMapping) -> tuple[str, dict[str, str]]:
    """The text of ``prompt``, and the texts of all other fields.

    Raises:
        DataError: as for ``map_row``, or the prompt is empty.
    """
    fields = map_row(row, mapping)
    question = fields.pop("prompt", "")
    if not question.strip():
        raise DataError(f"{row.location}: the prompt is empty")
    return question, fields


def system_messages(row: Row, system: str | None) -> tuple[Message, ...]:
    """The system message, a ``$`` template over the row's columns. Empty if there is no template."""
    if system is None:
        return ()
    return (Message("system", map_row(row, {"system": system})["system"] if "$" in system else system),)


def example_id(row: Row) -> str:
    """``"train:7"`` for line 7 of ``train.jsonl``."""
    return f"{Path(row.file).stem}:{row.line}"


def _split(
    pairs: Sequence[tuple[str, Example]], *, validation: float, test: float
) -> dict[str, list[tuple[str, Example]]]:
    split_of = split_prompts((question for question, _ in pairs), validation=validation, test=test)
    return {split: [pair for pair in pairs if split_of[pair[0]] == split] for split in SPLITS}


def leaks_between(questions: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Number of questions that two splits share, ignoring spacing and case, by ``"train in test"``."""
    counts = {split: Counter(" ".join(text.split()).lower() for text in texts) for split, texts in questions.items()}
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    shared = {f"{first} in {second}": len(counts[first].keys() & counts[second].keys()) for first, second in pairs}
    return {pair: count for pair, count in shared.items() if count}


def _refusal(rejected: Sequence[Rejected], rows: int) -> str:
    if len(rejected) == 1:
        return str(rejected[0])
    if len(rejected) == rows and all("which field 'answer' needs" in row.reason for row in rejected):
        return f'{rejected[0]} (rows without answers, which nothing verifies, are read by task.kind = "text")'
    listed = "; ".join(map(str, rejected[:_SHOWN]))
    more = f"; and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    return (
        f"{len(rejected)} of {rows} rows cannot be used: {listed}{more} "
        '(selfdistill data check lists all; bad_rows = "skip" leaves them out)'
    )
