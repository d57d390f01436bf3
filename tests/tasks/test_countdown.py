"""Countdown's generator, solver, verifier and feedback, on problems worked by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import selfdistill
from selfdistill.config.run import parse_config
from selfdistill.config.tasks import CountdownConfig
from selfdistill.errors import ConfigError
from selfdistill.tasks.countdown.arithmetic import (
    LARGEST,
    SYMBOLS,
    MalformedExpression,
    Operation,
    evaluate,
    normal_form,
    numbers_in,
    parse,
    render,
    simple_attempts,
    solve,
    solve_all,
)
from selfdistill.tasks.countdown.task import (
    DIFFICULTIES,
    NO_ANSWER,
    SPLITS,
    TARGETS,
    TRUNCATED,
    CountdownTask,
    Problem,
)
from selfdistill.types import Example, Message, Verdict


def problem(numbers: list[int], target: int) -> Example:
    text = f"use the numbers {' '.join(map(str, numbers))} to make {target} ."
    return Example("made-by-hand", (Message("user", text),), columns={"numbers": numbers, "target": target})


def judge(text: str, *, numbers: tuple[int, ...] = (3, 5, 2), target: int = 21, finished: bool = True) -> Verdict:
    return CountdownTask().verify(problem(list(numbers), target), text, finished=finished)


# The parser and the arithmetic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 5 + 2 ) × 3", Fraction(21)),
        ("5 + 2 × 3", Fraction(11)),
        ("9 - 4 - 2", Fraction(3)),
        ("12 ÷ 2 ÷ 3", Fraction(2)),
        ("12 ÷ ( 2 ÷ 3 )", Fraction(18)),
        ("8 ÷ ( 3 - 8 ÷ 3 )", Fraction(24)),
        ("(5+2)*3", Fraction(21)),
        ("7/2 − 4", Fraction(-1, 2)),
        ("((7))", Fraction(7)),
    ],
)
def test_an_expression_is_read_with_the_usual_precedence_and_exactly(text: str, value: Fraction) -> None:
    assert evaluate(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("( 5 + 3", "a bracket was opened but not closed"),
        ("5 + 3 )", "a bracket was closed but not opened"),
        ("5 3", "an operation was expected after 5"),
        ("5 + × 3", "a number was expected after +"),
        ("- 3", "a number was expected first"),
        ("", "a number was expected first"),
        ("__import__('os')", "a number was expected first"),
        ("5 + 12345678901234567890", "a number was expected after +"),
        ("5 ( 3 )", "an operation was expected after 5"),
        ("700 3", "an operation was expected"),
        ("(" * 5000, "the answer is too long"),
        ("5 ² 3", "an operation was expected after 5"),
        ("٣ + ٥", "a number was expected first"),
    ],
)
def test_a_malformed_expression_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(MalformedExpression, match=f"^{re.escape(message)}$"):
        parse(text)


def test_rendering_and_parsing_are_inverse() -> None:
    expression = Operation("-", Operation("×", 5, 3), Operation("÷", 8, 2))
    assert render(expression) == "( 5 × 3 ) - ( 8 ÷ 2 )"
    assert parse(render(expression)) == expression
    assert numbers_in(expression) == [5, 3, 8, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("( 3 + 5 ) × 2", "2 × ( 5 + 3 )"),
        ("( 9 + 1 ) - 4", "9 - ( 4 - 1 )"),
        ("( 3 + 2 ) + 5", "5 + ( 3 + 2 )"),
        ("( 12 ÷ 3 ) × 2", "12 ÷ ( 3 ÷ 2 )"),
        ("2 × 3 + 4 × 5", "( 5 × 4 ) + ( 3 × 2 )"),
    ],
)
def test_order_and_bracketing_of_sums_and_products_do_not_make_another_answer(one: str, other: str) -> None:
    assert normal_form(parse(one)) == normal_form(parse(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [("5 - 3", "3 - 5"), ("( 5 + 3 ) × 2", "5 + 3 × 2"), ("9 - ( 4 - 1 )", "( 9 - 4 ) - 1"), ("6 × 1", "6 ÷ 1")],
)
def test_different_answers_have_different_normal_forms(one: str, other: str) -> None:
    assert normal_form(parse(one)) != normal_form(parse(other))


def test_a_normal_form_is_an_expression_of_the_same_value() -> None:
    for numbers in ((3, 5, 7), (2, 2, 9), (1, 4, 6, 11)):
        for value, expression in list(all_values(numbers))[::7]:
            assert evaluate(parse(normal_form(parse(expression)))) == value


def all_values(numbers: tuple[int, ...]) -> list[tuple[Fraction, str]]:
    return [(value, form) for value, forms in solve_all(numbers).items() for form in sorted(forms)]


# The solver


def test_solutions_of_a_problem_worked_by_hand() -> None:
    assert solve((3, 5, 7), 26) == [normal_form(parse("3 × 7 + 5"))]
    assert solve((2, 3, 4), 24) == [normal_form(parse("2 × 3 × 4"))]
    by_hand = ["2 × ( 4 - 2 )", "4 + ( 2 - 2 )", "4 × ( 2 ÷ 2 )", "2 + 4 ÷ 2"]
    assert solve((2, 2, 4), 4) == sorted(normal_form(parse(text)) for text in by_hand)


def test_the_solver_finds_what_only_fractions_reach() -> None:
    assert solve((3, 3, 8, 8), 24) == [normal_form(parse("8 ÷ ( 3 - 8 ÷ 3 )"))]
    assert not [attempt for attempt in simple_attempts((3, 3, 8, 8)) if attempt.value == 24]
    assert solve((1, 1, 1), 100) == []


def test_solving_for_all_values_agrees_with_solving_for_one() -> None:
    everything = solve_all((2, 5, 6))
    for target in range(70):
        assert sorted(everything.get(Fraction(target), frozenset())) == solve((2, 5, 6), target)


# Simple attempts


def test_the_simple_attempts_on_two_numbers() -> None:
    found = {attempt.expression: attempt.value for attempt in simple_attempts((3, 6))}
    assert found == {"6 + 3": 9, "6 - 3": 3, "6 × 3": 18, "6 ÷ 3": 2}
    assert {attempt.expression for attempt in simple_attempts((5, 5))} == {"5 + 5", "5 - 5", "5 × 5", "5 ÷ 5"}


@pytest.mark.parametrize("numbers", [(3, 5, 7), (4, 4, 12), (1, 2, 11, 12)])
def test_every_simple_attempt_is_right_in_range_and_of_the_larger_operand_first(numbers: tuple[int, ...]) -> None:
    attempts = simple_attempts(numbers)
    assert len({attempt.expression for attempt in attempts}) == len(attempts)
    for attempt in attempts:
        assert evaluate(parse(attempt.expression)) == attempt.value == attempt.steps[-1][3]
        assert sorted(numbers_in(parse(attempt.expression))) == sorted(numbers)
        for left, symbol, right, result in attempt.steps:
            assert left >= right
            assert 0 <= result <= LARGEST
            assert evaluate(Operation(symbol, left, right)) == result


def test_simple_attempts_reach_every_value_that_whole_positive_steps_reach() -> None:
    values = {attempt.value for attempt in simple_attempts((2, 3, 7))}
    # 7 - 3 × 2, ( 7 - 3 ) ÷ 2, 7 × 3 × 2, ( 7 - 3 ) × 2 ... and not 7 ÷ 2 × 3, whose first step is a fraction
    assert {1, 2, 42, 8} <= values
    assert Fraction(21, 2) not in values


# The generator


@pytest.mark.parametrize("difficulty", list(DIFFICULTIES))
def test_every_problem_belongs_to_its_difficulty_and_its_reference_solves_it(difficulty: str) -> None:
    task = CountdownTask(CountdownConfig(difficulty=difficulty, train=60, validation=40, test=40))
    rules = DIFFICULTIES[difficulty]
    for split in SPLITS:
        for example in task.examples(split):
            numbers, target = example.columns["numbers"], example.columns["target"]
            assert len(numbers) == rules.numbers
            assert max(numbers) <= rules.largest
            assert target in TARGETS
            assert example.prompt == problem(numbers, target).prompt
            reference = example.fields["solution"]
            assert reference in {attempt.expression for attempt in simple_attempts(tuple(sorted(numbers)))}
            assert task.verify(example, f"answer {reference}", finished=True).correct
            if rules.single:
                assert len(solve(numbers, target)) == 1


def test_no_problem_is_in_two_splits_whatever_the_difficulty_seed_and_size() -> None:
    split_of: dict[tuple[tuple[int, ...], int], str] = {}
    for difficulty in ("easy", "default", "single"):
        for seed, size in ((0, 5000), (1, 300)):
            config = CountdownConfig(difficulty=difficulty, train=size, validation=size, test=size)
            task = CountdownTask(config, seed=seed)
            for split in SPLITS:
                for example in task.examples(split):
                    key = (tuple(sorted(example.columns["numbers"])), example.columns["target"])
                    assert split_of.setdefault(key, split) == split


def test_a_problems_split_never_changes() -> None:
    # First 8 bytes of sha256("3 5 7 = 26"), as a number, modulo 10; computed once, fixed for ever.
    splits = {target: Problem((3, 5, 7), target).split for target in (26, 22, 15, 8)}
    assert splits == {26: "train", 22: "train", 15: "train", 8: "test"}


def test_examples_are_distinct_repeatable_and_decided_by_the_seed() -> None:
    one, same, other = (CountdownTask(CountdownConfig(train=200), seed=seed) for seed in (3, 3, 4))
    assert one.examples("train") == same.examples("train")
    assert one.examples("train") != other.examples("train")
    assert len({example.id for example in one.examples("train")}) == 200


def test_default_sizes_are_met_at_the_default_difficulty() -> None:
    task = CountdownTask()
    assert [len(task.examples(split)) for split in SPLITS] == [1024, 256, 256]


def test_a_bad_difficulty_size_or_split_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="unknown countdown difficulty 'hard'; known: easy, default, single, four"):
        CountdownTask(CountdownConfig(difficulty="hard"))
    with pytest.raises(ConfigError, match=r"task\.validation: input should be greater than or equal to 1"):
        parse_config({"method": "grpo", "task": {"kind": "countdown", "validation": 0}}, "here")
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        CountdownTask().examples("dev")


def test_the_task_needs_no_torch() -> None:
    package = Path(selfdistill.__file__).parents[1]
    code = f"""
import sys
sys.path.insert(0, {str(package)!r})
from selfdistill.tasks.countdown.task import CountdownTask
CountdownTask().examples("test")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The verifier and its feedback, on 3 5 2 → 21


def test_a_right_answer_earns_one_and_no_feedback() -> None:
    verdict = judge("try 5 + 2 = 7 , 7 × 3 = 21 , yes . </think> answer ( 5 + 2 ) × 3")
    assert verdict == Verdict(1.0, answer=normal_form(parse("( 5 + 2 ) × 3")), feedback=None)
    assert verdict.correct


def test_equal_answers_have_one_canonical_form() -> None:
    assert judge("answer ( 5 + 2 ) × 3").answer == judge("answer: 3*(2+5).").answer


@pytest.mark.parametrize(
    ("text", "feedback"),
    [
        ("answer ( 5 + 3 ) × 2", "( 5 + 3 ) × 2 reaches 16 , not 21"),
        ("answer 2 - 5 × 3", "2 - ( 5 × 3 ) reaches - 13 , not 21"),
        ("answer 5 ÷ 2 + 3", "( 5 ÷ 2 ) + 3 reaches 11 ÷ 2 , not 21"),
        ("answer 7 × 3", "7 × 3 uses 7 , which is not given and does not use 2 and does not use 5"),
        ("answer ( 5 + 2 ) × ( 3 ÷ 3 ) × 3", "( ( 5 + 2 ) × ( 3 ÷ 3 ) ) × 3 uses 3 too often"),
        ("answer 5 + 3", "5 + 3 does not use 2 and reaches 8 , not 21"),
        ("answer 3 ÷ ( 5 - 5 )", "3 ÷ ( 5 - 5 ) uses 5 too often and does not use 2 and divides by 0"),
        ("answer ( 5 + 2 × 3", "the answer is malformed : a bracket was opened but not closed"),
        ("answer wait", "the answer is malformed : a number was expected first"),
        ("</think> answer", NO_ANSWER),
        ("the number 21", NO_ANSWER),
        ("", NO_ANSWER),
    ],
)
def test_a_wrong_answer_is_told_why(text: str, feedback: str) -> None:
    verdict = judge(text)
    assert verdict.reward == 0.0
    assert verdict.feedback == feedback


def test_a_number_given_twice_must_be_used_twice() -> None:
    verdict = judge("answer 6 + 4", numbers=(6, 6, 4), target=10)
    assert verdict.feedback == "6 + 4 does not use 6 often enough"
    assert judge("answer ( 6 - 6 ) + 4", numbers=(6, 6, 4), target=4).correct


def test_values_beyond_the_vocabulary_are_described() -> None:
    assert judge("answer 12 × 12 × 12", numbers=(12, 12, 12)).feedback == (
        "( 12 × 12 ) × 12 reaches a number above 150 , not 21"
    )
    assert judge("answer 12 - 11 × 12 × 12", numbers=(11, 12, 12, 12)).feedback == (
        "12 - ( ( 11 × 12 ) × 12 ) reaches a number below - 150 , not 21"
    )
    assert judge("answer 1 ÷ 12 ÷ 11 ÷ 10", numbers=(1, 10, 11, 12)).feedback == (
        "( ( 1 ÷ 12 ) ÷ 11 ) ÷ 10 reaches a fraction , not 21"
    )
    assert judge("answer 200 + 3 + 5 + 2").feedback == (
        "the answer uses a number above 150 , which is not given and reaches a number above 150 , not 21"
    )


def test_a_cut_completion_has_no_answer() -> None:
    assert judge("try 5 + 2 = 7", finished=False) == Verdict(0.0, answer=None, feedback=TRUNCATED)


def test_the_last_answer_outside_the_thinking_counts() -> None:
    assert judge("answer ( 5 + 3 ) × 2 </think> answer ( 5 + 2 ) × 3").correct
    assert judge("answer 1 . no , answer ( 5 + 2 ) × 3 .").correct
    assert judge("answer ( 5 + 2 ) × 3 </think> hmm").feedback == NO_ANSWER


def test_operations_of_the_world_are_the_four() -> None:
    assert SYMBOLS == ("+", "-", "×", "÷")
