"""Odd files: ``data check`` and the task that trains take the same ones, and refuse the others in a sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from selfdistill.config.run import parse_config
from selfdistill.config.tasks import MathConfig
from selfdistill.errors import DataError, UserError
from selfdistill.tasks.check import check_data
from selfdistill.tasks.data import read_rows
from selfdistill.tasks.math.task import MathTask
from selfdistill.training.loop import Run
from selfdistill.types import Example, Verdict
from support.bytewise import save_bytewise_model
from support.runs import Recorder, lines

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
    "packed.csv.gz": gzip.compress(CSV.encode()),
    "packed.json.gz": gzip.compress(json.dumps(GOOD, indent=1).encode()),
    "wrapped.json": json.dumps({"version": 1, "data": GOOD}, indent=1).encode(),
    "wrapped on a line.json": json.dumps({"Rows": GOOD}).encode(),
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
    "no gzip.jsonl.gz": (LINES.encode(), "seems to be JSON, and its name says .gz"),
    "torn.jsonl.gz": (gzip.compress(LINES.encode())[:-9], "cannot be read"),
    "torn.json": (json.dumps(GOOD)[:-5].encode(), "no JSON array"),
    "numbers.json": (b"[1, 2]", "must be a JSON object"),
    "no rows.json": (b"[]", "holds no rows"),
    "short.csv": ((CSV + "x\n").encode(), "columns of the first line"),
    "doubled.csv": (b"question,question,answer\na,b,c\n", "a column twice"),
    "quote.csv": ((CSV + '"open,1\n').encode(), "no CSV table"),
    "head.csv": (b"question,answer\n", "holds no rows"),
    "text.parquet": (LINES.encode(), "seems to be JSON, and its name says .parquet"),
    "body.parquet": (broken_body(), "not valid Parquet"),
    "table.jsonl": (parquet(GOOD), "seems to be Parquet"),
    "splits.json": (json.dumps({"train": GOOD, "test": GOOD}).encode(), "several lists of rows (train, test)"),
    "table.tsv.gz": (gzip.compress(CSV.replace(",", "\t").encode()), "is read in no way"),
    "table.parquet.gz": (gzip.compress(parquet(GOOD)), "is read in no way"),
    "table.gz": (gzip.compress(parquet(GOOD)), "seems to be Parquet inside gzip"),
    "table.jsonl.gz": (gzip.compress(CSV.encode()), "a comma-separated one is read as table.csv.gz"),
    "lines.csv.gz": (gzip.compress(LINES.encode()), "its name says .csv: rename it to lines.jsonl.gz"),
    "page.json.gz": (gzip.compress(b"<html></html>"), "a page of HTML"),
}


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bytewise_model(tmp_path_factory.mktemp("model"))


def checked(path: Path) -> str:
    """What ``data check`` has against a file; nothing where it takes every row."""
    try:
        report = check_data(str(path), task="math", preset=None, overrides=[])
    except UserError as error:
        return str(error)
    return "; ".join(report["rejected"])


class AllFiles:
    """The rows of all files that are taken, each read as its own run would read it; ids tell the files apart."""

    name, contexts, has_verifier = "math", "default", True

    def __init__(self, folder: Path) -> None:
        self.examples_by_split: dict[str, list[Example]] = {"train": [], "validation": []}
        for name, content in TAKEN.items():
            path = folder / name
            path.write_bytes(content)
            # An answer is a solution here, so that the rows have what ``sft`` and ``opsd`` teach.
            self.task = MathTask(MathConfig(path=str(path), solution="answer", validation_share=0.0, test_share=0.0))
            examples = [replace(one, id=f"{name} {one.id}") for one in self.task.examples("train")]
            self.examples_by_split["train"] += examples
            self.examples_by_split["validation"] = examples[:1]

    def examples(self, split: str) -> list[Example]:
        return self.examples_by_split[split]

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        return self.task.verify(example, text, finished=finished)


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


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("method", ["sft", "opsd"])
def test_what_the_check_takes_trains(method: str, tmp_path: Path, bytewise: Path) -> None:
    task = AllFiles(tmp_path)
    ids = [one.id for one in task.examples("train")]
    long = [
        one.id for one in task.examples("train") if one.id.startswith("long") and len(one.prompt[-1].content) > 8192
    ]
    assert len(long) == 1
    settings: dict[str, Any] = {
        "steps": 1,
        "model": {"path": str(bytewise)},
        "task": {"kind": "math", "path": str(tmp_path / "plain.jsonl")},
        "method": {"name": method},
        "sampling": {"prompts": len(ids) - 1, "completions": 1, "max_tokens": 2},
        "evaluation": {"every": 1, "problems": 1, "samples": 1},
    }
    progress = Recorder()
    Run(parse_config(settings, "a test"), tmp_path / "run", progress=progress, task=task).train()
    # Every row is learnt from, but for the one that is longer than the window, which is counted.
    trained = lines(tmp_path / "run" / "rollouts.jsonl")
    assert sorted(one["example"] for one in trained) == sorted(set(ids) - set(long))
    [step] = lines(tmp_path / "run" / "metrics.jsonl")
    assert step["skipped"] == {}
    assert step["tokens"] == sum(len(one["ids"]) for one in trained)
    window = {"sft": "prompt and solution too long for the window", "opsd": "prompt too long for the window"}
    assert f"left out: 1 × {window[method]}" in progress.said


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_check_refuses_the_task_refuses_in_the_same_words(name: str, tmp_path: Path) -> None:
    content, words = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    for log in (checked, built):
        assert words in log(path)


@pytest.mark.parametrize("refusal", [checked, built])
def test_an_empty_folder_is_refused(refusal: Callable[[Path], str], tmp_path: Path) -> None:
    assert "cannot be read as a folder" in refusal(tmp_path)


def test_nulls_that_a_table_adds_to_structs_are_no_values(tmp_path: Path) -> None:
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "find", "arguments": {"text": "x"}}]
    path = tmp_path / "calls.parquet"
    path.write_bytes(parquet([{"calls": [call], "note": None} for call in calls]))
    assert [row.values["calls"] for row in read_rows(path)] == [[call] for call in calls]
    assert read_rows(path)[0].values["note"] is None


ROW = '{"prompt": "1 + 1?", "completion": "2"}'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", "prompt,completion\n1 + 1?,2\n", "seems to be a table, and its name says .jsonl"),
        ("a.jsonl", "prompt\tcompletion\n1 + 1?\t2\n", "seems to be a table"),
        ("a.json", "prompt,completion\n1 + 1?,2\n", "a comma-separated one is read as a.csv"),
        ("a.csv", ROW, "seems to be JSON, and its name says .csv: rename it to a.jsonl"),
        ("a.parquet", ROW, "seems to be JSON, and its name says .parquet"),
        ("a.jsonl.gz", ROW, "seems to be JSON, and its name says .gz"),
        ("a.jsonl", "<!DOCTYPE html><html></html>", "seems to be a page of HTML or XML"),
        ("a.jsonl", b"PAR1 and more", "seems to be Parquet, which its name does not say: rename it to a.parquet"),
        ("a.json", b"PAR1 and more", "seems to be Parquet"),
        ("a.csv", b"\x1f\x8b\x08 and more", "seems to be gzip, which its name does not say: rename it to a.jsonl.gz"),
        ("a.jsonl", b"PK\x03\x04 and more", "seems to be a zip archive"),
    ],
)
def test_a_file_of_another_form_than_its_name_says_is_one_sentence(
    name: str, content: str | bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert str(refused.value).startswith(f"data file {path} ")
    assert sentence in str(refused.value)


def test_a_field_of_a_table_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"prompt,answer\n{'x' * 200_000},4\n", encoding="utf-8")
    assert [len(str(row.values["prompt"])) for row in read_rows(tmp_path / "a.csv")] == [200_000]


def test_an_object_on_several_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "1 + 1?", "data": [1]}, indent=1), encoding="utf-8")
    assert [row.values for row in read_rows(tmp_path / "a.json")] == [{"prompt": "1 + 1?", "data": [1]}]


@pytest.mark.parametrize("text", [f"[{ROW}, {ROW}]", f"[\n  {ROW},\n  {ROW}\n]\n", f"\n[ {ROW},\n{ROW}]"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_array_is_read_under_the_name_of_json_lines_too(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [row.values["completion"] for row in read_rows(tmp_path / name)] == ["2", "2"]
