"""Contexts as data: what a template shows, what it needs, and that both shipped files hold the same names."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from selfdistill.contexts.fields import hindsight
from selfdistill.contexts.templates import FIELDS, Template, apply, load_templates, shipped_contexts
from selfdistill.errors import ConfigError
from selfdistill.methods import METHODS, build_method
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Skipped, Verdict
from support.engine import load_exact

PROMPT = (Message("system", "Be brief."), Message("user", "what is 1 + 1 ?"))
OTHER = (Message("tools", "[]"), Message("system", "Be long."), Message("user", "<other_question>"))
NAMES = {
    "student",
    "solution",
    "sibling",
    "sibling_or_solution",
    "feedback",
    "sibling_or_feedback",
    "solution_verdict",
    "sibling_verdict",
    "sibling_or_solution_verdict",
    "reference_only",
    "other_question",
    "other_question_sibling",
    "other_question_feedback",
}


def load(folder: Path, text: str) -> dict[str, Template]:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return load_templates(path)


def shown(name: str, fields: dict[str, str], *, source: str = "default") -> str:
    messages = apply(load_templates(source), name, PROMPT, fields, other_input=OTHER)
    assert not isinstance(messages, Skipped)
    # What belongs to a question stands above it, and nothing above a solution alone.
    other = name.startswith("other_question")
    assert messages[:-1] == (OTHER[:-1] if other else () if name == "reference_only" else PROMPT[:-1])
    assert messages[-1].role == "user"
    return messages[-1].content


@pytest.mark.parametrize("source", ["countdown", "default", "papers", "text", "toolbox"])
def test_a_shipped_file_holds_every_context_and_only_known_fields(source: str) -> None:
    assert source in shipped_contexts()
    templates = load_templates(source)
    assert set(templates) >= NAMES
    assert all(template.description for template in templates.values())
    for template in templates.values():
        assert set(template.needs) <= set(FIELDS), template.name
    # The student must see its question alone: scored under it, log-probabilities are those it sampled with.
    assert templates["student"].text == "$question"


@pytest.mark.parametrize("source", ["countdown", "text", "toolbox"])
def test_all_shipped_files_show_the_same_fields_under_the_same_names(source: str) -> None:
    embedded, default = load_templates(source), load_templates("default")
    assert set(embedded) == set(default)
    for name in NAMES:
        assert embedded[name].needs == default[name].needs
        assert embedded[name].first_of == default[name].first_of


@pytest.mark.parametrize("source", ["countdown", "default", "toolbox"])
def test_what_each_context_shows_and_hides(source: str) -> None:
    fields = {name: f"<{name}>" for name in FIELDS if name != "question"}
    expected = {
        "student": {"question"},
        "solution": {"question", "solution"},
        "sibling": {"question", "sibling"},
        "sibling_or_solution": {"question", "sibling"},
        "feedback": {"question", "feedback"},
        "sibling_or_feedback": {"question", "sibling"},
        "solution_verdict": {"question", "solution", "verdict"},
        "sibling_verdict": {"question", "sibling", "verdict"},
        "sibling_or_solution_verdict": {"question", "sibling", "verdict"},
        "reference_only": {"solution"},
        "other_question": {"other_question", "sibling"},
        "other_question_sibling": {"other_question", "sibling"},
        "other_question_feedback": {"other_question", "feedback"},
    }
    marks = fields | {"question": PROMPT[-1].content}
    for name in NAMES:
        text = shown(name, fields, source=source)
        assert {field for field, mark in marks.items() if mark in text} == expected[name], name


@pytest.mark.parametrize("source", ["default", "papers"])
def test_the_contrast_differs_from_its_context_in_the_question_alone(source: str) -> None:
    fields = {"sibling": "<sibling>", "feedback": "<feedback>", "other_question": "<other>"}
    for context, contrast in (("sibling", "other_question_sibling"), ("feedback", "other_question_feedback")):
        own, other = (shown(name, fields, source=source) for name in (context, contrast))
        assert other == own.replace(PROMPT[-1].content, "<other>")


@pytest.mark.parametrize("source", ["countdown", "default", "papers", "text", "toolbox"])
def test_a_shipped_file_serves_every_method(source: str) -> None:
    templates = load_templates(source)
    asked = {role.context for name in METHODS for role in build_method(name, {}).roles().values()}
    assert asked - {None} <= set(templates)


@pytest.mark.parametrize("source", ["countdown", "default", "papers", "text", "toolbox"])
def test_right_and_wrong_hints_differ_in_the_hint_alone(source: str) -> None:
    """What a contrast of two hints measures would else be their words."""
    names = ("random_sibling", "wrong_sibling", "answer", "wrong_answer", "solution")
    fields = dict.fromkeys(names, "<hint>")
    pairs = (("random_sibling_or_solution", "wrong_sibling"), ("answer_only", "wrong_answer"))
    for right, wrong in pairs:
        assert shown(right, fields, source=source) == shown(wrong, fields, source=source)
    alone = shown("random_sibling_or_solution", {"solution": "<hint>"}, source=source)
    assert alone == shown("wrong_sibling", fields, source=source)


def test_the_papers_words() -> None:
    fields = {name: f"<{name}>" for name in FIELDS if name != "question"}
    question = PROMPT[-1].content

    def words(name: str) -> str:
        return shown(name, fields, source="papers")

    assert words("sibling") == f"{question}\nCorrect solution:\n\n<sibling>\n\nCorrectly solve the original question."
    assert words("sibling_or_solution_verdict") == (
        f"{question}\n\nYour previous attempt:\n\n<sibling>\n\nPrevious assessment: <assessment>\n\n"
        "Now solve this problem step by step."
    )
    assert words("solution_verdict") == words("sibling_verdict").replace("<sibling>", "<solution>")
    assert words("demonstration") == (
        f"{question}\n\nThis is an example for a response to the question:\n<solution>\n\n"
        "Now answer with a response of your own, including the thinking process."
    )
    # Purified's teacher and reference differ in the problem alone.
    assert words("solution") == f"Problem: {question}\n\n{words('reference_only')}"
    assert words("reference_only").endswith(
        "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    # As many newlines as in the trainer's code: none is lost to TOML.
    assert "=== Reference Solution Begin ===\n<solution>\n=== Reference Solution End ===\n\n\nAfter" in words(
        "solution"
    )


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (Verdict(1.0), "Your answer is correct."),
        (Verdict(0.5), "Your answer is incorrect."),
        (Verdict(7 / 12, details={"tests_passed": 7.0, "tests_total": 12.0}), "Your code passes 7 of 12 test cases."),
        (Verdict(None), None),
    ],
)
def test_the_assessment_says_how_many_tests_a_program_passes(
    verdict: Verdict, sentence: str | None, model: Path
) -> None:
    _, chat = load_exact(model)
    rollout = Rollout((), (1,), (0.0,), True, "so", 0)
    group = RolloutGroup(Example("one", PROMPT), (rollout,), (verdict,))
    assert hindsight([group], 0, 0, chat, contrast=0, seed=0).get("assessment") == sentence


def test_needs_are_the_fields_in_order_without_the_question() -> None:
    template = Template("own", "", text="$verdict $question ${solution} $verdict $$5")
    assert template.needs == ("verdict", "solution")
    assert Template("choice", "", first_of=("own",)).needs == ()


def test_a_missing_field_skips_and_says_which() -> None:
    templates = load_templates("default")
    assert apply(templates, "solution", PROMPT, {}) == Skipped("solution", ("solution",))
    assert apply(templates, "solution_verdict", PROMPT, {}) == Skipped("solution_verdict", ("solution", "verdict"))
    assert Skipped("solution_verdict", ("solution", "verdict")).reason == (
        "context solution_verdict: no solution and no verdict"
    )


def test_the_first_that_can_be_rendered_is_shown() -> None:
    both = {"sibling": "<sibling>", "feedback": "<feedback>"}
    assert shown("sibling_or_feedback", both) == shown("sibling", both)
    assert shown("sibling_or_feedback", {"feedback": "<feedback>"}) == shown("feedback", both)
    nothing = apply(load_templates("default"), "sibling_or_feedback", PROMPT, {"solution": "<solution>"})
    assert nothing == Skipped("sibling_or_feedback", ("sibling", "feedback"), ("sibling", "feedback"))
    assert nothing.reason == "context sibling_or_feedback: none of sibling, feedback can be rendered"
    assert Skipped("solution").reason == "context solution: prompt and completion do not fit the window"


def test_a_system_text_takes_the_place_of_what_stood_before(tmp_path: Path) -> None:
    templates = load(tmp_path, '[own]\nsystem = "You are a teacher."\ntext = "$question for $$5"\n')
    messages = apply(templates, "own", PROMPT, {})
    assert messages == (Message("system", "You are a teacher."), Message("user", "what is 1 + 1 ? for $5"))


def test_an_own_system_text_keeps_the_tools_of_the_question_that_is_shown(tmp_path: Path) -> None:
    own = (Message("tools", '["own"]'), *PROMPT)
    templates = load(
        tmp_path,
        '[own]\nsystem = "Teach."\ntext = "$question"\n[other]\nsystem = "Teach."\ntext = "$other_question"\n'
        '[none]\nsystem = "Teach."\ntext = "$solution"\n[both]\ntext = "$question or $other_question"\n',
    )
    fields = {"other_question": "<other_question>", "solution": "2"}
    shown = {name: apply(templates, name, own, fields, other_input=OTHER) for name in templates}
    teach = Message("system", "Teach.")
    assert shown == {
        "own": (own[0], teach, PROMPT[1]),
        "other": (OTHER[0], teach, OTHER[2]),
        "none": (teach, Message("user", "2")),
        # A context of the own question that mentions another one is about the own.
        "both": (*own[:-1], Message("user", "what is 1 + 1 ? or <other_question>")),
    }


def test_text_in_a_field_is_no_template() -> None:
    assert "$question costs $5" in shown("solution", {"solution": "$question costs $5"})


def test_shipped_templates_neither_begin_nor_end_with_space() -> None:
    # A stray newline at either end would be tokens that no one asked for.
    for source in shipped_contexts():
        for template in load_templates(source).values():
            text = template.text or ""
            assert text == text.strip(), template.name
            assert string.Template(text).is_valid()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[own]\ntext = "costs $ 5"\n', "[own].text holds a stray '$'; write '$$' for a dollar sign"),
        (
            '[own]\ntext = "a"\ntxet = "b"\n',
            "unknown key 'txet' in [own]; known: before, description, first_of, system, text, turns",
        ),
        ('[own]\ndescription = "a"\n', "[own] needs either 'text' or 'first_of'"),
        ('[own]\ntext = "a"\nfirst_of = ["b"]\n', "[own] needs either 'text' or 'first_of'"),
        ('[own]\nfirst_of = ["gone"]\n', "own.first_of names 'gone', which is no plain template there"),
        ('[own]\nfirst_of = "gone"\n', "[own].first_of must be a list of names"),
        ("[own]\nfirst_of = []\n", "[own].first_of must be a list of names"),
        ("[own]\ntext = 3\n", "[own].text must be a text"),
        ('[own]\ntext = "a"\nsystem = 3\n', "[own].system must be a text"),
        ('own = "a"\n', "'own' must be a table"),
        ("[own\n", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert str(raised.value).startswith(f"context file {tmp_path / 'own.toml'}")
    assert sentence in str(raised.value)


def test_a_file_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_bytes(b'[own]\ntext = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"own\.toml is not valid TOML: 'utf-8' codec"):
        load_templates(tmp_path / "own.toml")


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    sentence = r"'defualt' not found: did you mean 'default'\? else give a shipped name \(countdown, default"
    with pytest.raises(ConfigError, match=sentence):
        load_templates("defualt")
    with pytest.raises(ConfigError, match="unknown context 'nothing'; known: own"):
        apply(load(tmp_path, '[own]\ntext = "$question"\n'), "nothing", PROMPT, {})


def test_a_prompt_must_end_with_the_user() -> None:
    with pytest.raises(ConfigError, match="context student: the prompt must end with a user message"):
        apply(load_templates("default"), "student", PROMPT[:1], {})
