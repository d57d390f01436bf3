"""Text made safe: for a file, for a tokenizer, for a terminal."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from selfdistill.cli.terminal import echo
from selfdistill.files.jsonl import JsonLines
from selfdistill.files.text import counted, plural, printable, well_formed
from selfdistill.tasks.judging import verify_all
from selfdistill.tracking.progress import Progress
from selfdistill.types import Example, Message, Verdict

STEERING = "\x1b]0;owned\x07 \u202eabc \x9b31m \ud800\r"
SHOWN = r"\x1b]0;owned\x07 \u202eabc \x9b31m \ud800\x0d"


def test_what_steers_a_terminal_is_shown_as_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(STEERING) == SHOWN
    assert printable("\x08\x0b\x1f\x7f\x9f\u061c\u200e\u200f\u2028\u2029\u2066\u2069") == (
        r"\x08\x0b\x1f\x7f\x9f\u061c\u200e\u200f\u2028\u2029\u2066\u2069"
    )
    assert printable("a\tb\r\nc é 中 👍") == "a\tb\nc é 中 👍"
    echo(STEERING)
    assert capsys.readouterr().out == SHOWN + "\n"
    log = io.StringIO()
    Progress(Console(file=log, width=200)).log(STEERING)
    assert log.getvalue() == SHOWN + "\n"


def test_json_lines_hold_any_text_and_no_raw_mark(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "lines.jsonl")
    lines.append({"text": STEERING, "é": "中"})
    assert list(lines.read()) == [{"text": STEERING, "é": "中"}]
    stored = lines.path.read_text(encoding="utf-8")
    assert printable(stored) == stored and '"é": "中"' in stored
    assert json.loads(stored)["text"] == STEERING
    # The mark counts and hashes the bytes of the file, not the characters of the text.
    data = lines.path.read_bytes()
    assert lines.mark() == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Quoting:
    name = "quoting"

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        return Verdict(0.0, answer=text, feedback=f"ValueError: {text}")


def test_what_a_task_quotes_can_be_encoded() -> None:
    asked = [(Example("1", (Message("user", "?"),), {}), "a\udc80b", True)]
    [verdict] = verify_all(Quoting(), asked)  # type: ignore[arg-type]
    assert (verdict.answer, verdict.feedback) == ("a\ufffdb", "ValueError: a\ufffdb")
    assert well_formed("👍 é") == "👍 é"


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (11, "11 rows")])
def test_a_count_of_one_is_singular(number: int, said: str) -> None:
    assert counted(number, "row") == said
    assert plural(number, "is", "are") == ("is" if number == 1 else "are")
