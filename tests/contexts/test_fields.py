"""What contexts may show of a group: siblings by length and by lot, attempts, answers, majorities, half a solution."""

from __future__ import annotations

import pytest

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.fields import example_fields, hindsight
from selfdistill.contexts.templates import FIELDS, HINDSIGHT, apply, load_templates
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Skipped, Verdict
from support.engine import load_exact
from support.tiny import save_tiny_model

PROMPT = (Message("user", "make 6"),)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return load_exact(save_tiny_model(tmp_path_factory.mktemp("model")))[1]


def group(*attempts: tuple[str, float | None, str | None], solution: str = "") -> RolloutGroup:
    """Attempts as (text, reward, answer); a text has as many tokens as words."""
    rollouts = tuple(
        Rollout((1,), (5,) * len(text.split()), (-1.0,) * len(text.split()), True, f"<think> x </think> {text}", 0)
        for text, _, _ in attempts
    )
    verdicts = tuple(Verdict(reward, answer=answer) for _, reward, answer in attempts)
    fields = {"solution": solution} if solution else {}
    return RolloutGroup(Example("row 1", PROMPT, fields), rollouts, verdicts)


ATTEMPTS = group(
    ("two times three", 1.0, "6"),
    ("one and five makes six", 1.0, "6"),
    ("seven", 0.0, "7"),
    ("six", 1.0, "6"),
    ("no idea", 0.0, None),
)


def fields_of(
    chat: Chat, index: int, *, of: RolloutGroup = ATTEMPTS, contrast: int = 0, seed: int = 0
) -> dict[str, str]:
    return hindsight([of], 0, index, chat, contrast=contrast, seed=seed)


def test_right_siblings_are_the_first_the_shortest_and_the_longest_besides_the_scored_one(chat: Chat) -> None:
    of_wrong = fields_of(chat, 2)
    assert of_wrong["sibling"] == "two times three"
    assert of_wrong["shortest_sibling"] == "six"
    assert of_wrong["longest_sibling"] == "one and five makes six"
    assert of_wrong["sibling_answer"] == "6"
    of_shortest = fields_of(chat, 3)
    assert of_shortest["shortest_sibling"] == "two times three"
    assert fields_of(chat, 0)["sibling"] == "one and five makes six"


def test_a_random_sibling_is_every_right_one_in_turn_and_the_same_for_the_same_seed(chat: Chat) -> None:
    seen = {fields_of(chat, 0, seed=seed)["random_sibling"] for seed in range(40)}
    assert seen == {"one and five makes six", "six"}
    assert len({fields_of(chat, 0, seed=3)["random_sibling"] for _ in range(5)}) == 1
    # Drawn for each completion, not once for the group.
    together = [[fields_of(chat, index, seed=seed)["random_sibling"] for index in (2, 4)] for seed in range(40)]
    assert any(first != second for first, second in together)


def test_a_wrong_sibling_comes_with_its_answer_if_it_has_one(chat: Chat) -> None:
    found = [fields_of(chat, 0, contrast=contrast) for contrast in (0, 1)]
    assert {fields["wrong_sibling"]: fields.get("wrong_answer") for fields in found} == {"seven": "7", "no idea": None}
    assert "wrong_sibling" not in fields_of(chat, 0, contrast=2)


def test_the_attempt_itself_and_the_others(chat: Chat) -> None:
    fields = fields_of(chat, 2)
    assert (fields["attempt"], fields["attempt_answer"], fields["verdict"]) == ("seven", "7", "wrong")
    assert fields["attempts"] == (
        "attempt 1 : two times three\n\nattempt 2 : one and five makes six\n\nattempt 3 : six\n\nattempt 4 : no idea"
    )
    assert "attempt_answer" not in fields_of(chat, 4)
    alone = fields_of(chat, 0, of=group(("six", 1.0, "6")))
    assert {"attempts", "sibling", "random_sibling", "agreeing_sibling"} & set(alone) == set()


def test_the_majority_needs_no_verdict_and_a_tie_has_none(chat: Chat) -> None:
    unjudged = group(("a b c", None, "1"), ("a b", None, "2"), ("a", None, "1"), ("c d", None, "1"))
    assert fields_of(chat, 0, of=unjudged)["majority_answer"] == "1"
    assert fields_of(chat, 0, of=unjudged)["agreeing_sibling"] == "a"
    assert fields_of(chat, 2, of=unjudged)["agreeing_sibling"] == "c d"
    assert "verdict" not in fields_of(chat, 0, of=unjudged)
    tied = fields_of(chat, 0, of=group(("a", None, "1"), ("b", None, "2")))
    assert {"majority_answer", "agreeing_sibling"} & set(tied) == set()


@pytest.mark.parametrize(
    ("solution", "half"),
    [("a b c d", "a b"), ("a  b\nc", "a  b"), ("one two", "one"), ("word", None), ("", None)],
)
def test_half_a_solution_ends_after_half_of_its_words(solution: str, half: str | None, chat: Chat) -> None:
    of = group(("six", 1.0, "6"), solution=solution)
    assert fields_of(chat, 0, of=of).get("solution_half") == half
    assert example_fields(of.example).get("solution_half") == half
    own = Example("row", PROMPT, {"solution": "a b", "solution_half": "the data's own"})
    assert example_fields(own)["solution_half"] == "the data's own"


def test_every_field_is_told_apart_into_what_the_data_has_and_what_hindsight_adds(chat: Chat) -> None:
    of = group(("six", 1.0, "6"), ("six too", 1.0, "6"), ("seven", 0.0, "7"), solution="a b")
    given = set(fields_of(chat, 0, of=of))
    assert given <= set(FIELDS)
    assert given - set(HINDSIGHT) == {"solution", "solution_half"}
    assert set(FIELDS) - set(HINDSIGHT) == {"question", "solution", "answer", "solution_half"}


@pytest.mark.parametrize("source", ["default", "countdown", "toolbox"])
def test_every_new_context_can_be_shown_and_skips_with_the_name_of_what_is_missing(source: str, chat: Chat) -> None:
    of = group(("six", 1.0, "6"), ("six too", 1.0, "6"), ("seven", 0.0, "7"), solution="a b")
    templates = load_templates(source)
    fields, none = fields_of(chat, 0, of=of), fields_of(chat, 0, of=group(("", None, None)))
    for name, missing in (
        ("random_sibling", "random_sibling"),
        ("wrong_answer", "wrong_answer"),
        ("agreeing_sibling", "agreeing_sibling"),
        ("attempts", "attempts"),
        ("solution_half", "solution_half"),
    ):
        shown = apply(templates, name, PROMPT, fields)
        assert not isinstance(shown, Skipped) and fields[missing] in shown[-1].content
        skipped = apply(templates, name, PROMPT, none)
        assert isinstance(skipped, Skipped) and skipped.missing == (missing,)
    assert not isinstance(apply(templates, "brief", PROMPT, none), Skipped)
    second = apply(templates, "attempt_verdict", PROMPT, fields)
    assert not isinstance(second, Skipped) and "six" in second[-1].content and "correct" in second[-1].content
