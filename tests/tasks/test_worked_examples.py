"""Rows with solutions as earlier turns of every prompt, and contexts of several messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.tasks import ChoiceConfig, MathConfig
from selfdistill.contexts.templates import apply, load_templates
from selfdistill.errors import ConfigError, DataError
from selfdistill.tasks.build import build_row_task
from selfdistill.tasks.rows import RowTask
from selfdistill.types import Example, Message, Skipped

SUFFIX = " End with ####."


def rows(path: Path, count: int = 12, **columns: Any) -> Path:
    lines = [
        {
            "question": f"What is {n} + 1?",
            "answer": str(n + 1),
            "solution": f"{n} + 1 = {n + 1}. #### {n + 1}",
            **columns,
        }
        for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def task_of(path: Path, kind: type[MathConfig | ChoiceConfig] = MathConfig, **settings: Any) -> RowTask:
    table = {"path": str(path), "solution": "solution", "suffix": SUFFIX, "validation_share": 0.2, "test_share": 0.2}
    return build_row_task(kind.model_validate({**table, **settings}), seed=0)


def test_worked_examples_stand_before_every_question_and_are_not_trained_on(tmp_path: Path) -> None:
    plain, shown = (task_of(rows(tmp_path / "rows.jsonl"), system="Be brief.", worked_examples=n) for n in (0, 2))
    first, second, *others = plain.examples("train")
    turns = [
        message
        for worked in (first, second)
        for message in (Message("user", worked.prompt[-1].content), Message("assistant", worked.fields["solution"]))
    ]
    assert turns[0].content.endswith(SUFFIX)
    for split, expected in (
        ("train", others),
        ("validation", plain.examples("validation")),
        ("test", plain.examples("test")),
    ):
        found = shown.examples(split)
        assert [example.id for example in found] == [example.id for example in expected]
        for example, without in zip(found, expected, strict=True):
            assert example.prompt == (without.prompt[0], *turns, without.prompt[1])
            assert (example.fields, example.columns) == (without.fields, without.columns)


def test_a_question_that_is_drawn_anew_keeps_its_worked_examples(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", answer="B", options=["1", "2", "3"])
    task = task_of(path, ChoiceConfig, choices="options", shuffle="epoch", worked_examples=1)
    example = task.examples("train")[0]
    later = [example.in_epoch(epoch) for epoch in range(6)]
    assert {one.prompt[:2] for one in later} == {example.prompt[:2]}
    assert len({one.prompt[-1].content for one in later}) > 1


@pytest.mark.parametrize(
    ("count", "settings", "sentence"),
    [
        (3, {"solution": None}, "task.worked_examples is 2, and 0 training rows have a solution"),
        (1, {"validation_share": 0.0, "test_share": 0.0}, "task.worked_examples is 2, and 1 training row has"),
        (2, {"validation_share": 0.0, "test_share": 0.0}, "which leaves none of 2 rows to train on"),
    ],
)
def test_too_few_solutions_are_said(count: int, settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        task_of(rows(tmp_path / "rows.jsonl", count), worked_examples=2, **settings)


PROMPT = (
    Message("system", "Be brief."),
    Message("user", "earlier?"),
    Message("assistant", "yes"),
    Message("user", "1 + 1?"),
)


@pytest.mark.parametrize("source", ["default", "countdown", "toolbox", "text"])
@pytest.mark.parametrize(("name", "field"), [("solution_turn", "solution"), ("sibling_turn", "sibling")])
def test_a_context_may_be_an_earlier_turn_below_the_prompts_own(source: str, name: str, field: str) -> None:
    templates = load_templates(source)
    shown = apply(templates, name, PROMPT, {field: "two"})
    assert shown == (*PROMPT[:-1], Message("user", "1 + 1?"), Message("assistant", "two"), Message("user", "1 + 1?"))
    assert apply(templates, name, PROMPT, {}) == Skipped(name, (field,))
    assert templates[name].needs == (field,)


def load(folder: Path, text: str) -> Any:
    (folder / "own.toml").write_text(text, encoding="utf-8")
    return load_templates(folder / "own.toml")


def test_turns_of_ones_own_may_show_any_field_and_need_each(tmp_path: Path) -> None:
    text = (
        'turns = [{ role = "user", text = "$other_question" }, { role = "assistant", text = "$feedback" }]\n'
        'text = "$question $verdict"\n'
    )
    template = load(tmp_path, f"[own]\n{text}")["own"]
    assert template.needs == ("other_question", "feedback", "verdict")
    fields = {"other_question": "2 + 2?", "feedback": "four", "verdict": "correct"}
    assert template.render(PROMPT, fields)[-3:] == (
        Message("user", "2 + 2?"),
        Message("assistant", "four"),
        Message("user", "1 + 1? correct"),
    )


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('turns = ["hello"]\ntext = "$question"', r"\[own\].turns are a list of"),
        ('turns = [{ role = "user", text = "a" }]\ntext = "$question"', "the assistant last; here: user"),
        ('turns = [{ role = "tool", text = "a" }]\ntext = "$question"', "here: tool"),
        ('turns = [{ role = "user", txt = "a" }]\ntext = "$question"', r"\[own\].turns are a list of"),
        ('turns = "hello"\ntext = "$question"', r"\[own\].turns are a list of"),
        (
            'turns = [{ role = "user", text = "5 $" }, { role = "assistant", text = "a" }]\ntext = "$question"',
            "stray '\\$'",
        ),
    ],
)
def test_turns_that_are_none_are_refused(table: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path, f"[own]\n{table}\n")


def test_an_example_of_no_worked_ones_is_itself(tmp_path: Path) -> None:
    example: Example = task_of(rows(tmp_path / "rows.jsonl")).examples("train")[0]
    assert len(example.prompt) == 1
