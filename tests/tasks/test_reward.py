"""Rewards of the user's own see whole batches, and the task that they wrap still judges many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import selfdistill as sd
from selfdistill.api.tasks import Chosen
from selfdistill.errors import UserError
from selfdistill.sampling.rollouts import verify
from selfdistill.tasks.reward import RewardedTask
from selfdistill.types import Example, Message, Rollout, Verdict

ONE = Example("rows:1", (Message("user", "1 + 1?"),), {}, {"sum": 2, "hint": "two"})
TWO = Example("rows:2", (Message("user", "2 + 2?"),), {}, {"sum": 4})
MADE = [(ONE, ("2", "22")), (TWO, ()), (TWO, ("4",))]


class Batched:
    """A task that counts its calls; it takes many completions at once, and refuses to take one."""

    name = "batched"
    contexts = "default"
    has_verifier = True

    def __init__(self, *, lost: int = 0) -> None:
        self.batches: list[int] = []
        self.lost = lost

    def examples(self, split: str) -> Sequence[Example]:
        return [ONE, TWO]

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        raise AssertionError("asked one by one")

    def verify_many(self, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
        self.batches.append(len(asked))
        verdicts = [Verdict(0.0, text, None if finished else "cut") for _, text, finished in asked]
        return verdicts[: len(verdicts) - self.lost]


def judge(task: Any, made: Sequence[tuple[Example, tuple[str, ...]]] = MADE) -> list[tuple[Verdict, ...]]:
    """As a step does it; a text of two signs was cut."""
    groups = verify(task, [example for example, _ in made], [tuple(map(rollout, texts)) for _, texts in made])
    return [group.verdicts for group in groups]


def rollout(text: str) -> Rollout:
    return Rollout((1,), (2,), (0.0,), len(text) < 2, text, 0)


def test_a_reward_is_called_once_with_the_whole_batch_and_the_task_judges_it_in_one_call() -> None:
    calls: list[dict[str, Any]] = []

    def mine(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float | None]:
        calls.append({"prompts": prompts, "completions": completions, **columns})
        return [0.5, None, 2]

    task = Batched()
    assert judge(RewardedTask(task, mine)) == [
        (Verdict(0.5, "2"), Verdict(None, "22", "cut")),
        (),
        (Verdict(2.0, "4"),),
    ]
    assert calls == [
        {
            "prompts": ["1 + 1?", "1 + 1?", "2 + 2?"],
            "completions": ["2", "22", "4"],
            "sum": [2, 2, 4],
            "hint": ["two", "two", None],
        }
    ]
    assert task.batches == [3]


def test_wrappers_of_wrappers_judge_many_at_once() -> None:
    calls: list[list[int]] = []

    def right(completions: list[str], sum: list[int]) -> list[float]:
        calls.append(sum)
        return [float(text == str(total)) for text, total in zip(completions, sum, strict=True)]

    task = Batched()
    found = judge(Chosen(RewardedTask(Chosen(task, [ONE]), right), [ONE]))
    assert [[one.reward for one in group] for group in found] == [[1.0, 0.0], [], [1.0]]
    assert (calls, task.batches) == ([[2, 2, 4]], [3])


def test_nothing_to_judge_asks_nobody() -> None:
    def never(**columns: list[Any]) -> list[float]:
        raise AssertionError("called for nothing")

    task = Batched()
    assert judge(RewardedTask(task, never), [(ONE, ())]) == [()]
    assert judge(task, []) == []
    assert task.batches == []


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ([1.0], "must return a list with one reward a completion, got 1 value for 3 completions"),
        ([1.0] * 4, "must return a list with one reward a completion, got 4 values for 3 completions"),
        ("abc", "must return a list with one reward a completion, got a str for 3 completions"),
        (None, "must return a list with one reward a completion, got a NoneType for 3 completions"),
        ([1.0, None, float("inf")], "must return floats or None, got inf for example rows:2"),
        ([1.0, [2.0], 3.0], "must return floats or None, got [2.0] for example rows:1"),
    ],
)
def test_a_list_that_does_not_fit_the_batch_is_named(returned: object, sentence: str) -> None:
    def mine(**columns: object) -> object:
        return returned

    with pytest.raises(UserError) as raised:
        judge(RewardedTask(Batched(), mine))
    assert str(raised.value) == f"reward function 'mine' {sentence}"


def test_a_column_that_one_row_lacks_is_named_where_the_function_needs_it() -> None:
    def mine(hint: list[str]) -> list[float]:
        return [0.0] * len(hint)

    with pytest.raises(UserError, match="'mine' needs 'hint', but example rows:2 has sum"):
        judge(RewardedTask(Batched(), mine))


def test_a_task_that_loses_a_verdict_is_named() -> None:
    sentence = "verify_many of task 'batched' must return one verdict a completion: 2 for 3"
    for task in (Batched(lost=1), RewardedTask(Batched(lost=1), lambda completions: [0.0] * len(completions))):
        with pytest.raises(UserError) as raised:
            judge(task)
        assert str(raised.value) == sentence


def test_a_reward_may_compare_the_completions_of_a_batch() -> None:
    def share(completions: list[str], **columns: list[Any]) -> list[float]:
        """Length as a share of the batch's longest."""
        longest = max(map(len, completions))
        return [len(text) / longest for text in completions]

    task = sd.load_task("countdown", reward=share)
    examples = task.examples("train")[:2]
    found = judge(task, [(examples[0], ("ab", "abcd")), (examples[1], ("abcdefgh",))])
    assert [[one.reward for one in group] for group in found] == [[0.25, 0.5], [1.0]]
