"""A Python interpreter as a tool: what programs print, how they fail, and the page's example in an episode."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.errors import ConfigError
from selfdistill.sandbox.sandbox import Limits
from selfdistill.types import Example, Message
from support.isolation import needs_isolation

PAGE = (Path(__file__).parents[2] / "docs" / "turns.md").read_text(encoding="utf-8")
SUMS = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "PythonTool" in code)


class Bench(sd.ToolLoop):
    """Episodes that share an interpreter with small limits."""

    name = "bench"

    def __init__(self) -> None:
        self.interpreter = sd.PythonTool(Limits(cpu=1, seconds=10.0), characters=20)

    def examples(self, split: str) -> Sequence[Example]:
        return [Example("q", (Message("user", "how much ?"),), {})]

    def tools(self, example: Example) -> Sequence[Callable[..., Any]]:
        return [self.interpreter.python]

    def judge(self, example: Example, report: str) -> float:
        return 1.0


def words_of(messages: Sequence[Message] | str) -> str:
    """The words of the only message, or of the first that shows tools."""
    assert not isinstance(messages, str)
    first = messages[0]
    assert isinstance(first, Message)
    return first.content


def call(code: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'python', 'arguments': {'code': code}})}\n</tool_call>"


@needs_isolation
def test_a_program_is_told_what_it_printed_or_why_it_failed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    task = Bench()
    start = task.start(task.examples("train")[0])
    schema = json.loads(words_of(start.messages))[0]["function"]
    assert schema["name"] == "python" and list(schema["parameters"]["properties"]) == ["code"]
    failed = "error: python: ProgramFailed: "
    said = {
        "print(6 * 7)": "42",
        "kept = 1": "the program prints nothing",
        # A program sees nothing of the one before it.
        "print(kept)": f"{failed}NameError: name 'kept' is not defined",
        "print('a' * 25)": f"{'a' * 20} … 5 more characters",
        "print(1)\nraise SystemExit(3)": f"{failed}the program ended with code 3\nIt printed:\n1",
        # Neither part of a long error hides the other.
        "print('b' * 400)\nassert 0, 'c' * 400": f"{failed}AssertionError: {'c' * 284} … 116 more characters\n"
        f"It printed:\n{'b' * 20} … 380 more characters",
        "while True: pass": f"{failed}the program reached its limit of time",
        "import os; os.kill(os.getpid(), 11)": f"{failed}the interpreter crashed",
        f"open({str(tmp_path / 'secret')!r})": f"{failed}FileNotFoundError: [Errno 2] No such file or directory: ",
    }
    for code, text in said.items():
        reply = task.reply(start.state, call(code))
        assert not reply.done and len(reply.messages) == 1
        told = words_of(reply.messages)
        assert told.startswith(text) if text.endswith(": ") else told == text
        assert reply.error is text.startswith("error")


@needs_isolation
def test_the_pages_example_is_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sums.py").write_text(SUMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    task: Any = sd.load_task("my_sums:Sums")
    example = task.examples("train")[0]
    start = task.start(example)
    answer = task.reply(start.state, call(f"print({example.fields['answer']})")).messages[0].content
    assert answer == example.fields["answer"]
    report = task.reply(start.state, f"It is {answer}")
    assert (report.done, report.reward) == (True, 1.0)
    sys.modules.pop("my_sums", None)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"characters": 0}])
def test_an_interpreter_without_room_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1 worker and 1 character"):
        sd.PythonTool(**wrong)


def test_without_isolation_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.sandbox.isolation.trouble", lambda name: "not here")
    with pytest.raises(sd.UserError, match="model-written code is not run without a sandbox"):
        sd.PythonTool()
