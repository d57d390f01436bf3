"""The shipped Countdown base model is worth teaching: its properties, measured on the model in the package."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from base_models.subject import Sample
from countdown_base import properties, traces
from countdown_base.reading import attempts_in, token_classes
from selfdistill.contexts.templates import FIELDS, load_templates
from selfdistill.tasks.countdown.task import DIFFICULTIES, CountdownTask, Problem
from selfdistill.types import Example, Message

SHIPPED = properties.MODEL_DIR


@pytest.fixture(scope="module")
def subject() -> properties.Subject:
    return properties.Subject(SHIPPED, "default")


@pytest.fixture(scope="module")
def plain(subject: properties.Subject) -> list[Sample]:
    """Four completions on each of 100 validation problems, alone."""
    examples = list(subject.task.examples("validation"))[:100] * 4
    return subject.sample(examples, [{}] * len(examples), "student", seed=0)


@pytest.fixture(scope="module")
def search(plain: list[Sample]) -> dict[str, float]:
    return properties.search_properties(plain)


# The files


def test_the_model_directory_is_small_and_normal() -> None:
    files = {path.name for path in SHIPPED.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } <= files
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 8_000_000
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True


def test_the_tokenizer_and_the_embedding_agree(subject: properties.Subject) -> None:
    embedding: Any = subject.model.get_input_embeddings()
    assert embedding.weight.shape[0] == len(subject.tokenizer)
    assert subject.tokenizer.pad_token_id != subject.tokenizer.eos_token_id
    assert subject.model.generation_config is not None
    assert subject.model.generation_config.eos_token_id == subject.tokenizer.eos_token_id


def test_the_chat_template_renders_turns_and_opens_the_thinking(subject: properties.Subject) -> None:
    chat = [
        {"role": "system", "content": "you are a solver ."},
        {"role": "user", "content": "use the numbers 3 5 2 to make 21 ."},
        {"role": "assistant", "content": "answer ( 5 + 2 ) × 3"},
        {"role": "user", "content": "again ."},
    ]

    def render(**options: Any) -> str:
        text = subject.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
        return str(text)

    turns = (
        "<|system|> you are a solver . <|end|> <|user|> use the numbers 3 5 2 to make 21 . <|end|> "
        "<|assistant|> answer ( 5 + 2 ) × 3 <|end|> <|user|> again . <|end|> "
    )
    assert render() == turns + "<|assistant|> <think>"
    assert render(enable_thinking=False) == turns + "<|assistant|> <think> </think>"


def test_a_prompt_with_its_completion_is_the_whole_conversation(subject: properties.Subject) -> None:
    asked = [{"role": "user", "content": "use the numbers 3 5 2 to make 21 ."}]
    said = "try 5 + 2 = 7 , 7 × 3 = 21 vs 21 , yes . </think> answer ( 5 + 2 ) × 3"
    tokenizer = subject.tokenizer
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": said}], tokenize=False)
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{said} <|end|>", whole)]
    assert pieces[0] + pieces[1] == pieces[2]


def test_text_and_ids_of_the_world_are_each_others_inverse(subject: properties.Subject) -> None:
    text = (
        "use the numbers 12 5 2 to make 100 . try 12 ÷ 2 = 6 vs 100 , no . wait let me </think> answer ( 12 - 5 ) × 2"
    )
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.split())
    assert subject.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert subject.tokenizer("(12-5)×2", add_special_tokens=False)["input_ids"] == ids[-7:]


FEEDBACK_CASES = [
    "answer 3 + 5 + 2", "answer 3 - 5 - 2", "answer 7 × 3", "answer 3 × 3", "answer 3", "answer ( 3", "answer 3 )",
    "answer 3 5", "answer 3 + × 5", "answer", "answer wait", "answer 3 ÷ ( 5 - 5 )", "answer 900 + 3", "answer 3 foo",
    f"answer {'( ' * 99}", "answer 149 × 149", "answer 3 - 149 × 149", "answer 1 ÷ 149 ÷ 149", "answer 5 ÷ 3 + 2",
    "answer 900 900", "answer ( + )", "answer foo + 3",
]  # fmt: skip


@pytest.mark.parametrize("text", FEEDBACK_CASES)
@pytest.mark.parametrize("finished", [True, False])
def test_every_word_of_feedback_is_in_the_vocabulary(subject: properties.Subject, text: str, finished: bool) -> None:
    example = subject.task.examples("train")[0]
    verdict = subject.task.verify(example, text, finished=finished)
    assert verdict.feedback is not None
    assert_known(subject, verdict.feedback)
    if verdict.answer is not None and max(map(int, filter(str.isdecimal, verdict.answer.split()))) <= 150:
        assert_known(subject, verdict.answer)


def test_every_word_of_contexts_prompts_and_traces_is_in_the_vocabulary(subject: properties.Subject) -> None:
    writer = traces.TraceWriter(load_templates("countdown"), seed=1)
    for trace in writer.traces(200):
        assert_known(subject, " ".join([*(message.content for message in trace.messages), trace.completion]))
    fields = dict.fromkeys(FIELDS, "1")
    example = subject.task.examples("train")[0]
    for name in subject.templates:
        assert subject.tokenizer.unk_token_id not in subject.prompt_ids(example, name, fields)


def assert_known(subject: properties.Subject, text: str) -> None:
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = [word for word, i in zip(text.split(), ids, strict=True) if i == subject.tokenizer.unk_token_id]
    assert not unknown, text


# The language that it learned


def test_traces_hold_training_problems_and_what_they_say_is_true() -> None:
    writer = traces.TraceWriter(load_templates("countdown"), seed=2)
    task = CountdownTask()
    for difficulty in (DIFFICULTIES["default"], DIFFICULTIES["four"]):
        for problem in writer.pools[difficulty][:200]:
            assert problem.split == "train"
            text = writer.search(problem, avoid=None)
            attempts = attempts_in(text, problem.numbers)
            assert len({attempt.expression for attempt in attempts}) == len(attempts) <= traces.MOST_ATTEMPTS
            for attempt in attempts:
                assert attempt.expression is not None
                assert not attempt.slip
                assert (attempt.verdict == "yes") == (attempt.value == problem.target)
            columns = {"numbers": list(problem.numbers), "target": problem.target}
            example = Example("from-the-pool", (Message("user", "?"),), columns=columns)
            assert task.verify(example, text, finished=True).correct == (attempts[-1].verdict == "yes")


def test_a_slip_a_stranger_number_and_a_wrong_claim_are_read_as_such() -> None:
    text = "try 5 + 3 = 9 , 9 × 2 = 18 vs 21 , no . wait try 7 × 3 = 21 vs 21 , yes . </think> answer 7 × 3"
    first, second = attempts_in(text, [3, 5, 2])
    assert (first.expression, first.slip, first.verdict, first.value) == ("( 5 + 3 ) × 2", True, "no", 18)
    assert (second.expression, second.slip, second.verdict, second.value) == (None, False, "yes", 21)


def test_tokens_are_classed_by_what_they_are_for() -> None:
    words = "try 5 + 3 = 8 , 8 × 2 = 16 vs 21 , no . let me try".split()
    decisions = [i for i, kind in enumerate(token_classes(words)) if kind == "decision"]
    assert [words[i] for i in decisions] == ["try", "5", "+", "3", "×"]
    assert token_classes(words)[-3:] == ["deliberation", "deliberation", "bookkeeping"]
    assert token_classes(["</think>", "answer", "5"]) == ["jump", "answer", "answer"]


def test_the_hindsight_of_feedback_rules_an_attempt_out() -> None:
    writer = traces.TraceWriter(load_templates("countdown"), seed=3)
    problem = Problem((3, 5, 7), 26)
    avoid = next(attempt for attempt in problem.attempts if attempt.value != 26)
    for _ in range(200):
        spoken = attempts_in(writer.search(problem, avoid=avoid), problem.numbers)
        assert avoid.expression not in [attempt.expression for attempt in spoken]


# The model


@pytest.mark.long
def test_it_solves_a_third_to_a_half_of_the_default_difficulty(search: dict[str, float]) -> None:
    assert 0.30 <= search["accuracy"] <= 0.55
    assert search["truncated"] == 0.0


@pytest.mark.long
def test_its_arithmetic_is_sound(search: dict[str, float]) -> None:
    assert search["slips"] < 0.03
    assert search["misused_numbers"] < 0.03
    assert search["false_verdicts"] < 0.03


@pytest.mark.long
def test_it_searches_at_length_and_a_later_attempt_is_worth_as_much(plain: list[Sample]) -> None:
    table = properties.by_attempt(plain)
    assert len(table) == traces.MOST_ATTEMPTS
    assert table[-1][0] / len(plain) > 0.01
    early, late = (pooled(table[a:b]) for a, b in ((0, 3), (4, 10)))
    assert late > 0.6 * early


def pooled(rows: list[tuple[int, float]]) -> float:
    return sum(count * right for count, right in rows) / sum(count for count, _ in rows)


@pytest.mark.long
def test_it_uses_a_reference(subject: properties.Subject) -> None:
    examples = list(subject.task.examples("validation"))[:100]
    found = properties.context_properties(subject, examples, seed=1)
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        assert found[f"accuracy_{context}"] > 0.9
        assert found[f"follows_{context}"] > 0.9


@pytest.mark.long
def test_it_avoids_what_feedback_has_named(subject: properties.Subject, plain: list[Sample]) -> None:
    found = properties.feedback_properties(subject, plain, seed=2)
    assert found["feedback_cases"] > 150
    assert found["repeats_with_feedback"] < 0.25 * found["repeats_without_feedback"]


@pytest.mark.long
@pytest.mark.parametrize("context", ["solution", "sibling_verdict"])
def test_a_reference_speaks_against_deliberating_and_for_the_jump(
    subject: properties.Subject, plain: list[Sample], context: str
) -> None:
    u = properties.information(subject, plain[:200], context)
    assert u["deliberation"][0] < -0.3
    assert u["jump"][0] > 0.3
    assert u["give_up_jump"][0] > 0.7
    assert abs(u["bookkeeping"][0]) < 0.1


def test_sampling_is_repeatable(subject: properties.Subject) -> None:
    examples = list(subject.task.examples("validation"))[:8]
    one, same = (subject.sample(examples, [{}] * 8, "student", seed=5) for _ in range(2))
    assert [said.ids for said in one] == [said.ids for said in same]
    assert torch.is_inference_mode_enabled() is False
