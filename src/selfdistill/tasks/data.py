"""Read the rows of a data set, map columns to fields, and split rows by a stable hash.

A field's source is one of three things:

- a column: ``"question"``;
- a dotted path into a column: ``"meta.answer"``, ``"choices.0"``;
- a template: ``"$question\\nAnswer: ${meta.answer}"`` (``$$`` is a dollar sign).

A column or path that ends in ``?`` may be absent or null: the row then lacks the field. Rows come from JSONL, JSON
and CSV files (also with ``.gz``), Parquet files, from folders that ``datasets`` saved, and from the hub.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from selfdistill.config.tasks import SourceConfig
from selfdistill.errors import DataError, first_line
from selfdistill.tasks.file_forms import check_form, form_of, holds_array, text_of, unwrapped

FieldMapping = Mapping[str, str]
"""Field name → source (a column, a dotted path or a ``$`` template)."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """Rows in memory: a list of dicts, or a ``datasets.Dataset``. ``path`` is their name in messages."""

    rows: Iterable[Any]
    path: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row with its file and line: ``Row(3, {"question": "1 + 1 = ?", "answer": 2}, "sums.jsonl")``."""

    line: int
    values: Mapping[str, Any]
    file: str

    @property
    def location(self) -> str:
        """File and line of the row, for messages."""
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used, and why."""

    line: int
    reason: str
    file: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Counts of repeated prompts: all ``rows``, ``distinct`` prompts, and prompts that are ``repeated``."""

    rows: int
    distinct: int
    repeated: int


class _RowTemplate(string.Template):
    # ${meta.answer} and ${choices.0}: inside braces a dotted path is allowed, which plain $name cannot hold.
    braceidpattern = r"[\w. -]+"


def read_rows(source: str | Path | SourceConfig) -> list[Row]:
    """All rows of a source.

    Raises:
        DataError: as for :func:`scan_rows`, or a line is malformed or not a JSON object.
    """
    rows = []
    for row in scan_rows(source):
        if isinstance(row, Rejected):
            raise DataError(str(row))
        rows.append(row)
    return rows


UNREAD = {".tsv", ".xlsx", ".xls", ".ods", ".yaml", ".yml", ".xml", ".html", ".pkl", ".arrow", ".zip", ".tar", ".zst"}
"""Endings of file types that are not supported. Without this check they would be rejected line by line as JSON."""


def scan_rows(source: str | Path | SourceConfig | MemoryRows) -> Iterator[Row | Rejected]:
    """Yield every row of a source; a malformed line is yielded as ``Rejected``.

    Sources are a JSONL file (one object per line, empty lines skipped), a ``.json`` array or an object that holds one
    under a key such as ``data``, a ``.csv`` table, each of them also with ``.gz``, a ``.parquet`` file, a folder saved
    by ``datasets``, a split of a hub data set, or rows in memory.

    Raises:
        DataError: the source is missing, unreadable or without rows.
    """
    if isinstance(source, MemoryRows):
        rows, first = _memory_rows(source), None
    else:
        source = source if isinstance(source, SourceConfig) else SourceConfig(path=str(source))
        rows, first = _stored_rows(source), source.first
    empty = True
    for row in islice(rows, first):
        empty = False
        yield row
    if empty:
        label = "" if isinstance(source, MemoryRows) else "data file "
        raise DataError(f"{label}{source.path} holds no rows")


def _memory_rows(source: MemoryRows) -> Iterator[Row | Rejected]:
    # A Dataset has nulls in structs like Parquet. In a list of dicts, a None was written by the user.
    tables = type(source.rows).__module__.partition(".")[0] == "datasets"
    for line, values in enumerate(source.rows, start=1):
        if tables:
            yield Row(line, _without_struct_nulls(values), source.path)
        elif isinstance(values, Mapping):
            yield Row(line, values, source.path)
        else:
            yield Rejected(line, f"a row must be a dict, this is {_kind(values)}", source.path)


def _stored_rows(source: SourceConfig) -> Iterator[Row | Rejected]:
    path = Path(source.path)
    if path.is_file():
        with path.open("rb") as opened:
            begin = opened.read(24)
        if begin.startswith(b"version https://git-lfs"):
            raise DataError(f"data file {path} is a pointer of git-lfs, not the file itself: run git lfs pull there")
        # What a compressed file is read as stands before its last ending.
        suffix, packed = form_of(path), path.suffix.lower() == ".gz"
        if suffix in UNREAD or (packed and suffix == ".parquet"):
            raise DataError(
                f"data file {path} is read in no way: save it as .jsonl, .json or .csv, each also with .gz, or .parquet"
            )
        readers = {".parquet": _parquet_rows, ".csv": _csv_rows}
        check_form(path, begin)
        # An array is read under any name, and so are JSON lines.
        is_array = suffix == ".json" or ((packed or suffix == ".jsonl") and holds_array(path))
        return readers.get(suffix, _json_rows if is_array else _jsonl_rows)(path)
    if path.is_dir() or source.split is not None:
        return _dataset_rows(source)
    hint = "" if path.suffix else '; a data set of the hub needs its split: path = { path = "…", split = "train" }'
    raise DataError(f"data file {path} not found{hint}")


def map_row(row: Row, mapping: FieldMapping) -> dict[str, str]:
    """The text of every field in the mapping.

    A float with an integer value is written as an integer (``27.0`` is ``27``), because table tools turn integer
    columns into floats.

    Raises:
        DataError: a column is missing or null, a source is malformed, or a value is a list or an object.
    """
    rendered = {name: _render(row, name, source) for name, source in mapping.items()}
    return {name: text for name, text in rendered.items() if text is not None}


def lookup(row: Row, name: str, path: str) -> object:
    """The value at a dotted path, of any type. A column whose name itself contains the dots takes precedence.

    Raises:
        DataError: there is no such value. The message names ``name``, the field that needs it.
    """
    if path in row.values:
        return row.values[path]
    value: object = row.values
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            columns = ", ".join(row.values) or "no columns"
            raise DataError(f"{row.location}: no {path!r}, which field {name!r} needs; the row has {columns}")
    return value


def split_prompts(prompts: Iterable[str], *, validation: float, test: float) -> dict[str, str]:
    """Every distinct prompt → ``"train"``, ``"validation"`` or ``"test"``, by a hash of its text alone.

    The order of rows does not matter, and all rows of one prompt share a split. An empty split with a positive share
    takes one prompt from the largest split, so even a handful of rows has all three splits.

    Raises:
        DataError: a share is negative, or the shares leave no training data.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        shares = f"validation {validation} and test {test}"
        raise DataError(f"the shares of {shares} must each be at least 0 and add up to less than 1")
    share_of = {"train": 1 - validation - test, "validation": validation, "test": test}
    members: dict[str, list[str]] = {split: [] for split in SPLITS}
    for prompt in sorted(set(prompts), key=_position):
        position = _position(prompt)
        split = "test" if position < test else "validation" if position < test + validation else "train"
        members[split].append(prompt)
    for split in SPLITS:
        largest = max(SPLITS, key=lambda name: len(members[name]))
        if share_of[split] > 0 and not members[split] and len(members[largest]) > 1:
            members[split].append(members[largest].pop(0))
    return {prompt: split for split, chosen in members.items() for prompt in chosen}


def count_duplicates(prompts: Sequence[str]) -> Duplicates:
    """How many prompts occur more than once."""
    counts = Counter(prompts)
    return Duplicates(rows=len(prompts), distinct=len(counts), repeated=sum(count > 1 for count in counts.values()))


def _position(prompt: str) -> float:
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _jsonl_rows(path: Path) -> Iterator[Row | Rejected]:
    for line, text in enumerate(text_of(path), start=1):
        if text.strip():
            values = _parse(text)
            yield Rejected(line, values, str(path)) if isinstance(values, str) else Row(line, values, str(path))


def _json_rows(path: Path) -> Iterator[Row | Rejected]:
    """The objects of one JSON array, numbered from 1, or of JSON lines under another name.

    An object may hold the array under a key such as ``data``.
    """
    text = "".join(text_of(path))
    if text.lstrip().startswith("["):
        try:
            listed = json.loads(text)
        except (RecursionError, ValueError) as error:
            raise DataError(f"data file {path} is no JSON array of objects: {first_line(error)}") from error
    else:
        rows = unwrapped(text, path)
        if rows is None:
            yield from _jsonl_rows(path)
            return
        listed = rows
    for number, values in enumerate(listed, start=1):
        if isinstance(values, dict):
            yield Row(number, values, str(path))
        else:
            yield Rejected(number, f"a row must be a JSON object, this is {_kind(values)}", str(path))


def _csv_rows(path: Path) -> Iterator[Row | Rejected]:
    """The rows of a table whose first line names the columns. Every value is text. A row's line is its last line."""
    # Python refuses fields above 131,072 characters unless it is told otherwise.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(text_of(path), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise DataError(f"data file {path} names a column twice in its first line: {', '.join(names)}")
        for values in reader:
            if len(values) == len(names):
                yield Row(reader.line_num, dict(zip(names, values, strict=True)), str(path))
            elif values:
                reason = f"a row must have the {len(names)} columns of the first line, this has {len(values)}"
                yield Rejected(reader.line_num, reason, str(path))
    except csv.Error as error:
        raise DataError(f"data file {path} is no CSV table: line {reader.line_num}: {error}") from error


def _parse(text: str) -> dict[str, Any] | str:
    """The object of one line, or the reason why it cannot be parsed."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        return f"malformed JSON ({error.msg} at column {error.colno})"
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer with too many digits
        return f"malformed JSON ({error})"
    return values if isinstance(values, dict) else f"a row must be a JSON object, this is {_kind(values)}"


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # imported here because it is slow and JSONL does not need it
    import pyarrow.parquet

    line = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    line += 1
                    yield Row(line, _without_struct_nulls(values), str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"data file {path} is not valid Parquet: {first_line(error)}") from error


def _without_struct_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """The row without nulls inside its columns.

    A Parquet struct has every key that occurs in any row, so one call would have the arguments of another as nulls.
    """
    return {name: _without_nulls(value) for name, value in values.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _dataset_rows(source: SourceConfig) -> Iterator[Row]:
    import datasets  # imported here because it takes a second

    local = Path(source.path).is_dir()
    try:
        if local:
            dataset = datasets.load_from_disk(source.path)
        else:
            streaming = source.first is not None
            dataset = datasets.load_dataset(
                source.path, source.config, split=source.split, revision=source.revision, streaming=streaming
            )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        origin = "as a folder saved by datasets" if local else "from the hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"data set {source.path} cannot be read {origin}: {reason}") from error
    if isinstance(dataset, dict):
        if source.split not in dataset:
            problem = f"no split {source.split!r}" if source.split else "several splits"
            raise DataError(f"data set {source.path} has {problem}; name one of {', '.join(dataset)} as its split")
        dataset = dataset[source.split]
    label = source.path if source.split is None else f"{source.path}:{source.split}"
    for line, values in enumerate(dataset, start=1):
        yield Row(line, _without_struct_nulls(values), label)


def _render(row: Row, name: str, source: str) -> str | None:
    if "$" not in source:
        if source.endswith("?") and source not in row.values:
            return _optional(row, name, source.removesuffix("?"))
        return _text(row, name, source)
    template = _RowTemplate(source)
    if not template.is_valid():
        raise DataError(f"field {name!r}: the template {source!r} holds a stray '$'; write '$$' for a dollar sign")
    return template.substitute({path: _text(row, name, path) for path in template.get_identifiers()})


def _optional(row: Row, name: str, path: str) -> str | None:
    try:
        value = lookup(row, name, path)
    except DataError:
        return None
    return None if value is None else _text(row, name, path)


def _text(row: Row, name: str, path: str) -> str:
    value = lookup(row, name, path)
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
        case None | float():
            missing = "null" if value is None else str(value)
            raise DataError(f"{row.location}: {path!r} is {missing}, but field {name!r} needs it")
        case _:
            raise DataError(f"{row.location}: {path!r} is {_kind(value)}, but field {name!r} needs text or a number")


def _kind(value: object) -> str:
    names = {
        dict: "a JSON object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")
