"""Odd files: ``data check`` and the task that trains take the same ones, and refuse the others in a sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from selfdistill.config.tasks import MathConfig
from selfdistill.errors import UserError
from selfdistill.tasks.check import check_data
from selfdistill.tasks.data import read_rows
from selfdistill.tasks.math.task import MathTask

GOOD: list[dict[str, object]] = [{"question": f"{n} + 1 = ?", "answer": str(n + 1)} for n in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD)
CSV = "question,answer\n" + "".join(f'"{row["question"]}",{row["answer"]}\n' for row in GOOD)


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def broken_body() -> bytes:
    whole = bytearray(parquet(GOOD))
    whole[4:40] = b"\xff" * 36
    return bytes(whole)


def with_row(values: object) -> bytes:
    return (LINES + json.dumps(values) + "\n").encode()


TAKEN: dict[str, bytes] = {
    "plain.jsonl": LINES.encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "blank.jsonl": LINES.replace("\n", "\n\n").encode(),
    "number.jsonl": with_row({"question": "2 + 2", "answer": 4.0}),
    "twice.jsonl": (LINES + '{"question": "a", "question": "2 + 2", "answer": 4}\n').encode(),
    "zero byte.jsonl": with_row({"question": "2 +\x00 2", "answer": 4}),
    "packed.jsonl.gz": gzip.compress(LINES.encode()),
    "array.json": json.dumps(GOOD).encode(),
    "lines.json": LINES.encode(),
    "table.csv": CSV.encode(),
    "windows.CSV": b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(),
    "table.parquet": parquet(GOOD),
    "unused surrogate.jsonl": with_row({"question": "2 + 2", "answer": 4, "note": "\ud800"}),
    "long.jsonl": with_row({"question": "2 + 2" * 20_000, "answer": 4}),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "comma.jsonl": (LINES.replace("}", "},").encode(), "malformed JSON"),
    "nan.jsonl": ((LINES + '{"question": "x", "answer": NaN}\n').encode(), "is nan"),
    "nested.jsonl": (with_row({"question": {"text": "x"}, "answer": 1}), "'question' is a JSON object"),
    "missing.jsonl": (with_row({"question": "x"}), "no 'answer'"),
    "empty.jsonl": (b"", "holds no rows"),
    "empty prompt.jsonl": (with_row({"question": " ", "answer": 1}), "the prompt is empty"),
    "null.jsonl": (with_row({"question": "x", "answer": None}), "is null"),
    "list.jsonl": (with_row([1]), "must be a JSON object"),
    "surrogate prompt.jsonl": (with_row({"question": "2 + 2 \ud800", "answer": 4}), r"half a character (\ud800)"),
    "surrogate answer.jsonl": (with_row({"question": "2 + 2", "answer": "4 \udfff"}), r"half a character (\udfff)"),
    "utf16.jsonl": (LINES.encode("utf-16"), "not UTF-8"),
    "nothing.jsonl.gz": (gzip.compress(b""), "holds no rows"),
    "zero bytes.jsonl.gz": (b"", "holds no rows"),
    "no gzip.jsonl.gz": (LINES.encode(), "cannot be read"),
    "torn.jsonl.gz": (gzip.compress(LINES.encode())[:-9], "cannot be read"),
    "torn.json": (json.dumps(GOOD)[:-5].encode(), "no JSON array"),
    "numbers.json": (b"[1, 2]", "must be a JSON object"),
    "no rows.json": (b"[]", "holds no rows"),
    "short.csv": ((CSV + "x\n").encode(), "columns of the first line"),
    "doubled.csv": (b"question,question,answer\na,b,c\n", "a column twice"),
    "quote.csv": ((CSV + '"open,1\n').encode(), "no CSV table"),
    "head.csv": (b"question,answer\n", "holds no rows"),
    "text.parquet": (LINES.encode(), "not valid Parquet"),
    "body.parquet": (broken_body(), "not valid Parquet"),
    "table.jsonl": (parquet(GOOD), "not UTF-8"),
}


def checked(path: Path) -> str:
    """What ``data check`` has against a file; nothing where it takes every row."""
    try:
        report = check_data(str(path), task="math", preset=None, overrides=[])
    except UserError as error:
        return str(error)
    return "; ".join(report["rejected"])


def built(path: Path) -> str:
    try:
        MathTask(MathConfig(path=str(path), validation_share=0.0, test_share=0.0))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", TAKEN)
def test_what_the_check_takes_the_task_takes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(TAKEN[name])
    assert checked(path) == built(path) == ""
    assert [row.values["question"] for row in read_rows(path)][:4] == [row["question"] for row in GOOD]


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_check_refuses_the_task_refuses_in_the_same_words(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    for tell in (checked, built):
        assert words in tell(path)


@pytest.mark.parametrize("tell", [checked, built])
def test_an_empty_folder_is_refused(tell: Callable[[Path], str], tmp_path: Path) -> None:
    assert "cannot be read as a folder" in tell(tmp_path)


def test_nulls_that_a_table_adds_to_structs_are_no_values(tmp_path: Path) -> None:
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "find", "arguments": {"text": "x"}}]
    path = tmp_path / "calls.parquet"
    path.write_bytes(parquet([{"calls": [call], "note": None} for call in calls]))
    assert [row.values["calls"] for row in read_rows(path)] == [[call] for call in calls]
    assert read_rows(path)[0].values["note"] is None
