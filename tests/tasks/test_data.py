"""Reading rows, mapping columns to fields, splitting by a hash: values worked out by hand, every bad row's sentence."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import DataError
from selfdistill.tasks.data import Duplicates, Row, count_duplicates, map_row, read_rows, split_prompts


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def row(**values: Any) -> Row:
    return Row(7, values, "sums.jsonl")


def test_a_line_is_a_row_and_keeps_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "sums.jsonl", '{"q": "1 + 1", "a": 2}\n\n{"q": "line\u2028separator", "a": null}\n')
    assert read_rows(path) == [
        Row(1, {"q": "1 + 1", "a": 2}, str(path)),
        Row(3, {"q": "line\u2028separator", "a": None}, str(path)),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"q": 1}\r\n{"q": 2}')
    assert [one.values for one in read_rows(path)] == [{"q": 1}, {"q": 2}]


def test_parquet_rows_are_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "sums.parquet"
    parquet.write_table(pyarrow.table({"q": ["1 + 1", "2 + 2"], "meta": [{"a": 2}, {"a": 4}]}), path)
    rows = read_rows(path)
    assert [one.line for one in rows] == [1, 2]
    assert [map_row(one, {"answer": "meta.a"}) for one in rows] == [{"answer": "2"}, {"answer": "4"}]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"q": 1}\n{"q": }\n', "{path}, line 2: malformed JSON (Expecting value at column 7)"),
        ('{"q": 1}\n[1, 2]\n', "{path}, line 2: a row must be a JSON object, this is a list"),
        ('"q"\n', "{path}, line 1: a row must be a JSON object, this is a string"),
        ("null\n", "{path}, line 1: a row must be a JSON object, this is null"),
        ("", "data file {path} holds no rows"),
        ("\n  \n", "data file {path} holds no rows"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "rows.jsonl", text)
    with pytest.raises(DataError) as raised:
        read_rows(path)
    assert str(raised.value) == sentence.format(path=path)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data file .*absent\.jsonl not found"):
        read_rows(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"q": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"latin\.jsonl is not UTF-8 text"):
        read_rows(tmp_path / "latin.jsonl")
    (tmp_path / "text.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"text\.parquet is not valid Parquet"):
        read_rows(tmp_path / "text.parquet")


def test_every_kind_of_source() -> None:
    one = row(question="what is 6 / 2 ?", meta={"answer": 3, "a.b": "dots"}, choices=["two", "three"], **{"x.y": "own"})
    mapping = {
        "column": "question",
        "dotted": "meta.answer",
        "index": "choices.1",
        "column with dots": "x.y",
        "template": "Q: $question A: ${meta.answer} or ${choices.0}, for $$5",
    }
    assert map_row(one, mapping) == {
        "column": "what is 6 / 2 ?",
        "dotted": "3",
        "index": "three",
        "column with dots": "own",
        "template": "Q: what is 6 / 2 ? A: 3 or two, for $5",
    }


def test_numbers_read_as_a_person_would_write_them_and_data_is_no_template() -> None:
    one = row(whole=27.0, half=2.5, count=3, yes=True, price="$5 and $question")
    mapping = {"whole": "whole", "half": "half", "count": "count", "yes": "yes", "price": "<$price>"}
    assert map_row(one, mapping) == {
        "whole": "27",
        "half": "2.5",
        "count": "3",
        "yes": "true",
        "price": "<$5 and $question>",
    }


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("problem", "sums.jsonl, line 7: no 'problem', which field 'prompt' needs; the row has question, meta, gone"),
        ("meta.b", "sums.jsonl, line 7: no 'meta.b', which field 'prompt' needs; the row has question, meta, gone"),
        (
            "meta.list.2",
            "sums.jsonl, line 7: no 'meta.list.2', which field 'prompt' needs; the row has question, meta, gone",
        ),
        ("$question $x", "sums.jsonl, line 7: no 'x', which field 'prompt' needs; the row has question, meta, gone"),
        ("gone", "sums.jsonl, line 7: 'gone' is null, but field 'prompt' needs it"),
        ("meta.nan", "sums.jsonl, line 7: 'meta.nan' is nan, but field 'prompt' needs it"),
        ("meta.list", "sums.jsonl, line 7: 'meta.list' is a list, but field 'prompt' needs text or a number"),
        ("meta", "sums.jsonl, line 7: 'meta' is a JSON object, but field 'prompt' needs text or a number"),
        ("costs $ 5", "field 'prompt': the template 'costs $ 5' holds a stray '$'; write '$$' for a dollar sign"),
    ],
)
def test_a_source_that_a_row_cannot_fill_is_named(source: str, sentence: str) -> None:
    one = row(question="?", meta={"a": 1, "list": [1, 2], "nan": float("nan")}, gone=None)
    with pytest.raises(DataError) as raised:
        map_row(one, {"prompt": source})
    assert str(raised.value) == sentence


def test_the_place_in_the_split_is_the_published_hash() -> None:
    # SHA-256 of "abc" begins ba78… (0.7284 of the way), that of the empty text e3b0… (0.8894).
    assert split_prompts(["abc", ""], validation=0.10, test=0.73) == {"abc": "test", "": "train"}
    assert split_prompts(["abc", ""], validation=0.10, test=0.72) == {"abc": "validation", "": "train"}


def test_a_split_does_not_depend_on_order_and_grows_without_moving_anything() -> None:
    prompts = [f"problem {i}" for i in range(3000)]
    split = split_prompts(prompts, validation=0.1, test=0.2)
    shuffled = random.Random(0).sample(prompts, len(prompts))
    assert split_prompts(shuffled + shuffled[:50], validation=0.1, test=0.2) == split
    longer = split_prompts([*prompts, *(f"later {i}" for i in range(500))], validation=0.1, test=0.2)
    assert {prompt: longer[prompt] for prompt in prompts} == split
    sizes = {name: list(split.values()).count(name) / 3000 for name in ("train", "validation", "test")}
    # Three standard deviations of a share of 3,000 are at most 0.026.
    assert sizes == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.026)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_handful_of_rows_still_has_all_splits(count: int) -> None:
    prompts = [f"problem {i}" for i in range(count)]
    split = split_prompts(prompts, validation=0.01, test=0.01)
    assert set(split.values()) == {"train", "validation", "test"}
    assert split == split_prompts(prompts[::-1], validation=0.01, test=0.01)


def test_a_share_of_zero_is_an_empty_split() -> None:
    split = split_prompts([f"problem {i}" for i in range(50)], validation=0.0, test=0.0)
    assert set(split.values()) == {"train"}


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.1)])
def test_impossible_shares_are_refused(validation: float, test: float) -> None:
    with pytest.raises(DataError, match="must each be at least 0 and add up to less than 1"):
        split_prompts(["a"], validation=validation, test=test)


def test_duplicates_are_counted() -> None:
    assert count_duplicates(["a", "b", "a", "c", "b", "a"]) == Duplicates(rows=6, distinct=3, repeated=2)
