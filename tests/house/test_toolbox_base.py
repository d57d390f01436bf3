"""The shipped toolbox base model: right by guessing alone, and ready to take over whatever convention it is shown."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from base_models.subject import Sample, Subject, mean, share
from selfdistill.config.tasks import ToolboxConfig
from selfdistill.contexts.templates import FIELDS, load_templates
from selfdistill.tasks.toolbox.calls import DIMENSIONS, TOOLS
from selfdistill.tasks.toolbox.task import PROMPT, ToolboxTask
from selfdistill.types import Example, Message
from toolbox_base import properties, traces
from toolbox_base.reading import CLASSES, token_classes

SHIPPED = properties.MODEL_DIR


@pytest.fixture(scope="module")
def subject() -> Subject:
    return properties.subject_under(SHIPPED, 0)


@pytest.fixture(scope="module")
def examples(subject: Subject) -> list[Example]:
    return list(subject.task.examples("validation"))


@pytest.fixture(scope="module")
def plain(subject: Subject, examples: list[Example]) -> list[Sample]:
    """Two completions on each of 192 validation problems, alone."""
    return subject.sample(examples[:192] * 2, [{}] * 384, "student", seed=0)


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


def test_the_tokenizer_and_the_embedding_agree(subject: Subject) -> None:
    embedding: Any = subject.model.get_input_embeddings()
    assert embedding.weight.shape[0] == len(subject.tokenizer)
    assert subject.model.generation_config is not None
    assert subject.model.generation_config.eos_token_id == subject.tokenizer.eos_token_id


def test_a_prompt_with_its_completion_is_the_whole_conversation(subject: Subject, examples: list[Example]) -> None:
    asked = [{"role": "user", "content": examples[0].prompt[-1].content}]
    said = examples[0].fields["response"]
    tokenizer = subject.tokenizer
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": said}], tokenize=False)
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{said} <|end|>", whole)]
    assert pieces[0] + pieces[1] == pieces[2]


def test_text_and_ids_of_the_world_are_each_others_inverse(subject: Subject) -> None:
    text = "so now the call . </think> call : move ( crate , distance = 37 , unit = feet , to = harbour ) . done"
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.split())
    assert subject.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert subject.tokenizer("move(crate,distance=37", add_special_tokens=False)["input_ids"] == ids[8:15]


CALLS = [
    "", "call", "call move crate", "call ( crate )", "call move ( crate", "call move ( crate ) crate",
    "call move ( , )", "call move ( unit = feet , crate )", "call lift ( )", "call lift ( a , b , c , d )",
    "call lift ( colour = red , colour = red )", "call move ( unit = red , unit = red , to = there , dest = there )",
    "call pay ( amount = 900 , user = nobody , client = nobody )", "call book ( date = 1 january )",
]  # fmt: skip


@pytest.mark.parametrize("text", CALLS)
@pytest.mark.parametrize("finished", [True, False])
def test_every_word_of_feedback_is_in_the_vocabulary(subject: Subject, text: str, finished: bool) -> None:
    for conventions in range(4):
        task = ToolboxTask(ToolboxConfig(conventions=conventions))
        for example in task.examples("train")[:16]:
            verdict = task.verify(example, text, finished=finished)
            assert verdict.feedback is not None
            assert_known(subject, verdict.feedback)


def test_every_word_of_contexts_prompts_and_traces_is_in_the_vocabulary(subject: Subject) -> None:
    writer = traces.TraceWriter(load_templates("toolbox"), seed=1)
    for trace in writer.traces(500):
        assert_known(subject, " ".join([*(message.content for message in trace.messages), trace.completion]))
    fields = dict.fromkeys(FIELDS, "1")
    example = subject.task.examples("train")[0]
    for name in subject.templates:
        assert subject.tokenizer.unk_token_id not in subject.prompt_ids(example, name, fields)


def assert_known(subject: Subject, text: str) -> None:
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    unknown = [word for word, i in zip(text.split(), ids, strict=True) if i == subject.tokenizer.unk_token_id]
    assert not unknown, text


# The language that it learned


def test_traces_hold_training_problems_and_right_calls() -> None:
    writer = traces.TraceWriter(load_templates("toolbox"), seed=2)
    for _ in range(500):
        problem, conventions = writer.problem(), writer.conventions()
        assert problem.split == "train"
        task = ToolboxTask()
        task.conventions = dict(conventions)
        columns = {"topic": problem.topic, "values": problem.values}
        example = Example("drawn", (Message("user", problem.question),), columns=columns)
        said = writer.completion(problem, conventions, ())
        assert task.verify(example, said, finished=True).correct
        feedback, shown = writer.failure(problem, conventions)
        assert feedback
        assert set(shown) <= set(TOOLS[problem.topic].dimensions)


def test_thoughts_call_clear_only_what_was_shown() -> None:
    writer = traces.TraceWriter(load_templates("toolbox"), seed=3)
    for _ in range(200):
        problem = writer.problem(["transport"])
        said = writer.completion(problem, writer.conventions(), ["length"])
        assert "the place word is clear" not in said
        assert "clear" not in writer.completion(problem, writer.conventions(), [])


def test_tokens_are_classed_by_what_they_are_for() -> None:
    words = (
        "this is about payment with 3 and irene . hmm check the person word . the confirmation is clear . so now the "
        "call . </think> call : pay ( amount = 3 , user = irene , confirm = yes ) . done"
    ).split()
    classes = token_classes(words, "payment", ["3", "irene"])
    by_class = {kind: [w for w, k in zip(words, classes, strict=True) if k == kind] for kind in CLASSES}
    assert by_class.pop("boilerplate")
    assert by_class == {
        "deliberation": ["hmm"],
        "certainty": ["clear"],
        "jump": ["</think>"],
        "convention": ["user", ","],
        "argument": ["3", "irene", "3", "irene"],
    }
    unconfirmed = [*words[: words.index("irene", 10) + 1], ")", ".", "done"]
    assert token_classes(unconfirmed, "payment", ["3", "irene"])[-3:] == ["convention", "boilerplate", "boilerplate"]


def test_as_many_tokens_commit_to_conventions_as_the_function_has() -> None:
    writer = traces.TraceWriter(load_templates("toolbox"), seed=4)
    for _ in range(300):
        problem = writer.problem()
        words = writer.completion(problem, writer.conventions(), ()).split()
        classes = token_classes(words, problem.topic, list(problem.values.values()))
        assert classes.count("convention") == len(TOOLS[problem.topic].dimensions), words


# The model


@pytest.mark.parametrize("conventions", [1, 2])
def test_it_is_right_in_a_fifth_to_a_half_of_requests_under_any_conventions(conventions: int) -> None:
    subject = properties.subject_under(SHIPPED, conventions)
    said = subject.sample(subject.task.examples("validation")[:192], [{}] * 192, "student", seed=conventions)
    assert 0.2 <= share([one.verdict.correct for one in said]) <= 0.5


def test_alone_it_copies_well_and_guesses_evenly(plain: list[Sample]) -> None:
    found = properties.plain_properties(plain)
    assert 0.2 <= found["accuracy"] <= 0.5
    assert found["copying_errors"] < 0.05
    assert 30 <= found["tokens"] <= 60
    assert found["deliberation_tokens"] > 1
    for name, values in DIMENSIONS.items():
        for value in values:
            # A dimension that one function alone has is seen 48 times: three standard deviations below a quarter.
            assert 0.25 / len(values) < found[f"guesses {name} = {value}"] < 2 / len(values)


@pytest.mark.long
def test_it_takes_over_a_right_call(subject: Subject, examples: list[Example]) -> None:
    found = properties.context_properties(subject, examples[:80], seed=1)
    for context in ("solution", "sibling", "solution_verdict", "sibling_verdict", "reference_only"):
        assert found[f"accuracy_{context}"] > 0.9


@pytest.mark.long
def test_it_keeps_the_conventions_that_feedback_names(subject: Subject, plain: list[Sample]) -> None:
    found = properties.feedback_properties(subject, plain[:192], seed=2)
    assert found["feedback_cases"] > 100
    assert found["keeps_with_feedback"] > 0.85
    assert found["keeps_without_feedback"] < 0.6
    assert found["copying_errors_feedback"] < 0.03


@pytest.mark.long
def test_another_problems_call_shows_its_conventions_where_they_apply(
    subject: Subject, examples: list[Example]
) -> None:
    found = properties.transfer_properties(subject, examples[:96], seed=3)
    for context in ("solution", "sibling", "other_question_sibling"):
        assert found[f"transfer_{context}"] > 0.85
        assert found[f"transfer_elsewhere_{context}"] < 0.65
        assert found[f"copying_errors_{context}"] < 0.05


@pytest.mark.parametrize("context", ["solution", "sibling_verdict"])
def test_a_right_call_speaks_on_conventions_and_not_on_boilerplate(
    subject: Subject, plain: list[Sample], context: str
) -> None:
    u = properties.information(subject, plain[:192], context)
    assert u["right_convention"][0] > 0.5
    assert u["wrong_convention"][0] < -2
    assert u["deliberation"][0] < -0.3
    assert u["boilerplate"][1] < 0.1
    assert u["argument"][1] < 0.1


def test_the_student_prompt_is_the_question_alone(subject: Subject, examples: list[Example]) -> None:
    text = str(subject.tokenizer.decode(subject.prompt_ids(examples[0], "student", {})))
    assert text.startswith(f"<|user|> {PROMPT.partition('{')[0]}")
    assert text.endswith(". <|end|> <|assistant|> <think>")


def test_a_share_and_a_mean_of_nothing_are_missing() -> None:
    assert math.isnan(share([])) and math.isnan(mean([]))
    assert share([True, False, True, True]) == 0.75
    assert mean([1.0, 2.0]) == 1.5
