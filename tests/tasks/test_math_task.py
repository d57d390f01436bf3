"""The math task on rows of its own: schemas, verdicts, splits and bad rows; and rewards of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import parse_config
from selfdistill.config.tasks import MathConfig
from selfdistill.errors import ConfigError, DataError, UserError
from selfdistill.tasks.data import SPLITS
from selfdistill.tasks.math.task import MathTask
from selfdistill.tasks.reward import RewardedTask, RewardFunction, load_reward
from selfdistill.types import Example, Message, Verdict

APPLES = {"question": "3 bags of 411 apples, how many?", "answer": "3 * 411 = <<3*411=1233>>1233\n#### 1,233"}
HALVES = {"question": "half of 5?", "answer": "5 / 2 = <<5/2=2.5>>2.5\n#### 2.5"}


def save(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task_on(path: Path, **arguments: Any) -> MathTask:
    return MathTask(MathConfig(path=str(path), **arguments))


def all_of(path: Path, **arguments: Any) -> MathTask:
    return task_on(path, validation_share=0.0, test_share=0.0, **arguments)


def test_a_task_of_gsm8k_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "apples.jsonl", APPLES, HALVES)
    task = all_of(path, solution="answer", solution_remove="<<[^>]*>>", system="Be brief.")
    first, second = task.examples("train")
    assert first == Example(
        id="apples:1",
        prompt=(
            Message("system", "Be brief."),
            Message(
                "user",
                "3 bags of 411 apples, how many?\nReason step by step and put the final answer in \\boxed{}.",
            ),
        ),
        fields={"answer": "1,233", "solution": "3 * 411 = 1233\n#### 1,233"},
        columns=APPLES,
    )
    for example, right in ((first, "1233"), (second, "5/2")):
        assert task.verify(example, example.fields["solution"], finished=True) == Verdict(1.0, right)
    assert task.verify(second, "so \\boxed{2.50}", finished=True) == Verdict(1.0, "5/2")
    assert task.verify(first, "so \\boxed{1234}", finished=True) == Verdict(0.0, "1234")
    task.close()


@pytest.mark.parametrize(
    ("row", "arguments", "gold"),
    [
        ({"question": "q", "answer": 27.0}, {}, "27"),
        (
            {"problem": "q", "solution": "so $\\boxed{\\frac12}$."},
            {"prompt": "problem", "answer": "solution"},
            "\\frac12",
        ),
        ({"problem": "q", "answer": "033"}, {"prompt": "problem"}, "033"),
        ({"question": "q", "answer": "so\n#### 1,080 "}, {"answer_pattern": r"####\s*(.+)$"}, "1,080"),
        ({"question": "q", "answer": "a=1\na=2"}, {"answer_pattern": r"\d+"}, "2"),
        (
            {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "34"}},
            {"prompt": "prompt.0.content", "answer": "reward_model.ground_truth"},
            "34",
        ),
    ],
)
def test_any_schema_is_read_by_naming_its_columns(
    tmp_path: Path, row: dict[str, Any], arguments: dict[str, str], gold: str
) -> None:
    task = all_of(save(tmp_path / "rows.jsonl", row), suffix="", **arguments)
    (example,) = task.examples("train")
    assert example.fields == {"answer": gold}
    assert example.prompt == (Message("user", "q"),)
    assert task.verify(example, f"\\boxed{{{gold}}}", finished=True).correct


def test_further_fields_and_a_system_message_out_of_the_row(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", {"question": "q", "answer": "1", "role": "a judge", "level": 3})
    task = all_of(path, suffix="", system="You are $role.", fields={"hardness": "level $level of 5"})
    (example,) = task.examples("train")
    assert example.prompt == (Message("system", "You are a judge."), Message("user", "q"))
    assert example.fields == {"answer": "1", "hardness": "level 3 of 5"}


def test_verdicts_on_missing_cut_and_wrong_answers(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", APPLES)
    task = all_of(path)
    (example,) = task.examples("train")
    none = Verdict(0.0, None, "no answer in \\boxed{} was found", {"no_answer": 1.0})
    cut = Verdict(0.0, None, "the completion was cut off before an answer", {"no_answer": 1.0})
    assert task.verify(example, "1233 apples", finished=True) == none
    assert task.verify(example, "<think>\\boxed{1233}", finished=True) == none
    assert task.verify(example, "<think>\\boxed{1233}", finished=False) == cut
    assert task.verify(example, "the answer is 1233", finished=False) == cut
    assert task.verify(example, "\\boxed{1233", finished=False) == cut
    assert task.verify(example, "\\boxed{1233} and so", finished=False) == Verdict(1.0, "1233")
    assert task.verify(example, "the answer is 1233", finished=True) == Verdict(1.0, "1233")
    assert all_of(path, boxed_only=True).verify(example, "the answer is 1233", finished=True) == none
    assert task.verify(example, "\\boxed{5 apples}", finished=True) == Verdict(0.0, "5")
    telling = all_of(path, reveal_incorrect=True)
    assert telling.verify(example, "\\boxed{5 apples}", finished=True).feedback == "the final answer 5 apples is wrong"


def test_a_check_given_up_is_no_reward_and_says_so(tmp_path: Path) -> None:
    task = all_of(save(tmp_path / "rows.jsonl", APPLES), timeout=0.5)
    verdict = task.verify(task.examples("train")[0], "\\boxed{10^{10^{10^{10}}}}", finished=True)
    assert (verdict.reward, verdict.details) == (0.0, {"unchecked": 1.0})
    assert verdict.feedback == "the final answer 10^{10^{10^{10}}} could not be checked within 0.5 s"
    task.close()


def test_splits_hold_every_row_once_whatever_the_order_suffix_and_limit(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1", "answer": str(i + 1)} for i in range(40)]
    rows.append(rows[7])
    forwards = task_on(save(tmp_path / "a.jsonl", *rows))
    backwards = task_on(save(tmp_path / "b.jsonl", *rows[::-1]), suffix=" = ?")
    limited = task_on(tmp_path / "a.jsonl", limit=1)
    assert (forwards.duplicates.rows, forwards.duplicates.distinct, forwards.duplicates.repeated) == (41, 40, 1)
    seen = []
    for split in SPLITS:
        questions = [example.columns["question"] for example in forwards.examples(split)]
        assert questions == [row["question"] for row in rows if row["question"] in questions], "in the file's order"
        assert sorted(example.columns["question"] for example in backwards.examples(split)) == sorted(questions)
        assert [example.columns["question"] for example in limited.examples(split)] == questions[:1]
        seen += questions
    assert sorted(seen) == sorted(row["question"] for row in rows)
    twice = [[one.columns["question"] for one in forwards.examples(split)].count("7 + 1") for split in SPLITS]
    assert sorted(twice) == [0, 0, 2], "rows of one question share a split"


def test_a_split_may_have_its_own_file(tmp_path: Path) -> None:
    train = save(tmp_path / "train.jsonl", *({"question": f"{i} + 1", "answer": str(i + 1)} for i in range(20)))
    test = save(tmp_path / "test.jsonl", {"question": "0 + 1", "answer": "1"}, {"question": "x", "answer": "2"})
    task = task_on(train, test_path=str(test), validation_share=0.25)
    assert [example.id for example in task.examples("test")] == ["test:1", "test:2"]
    assert len(task.examples("train")) + len(task.examples("validation")) == 20
    assert task.duplicates.repeated == 1, "a question of both files is counted"


def test_rows_without_answers_are_not_judged(tmp_path: Path) -> None:
    task = all_of(save(tmp_path / "rows.jsonl", {"question": "write a poem"}), answer=None)
    (example,) = task.examples("train")
    assert not task.has_verifier
    assert task.verify(example, "\\boxed{0.5}", finished=True) == Verdict(None, "1/2")


@pytest.mark.parametrize(
    ("row", "arguments", "sentence"),
    [
        ({"question": "q"}, {}, "{path}, line 2: no 'answer', which field 'answer' needs; the row has question"),
        ({"question": "q", "answer": None}, {}, "{path}, line 2: 'answer' is null, but field 'answer' needs it"),
        ({"question": "q", "answer": " "}, {}, "{path}, line 2: the answer is empty"),
        ({"question": " ", "answer": "1"}, {}, "{path}, line 2: the prompt is empty"),
        (
            {"question": "q", "answer": "1"},
            {"solution": "proof"},
            "{path}, line 2: no 'proof', which field 'solution' needs; the row has question, answer",
        ),
        (
            {"question": "q", "answer": "1"},
            {"answer_pattern": "#### (.+)"},
            "{path}, line 2: no answer matches '#### (.+)'",
        ),
        (
            {"question": "q", "answer": "first\nthen"},
            {},
            "{path}, line 2: the answer is a long text with no \\boxed{{}} and no '####' line; "
            "give an answer_pattern that finds it",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_line(
    tmp_path: Path, row: dict[str, Any], arguments: dict[str, Any], sentence: str
) -> None:
    path = save(tmp_path / "rows.jsonl", {"question": "q", "answer": "#### 1", "proof": "clear"}, row)
    with pytest.raises(DataError) as raised:
        task_on(path, **arguments)
    assert str(raised.value) == sentence.format(path=path)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "rows.jsonl", APPLES)
    with pytest.raises(ConfigError, match=r"answer_pattern '\(' is not a regular expression"):
        task_on(path, answer_pattern="(")
    for key, bound in (("limit", "greater than or equal to 1"), ("timeout", "greater than 0")):
        table = {"kind": "math", "path": str(path), key: 0}
        with pytest.raises(ConfigError, match=rf"task.{key}: input should be {bound} \(got 0\)"):
            parse_config({"method": "grpo", "task": table}, "here")
    with pytest.raises(
        ConfigError, match=r"unknown split 'tset'; did you mean 'test'\? known: train, validation, test"
    ):
        task_on(path).examples("tset")
    with pytest.raises(
        DataError, match=r"no row of .*rows\.jsonl is in the test split: give it a file or a larger share"
    ):
        all_of(path).examples("test")


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_rewards.py").write_text(
        "def short(prompts, completions, **columns):\n"
        "    return [1.0 / len(text) for text in completions]\n"
        "number = 3\n"
    )
    (tmp_path / "broken_rewards.py").write_text("def short(:\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewarded(folder: Path, reward: RewardFunction) -> tuple[RewardedTask, Example]:
    task = RewardedTask(all_of(save(folder / "rows.jsonl", APPLES), reveal_incorrect=True), reward)
    return task, task.examples("train")[0]


def test_a_reward_by_import_path_replaces_the_reward_and_nothing_else(rewards: Path) -> None:
    path_before = list(sys.path)
    task, example = rewarded(rewards, load_reward("own_rewards:short"))
    assert sys.path == path_before
    assert (task.name, task.contexts, task.has_verifier) == ("math", "default", True)
    text = "\\boxed{7}"
    expected = Verdict(1 / 9, "7", "the final answer 7 is wrong")
    assert task.verify(example, text, finished=True) == expected


def test_a_reward_sees_lists_of_strings_and_the_columns_it_names(rewards: Path) -> None:
    seen: dict[str, object] = {}

    def everything(prompts: list[str], completions: list[str], **columns: list[object]) -> list[float | None]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [None]

    def one_column(completions: list[str], answer: list[str], weight: float = 2) -> list[float]:
        return [weight * len(answer[0])]

    task, example = rewarded(rewards, everything)
    assert task.verify(example, "text", finished=True).reward is None
    assert seen == {
        "prompts": [APPLES["question"] + "\nReason step by step and put the final answer in \\boxed{}."],
        "completions": ["text"],
        "question": [APPLES["question"]],
        "answer": [APPLES["answer"]],
    }
    task, example = rewarded(rewards, one_column)
    assert task.verify(example, "text", finished=True).reward == 2.0 * len(APPLES["answer"])


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ([1.0, 0.0], "must return a list with one reward a completion, got 2 values for 1 completion"),
        (1.0, "must return a list with one reward a completion, got a float for 1 completion"),
        (["1"], "must return floats or None, got '1' for example rows:1"),
        ([float("nan")], "must return floats or None, got nan for example rows:1"),
    ],
)
def test_a_reward_that_returns_nonsense_is_named(rewards: Path, returned: object, sentence: str) -> None:
    def mine(**columns: object) -> object:
        return returned

    task, example = rewarded(rewards, mine)
    with pytest.raises(UserError) as raised:
        task.verify(example, "text", finished=True)
    line = mine.__code__.co_firstlineno
    assert str(raised.value) == f"reward function 'mine' ({__file__}:{line}) {sentence}"


def test_a_reward_that_needs_an_absent_column_is_named(rewards: Path) -> None:
    def mine(completions: list[str], difficulty: list[float]) -> list[float]:
        return difficulty

    task, example = rewarded(rewards, mine)
    with pytest.raises(UserError, match="'mine' needs 'difficulty', but example rows:1 has question, answer"):
        task.verify(example, "text", finished=True)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("own_rewards", "reward 'own_rewards' must be written 'package.module:function'"),
        ("own_rewards:", "reward 'own_rewards:' must be written 'package.module:function'"),
        ("own_rewards:long", "reward 'own_rewards:long': module 'own_rewards' has no function 'long'"),
        ("own_rewards:number", "reward 'own_rewards:number': module 'own_rewards' has no function 'number'"),
        ("absent_rewards:short", "reward 'absent_rewards:short': module 'absent_rewards' cannot be imported"),
        ("broken_rewards:short", "reward 'broken_rewards:short': module 'broken_rewards' cannot be imported"),
    ],
)
def test_a_reward_that_cannot_be_found_is_named(rewards: Path, spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_reward(spec)
    assert str(raised.value).startswith(sentence)
