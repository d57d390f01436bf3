"""docs/troubleshooting.md quotes sentences that the program really says, and leaves out no alarm."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from selfdistill.tracking.alarms import ALARMS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def texts() -> str:
    """All string literals of the package, their parts in f-strings joined by an ellipsis."""
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_quoted_sentence_is_one_that_the_program_says() -> None:
    # The first column of a table under "it says", and a sentence with a verb among the symptoms.
    quoted = [text for text in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE) if " " in text]
    said = texts()
    assert len(quoted) > 10
    assert [text for text in quoted if text not in said] == []


def test_every_alarm_has_its_line() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(ALARMS)
