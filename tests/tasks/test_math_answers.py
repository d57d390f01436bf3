"""Final answers of mathematical texts: found, brought into one form, compared, and never waited for without end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from selfdistill.tasks.math.answers import boxed_answer, stated_answer
from selfdistill.tasks.math.checker import AnswerChecker, Comparison
from selfdistill.tasks.math.forms import canonical


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    one = AnswerChecker(timeout=20)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("we get $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1}, no: \\boxed{2}", "2"),
        ("\\boxed{1} and $\\boxed{2}$", "1, 2"),
        ("\\boxed{a}, \\boxed{b}, and \\boxed{c}", "a, b, c"),
        ("\\boxed{12} and again \\boxed{12}", "12"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed {7} \\boxed{}", "7"),
        ("\\boxed{12", None),
        ("no box", None),
    ],
)
def test_the_last_box_is_the_answer(text: str, answer: str | None) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2\n#### 1,234\n", "1,234"),
        ("The answer is 18 dollars per day, so she is rich.", "18 dollars per day"),
        ("The answer is 3.5. Done", "3.5"),
        ("Final Answer: **72**", "72"),
        ("The final answer is:\n\n42", "42"),
        ("the answer is 2*3 = 6", "2*3 = 6"),
        ("So there are 10. #### 10", "10"),
        ("Lea has 4 + 6 = 10 books, #### **10**", "10"),
        ("in all #### $1,250", "$1,250"),
        ("a #### 3 b #### 4", "4"),
        ("write #### and the number", None),
        ("a ##### 5", None),
        ("#### Step 1\nadd them\nAnswer: 6", "6"),
        ("she has 72 apples", None),
    ],
)
def test_a_stated_answer_is_what_stands_behind_the_words(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        ("$\\$1\\,234.50$", "2469/2"),
        ("0072", "72"),
        ("- 3.", "-3"),
        ("\u22123", "-3"),
        (".5", "1/2"),
        ("\\dfrac{2}{4}", "1/2"),
        ("-1\\frac12", "-3/2"),
        ("2 1/2", "5/2"),
        ("18 miles per hour", "18"),
        ("10\\text{ cm}", "10"),
        ("\\text{Monday}", "monday"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        # Words that scale a number are no unit, spaces between digits no typography, a pole no number.
        ("5 million", "5000000"),
        ("1 00", "1 00"),
        ("1/0", "1/0"),
    ],
)
def test_equal_answers_have_one_form(answer: str, form: str) -> None:
    assert canonical(answer) == form


@pytest.mark.parametrize(
    ("gold", "given", "equal"),
    [
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("\\frac{\\pi}{4}", "pi/4", True),
        ("\\{1,2\\}", "2, 1", True),
        ("5", "x = 5", True),
        ("8", "2^3", True),
        ("90", "90^\\circ", True),
        ("50", "50\\%", True),
        ("1/3", "0.333333", True),
        ("C", "\\text{(C)}", True),
        ("1/3", "0.33", False),
        ("100", "1 00", False),
        ("2", "2 pi", False),
        ("3", "3, 4", False),
        ("listen", "silent", False),
        ("5", "5!", False),
    ],
)
def test_answers_are_compared_as_mathematics(checker: AnswerChecker, gold: str, given: str, equal: bool) -> None:
    assert checker.compare(gold, given).equal is equal


def test_wrong_answers_that_are_equal_vote_together(checker: AnswerChecker) -> None:
    for group in (["\\sqrt{8}", "2\\sqrt{2}"], ["2.5", "5/2", "\\frac{5}{2}", "y = 2.5"], ["x(x+1)", "x^2 + x"]):
        assert len({checker.compare("7", given).canonical for given in group}) == 1
    assert checker.compare("2.50", "5/2") == Comparison(equal=True, canonical="5/2")


def test_a_check_without_end_is_given_up_and_the_next_one_works() -> None:
    impatient = AnswerChecker(timeout=1.0)
    started = time.monotonic()
    found = impatient.compare("3", "10^{10^{10^{10}}}")
    assert found == Comparison(equal=False, canonical="10^{10^{10^{10}}}", unchecked=True)
    assert impatient.compare("2\\sqrt{2}", "\\sqrt{8}").equal
    assert time.monotonic() - started < 60
    again = time.monotonic()
    assert impatient.compare("3", "10^{10^{10^{10}}}").unchecked
    assert time.monotonic() - again < 0.5, "a check that was given up is remembered"
    impatient.close()


def test_checks_work_in_a_thread(checker: AnswerChecker) -> None:
    # math-verify's own timeout needs the main thread; samplers and servers do not run there.
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(checker.compare("\\sqrt{12}", "2\\sqrt{3}").equal))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("ending", ["checker.close()", "pass"])
def test_no_process_is_left_behind(ending: str) -> None:
    script = f"""
import atexit, os
from selfdistill.tasks.math.checker import AnswerChecker

def no_children():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        print("none left")

atexit.register(no_children)  # runs after the checker's own ending, which registers later
checker = AnswerChecker(timeout=20.0)
assert checker.compare("2\\\\sqrt{{2}}", "\\\\sqrt{{8}}").equal
{ending}
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == ("none left\n", "")
