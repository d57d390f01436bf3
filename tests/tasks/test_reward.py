"""Rewards of the user's own see whole batches, and the task that they wrap still judges many at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selfdistill as sd
from selfdistill.api.tasks import Chosen
from selfdistill.config.reward import RewardConfig
from selfdistill.config.run import apply_overrides, parse_config
from selfdistill.errors import ConfigError, UserError
from selfdistill.sampling.rollouts import verify
from selfdistill.tasks.build import build_task
from selfdistill.tasks.reward import RewardedTask, function_rewards
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
            "completion_ids": [[2], [2], [2]],
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
        ([1.0, float("nan"), 3.0], "must return floats or None, got nan for example rows:1"),
        (["1", 2.0, 3.0], "must return floats or None, got '1' for example rows:1"),
        (torch.ones(3, 2), "must return floats or None, got [1.0, 1.0] for example rows:1"),
        (torch.ones(2), "must return a list with one reward a completion, got 2 values for 3 completions"),
        ({1: 2}, "must return a list with one reward a completion, got a dict for 3 completions"),
    ],
)
def test_a_list_that_does_not_fit_the_batch_is_named(returned: object, sentence: str) -> None:
    def mine(**columns: object) -> object:
        return returned

    with pytest.raises(UserError) as raised:
        judge(RewardedTask(Batched(), mine))
    place = f"{mine.__code__.co_filename}:{mine.__code__.co_firstlineno}"
    assert str(raised.value).replace(str(Path.cwd()) + "/", "") == (
        f"reward function 'mine' ({place}) {sentence}".replace(str(Path.cwd()) + "/", "")
    )


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


@pytest.mark.parametrize("returned", [torch.tensor([0.5, 1, 2]), [torch.tensor(0.5), 1, 2], np.array([0.5, 1, 2])])
def test_arrays_of_numbers_are_rewards(returned: Any) -> None:
    found = judge(RewardedTask(Batched(), lambda completions: returned))
    assert [[one.reward for one in group] for group in found] == [[0.5, 1.0], [], [2.0]]


def outer(completions: list[str]) -> list[float]:
    return [inner(text) for text in completions]


def inner(text: str) -> float:
    raise KeyError("no such answer")


async def late(completions: list[str]) -> list[float]:
    await asyncio.sleep(0)
    return outer(completions)


@pytest.mark.parametrize("function", [outer, late])
def test_what_a_function_raises_is_one_sentence_with_its_own_frames(function: Any) -> None:
    with pytest.raises(UserError) as raised:
        judge(RewardedTask(Batched(), function))
    said = str(raised.value)
    assert said.startswith(f"reward function '{function.__name__}' raised KeyError: 'no such answer' (")
    assert re.findall(r"test_reward\.py:\d+ in (\w+)", said)[-1] == "inner"
    assert " in outer" in said
    assert not re.search(r"selfdistill/tasks|asyncio", said)


def leave(completions: list[str]) -> list[float]:
    raise SystemExit(3)


async def leave_later(completions: list[str]) -> list[float]:
    await asyncio.sleep(0)
    return leave(completions)


@pytest.mark.parametrize("function", [leave, leave_later])
def test_a_function_that_leaves_the_interpreter_ends_in_a_sentence_too(function: Any) -> None:
    said = rf"reward function '{function.__name__}' raised SystemExit \(.*test_reward\.py:\d+ in leave\)"
    with pytest.raises(UserError, match=said):
        judge(RewardedTask(Batched(), function))


def test_async_functions_run_together_and_no_more_than_allowed_at_once() -> None:
    running, most = 0, []

    async def slow(completions: list[str]) -> list[float | None]:
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(0.01)
        running -= 1
        return [1.0] * len(completions)

    for allowed in (1, 2, 8):
        most.clear()
        found = judge(RewardedTask(Batched(), [slow, slow, slow], RewardConfig(concurrency=allowed)))
        assert max(most) == min(allowed, 3)
        assert [[one.reward for one in group] for group in found] == [[3.0, 3.0], [], [3.0]]

    async def notebook() -> list[tuple[Verdict, ...]]:
        return judge(RewardedTask(Batched(), slow))

    assert asyncio.run(notebook())[0][0].reward == 1.0


def test_several_functions_are_weighed_and_none_leaves_a_completion_to_the_others() -> None:
    def long(completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    def two(completions: list[str]) -> list[float | None]:
        return [4.0 if text == "2" else None for text in completions]

    def nothing(completions: list[str]) -> list[None]:
        return [None] * len(completions)

    (first, second), _, (third,) = judge(RewardedTask(Batched(), [long, two], RewardConfig(weights=[1, 0.5])))
    assert (first.reward, second.reward, third.reward) == (1 + 2.0, 2.0, 1.0)
    assert function_rewards(first) == {"long": 1.0, "two": 4.0}
    assert function_rewards(second) == {"long": 2.0}
    assert [one.reward for one in judge(RewardedTask(Batched(), [two, nothing]))[0]] == [4.0, None]
    with pytest.raises(ConfigError, match=r"^reward\.weights must have one number for each function: 1 for 2$"):
        RewardedTask(Batched(), [long, two], RewardConfig(weights=[1]))


def test_a_completion_is_right_from_the_threshold_on() -> None:
    def graded(completions: list[str]) -> list[float | None]:
        return [{"2": 0.5, "22": None}.get(text, 1.0) for text in completions]

    class Sure(Batched):
        def verify_many(self, asked: Sequence[tuple[Example, str, bool]]) -> list[Verdict]:
            return [Verdict(float(text == "2")) for _, text, _ in asked]

    rights = {
        None: [False, False, True],
        0.5: [True, False, True],
        1.5: [False, False, False],
        "verifier": [True, False, False],
    }
    for success, right in rights.items():
        task = RewardedTask(Sure(), graded, RewardConfig(success=success))  # type: ignore[arg-type]
        assert [verdict.correct for group in judge(task) for verdict in group] == right
    # Without a function the threshold is on the verifier's own rewards.
    task = RewardedTask(Batched(), (), RewardConfig(success=0.0))
    assert [verdict.correct for group in judge(task) for verdict in group] == [True] * 3
    assert task.right == "from a reward of 0 on (reward.success)"


def test_functions_written_for_trl_get_what_trl_gives_them() -> None:
    seen: list[dict[str, Any]] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, log_metric: Any = None, **kwargs: Any) -> Any:
        seen.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **kwargs})
        return [float(len(message[0]["content"])) for message in completions]

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    chat = Example("rows:1", prompt, {}, {"prompt": turns, "solution": "2"})
    assert judge(RewardedTask(Batched(), reward), [(chat, ("2",))])[0][0].reward == 1.0
    [call] = seen
    assert call["prompts"] == [turns]
    assert call["completions"] == [[{"role": "assistant", "content": "2"}]]
    assert (call["ids"], call["solution"]) == ([[2]], ["2"])

    def needy(completions: Any, trainer_state: Any) -> Any:
        return None

    with pytest.raises(UserError, match=r"'needy' needs 'trainer_state', which only TRL's trainer passes$"):
        judge(RewardedTask(Batched(), needy))


def test_a_reward_in_a_config_is_a_word_a_list_or_a_table() -> None:
    path = "support.rewards:even"
    for given in (path, [path], {"function": path}):
        config = parse_config({"method": "grpo", "reward": given}, "a test")
        task = build_task(config.task, seed=0, reward=config.reward)
        assert isinstance(task, RewardedTask)
        assert task.names == ["even"]
    raw: dict[str, Any] = {"method": "grpo", "reward": [path, path]}
    apply_overrides(raw, ["reward.weights=[1, 2]"])
    assert parse_config(raw, "a test").reward == RewardConfig(function=[path, path], weights=[1, 2])
    raw = {"method": "grpo", "reward": path}
    apply_overrides(raw, ["reward.success=0.3"])
    config = parse_config(raw, "a test")
    assert config.reward == RewardConfig(function=path, success=0.3)
    both = sd.load_task("countdown", reward={"function": [outer, path], "weights": [1, 2], "success": 0.5})
    assert isinstance(both, RewardedTask)
    assert (both.names, both.weights, both.config.success) == (["outer", "even"], [1, 2], 0.5)
    with pytest.raises(ConfigError, match="unknown key 'sucess'; did you mean 'success'"):
        sd.load_task("countdown", reward={"function": outer, "sucess": 0.5})
    with pytest.raises(ConfigError, match=r"reward\.success: input should be a valid number"):
        parse_config({"method": "grpo", "reward": {"success": "often"}}, "a test")
