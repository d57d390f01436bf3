"""Verdicts on mathematics that a careful reader would sign: the committed cases, and pairs of the same kinds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfdistill.config.tasks import MathConfig
from selfdistill.errors import DataError
from selfdistill.tasks.data import MemoryRows
from selfdistill.tasks.math.answers import boxed_answer, final_answer, stated_answer
from selfdistill.tasks.math.checker import AnswerChecker
from selfdistill.tasks.math.forms import canonical, number
from selfdistill.tasks.math.task import MathTask

CASES = Path(__file__).parents[1] / "cases"
VERDICTS = json.loads((CASES / "math.json").read_text(encoding="utf-8"))["cases"]
PAIRS = json.loads((CASES / "math_pairs.json").read_text(encoding="utf-8"))["pairs"]


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    one = AnswerChecker(timeout=20)
    yield one
    one.close()


def task_of(*answers: str) -> MathTask:
    rows = [{"question": f"question {i}", "answer": answer} for i, answer in enumerate(answers)]
    return MathTask(MathConfig(path="rows", validation_share=0.0, test_share=0.0), {"path": MemoryRows(rows, "rows")})


def test_every_clear_case_gets_the_verdict_of_a_careful_reader() -> None:
    task = task_of(*(gold for gold, _, _, _ in VERDICTS))
    off = []
    for example, (gold, completion, right, arguable) in zip(task.examples("train"), VERDICTS, strict=True):
        verdict = task.verify(example, completion, finished=True)
        assert verdict.details.get("unchecked") is None, (gold, completion)
        if not arguable and verdict.correct is not right:
            off.append((gold, completion, right))
        assert task.verify(example, task.reference(example), finished=True).correct, gold
    task.close()
    assert not off


def test_pairs_of_the_same_kinds_are_told_apart(checker: AnswerChecker) -> None:
    off = []
    for gold, given, right in PAIRS:
        comparison = checker.compare(gold, given)
        if comparison.equal is not right or comparison.unchecked:
            off.append((gold, given, right))
    assert not off


def test_an_answer_equals_itself(checker: AnswerChecker) -> None:
    answers = {answer for gold, given, _ in PAIRS for answer in (gold, given)}
    assert [answer for answer in answers if not checker.compare(answer, answer).equal] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is therefore 34.", "34"),
        ("The answer, therefore, is 34.", "34"),
        ("So the answer should be 34", "34"),
        ("## Answer\n\n**34**", "34"),
        ("**Final Answer:**\n\n\\[\n34\n\\]", "34"),
        ("I do not know the answer.\nIt has 5 apples", None),
        ("We look for the answer\n5 apples are left", None),
        ("34 is the answer.", "34"),
        ("The answer is not 5.", None),
        ("答案是34。", "34"),
        ("**答案：** $34$", "$34$"),
        ("答えは34です。", "34"),
        ("Die Antwort lautet 34.", "34"),
        ("Réponse finale : 34", "34"),
        ("答案不是5。", None),
        ("答案是5的倍数。", None),
        ("Die Antwort ist größer als 5.", None),
        ("The answer is 5 (not 6).", "5"),
        ("The answer is 5, not 6.", "5"),
        ("The answer is 2 or 3", "2 or 3"),
        ("<answer>34</answer>", "34"),
        ("<ANSWER>The answer is 34.</ANSWER>", "34"),
        ("\\boxed{33} <answer>34</answer>", "34"),
        ("<answer>33</answer> no, \\boxed{34}", "34"),
        ("\\boxed 6", "6"),
        ("$\\boxed7$", "7"),
        ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{6}}", "\\boxed{6}"),
        ("#### Answer\n34", "34"),
    ],
)
def test_the_final_answer_is_found_in_every_spelling(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_of_a_cut_text_only_what_is_closed_is_believed() -> None:
    assert final_answer("<answer>34</answer>", finished=False) == "34"
    assert final_answer("<answer>34", finished=False) is None
    assert final_answer("\\boxed 6", finished=False) is None
    assert final_answer("\\boxed 6, so", finished=False) == "6"


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("4.5e33", str(45 * 10**32)),
        ("4.5 \\times 10^{33} \\text{ erg/s}", str(45 * 10**32)),
        ("0.1\\overline{6}", "1/6"),
        ("0.142857142857...", "1/7"),
        ("8\\%", "8%"),
        ("twenty-five", "25"),
        ("70 000", "70000"),
        ("６", "６"),
    ],
)
def test_numbers_have_one_form_in_every_spelling(answer: str, form: str) -> None:
    assert canonical(answer) == form


@pytest.mark.parametrize(
    "answer", ["1e9999", "1e-9999", "10^{9999}", "1" * 400, "(" * 90 + "5" + ")" * 90, "\\pm", "\ud800"]
)
def test_no_answer_is_too_odd_to_be_judged(checker: AnswerChecker, answer: str) -> None:
    # Python refuses to write integers of more than 4,300 digits, and a surrogate has no UTF-8.
    assert not checker.compare("7", answer).equal
    assert canonical(answer)


def test_a_number_remembers_how_many_digits_were_written() -> None:
    written = number("6.70e-5")
    assert written is not None
    assert (written.digits, written.last) == (3, written.value / 670)
    assert number("5 \\text{ or } 6") is None


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("She sold 48/2 = 24 clips in May, so 72 together.\nThe answer is 72.", "72"),
        ("Half of 48 is 24 and the answer is 72", "72"),
        ("<answer>72</answer>", "72"),
        ("12 square meters per second", "12 square meters per second"),
        ("no real solutions", "no real solutions"),
    ],
)
def test_a_gold_is_found_in_a_solution(answer: str, gold: str) -> None:
    (example,) = task_of(answer).examples("train")
    assert example.fields["answer"] == gold


@pytest.mark.parametrize(
    "answer", ["She sold 48/2 = 24 clips in May and so 72 in all.", "We find that x is equal to 5"]
)
def test_a_solution_without_an_answer_is_a_rejected_row(answer: str) -> None:
    with pytest.raises(DataError, match=r"line 1: the answer is a long text with no \\boxed\{\} and no '####' line"):
        task_of(answer)


LONG = {
    "open boxes": "\\boxed{",
    "bare boxes": "\\boxed ",
    "closed boxes": "\\boxed{5}, ",
    "blank lines": "\n",
    "marks": "####\n",
    "the word": "answer ",
    "statements": "the answer is x ",
    "blanks": " ",
    "tags": "<answer>",
    "braces": "{",
    "backslashes": "\\",
    "another language": "答案是1的",
}


@pytest.mark.parametrize("piece", LONG.values(), ids=LONG)
def test_finding_an_answer_takes_linear_time(piece: str) -> None:
    def seconds(count: int) -> float:
        text = "the answer is x" + piece * count
        times = []
        for _ in range(3):
            began = time.process_time()
            final_answer(text), boxed_answer(text), stated_answer(text)
            times.append(time.process_time() - began)
        return min(times)

    # Eight times the text takes eight times as long, and quadratic work 64 times. 10 ms are the clock's noise.
    assert seconds(8000) < 24 * seconds(1000) + 0.01
