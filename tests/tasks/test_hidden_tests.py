"""Hidden tests stay hidden: no feedback on any failing candidate names a value of theirs, whatever form they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import parse_config
from selfdistill.tasks.build import build_row_task
from selfdistill.tasks.code.task import CodeTask
from support.isolation import needs_isolation

pytestmark = needs_isolation

GIVEN, EXPECTED = "774310", "774311"
HIDDEN = (GIVEN, EXPECTED, "succ_check")
"""What stands in hidden tests alone: an input, its expected value, and a word of a test's own text."""

FORMS: dict[str, dict[str, Any]] = {
    "test code": {"hidden": f"def check(candidate):\n    assert candidate({GIVEN}) == {EXPECTED}, 'succ_check'"},
    "unittest": {
        "hidden": "import unittest\nclass Succ(unittest.TestCase):\n    def test_succ_check(self):\n"
        f"        self.assertEqual(succ({GIVEN}), {EXPECTED})"
    },
    "a function's cases": {
        "hidden": [{"input": GIVEN, "output": EXPECTED, "testtype": "functional"}],
        "public": [{"input": "1", "output": "2", "testtype": "functional"}],
    },
    "a function's hidden cases alone": {"hidden": [{"input": GIVEN, "output": EXPECTED, "testtype": "functional"}]},
    "a program's cases": {
        "hidden": [{"input": GIVEN, "output": EXPECTED, "testtype": "stdin"}],
        "public": [{"input": "1", "output": "2", "testtype": "stdin"}],
    },
}

FAILING = {
    "no Python": "def succ(x: return",
    "a missing import": "import nothing_of_that_name\ndef succ(x): return x + 1",
    "raises while it is loaded": "raise ValueError('x' * 50)",
    "exits while it is loaded": "import sys\nsys.exit(3)",
    "is killed while it is loaded": "import os\nos._exit(0)",
    "loops while it is loaded": "while True: pass",
    "hoards while it is loaded": "x = bytearray(10**10)",
    "crashes while it is loaded": "import ctypes\nctypes.string_at(0)",
    "is not there": "def other(x): return x",
    "a wrong answer": "def succ(x): return 2",
    "its own argument": "def succ(x): return [x, [x]] if x > 1 else 2",
    "its argument, printed": "def succ(x):\n    print(x)\n    return 2",
    "raises its argument": "def succ(x):\n    if x > 1: raise ValueError(x)\n    return 2",
    "an exception of that name": "def succ(x):\n    if x > 1: raise type(f'E{x}', (Exception,), {})(x)\n    return 2",
    "raises a syntax error": "def succ(x):\n    if x > 1: raise SyntaxError(x)\n    return 2",
    "exits with it": "import sys\ndef succ(x):\n    if x > 1: sys.exit(x)\n    return 2",
    "ends with it": "import os\ndef succ(x):\n    if x > 1: os._exit(x % 256)\n    return 2",
    "an object of that name": "def succ(x): return type('T' + str(x), (), {})() if x > 1 else 2",
    "a text too long": "def succ(x): return str(x) * 10**6 if x > 1 else 2",
    "a number too large": "def succ(x): return x ** 10**5 if x > 1 else 2",
    "a value that cannot be sent": "y = []\ny.append(y)\ndef succ(x): return [x, y] if x > 1 else 2",
    "a warning": "import warnings\ndef succ(x):\n    if x > 1: warnings.warn(str(x))\n    return 2",
    "loops": "def succ(x):\n    while x > 1: pass\n    return 2",
}
MAIN = "\nif __name__ == '__main__':\n    print(succ(int(input())))\n"


def task_of(folder: Path, form: str) -> CodeTask:
    row = {"question": "The number that follows. Write `def succ(x)`.", "name": "succ", **FORMS[form]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    table: dict[str, Any] = {"kind": "code", "path": str(folder / "rows.jsonl"), "prompt": "question", "timeout": 1}
    table |= {"hidden_tests": "hidden", "validation_share": 0.0, "test_share": 0.0, "memory": 256}
    table |= {"public_tests": "public"} if "public" in row else {}
    table |= {} if "program" in form else {"entry_point": "name"}
    task = build_row_task(parse_config({"method": "grpo", "task": table}, "test").task, seed=0)  # type: ignore[arg-type]
    assert isinstance(task, CodeTask)
    return task


@pytest.mark.parametrize("form", FORMS)
def test_no_feedback_names_a_hidden_value(tmp_path: Path, form: str) -> None:
    task = task_of(tmp_path, form)
    (example,) = task.examples("train")
    texts = [f"```python\n{source}\n{MAIN if 'program' in form else ''}```" for source in FAILING.values()]
    verdicts = task.verify_many([(example, text, True) for text in texts])

    for name, verdict in zip(FAILING, verdicts, strict=True):
        assert verdict.reward == 0.0 and verdict.feedback, name
        assert not [word for word in HIDDEN if word in verdict.feedback], f"{name}: {verdict.feedback}"
    right = f"```python\ndef succ(x): return x + 1\n{MAIN if 'program' in form else ''}```"
    assert task.verify(example, right, finished=True).correct
