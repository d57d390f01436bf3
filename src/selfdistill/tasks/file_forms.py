"""The form of a file of rows, told by its first bytes: a file of another form than its name says is refused."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from selfdistill.errors import DataError, first_line

MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"ARROW1": "Arrow"}
"""The first bytes of files that are no text, and what such a file is."""
ENDINGS = {"Parquet": ".parquet", "gzip": ".jsonl.gz"}


WRAPPERS = ("data", "rows", "examples", "records", "instances", "items", "train", "validation", "test")
"""Keys under which a JSON file may hold its list of rows."""


def form_of(path: Path) -> str:
    """The ending that says how a file is read: ``.csv`` of ``rows.csv.gz``, and ``.jsonl`` of a bare ``.gz``."""
    if path.suffix.lower() != ".gz":
        return path.suffix.lower()
    return Path(path.stem).suffix.lower() or ".jsonl"


def check_form(path: Path, begin: bytes) -> None:
    """Refuse a file that is of another form than its name says, by its first bytes.

    Raises:
        DataError: names the form that the file seems to have, and the remedy.
    """
    suffix = path.suffix.lower()
    form = _magic(begin)
    if form is not None and ENDINGS.get(form, "").rpartition(".")[2] != suffix.removeprefix("."):
        remedy = f"rename it to {path.stem}{ENDINGS[form]}" if form in ENDINGS else "unpack it or save it as .jsonl"
        raise DataError(f"data file {path} seems to be {form}, which its name does not say: {remedy}")
    if form == "gzip":
        begin, suffix = _begin_inside(path), form_of(path)
        if form := _magic(begin):
            raise DataError(f"data file {path} seems to be {form} inside gzip: unpack it")
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    if form is None and suffix in (".parquet", ".gz", ".csv") and text[:1] in (b"{", b"["):
        named = Path(path.stem).suffix.lower() == suffix and path.suffix.lower() == ".gz"
        name = f"{Path(path.stem).stem}.jsonl.gz" if named else path.stem if suffix == ".gz" else f"{path.stem}.jsonl"
        raise DataError(f"data file {path} seems to be JSON, and its name says {suffix}: rename it to {name}")
    if text[:1] == b"<" and form is None:
        raise DataError(f"data file {path} seems to be a page of HTML or XML, not rows: download the file itself")
    if form is None and suffix in (".json", ".jsonl") and text[:1] not in (b"{", b"[", b"") and _is_table(path):
        table = path.with_suffix("").stem + ".csv.gz" if path.suffix.lower() == ".gz" else f"{path.stem}.csv"
        raise DataError(
            f"data file {path} seems to be a table, and its name says {suffix}: a comma-separated one is read as "
            f"{table}"
        )


def _magic(begin: bytes) -> str | None:
    return next((form for magic, form in MAGIC.items() if begin.startswith(magic)), None)


def _begin_inside(path: Path) -> bytes:
    """The first bytes of a gzip file's content; none if it is torn, which the reading of it reports."""
    try:
        with gzip.open(path, "rb") as file:
            return file.read(24)
    except (EOFError, zlib.error, OSError):
        return b""


def _is_table(path: Path) -> bool:
    """Whether the first line of a file is no JSON and names several columns, and the second has as many."""
    lines = list(islice(text_of(path), 2))
    try:
        json.loads(lines[0])
    except ValueError:
        counts = [max(line.count(separator) for separator in ",;\t") for line in lines]
        return len(set(counts)) == 1 and counts[0] > 0 and not lines[-1].lstrip().startswith(("{", "["))
    return False


def holds_array(path: Path) -> bool:
    """Whether a file of JSON lines is one array of objects instead, written on one line or on several."""
    lines = (line.strip() for line in text_of(path))
    begin = "".join(islice(filter(None, lines), 2)).replace(" ", "")
    return begin.startswith("[{")


def unwrapped(text: str, path: Path) -> list[Any] | None:
    """The rows of a text that is one JSON object, which may hold them under a key such as ``data``; else None.

    An object without such a key is a row by itself.

    Raises:
        DataError: it holds several lists of rows.
    """
    try:
        table = json.loads(text)
    except (RecursionError, ValueError):
        return None
    if not isinstance(table, dict):
        return None
    lists = {key: value for key, value in table.items() if str(key).lower() in WRAPPERS and _is_rows(value)}
    if len(lists) > 1:
        raise DataError(
            f"data file {path} holds several lists of rows ({', '.join(lists)}): save each as a file of its own"
        )
    return next(iter(lists.values())) if lists else [table]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def text_of(path: Path) -> Iterator[str]:
    """The lines of a text file, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: the file is not UTF-8 text, or not a complete gzip file.
    """
    # utf-8-sig: tables saved on Windows begin with a byte-order mark, which is not JSON.
    opener: Callable[..., IO[str]] = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"data file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"data file {path} cannot be read: {first_line(error)}") from error
