"""The toolbox's API, verifier, feedback and splits, on calls worked by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import selfdistill
from selfdistill.config.run import parse_config
from selfdistill.config.tasks import ToolboxConfig
from selfdistill.errors import ConfigError
from selfdistill.tasks.build import build_task
from selfdistill.tasks.toolbox.calls import (
    DIMENSIONS,
    TOOLS,
    Call,
    MalformedCall,
    complain,
    conventions_of,
    parse,
)
from selfdistill.tasks.toolbox.task import (
    HELD_OUT_CONVENTIONS,
    NO_CALL,
    SPLITS,
    SPOKEN,
    TRUNCATED,
    Problem,
    ToolboxTask,
    final_call,
)
from selfdistill.types import Example, Message, Verdict

CONVENTIONS = {
    "length": "feet",
    "temperature": "kelvin",
    "time": "hours",
    "place_word": "to",
    "person_word": "client",
    "order": "number before item",
    "date": "month before day",
    "verb": "erase",
    "confirm": "yes",
}
VALUES = {"item": "crate", "number": "37", "day": "12", "month": "may", "place": "harbour", "person": "alice"}
MOVE = "move ( crate , distance = 37 , unit = feet , to = harbour )"


# The API


@pytest.mark.parametrize(
    ("topic", "call", "dimensions"),
    [
        ("transport", MOVE, ("length", "place_word")),
        ("heating", "heat ( crate , degrees = 37 , unit = kelvin )", ("temperature",)),
        ("timing", "run ( crate , time = 37 , unit = hours )", ("time",)),
        ("deletion", "erase ( crate , owner = alice , confirm = yes )", ("verb", "confirm")),
        ("booking", "book ( crate , date = may 12 , client = alice )", ("date", "person_word")),
        ("printing", "print ( 37 , crate , paper = plain )", ("order",)),
        ("payment", "pay ( amount = 37 , client = alice , confirm = yes )", ("person_word", "confirm")),
        ("storage", "store ( 37 , crate , to = harbour )", ("order", "place_word")),
    ],
)
def test_every_function_is_called_as_the_conventions_say(topic: str, call: str, dimensions: tuple[str, ...]) -> None:
    assert TOOLS[topic].expected(VALUES, CONVENTIONS) == call
    assert TOOLS[topic].dimensions == dimensions
    assert complain(parse(call), topic, VALUES, CONVENTIONS) is None


def test_the_other_conventions_give_the_other_calls() -> None:
    other = {**CONVENTIONS, "order": "item before number", "date": "day before month", "confirm": "no"}
    assert TOOLS["storage"].expected(VALUES, other) == "store ( crate , 37 , to = harbour )"
    assert TOOLS["booking"].expected(VALUES, other) == "book ( crate , date = 12 may , client = alice )"
    assert TOOLS["payment"].expected(VALUES, other) == "pay ( amount = 37 , client = alice )"


def test_every_dimension_is_used_and_has_a_name_in_thoughts() -> None:
    assert {name for tool in TOOLS.values() for name in tool.dimensions} == set(DIMENSIONS) == set(SPOKEN)


def test_a_request_names_every_slot_of_its_function_and_no_convention() -> None:
    decided = {word for values in DIMENSIONS.values() for value in values for word in value.split()}
    for tool in TOOLS.values():
        for request in tool.requests:
            assert set(re.findall(r"\$(\w+)", request)) == set(tool.slots)
            assert not decided & set(request.split())


def test_a_guess_is_right_in_a_quarter_to_a_third_of_requests() -> None:
    chance = []
    for tool in TOOLS.values():
        right = 1.0
        for name in tool.dimensions:
            right /= len(DIMENSIONS[name])
        chance.append(right)
    # 1/8, 1/2, 1/3, 1/4, 1/4, 1/2, 1/4, 1/4
    assert sum(chance) / len(chance) == pytest.approx(59 / 192)


# Reading calls


def test_a_call_is_read_with_or_without_spaces() -> None:
    expected = Call("move", ("crate",), (("distance", "37"), ("unit", "feet"), ("to", "harbour")))
    assert parse(MOVE) == parse("Move(crate, distance=37, unit=feet, to=harbour)") == expected
    assert parse("beep ( )") == Call("beep", (), ())


def test_named_arguments_may_come_in_any_order() -> None:
    one, other = parse(MOVE), parse("move ( crate , to = harbour , unit = feet , distance = 37 )")
    assert one != other
    assert one.normal_form == other.normal_form == "move ( crate , distance = 37 , to = harbour , unit = feet )"
    assert complain(other, "transport", VALUES, CONVENTIONS) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a function was expected first"),
        ("( crate )", "a function was expected first"),
        ("move", "a bracket was expected after the function"),
        ("move crate", "a bracket was expected after the function"),
        ("move ( crate", "a bracket was opened but not closed"),
        ("move ( crate ) crate", "there is something after the closing bracket"),
        ("move ( crate ) )", "there is something after the closing bracket"),
        ("move ( crate , )", "an argument is not well formed"),
        ("move ( , crate )", "an argument is not well formed"),
        ("move ( unit = )", "an argument is not well formed"),
        ("move ( = feet )", "an argument is not well formed"),
        ("move ( the unit = feet )", "an argument is not well formed"),
        ("move ( unit = feet = yards )", "an argument is not well formed"),
        ("move ( ( crate )", "an argument is not well formed"),
        ("move ( unit = feet , crate )", "a plain argument follows a named argument"),
    ],
)
def test_a_malformed_call_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(MalformedCall, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("so now the call . </think> call : beep ( crate ) . done", "beep ( crate )"),
        ("call : beep ( crate ) .", "beep ( crate )"),
        ("call beep ( crate )", "beep ( crate )"),
        ("call : beep ( 1 ) . call : beep ( 2 ) . done", "beep ( 2 )"),
        ("call : beep ( 1 ) </think> nothing", None),
        ("so now the call . </think> call : . done", None),
        ("", None),
    ],
)
def test_the_last_call_after_the_thinking_counts(text: str, call: str | None) -> None:
    assert final_call(text) == call


# Feedback


@pytest.mark.parametrize(
    ("topic", "call", "feedback"),
    [
        ("transport", "move ( crate , distance = 37 , unit = yards , to = harbour )", "the unit must be feet"),
        ("transport", "move ( crate , distance = 37 , to = harbour )", "the unit must be feet"),
        (
            "transport",
            "move ( crate , distance = 37 , unit = yards , dest = harbour )",
            "unknown argument dest and the unit must be feet and the call needs an argument to",
        ),
        ("transport", "move ( crate , distance = 73 , unit = feet , to = harbour )", "the distance must be 37"),
        ("transport", "move ( distance = 37 , unit = feet , to = harbour )", "the item must be crate"),
        ("transport", "move ( crate , 37 , distance = 37 , unit = feet , to = harbour )", "too many plain arguments"),
        (
            "transport",
            "move ( crate , distance = 37 , distance = 37 , unit = feet , to = harbour )",
            "argument distance is given twice",
        ),
        ("transport", "lift ( crate , distance = 37 , unit = feet , to = harbour )", "the function must be move"),
        ("deletion", "delete ( crate , owner = alice , confirm = yes )", "the function must be erase"),
        ("deletion", "erase ( crate , owner = alice )", "the call needs confirm = yes"),
        ("deletion", "erase ( crate , owner = alice , confirm = no )", "the call needs confirm = yes"),
        ("deletion", "erase ( crate , owner = alice , confirm = yes , colour = red )", "unknown argument"),
        ("printing", "print ( crate , 37 , paper = plain )", "argument order must be number before item"),
        ("printing", "print ( crate , 73 , paper = plain )", "the number must be 37"),
        ("booking", "book ( crate , date = 12 may , client = alice )", "date must be month before day"),
        ("booking", "book ( crate , date = may 13 , client = alice )", "the date must be may 12"),
    ],
)
def test_feedback_names_every_fault(topic: str, call: str, feedback: str) -> None:
    assert complain(parse(call), topic, VALUES, CONVENTIONS) == feedback


def test_a_confirmation_that_nobody_asked_for_is_an_unknown_argument() -> None:
    call = parse("pay ( amount = 37 , client = alice , confirm = yes )")
    assert complain(call, "payment", VALUES, {**CONVENTIONS, "confirm": "no"}) == "unknown argument confirm"


# The task


def judge(text: str, *, finished: bool = True) -> Verdict:
    task = ToolboxTask()
    task.conventions = dict(CONVENTIONS)
    columns = {"topic": "transport", "values": {slot: VALUES[slot] for slot in TOOLS["transport"].slots}}
    return task.verify(Example("by-hand", (Message("user", "?"),), columns=columns), text, finished=finished)


def test_a_right_call_earns_one_and_any_fault_nothing() -> None:
    assert judge(f"hmm </think> call : {MOVE} . done") == Verdict(1.0, answer=parse(MOVE).normal_form)
    wrong = judge(f"hmm </think> call : {MOVE.replace('feet', 'paces')} . done")
    assert (wrong.reward, wrong.feedback) == (0.0, "the unit must be feet")
    assert wrong.answer == "move ( crate , distance = 37 , to = harbour , unit = paces )"


def test_what_is_no_call_is_told_so() -> None:
    assert judge(f"call : {MOVE}", finished=False) == Verdict(0.0, feedback=TRUNCATED)
    assert judge("hmm </think> done") == Verdict(0.0, feedback=NO_CALL)
    assert judge("call : move crate . done").feedback == (
        "the call is malformed : a bracket was expected after the function"
    )


@pytest.mark.parametrize("conventions", [0, 5, HELD_OUT_CONVENTIONS[0]])
def test_solutions_and_responses_are_right_under_their_conventions(conventions: int) -> None:
    task = ToolboxTask(ToolboxConfig(conventions=conventions, train=64, validation=8, test=8))
    for example in task.examples("train"):
        assert task.verify(example, example.fields["response"], finished=True).correct
        assert task.verify(example, f"call : {example.fields['solution']} . done", finished=True).correct


def test_conventions_are_common_to_all_splits_and_change_nothing_but_the_calls() -> None:
    one, other = (ToolboxTask(ToolboxConfig(conventions=seed)) for seed in (0, 1))
    assert one.conventions == conventions_of(0) != other.conventions
    for split in SPLITS:
        for mine, theirs in zip(one.examples(split), other.examples(split), strict=True):
            assert (mine.id, mine.prompt, mine.columns) == (theirs.id, theirs.prompt, theirs.columns)
            values = mine.columns["values"]
            assert mine.fields["solution"] == TOOLS[mine.columns["topic"]].expected(values, one.conventions)


def test_the_seeds_of_conventions_reach_every_value_evenly() -> None:
    for name, values in DIMENSIONS.items():
        counts = Counter(conventions_of(seed)[name] for seed in HELD_OUT_CONVENTIONS)
        assert set(counts) == set(values)
        # 1,000 draws: five standard deviations are at most 80.
        assert all(abs(count - 1000 / len(values)) < 80 for count in counts.values())


def test_every_seed_may_have_conventions_of_its_own() -> None:
    def conventions(seed: int, by_seed: bool) -> object:
        config = ToolboxConfig(conventions=1000, conventions_by_seed=by_seed, train=4, validation=4, test=4)
        return ToolboxTask(config, seed=seed).conventions

    assert conventions(0, True) == conventions(0, False) == conventions(3, False)
    assert conventions(3, True) == ToolboxTask(ToolboxConfig(conventions=1003)).conventions
    assert conventions(3, True) != conventions(0, True)


def test_splits_share_no_problem_whatever_the_seed() -> None:
    ids = {split: set[str]() for split in SPLITS}
    for seed in (0, 1):
        task = ToolboxTask(seed=seed)
        for split, size in zip(SPLITS, (1024, 256, 256), strict=True):
            examples = task.examples(split)
            assert len({example.id for example in examples}) == len(examples) == size
            ids[split] |= {example.id for example in examples}
    assert not ids["train"] & ids["validation"]
    assert not ids["train"] & ids["test"]
    assert not ids["validation"] & ids["test"]


def test_topics_are_even_and_the_wording_decides_no_split() -> None:
    counts = Counter(example.columns["topic"] for example in ToolboxTask().examples("train"))
    assert counts == dict.fromkeys(TOOLS, 128)
    values = {"item": "oven", "number": "5"}
    one, other = (Problem("heating", values, request) for request in ("heat the oven", "warm the oven"))
    assert one.split == other.split
    assert one.key == "heating.oven.5"


def test_the_same_seed_draws_the_same_examples_in_another_process() -> None:
    code = (
        "from selfdistill.config.tasks import ToolboxConfig\n"
        "from selfdistill.tasks.toolbox.task import ToolboxTask\n"
        "task = ToolboxTask(ToolboxConfig(conventions=3, train=20), seed=4)\n"
        "for e in task.examples('train'): print(e.id, e.fields['response'])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(selfdistill.__file__).parents[1],
        env={"PYTHONHASHSEED": "123"},
    ).stdout
    here = ToolboxTask(ToolboxConfig(conventions=3, train=20), seed=4).examples("train")
    assert output.splitlines() == [f"{example.id} {example.fields['response']}" for example in here]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.test: input should be greater than or equal to 1"):
        parse_config({"method": "grpo", "task": {"kind": "toolbox", "test": 0}}, "here")
    with pytest.raises(ConfigError, match="unknown split 'holdout'; known: train, validation, test"):
        ToolboxTask().examples("holdout")


def test_a_config_builds_the_task() -> None:
    config = parse_config({"method": "sdpo", "task": {"kind": "toolbox", "conventions": 7, "train": 8}}, "here")
    task = build_task(config.task, seed=3, reward=None)
    assert isinstance(task, ToolboxTask)
    assert (task.conventions, task.seed, task.config.train) == (conventions_of(7), 3, 8)
    with pytest.raises(ConfigError, match=r"unknown key 'task.convention'; did you mean 'task.conventions'\?"):
        parse_config({"method": "sdpo", "task": {"kind": "toolbox", "convention": 7}}, "here")
