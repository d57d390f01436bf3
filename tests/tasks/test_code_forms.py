"""Every form in which data sets write tests: right code earns 1, and code that computes nothing earns 0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.tasks import CodeConfig
from selfdistill.errors import DataError
from selfdistill.sandbox.sandbox import Sandbox, Tally
from selfdistill.tasks.check import check_data
from selfdistill.tasks.code.task import NOT_ONE, UNREACHED, CodeTask
from selfdistill.types import Example, Verdict
from support.isolation import needs_isolation

pytestmark = needs_isolation

RIGHT = """
class Negative(Exception):
    pass
def double(x):
    if x is None: raise ValueError('no number')
    if x == -1: raise Negative('below')
    if x == -2: assert False, 'far below'
    return x * 2
"""

WRONG = {
    "nonsense": "def double(x): return 'nonsense'",
    "nothing": "def double(x): return None",
    "only exceptions": "def double(x): raise ValueError('no number')",
    "another name": "def triple(x): return x",
    "no function": "pass",
    "an exit": "import sys\ndef double(x): sys.exit(0)",
    "an end": "import os\ndef double(x): os._exit(0)",
    "an assertion": "def double(x): raise AssertionError('no number below')",
}

PYTEST = """
import pytest
from solution import double, Negative

@pytest.fixture
def four():
    yield 4

def test_plain():
    assert double(2) == 4

@pytest.mark.parametrize("x, y", [(1, 2), pytest.param(3, 6, id="three")])
@pytest.mark.parametrize("times", [1])
def test_table(x, y, times):
    assert double(x) == y * times

def test_raises(four):
    with pytest.raises(ValueError, match="no") as caught:
        double(None)
    assert "number" in str(caught.value)
    with pytest.raises(Negative):
        double(-1)
    pytest.raises(AssertionError, double, -2)
    assert double(four) == 8

@pytest.mark.slow
def test_near():
    assert double(0.1) == pytest.approx(0.2)
    assert [double(0.1)] == pytest.approx([0.2]) and {"a": double(1)} == pytest.approx({"a": 2})

@pytest.mark.skip(reason="later")
def test_skipped():
    assert double(1) == 3

if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
"""
UNITTEST = """
import unittest
from your_module import double

class TestDouble(unittest.TestCase):
    def setUp(self):
        self.two = 2
    def test_equal(self):
        self.assertEqual(double(self.two), 4)
        self.assertListEqual([double(1)], [2], "a list")
    def test_raises(self):
        with self.assertRaises(ValueError) as caught:
            double(None)
        self.assertIn("number", str(caught.exception))
        self.assertRaisesRegex(ValueError, "no", double, None)
    def test_parts(self):
        for n in range(3):
            with self.subTest(n=n):
                self.assertTrue(double(n) == 2 * n)
    @unittest.skip("later")
    def test_skipped(self):
        self.fail("never")

if __name__ == "__main__":
    unittest.main()
"""

# Code that always raises passes the first, code that returns nonsense the second: what follows has to fail by itself.
RAISED = "try:\n    double(None)\n    assert False\nexcept ValueError:\n    pass\n"
TRUE = "assert double(3)\n"

FORMS: dict[str, str | list[str] | dict[str, Any]] = {
    "asserts": ["assert double(2) == 4", "assert double('ab') == 'abab'"],
    "check that is called": "def check(f):\n    assert f(2) == 4\ncheck(double)",
    "a main guard": "if __name__ == '__main__':\n    assert double(2) == 4\n    print('ok')",
    "a main function": "def main():\n    assert double(2) == 4\nif __name__ == '__main__':\n    main()",
    "pytest": PYTEST,
    "pytest in a class": "from main import double\nclass TestDouble:\n    def setup_method(self):\n        self.x = 4\n"
    "    def test_it(self):\n        assert double(self.x) == 8",
    "test functions without pytest": "import solution as s\ndef test_it():\n    assert s.double(2) == 4",
    "test functions of a candidate": "def test_it(double):\n    for n in (1, 2):\n        assert double(n) == 2 * n",
    "test functions that a script calls": "def test_it():\n    assert double(2) == 4\ntest_it()\nprint('passed')",
    "unittest": UNITTEST,
    "unittest run by hand": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
    "        assert double(2) == 4\nsuite = unittest.defaultTestLoader.loadTestsFromTestCase(T)\n"
    "unittest.TextTestRunner().run(suite)",
    "a loop": "for n in range(4):\n    assert double(n) == n + n",
    "a helper": "def same(a, b):\n    assert a == b\nsame(double(2), 4)",
    "a failure that is caught": RAISED + "try:\n    found = double(2)\n    assert found == 4\n    print('ok')\n"
    "except AssertionError:\n    print('failed')",
    "any failure that is caught": RAISED
    + "def run():\n    try:\n        found = double(2)\n        assert found == 4\n"
    "        return True\n    except Exception as error:\n        print(error)\n        return False\nrun()",
    "a failure that is suppressed": RAISED + "from contextlib import suppress\nwith suppress(Exception):\n"
    "    found = double(2)\n    assert found == 4",
    "an expected exception": "try:\n    double(None)\n    assert False, 'it accepts nothing'\n"
    "except ValueError:\n    pass\nassert double(3) == 6",
    "an if that raises": "if double(2) != 4:\n    raise AssertionError('wrong')",
    "an if that raises and is caught": TRUE + "try:\n    if double(2) != 4:\n        raise AssertionError('wrong')\n"
    "except AssertionError as error:\n    print(error)",
    "a helper's failure that is caught": TRUE + "def same(a, b):\n    if a != b:\n        raise AssertionError(a)\n"
    "try:\n    same(double(2), 4)\nexcept AssertionError as error:\n    print(error)",
    "an if that exits": TRUE + "import sys\nif double(2) != 4:\n    print('wrong')\n    sys.exit(1)\nsys.exit(0)",
    "unittest.mock's asserts": "from unittest.mock import Mock\nseen = Mock()\nseen(double(2))\n"
    "seen.assert_called_once_with(4)",
    "a session": ">>> double(2)\n4\n>>> x = double(3)\n>>> x + 1\n7\n>>> double(None)\n"
    "Traceback (most recent call last):\n    ...\nValueError: no number\n",
    "functional cases": {"fn_name": "double", "inputs": [[2], ["ab"]], "outputs": [4, "abab"]},
}


def rows_file(folder: Path, *rows: Mapping[str, object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Twice it.", **row}) + "\n" for row in rows), encoding="utf-8")
    return path


def task_of(folder: Path, *rows: Mapping[str, object], **options: Any) -> CodeTask:
    """A task on rows with their tests in ``test``, and perhaps a solution in ``code``."""
    table = {
        "hidden_tests": "test",
        "solution": "code?",
        "timeout": 2.0,
        "validation_share": 0.0,
        "test_share": 0.0,
        **options,
    }
    return CodeTask(CodeConfig(path=str(rows_file(folder, *rows)), **table))


def judged(task: CodeTask, example: Example, code: str) -> Verdict:
    return task.verify(example, f"```python\n{code}\n```", finished=True)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[CodeTask, dict[str, Example]]:
    folder = tmp_path_factory.mktemp("forms")
    rows = [{"test": test, "name": "double" if "(double)" in str(test) else ""} for test in FORMS.values()]
    task = task_of(folder, *rows, entry_point="name", workers=4)
    return task, dict(zip(FORMS, task.examples("train"), strict=True))


@pytest.mark.parametrize("name", FORMS)
def test_right_code_earns_all_and_code_that_computes_nothing_nothing(
    forms: tuple[CodeTask, dict[str, Example]], name: str
) -> None:
    task, examples = forms
    asked = [(examples[name], f"```python\n{code}\n```", True) for code in (RIGHT, *WRONG.values())]
    right, *wrong = task.verify_many(asked)

    assert (right.reward, right.details, right.feedback) == (1.0, {"tests": 1.0}, None)
    assert {kind: one.reward for kind, one in zip(WRONG, wrong, strict=True)} == dict.fromkeys(WRONG, 0.0)
    assert all(one.feedback for one in wrong)


FORGERIES = {
    "tests of its own": "def check(*_): pass\ndef test_it(*_): pass\nclass TestDouble: pass\ndef main(): pass\n"
    "def double(x): return None",
    "the judge's hooks": "def __case__(*_): pass\n__entered__ = __plain__ = __guard__ = __case__\n"
    "def double(x): return None",
    "a patched unittest": "import unittest, sys\nfor name in dir(unittest.TestCase):\n"
    "    if name.startswith('assert'):\n"
    "        setattr(unittest.TestCase, name, lambda *_, **__: None)\nsys.modules['pytest'] = unittest\n"
    "def double(x): return None",
    "modules of its own": "import sys, types\nfor name in ('pytest', 'solution', 'your_module', 'unittest'):\n"
    "    sys.modules[name] = types.ModuleType(name)\ndef double(x): return None",
    "a skip": "import unittest\ndef double(x): raise unittest.SkipTest('later')",
    "a skip of pytest's name": "class Skipped(BaseException): pass\ndef double(x): raise Skipped('later')",
    "an exit while loading": "raise SystemExit(0)",
    "what equals everything": "class Same(int):\n    def __eq__(self, other): return True\n"
    "    __ne__ = __lt__ = lambda self, other: False\n    __hash__ = int.__hash__\ndef double(x): return Same()",
    "an object": "class Same:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
    "    def __getattr__(self, name): return self\n    def __call__(self, *_): return self\ndouble = Same()",
    "a verdict": 'import os\ntext = b\'{"verdict": {"passed": 9, "total": 9, "failure": null}}\'\ndef double(x):\n'
    "    for n in range(20):\n        try: os.write(n, b'%d\\n' % len(text) + text)\n        except OSError: pass",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_form_of_tests_is_deceived(forms: tuple[CodeTask, dict[str, Example]], name: str) -> None:
    task, examples = forms
    tried = ("pytest", "unittest", "check that is called", "any failure that is caught", "an if that exits")
    verdicts = task.verify_many([(examples[form], f"```python\n{FORGERIES[name]}\n```", True) for form in tried])

    assert {form: one.reward for form, one in zip(tried, verdicts, strict=True)} == dict.fromkeys(tried, 0.0)


NOTHING = "the tests check nothing that the code computes"
UNDER_OWN = "no check of the tests is reached under the row's own solution"

REFUSED: dict[str, tuple[str, str]] = {
    "only printed": ("print(double(2) == 4)", NOTHING),
    "only called": ("double(2)\nassert True", NOTHING),
    "a tuple, which is always true": ("assert (double(2) == 4, 'wrong')", NOTHING),
    "nobody calls it": ("def run_tests():\n    assert double(2) == 4", NOTHING),
    "the code is not asked": ("x = 4\nassert x == 4", NOTHING),
    "an assert function that nobody defines": ("assert_equal(double(2), 4)", NOTHING),
    "an empty loop": ("for n in range(0):\n    assert double(n) == 2 * n", UNDER_OWN),
    "an empty table": (
        "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_it(x):\n    assert double(x)",
        UNDER_OWN,
    ),
    "behind an end": ("import sys\nsys.exit(0)\nassert double(2) == 4", UNDER_OWN),
    "another name for main": ("if __name__ == 'tests':\n    assert double(2) == 4", UNDER_OWN),
    "no Python": ("assert double(2) = 4", "the tests are no Python: "),
    "a fixture of pytest's": (
        "def test_it(capsys):\n    assert double(2) == 4",
        "test_it asks for 'capsys', which no fixture",
    ),
    "pytest.warns": (
        "import pytest as p\ndef test_it():\n    with p.warns(X): double(2)",
        "the tests use pytest.warns, ",
    ),
    "from pytest": ("from pytest import LogCaptureFixture\nassert double(2) == 4", "the tests use pytest.LogCapture"),
    "a test that is expected to fail": (
        "import pytest\n@pytest.mark.xfail\ndef test_it(): assert double(2) == 5",
        UNDER_OWN,
    ),
    "a test that is expected to raise": (
        "import pytest\n@pytest.mark.xfail(raises=ValueError)\ndef test_it(): double(None)\nassert double(2) == 4",
        "the tests use raises of pytest.mark.xfail, which is not supported",
    ),
    "a condition that is a text": (
        "import pytest\n@pytest.mark.skipif('1 > 2', reason='never')\ndef test_it(): assert double(2) == 4",
        "the tests quote a condition of pytest.mark.skipif, which is not supported",
    ),
    "a named condition that is a text": (
        "import pytest\n@pytest.mark.xfail(condition='1 > 2')\ndef test_it(): assert double(2) == 4",
        "the tests quote a condition of pytest.mark.xfail, which is not supported",
    ),
    "a fixture that a mark asks for": (
        "import pytest\n@pytest.mark.usefixtures('four')\ndef test_it(): assert double(2) == 4",
        "the tests use pytest.mark.usefixtures, which is not supported",
    ),
    "a fixture that nobody asks for": (
        "import pytest\n@pytest.fixture(autouse=True)\ndef four(): return 4\ndef test_it(): assert double(2) == 4",
        "the tests use autouse of pytest.fixture, which is not supported",
    ),
    "a table for fixtures": (
        "import pytest\n@pytest.mark.parametrize('x', [1], indirect=True)\ndef test_it(x): assert double(x) == 2",
        "the tests use indirect of pytest.parametrize, which is not supported",
    ),
    "expectedFailure": (
        "import unittest\nclass T(unittest.TestCase):\n    @unittest.expectedFailure\n"
        "    def test_it(self): self.assertEqual(double(2), 5)",
        "the tests use unittest's expectedFailure, which is not supported",
    ),
    "asynchronous": ("async def test_it():\n    assert await double(2) == 4", "the test test_it is asynchronous"),
    "a package": ("import nose\nnose.tools.assert_equal(double(2), 4)", "the tests import nose, which the sandbox's"),
}


def test_tests_that_reach_nothing_are_refused_by_line_in_the_check_and_in_a_run(tmp_path: Path) -> None:
    rows = [{"test": test, "code": RIGHT} for test, _ in REFUSED.values()]
    good = {"test": "assert double(2) == 4", "code": RIGHT}
    path = rows_file(tmp_path, *rows, good)
    settings = ("hidden_tests=test", "solution=code?")
    report = check_data(str(path), task="code", preset=None, overrides=[f"task.{one}" for one in settings])
    reasons = {line: reason for reason, lines in report["rejected"].items() for line in lines}

    for line, (name, (_, why)) in enumerate(REFUSED.items(), 1):
        assert why in reasons[line], f"{name}: {reasons[line]}"
    assert (report["checked"], report["verified"]) == (1, 1.0)
    task = task_of(tmp_path, *rows, good, bad_rows="skip")
    assert {one.line: one.reason for one in task.rejected} == reasons
    with pytest.raises(DataError, match=f"{len(rows)} of {len(rows) + 1} rows cannot be used: .*line 1: {NOTHING}"):
        task_of(tmp_path, *rows, good)


def test_a_solution_that_fails_its_tests_is_listed_once_and_not_as_silent(tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"test": UNITTEST, "code": WRONG["nonsense"]})
    report = check_data(str(path), task="code", preset=None, overrides=["task.hidden_tests=test", "task.solution=code"])

    assert (report["rejected"], report["verified"], report["silent_solutions"]) == ({}, 0.0, 0)
    assert [(row["line"], row["why"]) for row in report["unverified"]] == [(1, "a hidden test failed: a wrong answer")]


def test_a_test_that_is_expected_to_fail_says_nothing_unless_its_condition_is_false(tmp_path: Path) -> None:
    fault = "@pytest.mark.xfail(reason='a known fault', strict=True)\ndef test_fault(): assert double(1) == 3\n"
    mended = "@pytest.mark.xfail(False, reason='mended')\ndef test_mended(): assert double(3) == 6\n"
    task = task_of(tmp_path, {"test": f"import pytest\n{fault}{mended}", "code": RIGHT}, reward="share")
    (example,) = task.examples("train")

    assert judged(task, example, RIGHT).reward == 1.0
    # It fulfils the expected failure, and that earns nothing.
    assert judged(task, example, "def double(x): return 3").reward == 0.0


METHOD = "    def test_it(self): self.assertEqual(double(1), 3)\n"
FUNCTION = "def test_it(): assert double(1) == 3\n"
SKIPPED = {
    "a method of unittest": f"class T(TestCase):\n    @mark.xfail\n{METHOD}",
    "a class of unittest": f"@mark.skip\nclass T(TestCase):\n{METHOD}",
    "a function, by unittest": f"@skip('later')\n{FUNCTION}",
    "a class": "@mark.xfail\nclass TestIt:\n    def test_it(self): assert double(1) == 3\n",
    "a class, by a name": "class TestIt:\n    pytestmark = mark.skip\n    def test_it(self): assert double(1) == 3\n",
    "a TestCase, by a name": f"class T(TestCase):\n    pytestmark = [mark.slow, mark.xfail(reason='later')]\n{METHOD}",
    "a module": f"pytestmark = mark.skipif(True, reason='later')\n{FUNCTION}class T(TestCase):\n{METHOD}",
}


@pytest.mark.parametrize("tests", SKIPPED.values(), ids=SKIPPED)
def test_skipped_tests_are_neither_passed_nor_failed_whatever_skips_them(tests: str) -> None:
    head = "from pytest import mark\nfrom unittest import TestCase, skip\nassert double(2) == 4\n"
    unmarked = tests.replace("mark.", "mark.not_").replace("@skip('later')\n", "")
    skipped, run = (Sandbox().judge(RIGHT, tests=head + text, entry="double") for text in (tests, unmarked))

    assert isinstance(skipped, Tally) and (skipped.passed, skipped.total) == (1, 1)
    assert isinstance(run, Tally) and run.total > run.passed == 1


def test_without_a_solution_tests_are_refused_where_nothing_in_them_could_fail(tmp_path: Path) -> None:
    loop = {"test": "for x in double([1]):\n    assert x == 1"}
    task = task_of(
        tmp_path, {"test": "print(double(2))"}, loop, {"test": [{"input": "1", "output": " "}]}, bad_rows="skip"
    )
    (example,) = task.examples("train")

    assert [(one.line, one.reason) for one in task.rejected] == [(1, NOTHING), (3, NOTHING)]
    assert judged(task, example, RIGHT).reward == 1.0
    verdict = judged(task, example, "def double(x): return []")
    assert (verdict.reward, verdict.feedback, verdict.details) == (0.0, UNREACHED, {"tests": 0.0})


def test_a_test_function_whose_own_checks_are_passed_by_has_not_held(tmp_path: Path) -> None:
    tests = "def test_type():\n    assert isinstance(double([1]), list)\ndef test_items():\n"
    tests += "    for x in double([1]):\n        assert x == 1\n"
    task = task_of(tmp_path, {"test": tests, "code": RIGHT}, reward="share")
    (example,) = task.examples("train")

    assert task.verify(example, task.reference(example), finished=True).reward == 1.0
    verdict = judged(task, example, "def double(x): return []")
    assert (verdict.reward, verdict.feedback) == (0.5, "a hidden test failed: no check was reached in it")


@pytest.mark.parametrize(
    ("test", "code", "share"),
    [
        (["assert double(1) == 2", "assert double(2) == 5", "assert True"], RIGHT, 1 / 2),
        (PYTEST, RIGHT.replace("x * 2", "x * 2 if x != 3 else 7"), 9 / 10),
        (UNITTEST, RIGHT.replace("x * 2", "x * 2 if x else 1"), 7 / 8),
        ("def test_a():\n    x = double(None)\n    assert x\ndef test_b():\n    assert double(1) == 2", RIGHT, 1 / 2),
    ],
)
def test_the_share_counts_checks_that_were_reached(tmp_path: Path, test: Any, code: str, share: float) -> None:
    task = task_of(tmp_path, {"test": test}, reward="share")
    (example,) = task.examples("train")

    assert judged(task, example, code).reward == pytest.approx(share)


@pytest.mark.parametrize(
    "test",
    [
        "try:\n    double(None)\n    assert False\nexcept:\n    pass",
        "try:\n    double(None)\n    assert False\nexcept Exception:\n    pass",
        "import pytest\ndef test_it():\n    with pytest.raises(BaseException):\n        double(None)",
        "import unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertRaises(NameError, lambda: double(None))",
        "import pytest\ndef test_it():\n    pytest.raises(SystemExit, double, None)",
    ],
)
def test_a_function_that_is_missing_or_ends_is_no_expected_exception(tmp_path: Path, test: str) -> None:
    task = task_of(tmp_path, {"test": f"assert half(4) == 2\n{test}"})
    (example,) = task.examples("train")
    half = "def half(x): return x / 2"

    assert judged(task, example, f"{half}\nimport os\ndef double(x): os._exit(0)").reward == 0.0
    assert judged(task, example, half).reward == 0.0


CHECK = "def check(candidate):\n    assert candidate(2) == 4\n"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Write `def double(x)`, which gives twice it."},
        {"prompt": "Use double.", "code": f"{RIGHT}\ndef helper(x): return x"},
        {"prompt": "Any name.", "code": RIGHT.replace("double", "twice")},
        {"prompt": "Any name."},
        {"prompt": "Complete it.", "start": "def half(x):\n    return x / 2\n\ndef double(x):\n    # twice\n"},
        {"entry": "Solution().double", "prompt": "A method."},
    ],
    ids=["the prompt declares it", "the prompt names it", "the solution's only", "the code's only", "prefix", "method"],
)
def test_a_check_that_nobody_calls_gets_the_function_that_the_row_means(tmp_path: Path, row: dict[str, str]) -> None:
    task = task_of(tmp_path, {"test": CHECK, **row}, entry_point="entry?", prefix="start?")
    (example,) = task.examples("train")
    right = f"class Solution:\n    def double(self, x): return x * 2\n{RIGHT if 'entry' not in row else ''}"

    assert judged(task, example, right).reward == 1.0
    assert judged(task, example, right.replace("x * 2", "'nonsense'")).reward == 0.0
    assert judged(task, example, "def check(*_): pass\ndef double(x): return None").reward == 0.0


def test_a_function_that_nothing_names_is_refused_or_must_be_the_only_one(tmp_path: Path) -> None:
    two = {"test": CHECK, "code": "def f(x): return x * 2\ndef g(x): return x"}
    with pytest.raises(
        DataError, match="line 1: the tests call one function, and neither entry_point nor prompt names"
    ):
        task_of(tmp_path, two)
    task = task_of(tmp_path, {"test": CHECK})
    (example,) = task.examples("train")
    assert judged(task, example, str(two["code"])).feedback == NOT_ONE


def test_the_feedback_on_a_public_test_of_a_framework_names_what_failed(tmp_path: Path) -> None:
    rows = [{"test": UNITTEST}, {"test": PYTEST}]
    task = task_of(tmp_path, *rows, public_tests="test", hidden_tests=None)
    told = [judged(task, example, WRONG["nonsense"]).feedback for example in task.examples("train")]

    assert told == [
        "the test failed: a wrong answer\ntest: self.assertEqual('nonsense', 4)\ninput: double(2)\ngot: 'nonsense'",
        "the test failed: a wrong answer\ninput: double(2)\nexpected: 4\ngot: 'nonsense'",
    ]
