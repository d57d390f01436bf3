"""reasoning-gym's generators and scorers: every reference scores 1, splits share nothing, hostile answers end."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

import selfdistill as sd
from selfdistill.config.run import lasting, load_config, parse_config
from selfdistill.config.tasks import GeneratorConfig, ReasoningGymConfig
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.build import build_task, warnings_for
from selfdistill.tasks.check import check_data, describe_check
from selfdistill.tasks.reasoning_gym.client import UNSOUND, Gym
from selfdistill.tasks.reasoning_gym.task import NO_ANSWER, TRUNCATED, ReasoningGymTask, split_of
from selfdistill.tasks.reasoning_gym.worker import Refused, Server, check_formula
from selfdistill.tasks.reward import RewardedTask
from selfdistill.training.metrics import rollout_metrics
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")

WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Generators whose questions have many right answers, and which name none."""

HOSTILE = {
    "n_queens": "__import__('os').system('touch {mark}')",
    "string_insertion": "open('{mark}', 'w')",
    "spiral_matrix": "[open('{mark}', 'w')]",
    "binary_matrix": 'exec(\'open("{mark}", "w")\')',
    "puzzle24": "__import__('pathlib').Path('{mark}').touch()",
    "countdown": "__import__('os').system('touch {mark}')",
    "polynomial_multiplication": "open('{mark}', 'w')",
    "simple_integration": "open('{mark}', 'w')",
    "intermediate_integration": "open('{mark}', 'w')",
}
"""For every generator whose scorer evaluates the answer: a text that would leave a file."""


def config(generators: object, **keys: object) -> ReasoningGymConfig:
    table = {"kind": "reasoning_gym", "generators": generators, "train": 30, "validation": 10, "test": 10, **keys}
    return ReasoningGymConfig.model_validate(table)


def answer(text: str) -> str:
    return f"<think>so</think> <answer>{text}</answer>"


@pytest.fixture(scope="module")
def sums() -> Iterator[ReasoningGymTask]:
    task = ReasoningGymTask(config("chain_sum"))
    yield task
    task.close()


@pytest.fixture(scope="module")
def evaluating() -> Iterator[Gym]:
    gym = Gym([GeneratorConfig(name=name) for name in HOSTILE], timeout=2.0)
    yield gym
    gym.close()


def first(task: ReasoningGymTask) -> Example:
    return task.examples("train")[0]


@needs_package
def test_every_generator_gives_its_own_answer_full_marks() -> None:
    from reasoning_gym.factory import DATASETS

    names = sorted(set(DATASETS) - set(UNSOUND))
    gym = Gym([GeneratorConfig(name=name) for name in names], timeout=30.0)
    scores: dict[str, float | None] = {}
    for number, name in enumerate(names):
        drawn = gym.draw(number, 0, 0)
        if drawn is not None and drawn.answer is not None:
            scores[name] = gym.score(number, 0, 0, drawn.answer.strip())
    gym.close()
    assert set(names) - set(scores) == WITHOUT_ANSWER
    assert {name: score for name, score in scores.items() if score != 1.0} == {}
    assert len(scores) == 98


@needs_package
@pytest.mark.parametrize("name", sorted(UNSOUND))
def test_a_generator_with_an_unsound_scorer_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"generator '{name}' is not used: it"):
        ReasoningGymTask(config(name))


@needs_package
def test_splits_share_no_question_and_repeat_none_whatever_the_seed(sums: ReasoningGymTask) -> None:
    other = ReasoningGymTask(config("chain_sum"), seed=1)
    texts = {
        split: [e.columns["question"] for e in (*sums.examples(split), *other.examples(split))]
        for split in ("train", "validation", "test")
    }
    assert [len(sums.examples(split)) for split in texts] == [30, 10, 10]
    assert all(split_of(text) == split for split, listed in texts.items() for text in listed)
    assert len({e.columns["question"] for e in sums.examples("train")}) == 30
    assert len({e.id for split in texts for e in (*sums.examples(split), *other.examples(split))}) == 100


@needs_package
def test_examples_depend_on_the_seed_alone() -> None:
    mix = ["chain_sum", {"name": "needle_haystack", "weight": 3}]
    one, again, other = (ReasoningGymTask(config(mix), seed=seed) for seed in (3, 3, 4))
    validation = again.examples("validation")  # asked for in another order
    assert [e.prompt for e in one.examples("train")] == [e.prompt for e in again.examples("train")]
    assert one.examples("validation") == validation
    assert not {e.prompt for e in one.examples("train")} & {e.prompt for e in other.examples("train")}


@needs_package
def test_weights_decide_the_shares_and_a_generator_may_occur_at_two_difficulties() -> None:
    table = [
        {
            "name": "chain_sum",
            "difficulty": 0,
            "weight": 3,
            "config": {"min_terms": 2, "max_terms": 2, "max_digits": 5},
        },
        {"name": "chain_sum", "difficulty": 1, "config": {"min_terms": 6, "max_terms": 6}},
    ]
    task = ReasoningGymTask(config(table, train=200))
    examples = task.examples("train")
    easy = [e for e in examples if e.columns["entry"] == 0]
    assert 130 <= len(easy) <= 170  # 150 expected, deviation 6
    assert {e.id.split("-")[2] for e in examples} == {"1", "2"}
    operators = [sum(e.columns["question"].count(f" {sign} ") for sign in "+-") for e in examples]
    assert {n for e, n in zip(examples, operators, strict=True) if e.columns["entry"] == 0} == {1}
    assert {n for e, n in zip(examples, operators, strict=True) if e.columns["entry"] == 1} == {5}


@needs_package
def test_a_generator_with_few_questions_fills_what_it_can_and_says_what_is_missing() -> None:
    table = {"name": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    task = ReasoningGymTask(config(table, train=400))
    # 1 to 9 and 0 to 9 with two signs make fewer than 200 questions, of which three fifths are for training.
    (warning,) = warnings_for(task)
    assert f"{len(task.examples('train'))} of 400 train problems" in warning
    assert f"{task.duplicates} repeated ones were left out" in warning
    assert task.duplicates > 1000
    assert sum(len(task.examples(split)) for split in ("train", "validation", "test")) < 200


@needs_package
def test_the_last_closed_tag_behind_the_thinking_is_scored(sums: ReasoningGymTask) -> None:
    example = first(sums)
    right = example.fields["answer"]
    assert "solution" not in example.fields
    assert sums.verify(example, answer(f"\n{right} "), finished=True).reward == 1.0
    assert sums.verify(example, f"<answer>x</answer> {answer(right)} <answer>", finished=False).correct
    assert not sums.verify(example, f"{answer(right)} <answer>x</answer>", finished=True).correct
    inside = sums.verify(example, f"<think> <answer>{right}</answer> </think> so", finished=True)
    assert (inside.reward, inside.feedback, inside.details) == (0.0, NO_ANSWER, {"no_answer": 1.0})
    assert sums.verify(example, f"<answer>{right}", finished=False).feedback == TRUNCATED
    assert sums.verify(example, answer("x"), finished=True).feedback is None


@needs_package
def test_a_graded_score_is_the_reward_and_a_threshold_says_what_is_right() -> None:
    table = {"kind": "reasoning_gym", "generators": "n_queens", "train": 1, "reveal_incorrect": True}
    raw = parse_config({"method": "grpo", "task": table, "reward": {"success": 0.5}}, "test")
    task = build_task(raw.task, seed=0, reward=raw.reward)
    assert isinstance(task, RewardedTask)
    example = task.examples("train")[0]
    # The scorer gives half marks for a board as a list.
    listed = repr([row.split() for row in example.fields["answer"].split("\n")])
    plain, threshold = (
        task.task.verify(example, answer(listed), finished=True),
        task.verify(example, answer(listed), finished=True),
    )
    assert (plain.reward, plain.correct) == (0.5, False)
    assert plain.feedback is not None and plain.feedback.endswith("is wrong")
    assert (threshold.reward, threshold.correct) == (0.5, True)


@needs_package
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_code_in_an_answer_is_not_executed(name: str, evaluating: Gym, tmp_path: Path) -> None:
    number, mark = list(HOSTILE).index(name), tmp_path / "mark"
    score = evaluating.score(number, 0, 0, HOSTILE[name].format(mark=mark))
    assert score is not None and score <= 0.05
    assert not mark.exists()
    drawn = evaluating.draw(number, 0, 0)
    assert drawn is not None and drawn.answer is not None
    assert evaluating.score(number, 0, 0, drawn.answer) == 1.0


@needs_package
def test_an_answer_without_end_is_given_up_and_counted_and_the_next_is_scored() -> None:
    task = ReasoningGymTask(config("polynomial_multiplication", train=2, timeout=0.5))
    example = first(task)
    verdict = task.verify(example, answer("9**9**9**9"), finished=True)
    assert (verdict.reward, verdict.details) == (0.0, {"unchecked": 1.0})
    assert task.verify(example, answer(example.fields["answer"]), finished=True).correct
    task.close()


@needs_package
def test_what_a_scorer_raises_is_a_failed_and_counted_verification() -> None:
    task = ReasoningGymTask(config(["prime_factorization", "complex_arithmetic"], train=8))
    examples = {e.columns["generator"]: e for e in task.examples("train")}
    verdict = task.verify(examples["prime_factorization"], answer("two"), finished=True)
    assert (verdict.reward, verdict.details) == (0.0, {"unchecked": 1.0})
    # min(1.0, exp(-nan)) is 1.0 in Python.
    assert task.verify(examples["complex_arithmetic"], answer("nan"), finished=True).reward == 0.0


@needs_package
@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("Dataset exhausted at index 0. No valid word pairs", {"question": None}),
        ("list index out of range", {"error": "IndexError: list index out of range"}),
    ],
)
def test_only_a_generator_that_says_so_has_no_question(
    words: str, reply: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __getitem__(self, index: int) -> object:
            raise IndexError(words)

    monkeypatch.setattr("reasoning_gym.factory.create_dataset", lambda name, **settings: Failing())
    server = Server()
    assert server.reply({"do": "open", "name": "chain_sum", "difficulty": None, "config": {}}) == {}
    assert server.reply({"do": "draw", "generator": 0, "seed": 0, "index": 0}) == reply


@needs_package
@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ("chain_sums", "unknown generator 'chain_sums'; did you mean 'chain_sum'"),
        ({"name": "chain_sum", "config": {"min_term": 3}}, "has no config key 'min_term'; did you mean 'min_terms'"),
        ({"name": "chain_sum", "config": {"seed": 3}}, "has no config key 'seed'; seed and number of questions are"),
        ({"name": "chain_sum", "config": {"min_terms": 0}}, "config .*: AssertionError: min_terms must be positive"),
        ({"name": "chain_sum", "config": {"min_terms": "two"}}, "does not accept its config .*: TypeError"),
        ({"name": "chain_sum", "difficulty": 99}, "has the difficulties 0 to 10, not 99"),
        ({"name": "acre", "difficulty": 0}, "'acre' has no levels of difficulty"),
    ],
)
def test_a_mistake_is_one_sentence(generators: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ReasoningGymTask(config(generators))
    assert "\n" not in str(caught.value)


@needs_package
def test_data_check_verifies_every_answer_and_none_that_is_absent() -> None:
    mix = ["chain_sum", "graph_color"]
    own = {"kind": "reasoning_gym", "generators": mix, "train": 6, "validation": 2, "test": 2}
    report = check_data(None, task=None, preset=None, own=own)
    assert (report["rows"], report["verified"], report["unverified"], report["leaks"]) == (10, 1.0, [], {})
    assert 0 < report["verified_rows"] < 10
    assert "10 rows, 0 rejected, 10 checked, 100.0% verified" in list(describe_check(report))


@pytest.mark.skipif(INSTALLED, reason="reasoning-gym is installed")
def test_the_missing_package_is_named_with_the_command() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'selfdistill\[reasoning-gym\]'"):
        ReasoningGymTask(config("chain_sum"))


@pytest.mark.parametrize("text", ["-2*x**3 + exp(x)*C/2.5", "sqrt(2)^2 - .5", "(1, 2)"])
def test_a_formula_passes(text: str) -> None:
    check_formula(text)


@pytest.mark.parametrize(
    "text", ["x.real", "f('y')", "__import__", "open(x)", "lambda", "x[0]", "x = 1", "x if y else z", "1" * 2001]
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        check_formula(text)


def test_a_generator_is_a_name_a_table_or_a_list_of_both() -> None:
    assert [g.name for g in config(["a", {"name": "b"}]).generators] == ["a", "b"]
    assert config("a").generators == config({"name": "a"}).generators == [GeneratorConfig(name="a")]
    table = {"kind": "reasoning_gym", "generators": [{"name": "a", "dificulty": 1}]}
    with pytest.raises(UserError, match=r"did you mean 'task\.generators\.0\.difficulty'"):
        parse_config({"method": "grpo", "task": table}, "test")


def test_a_date_in_a_generators_config_is_refused_because_it_is_sent_as_json() -> None:
    table = {"name": "time_intervals", "config": {"min_date": date(2000, 1, 1)}}
    with pytest.raises(UserError, match=r"task\.generators\.0\.config: .*JSON: Object of type date"):
        parse_config({"method": "grpo", "task": {"kind": "reasoning_gym", "generators": table}}, "test")


def test_the_shipped_config_is_a_mix_of_sound_generators() -> None:
    shipped = load_config("reasoning-gym-grpo").task
    assert isinstance(shipped, ReasoningGymConfig)
    assert len(shipped.generators) == 3
    assert not {generator.name for generator in shipped.generators} & set(UNSOUND)


def test_answers_that_were_given_up_are_counted_in_the_metrics() -> None:
    rollouts = tuple(Rollout((1,), (2,), (0.0,), True, text, 0) for text in "abc")
    given_up = Verdict(0.0, details={"unchecked": 1.0})
    example = Example("one", (Message("user", "?"),))
    group = RolloutGroup(example, rollouts, (given_up, Verdict(1.0), given_up))
    assert rollout_metrics([group], "student")["unchecked"] == 2
    assert "unchecked" not in rollout_metrics([RolloutGroup(example, rollouts[:1], (Verdict(1.0),))], "student")


@needs_package
def test_the_shipped_config_has_all_its_questions() -> None:
    shipped = load_config("reasoning-gym-grpo", ["task.train=20", "task.validation=5", "task.test=5"]).task
    assert isinstance(shipped, ReasoningGymConfig)
    task = ReasoningGymTask(shipped)
    assert warnings_for(task) == []
    assert {e.columns["generator"] for e in task.examples("train")} == {g.name for g in shipped.generators}


def test_a_resume_compares_every_key_of_every_generator() -> None:
    table = {"kind": "reasoning_gym", "generators": [{"name": "a", "difficulty": 1}, "b"]}
    kept = lasting(parse_config({"method": "grpo", "task": table}, "test"))
    rest = {"config": {}, "weight": 1.0}
    assert kept["task"]["generators"] == [
        {"name": "a", "difficulty": 1, **rest},
        {"name": "b", "difficulty": None, **rest},
    ]


@needs_package
def test_a_resumed_run_ends_as_the_whole_run_does(tmp_path: Path) -> None:
    def train(out: str, *, steps: int, resume: bool = False) -> list[dict[str, object]]:
        table = {"kind": "reasoning_gym", "generators": ["chain_sum", "leg_counting"], "train": 8, "validation": 2}
        sd.train(
            "countdown-grpo",
            task={**table, "test": 2},
            out=tmp_path / out,
            sampling={"prompts": 2, "completions": 2, "max_tokens": 8},
            evaluation={"every": 9, "problems": 1, "samples": 1, "max_tokens": 4},
            checkpoint={"every": 1},
            steps=steps,
            resume=resume,
        )
        lines = (tmp_path / out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        # The entropy depends on every prompt token.
        return [{key: json.loads(line)[key] for key in ("step", "student_entropy", "reward")} for line in lines]

    whole = train("whole", steps=4)
    train("stopped", steps=2)
    assert train("stopped", steps=4, resume=True) == whole
    assert len({step["student_entropy"] for step in whole}) == 4
