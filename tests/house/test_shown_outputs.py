"""Every output that the documentation shows is what its command prints, or says when and with what it was recorded."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfdistill.cli.app import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CODE = {"sh", "bash", "toml", "yaml", "python"}
"""Languages of what a reader writes; whatever else stands in a fence is taken for an output."""
FENCE = re.compile(r"^( *)```(\S*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
RECORDED = re.compile(r"Recorded on 20\d\d-\d\d-\d\d with [^\n]*`selfdistill [^\n]*:\n\n$")
"""The line above an output that takes more than seconds or a device that is not everywhere."""
BY_HAND = "<!-- a drawing -->\n"
"""The line above a drawing of characters, which readers do not see."""

ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(40)]
OWN = [
    {"id": 1, "problem": {"text": "What is 40 + 2?"}, "steps": "It is \\boxed{42}.", "final": "42", "hint": "add"},
    {"id": 2, "problem": {"text": "What is 70 + 2?"}, "steps": "It is \\boxed{71}.", "final": "72", "hint": "add"},
    {"id": 3, "problem": {"text": "What is 3 + 4?"}, "steps": "It is \\boxed{7}.", "hint": "add"},
]


def run_outputs(text: str) -> list[tuple[str, str]]:
    """Each shown command with the output below it."""
    shown = (re.match(r"\$ selfdistill (.*)\n", body) for _, _, body in FENCE.findall(text))
    return [(match[1], match.string[match.end() :]) for match in shown if match]


def unaccounted(text: str) -> Iterator[str]:
    """First lines of fences that are neither code without a shell's prompt, nor run below, nor recorded, nor drawn."""
    for fence in FENCE.finditer(text):
        above, body = text[: fence.start()], fence[3]
        code = fence[2] in CODE and not re.search(r"^ *\$ ", body, re.MULTILINE)
        if code or body.startswith("$ selfdistill ") or above.endswith(BY_HAND) or RECORDED.search(above):
            continue
        yield body.partition("\n")[0]


@pytest.mark.parametrize("page", [page for page in PAGES if run_outputs(page.read_text(encoding="utf-8"))], ids=str)
def test_every_shown_output_is_what_its_command_prints(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The pages were made without a GPU, whose kernels sample other completions.
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, rows in (("rows.jsonl", ROWS), ("own.jsonl", OWN)):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for command, output in run_outputs(page.read_text(encoding="utf-8")):
        assert output, f"{command} is shown without an output"
        with pytest.raises(SystemExit):
            main(shlex.split(command))
        printed = capsys.readouterr()
        # A page shows the beginning. What is not the result itself goes to stderr.
        assert printed.out.startswith(output) or printed.err.startswith(output), (command, printed.out, printed.err)


def test_every_shown_output_is_run_or_recorded() -> None:
    assert {page.name: list(unaccounted(page.read_text(encoding="utf-8"))) for page in PAGES} == {
        page.name: [] for page in PAGES
    }


def test_pasted_outputs_are_found() -> None:
    pasted = "```text\nloss 3\n```\n"
    assert list(unaccounted(f"So:\n\n{pasted}")) == ["loss 3"]
    assert list(unaccounted("```\nloss 3\n```\n\n  ```json\n  {}\n  ```\n")) == ["loss 3", "  {}"]
    assert list(unaccounted(f"Recorded on 2026-11-29 with `selfdistill train x`, two cores:\n\n{pasted}")) == []
    assert list(unaccounted(f"Recorded on 2026-11-29 with `selfdistill train x`:\n\n```sh\nls\n```\n\n{pasted}")) == [
        "loss 3"
    ]
    assert list(unaccounted(f"<!-- a drawing -->\n{pasted}```sh\nls\n```\n")) == []
    assert list(unaccounted("```sh\n$ ls\nloss 3\n```\n\n  ```sh\n  $ ls\n  ```\n")) == ["$ ls", "  $ ls"]
    assert run_outputs("```text\n$ selfdistill train x\nloss 3\n```\n") == [("train x", "loss 3\n")]


def test_there_are_pages_with_outputs() -> None:
    shown = [one for page in PAGES for one in run_outputs(page.read_text(encoding="utf-8"))]
    assert len(shown) >= 8


def test_every_shown_command_names_the_folder_that_it_needs() -> None:
    """`compare` and `inspect` refuse to start without --out."""
    commands = [
        f"{page.name}: {line}"
        for page in PAGES
        for _, language, body in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in ("sh", "bash")
        for line in body.replace("\\\n", " ").splitlines()
        if re.match(r"\s*selfdistill (compare|inspect)\b", line)
    ]
    assert len(commands) > 10
    assert [command for command in commands if "--out" not in command] == []
