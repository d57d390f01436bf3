"""The code task on rows of its own: schemas, verdicts, feedback that keeps hidden tests hidden, and a whole run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from selfdistill.cli.app import main
from selfdistill.config.run import parse_config
from selfdistill.config.tasks import CodeConfig
from selfdistill.errors import ConfigError, DataError
from selfdistill.sandbox.cases import same_value
from selfdistill.tasks.build import build_row_task
from selfdistill.tasks.code.suites import Suite, find_code, read_tests, same_output, share_out, shorten
from selfdistill.tasks.code.task import CUT, NO_CODE, CodeTask
from selfdistill.types import Example
from support.isolation import needs_isolation
from support.tiny import save_tiny_model

pytestmark = needs_isolation

HUMANEVAL: dict[str, str] = {
    "task_id": "Mine/0",
    "prompt": 'from typing import List\n\n\ndef widest(xs: List[int]) -> int:\n    """ Largest gap.\n'
    '    >>> widest([1, 5, 6])\n    4\n    >>> widest([2])\n    0\n    """\n',
    "entry_point": "widest",
    "canonical_solution": "    return max((b - a for a, b in zip(xs, xs[1:])), default=0)\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 5, 6]) == 4\n"
    "    assert candidate([40, 83]) == 43\n    assert candidate([]) == 0\n",
}
MBPP: dict[str, Any] = {
    "task_id": 1,
    "text": "Write a function to join two trees of words.",
    "code": "class Leaf:\r\n    def __init__(self, w): self.w = w\r\ndef join(a, b):\r\n    return a.w + b.w",
    "test_setup_code": "one = Leaf('ab')",
    "test_list": ["assert join(one, Leaf('c')) == 'abc'", "assert join(one, one) == 'abab'"],
    "challenge_test_list": ["assert join(Leaf(''), Leaf('')) == ''"],
}
CASES = [{"input": "2\n1 2", "output": "3", "testtype": "stdin"}]
HIDDEN_CASES = [{"input": "3\n77 1 2", "output": "80\n", "testtype": "stdin"}]
STDIN = {
    "question_content": "Add the numbers of the second line.",
    "starter_code": "",
    "public_test_cases": json.dumps(CASES),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(HIDDEN_CASES)))).decode(),
    "metadata": "{}",
}
FUNCTIONAL = {
    "question_content": "Twice each number.",
    "starter_code": "class Solution:\n    def twice(self, xs: List[int], add: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n0", "output": "[2, 4]", "testtype": "functional"}]),
    "private_test_cases": json.dumps([{"input": "[55]\n1", "output": "[111]", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "twice"}),
}


def code(text: str) -> str:
    return f"Here it is.\n```python\n{text}\n```\nDone."


def task_of(folder: Path, preset: str, *rows: dict[str, Any], **options: Any) -> CodeTask:
    """A task as a config with a preset makes it."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shares = {"validation_share": 0.0, "test_share": 0.0}
    table = {"kind": "code", "preset": preset, "path": str(path), **shares, **options}
    config = parse_config({"method": "grpo", "task": table}, "test").task
    task = build_row_task(config, seed=0)  # type: ignore[arg-type]
    assert isinstance(task, CodeTask)
    return task


def only(task: CodeTask) -> Example:
    (example,) = task.examples("train")
    return example


def test_a_function_of_the_humaneval_schema(tmp_path: Path) -> None:
    task = task_of(tmp_path, "humaneval", HUMANEVAL)
    example = only(task)
    question = example.prompt[-1].content

    assert question.startswith("Complete this Python function.\n\n```python\nfrom typing import List")
    assert "43" not in question and "83" not in question
    assert task.verify(example, task.reference(example), finished=True).correct
    assert task.verify(example, code(HUMANEVAL["canonical_solution"]), finished=True).correct, "a body alone"
    assert task.verify(example, HUMANEVAL["canonical_solution"], finished=True).correct, "a continuation"
    assert task.verify(example, "<think>```python\n1\n```</think>" + task.reference(example), finished=True).correct


@pytest.mark.parametrize("start", ["def widest(xs):", "widest = lambda xs:", "widest: object = lambda xs:"])
def test_a_completion_that_defines_the_function_does_not_continue_the_prompt(tmp_path: Path, start: str) -> None:
    task = task_of(tmp_path, "humaneval", {**HUMANEVAL, "prompt": "def widest(xs):\n"})
    body = HUMANEVAL["canonical_solution"].strip().removeprefix("return " if "lambda" in start else "")

    assert task.verify(only(task), code(f"{start} {body}"), finished=True).correct
    assert task.verify(only(task), code(HUMANEVAL["canonical_solution"]), finished=True).correct


def test_of_a_hidden_test_only_the_kind_of_failure_is_told(tmp_path: Path) -> None:
    task = task_of(tmp_path, "humaneval", HUMANEVAL)
    example = only(task)

    def feedback(body: str) -> str:
        verdict = task.verify(example, code(f"def widest(xs):\n{body}"), finished=True)
        assert verdict.reward == 0.0 and verdict.feedback is not None
        return verdict.feedback

    shown = feedback("    return 4")
    assert shown == (
        "a hidden test failed: a wrong answer\nOf the examples in the question this one fails.\n"
        "the test failed: a wrong answer\ninput: widest([2])\nexpected: 0\ngot: 4"
    )
    clever = "    if len(xs) == 2: raise SyntaxError(xs)\n    return 4 if len(xs) > 1 else 0"
    assert feedback(clever) == "a hidden test failed: an exception (SyntaxError)"
    named = "    if xs[:1] == [40]: raise type(str(xs), (Exception,), {})(xs)\n    return 4 if xs[1:] else 0"
    assert feedback(named) == "a hidden test failed: an exception (Exception)"
    # What is written in loading may be told: no test's input was known then.
    assert feedback("    return 0\nimport nonsense").startswith("the code raised ModuleNotFoundError: No module named")


def test_functions_and_classes_of_the_mbpp_schema(tmp_path: Path) -> None:
    task = task_of(tmp_path, "mbpp", MBPP, reward="share")
    example = only(task)

    assert "assert join(one, one) == 'abab'" in example.prompt[-1].content
    assert "Leaf('')" not in example.prompt[-1].content
    assert task.verify(example, task.reference(example), finished=True).correct
    wrong = task.verify(example, code(MBPP["code"].replace("a.w + b.w", "'abc'")), finished=True)
    assert wrong.reward == pytest.approx(1 / 3)
    assert wrong.details == {"tests": wrong.reward, "tests_passed": 1.0, "tests_total": 3.0}
    assert wrong.feedback == (
        "the test failed: a wrong answer\ninput: join(<Leaf object>, <Leaf object>)\nexpected: 'abab'\ngot: 'abc'"
    )


def test_programs_of_the_livecodebench_schema(tmp_path: Path) -> None:
    task = task_of(tmp_path, "livecodebench", STDIN)
    example = only(task)
    right = "n = input()\nprint(sum(map(int, input().split())))"

    assert "stdin" in example.prompt[-1].content and "77" not in example.prompt[-1].content
    assert task.verify(example, code(right), finished=True).correct
    assert task.verify(example, code(right), finished=True).details == {"tests": 1.0}
    found = task.verify(example, code("print(3)"), finished=True)
    assert (found.reward, found.feedback) == (0.0, "a hidden test failed: a wrong answer")
    found = task.verify(example, code("print('no')"), finished=True)
    assert found.feedback == "the test failed: a wrong answer\ninput:\n2\n1 2\nexpected: 3\ngot: no"
    found = task.verify(example, code("x = 1\nprint(x / 0)"), finished=True)
    assert found.feedback == "the code raised ZeroDivisionError: division by zero\ninput:\n2\n1 2\nexpected: 3"


def test_functions_of_the_livecodebench_schema(tmp_path: Path) -> None:
    task = task_of(tmp_path, "livecodebench", FUNCTIONAL)
    example = only(task)
    method = "class Solution:\n    def twice(self, xs: List[int], add: int) -> List[int]:\n        "

    assert f"Use this starter code:\n\n```python\n{method.strip()}\n```" in example.prompt[-1].content
    assert task.verify(example, code(method + "return tuple(2 * x + add for x in xs)"), finished=True).correct
    found = task.verify(example, code(method + "return [2 * x for x in xs]"), finished=True)
    assert (found.reward, found.feedback) == (0.0, "a hidden test failed: a wrong answer")
    found = task.verify(example, code(method + "return xs.nothing"), finished=True)
    assert found.feedback is not None
    assert found.feedback.startswith("the code raised AttributeError: 'list' object has no attribute 'nothing' (line ")
    assert found.feedback.endswith("input:\n[1, 2]\n0\nexpected: [2, 4]")


def test_the_share_of_tests(tmp_path: Path) -> None:
    rows = {**STDIN, "public_test_cases": CASES + HIDDEN_CASES, "private_test_cases": ""}
    example = only(task := task_of(tmp_path, "livecodebench", rows, reward="share"))

    assert task.verify(example, code("print(80)"), finished=True).reward == 0.5
    assert only(task_of(tmp_path, "livecodebench", rows)).id == example.id


def test_completions_without_code(tmp_path: Path) -> None:
    task = task_of(tmp_path, "mbpp", MBPP)
    example = only(task)
    assert task.verify(example, "", finished=True).feedback == NO_CODE
    assert task.verify(example, "<think>```python\n1\n```", finished=True).feedback == NO_CODE
    cut = task.verify(example, f"```python\n{MBPP['code']}", finished=False)
    assert (cut.reward, cut.feedback, cut.details) == (0.0, CUT, {"no_code": 1.0})
    assert task.verify(example, f"```python\n{MBPP['code']}\n```\nSo this", finished=False).correct


def test_many_are_judged_at_once_and_in_order(tmp_path: Path) -> None:
    task = task_of(tmp_path, "livecodebench", STDIN)
    right = code("input(); print(sum(map(int, input().split())))")
    asked = [(only(task), text, True) for text in (right, code("print(3)"), right, "")]

    assert [verdict.reward for verdict in task.verify_many(asked)] == [1.0, 0.0, 1.0, 0.0]


def test_long_cases_are_cut_and_the_cut_is_marked(tmp_path: Path) -> None:
    row = {**STDIN, "public_test_cases": [{"input": "1" * 9000, "output": "2" * 9000, "testtype": "stdin"}]}
    example = only(task := task_of(tmp_path, "livecodebench", row, feedback_chars=300))
    feedback = task.verify(example, code("print(7)"), finished=True).feedback

    assert feedback is not None and len(feedback) < 500
    assert feedback.count("characters cut] …") == 2 and feedback.endswith("got: 7")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"test_list": [], "challenge_test_list": []}, "there are no tests"),
        ({"test_list": 7}, "tests must be test code"),
        ({"test_list": [{"input": "1"}]}, "needs an input and an output"),
        ({"test_list": [{"input": "x", "output": "1", "testtype": "functional"}]}, "must be JSON"),
        ({"test_list": base64.b64encode(b"no zlib, no pickle").decode()}, "cannot be unpacked"),
        ({"test_list": [{"input": "1", "output": "1", "testtype": "functional"}]}, "entry_point does not name it"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as error:
        task_of(tmp_path, "mbpp", {**MBPP, **changes})
    assert "rows.jsonl, line 1" in str(error.value)


def test_a_task_without_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public_tests"):
        CodeTask(CodeConfig(path="rows.jsonl"))


def test_a_pickle_that_names_a_function_is_not_opened() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(DataError, match="only plain values are read"):
        read_tests(packed, "here")


def test_the_forms_of_tests() -> None:
    assert read_tests("def check(f): pass", "") == Suite("def check(f): pass")
    assert read_tests(["assert f(1)", "assert f(2)"], "") == Suite("assert f(1)\nassert f(2)")
    apps = read_tests('{"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "add"}', "")
    assert (apps.function, apps.cases[0].arguments, apps.cases[0].value) == ("add", (1, 2), 3)
    plain = read_tests({"inputs": ["1 2", ["1", "2"]], "outputs": ["3", "3"]}, "")
    assert [case.given for case in plain.cases] == ["1 2", "1\n2"]
    assert not read_tests(None, "") and not read_tests("", "") and not read_tests([], "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\na\n```\n```py\nb\n```\n```\nc\n```", "b\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("  ```python\n  a\n  ```", "a\n"),
        ("  ```python\n a\n    b\n  ```", "a\n  b\n"),
        ("1. So:\n   ```python\n   if a:\n       b\n\n   c\n   ```", "if a:\n    b\n\nc\n"),
        ("- ```python\n  a\n  ```", "a\n"),
        ("> ```python\n> a\n>   b\n> ```", "a\n  b\n"),
        ("\t```python\n\ta\n\t```", "a\n"),
        ("```{python}\na\n```", "a\n"),
        ("```Python title='x'\na\n```", "a\n"),
        ("```a = 1``` is short.\n```python\nb\n```", "b\n"),
        ("```python\na", "a\n"),
        ("a = 1", "a = 1"),
        ("   ", None),
    ],
)
def test_the_code_in_a_completion(text: str, found: str | None) -> None:
    assert find_code(text, finished=True) == found


@pytest.mark.parametrize(
    ("said", "expected", "same"),
    [
        ("3\n", "3", True),
        (" 3 \r\n4\n\n", "3\n4", True),
        ("1.0 2", "1 2.00", True),
        ("1e3", "1000", True),
        ("3\n4", "3 4", False),
        ("YES", "yes", False),
        ("1", "1 1", False),
        ("nan", "nan", True),
        ("", "0", False),
        ("0.30000000000000004", "0.3", True),
        ("3.14159", "3.14160", True),
        ("3.1415", "3.1416", False),
        ("-0.0", "0.0", True),
        ("0.000000001", "0.0", True),
        ("0.0001", "0.0", False),
        ("100001", "100000", False),
        ("1e5", "100001", False),
        ("2.9999999999999996", "3", True),
        ("3.0001", "3", False),
        ("[0.1, 0.30000000000000004]", "[0.1, 0.3]", True),
        ("[0.1,0.3]", "[0.1, 0.3]", True),
        ("[0.1, 0.4]", "[0.1, 0.3]", False),
        ("(1.0, 2)", "[1.0, 2]", False),
        ("x = 0.50", "x = 0.5", True),
        ("1_0", "10", False),
        ("inf", "1e999", False),
        ("5.0", "1e999", False),
        ("1e998", "1e999", False),
        ("7" * 400, "8" * 400 + ".0", False),
        ("7" * 400, "7" * 400 + ".0", True),
        ("7" * 5000, "7" * 5000, True),
        ("7" * 4999 + "8", "7" * 5000, False),
        ("0" + "7" * 5000, "7" * 5000, True),
    ],
)
def test_output_is_compared_line_by_line(said: str, expected: str, same: bool) -> None:
    assert same_output(said, expected) is same


def test_values_are_compared_as_json_knows_them() -> None:
    assert same_value((1, [2, (3,)]), [1, [2, [3]]])
    assert same_value({"a": (1,)}, {"a": [1]})
    assert not same_value([1, 2], [2, 1])
    assert not same_value("1", 1)
    assert same_value(0.1 + 0.2, 0.3) and same_value([1, (0.1 + 0.2,)], [1, [0.3]]) and same_value(2.0, 2)
    assert same_value({"a": [0.1 + 0.2]}, {"a": [0.3]}) and not same_value(1.0, float("inf"))
    assert not same_value([0.31], [0.3]) and not same_value(100001, 100000) and not same_value(100000.5, 100000)
    assert not same_value(10**400, 1.0) and not same_value([0.3], [0.3, 0.3])
    assert same_value(10**5000, 10**5000) and not same_value(10**5000 + 1, 10**5000)


def test_cuts_are_marked() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("a" * 40 + "z" * 10, 20) == "a" * 15 + "\n… [30 characters cut] …\n" + "z" * 5
    assert share_out(["ab", "x" * 100], 60)[0] == "ab"


def test_a_tiny_model_trains_on_code(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    rows = [{**HUMANEVAL, "prompt": HUMANEVAL["prompt"].replace("Largest", f"Largest {n}")} for n in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "code.toml"
    config.write_text(
        f"""
        method.name = "sdpo"
        model.path = "{model}"
        task = {{ kind = "code", preset = "humaneval", path = "{path}", timeout = 1 }}
        steps = 2
        sampling = {{ prompts = 2, completions = 2, max_tokens = 8 }}
        evaluation = {{ problems = 1, samples = 1 }}
        """,
        encoding="utf-8",
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--out", str(tmp_path / "run")])

    assert ended.value.code == 0
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text("utf-8").splitlines()]
    assert len(rollouts) == 8 and all(one["reward"] == 0.0 for one in rollouts)


USAGE = "print(twice([1], 0))"


@pytest.mark.parametrize(
    "reply",
    [
        f"```python\nclass Solution:\n{{body}}```\nFor example:\n```python\n{USAGE}\n```",
        f"```python\n{USAGE}\n```\ncalls\n```python\nclass Solution:\n{{body}}```",
        f"```\nclass Solution:\n{{body}}```\n```python\n{USAGE}\n```",
        f"1. First:\n\n   ```python\n   class Solution:\n{{deeper}}   ```\n2. Then:\n   ```python\n   {USAGE}\n   ```",
        f"```python\n    class Solution:\n{{indented}}```\n```python\n    {USAGE}\n```",
    ],
)
def test_the_solution_is_the_block_that_defines_what_the_tests_call(tmp_path: Path, reply: str) -> None:
    task = task_of(tmp_path, "livecodebench", FUNCTIONAL)
    body = "    def twice(self, xs, n):\n        return [2 * x for x in xs] if n == 0 else [111]\n"
    deeper = "".join(f"   {line}\n" for line in body.splitlines())
    text = reply.format(body=body, deeper=deeper, indented="".join(f"    {line}\n" for line in body.splitlines()))
    assert find_code(text, finished=True, names=["Solution"]) == "class Solution:\n" + body
    assert task.verify(only(task), text, finished=True).correct


def test_tests_that_are_asserts_name_what_they_call(tmp_path: Path) -> None:
    task = task_of(
        tmp_path, "mbpp-sanitized", {"prompt": "Double.", "test_list": ["assert double(2) == 4"], "code": ""}
    )
    text = "```python\ndef double(x):\n    return 2 * x\n```\nUse it:\n```python\nprint(double(4))\n```"
    assert task.verify(only(task), text, finished=True).correct


def test_a_program_is_the_block_that_reads_its_input(tmp_path: Path) -> None:
    row = {"prompt": "Double.", "test_list": json.dumps([{"input": "4", "output": "8"}]), "code": ""}
    task = task_of(tmp_path, "mbpp-sanitized", row)
    text = "```python\nprint(2 * int(input()))\n```\nA trace:\n```python\nx = 4\nprint(2 * x)  # 8\n```"
    assert task.verify(only(task), text, finished=True).correct
    assert task.verify(only(task), "```python\nprint(8)\n```", finished=True).correct


def test_integers_may_have_more_digits_than_python_writes_by_itself(tmp_path: Path) -> None:
    big = "7" * 5000
    row = {"prompt": "Double.", "test_list": json.dumps([{"input": big, "output": big}]), "code": ""}
    program = task_of(tmp_path, "mbpp-sanitized", row)
    assert program.verify(only(program), code("print(int(input()))"), finished=True).correct
    assert program.verify(only(program), code(f"input()\nprint({big})"), finished=True).correct
    cases = [{"input": f"{big}\n1", "output": big, "testtype": "functional"}]
    metadata = json.dumps({"func_name": "twice"})
    row = {**FUNCTIONAL, "public_test_cases": json.dumps(cases), "private_test_cases": "", "metadata": metadata}
    function = task_of(tmp_path, "livecodebench", row)
    assert function.verify(
        only(function), code("class Solution:\n    def twice(self, x, n): return x"), finished=True
    ).correct
    wrong = function.verify(
        only(function), code("class Solution:\n    def twice(self, x, n): return x + 1"), finished=True
    )
    assert wrong.feedback is not None and wrong.feedback.rpartition("got:\n")[2].startswith("7777")
    apps = {
        "prompt": "Double.",
        "test_list": f'{{"inputs": [[{big}]], "outputs": [[{big}]], "fn_name": "same"}}',
        "code": "",
    }
    task = task_of(tmp_path, "mbpp-sanitized", apps)
    assert task.verify(only(task), code("def same(x): return x"), finished=True).correct
    asserts = {"prompt": "Double.", "test_list": [f"assert same({big}) == {big}"], "code": ""}
    task = task_of(tmp_path, "mbpp-sanitized", asserts)
    assert task.verify(only(task), code("def same(x): return x"), finished=True).correct
    assert not task.verify(only(task), code("def same(x): return x + 1"), finished=True).correct


def test_the_cases_are_judged_as_a_careful_reader_judges_them() -> None:
    told = json.loads((Path(__file__).parents[1] / "cases" / "code.json").read_text(encoding="utf-8"))
    wrong = [case for case in told["outputs"] if same_output(case[0], case[1]) is not case[2]]
    found = [
        (label, find_code(text, finished=True, names=names, program=not names), code)
        for label, text, names, code in told["blocks"]
    ]
    assert len(told["outputs"]) > 20 and not wrong
    assert len(found) > 10 and [label for label, taken, code in found if taken != code] == []
